//! The device model's words in those of the control protocol. They are two types on purpose: the
//! one follows the guest's bytes, the other is a promise to programs on the host.

use std::time::Duration;

use memtide_access::{Amounts, CELLS_MAX, Cell, Digest, Layout, SPANS_MAX};
use memtide_api::device as api;
use memtide_balloon as balloon;
use memtide_units::GpaRange;
use memtide_wire::block;

pub(crate) fn driver(driver: balloon::Driver) -> api::Driver {
    match driver {
        balloon::Driver::None => api::Driver::None,
        balloon::Driver::Stock => api::Driver::Stock,
        balloon::Driver::Agent => api::Driver::Agent,
    }
}

pub(crate) fn decider(decider: balloon::Decider) -> api::Decider {
    match decider {
        balloon::Decider::Controller => api::Decider::Controller,
        balloon::Decider::AbsentController => api::Decider::AbsentController,
        balloon::Decider::LocalRule => api::Decider::LocalRule,
    }
}

pub(crate) fn local_rule(rule: balloon::LocalRule) -> api::LocalRule {
    match rule {
        balloon::LocalRule::Grant => api::LocalRule::Grant,
        balloon::LocalRule::Target => api::LocalRule::Target,
        balloon::LocalRule::Hold => api::LocalRule::Hold,
    }
}

/// The rule that somebody on the host wants.
pub(crate) fn wanted_rule(rule: api::LocalRule) -> balloon::LocalRule {
    match rule {
        api::LocalRule::Grant => balloon::LocalRule::Grant,
        api::LocalRule::Target => balloon::LocalRule::Target,
        api::LocalRule::Hold => balloon::LocalRule::Hold,
    }
}

pub(crate) fn hello(hello: &block::Hello) -> api::AgentHello {
    let stolen = hello.stolen.iter().chain(&hello.ejected);
    let stolen: balloon::RangeSet = stolen.copied().collect();
    api::AgentHello {
        epoch: hello.epoch,
        block_size: hello.block_size.size(),
        present: hello.present,
        online: hello.online,
        min: hello.min,
        max: hello.max,
        stolen: stolen.iter().collect(),
    }
}

pub(crate) fn pending(pending: balloon::PendingReturn) -> api::PendingReturn {
    api::PendingReturn {
        ticket: pending.ticket,
        bytes: pending.bytes,
        ranges: pending.ranges,
        urgency: match pending.urgency {
            block::Urgency::Comfort => api::Urgency::Comfort,
            block::Urgency::Pressure => api::Urgency::Pressure,
            block::Urgency::Emergency => api::Urgency::Emergency,
        },
        waited_ms: millis(pending.waited),
        reason: pending.reason.name().into(),
    }
}

pub(crate) fn telemetry(telemetry: &block::Telemetry) -> api::GuestTelemetry {
    api::GuestTelemetry {
        total: telemetry.total,
        free: telemetry.free,
        available: telemetry.available,
        cached: telemetry.cached,
        working_set: telemetry.working_set,
        cold: telemetry.cold,
        psi_some_us: telemetry.psi_some_us,
        psi_full_us: telemetry.psi_full_us,
        psi_some_avg10: telemetry.psi_some_avg10,
        oom_kills: telemetry.oom_kills,
        blocks_total: telemetry.blocks_total,
        blocks_movable: telemetry.blocks_movable,
        blocks_stolen: telemetry.blocks_stolen,
        steals_failed: telemetry.steals_failed,
        agent_rss: telemetry.agent_rss,
        note: telemetry.note.clone(),
        heat: telemetry.heat.as_deref().and_then(digest).map(Box::new),
    }
}

// What the wire lets through is what a history can hold.
const _: () = assert!(block::HEAT_CELLS_MAX == CELLS_MAX && block::HEAT_SPANS_MAX == SPANS_MAX);

/// A guest's word on what was touched, checked; one that contradicts itself is none.
fn digest(heat: &block::Heat) -> Option<Digest> {
    let layout = Layout::checked(heat.spans.clone(), heat.cell).ok()?;
    let amounts = Amounts {
        present: layout.present(),
        stolen: heat.stolen,
        free: heat.free,
        kernel: heat.kernel,
        used: heat.used,
        touched: heat.touched,
        untouched: heat.untouched,
        idle_ms: heat.idle_ms,
    };
    let cells = heat.cells.iter().map(|bytes| Cell::from_bytes(*bytes)).collect();
    let (at_ms, watched_ms) = (heat.at_ms, heat.watched_ms);
    Digest { at_ms, watched_ms, amounts, layout, cells }.checked().ok()
}

pub(crate) fn counters(counters: &balloon::Counters) -> api::Counters {
    api::Counters {
        inflated: counters.inflated,
        deflated: counters.deflated,
        reported: counters.reported,
        stolen: counters.stolen,
        returned: counters.returned,
        returns_asked: counters.returns_asked,
        returns_granted: counters.returns_granted,
        returns_held: counters.returns_held,
        taken: counters.taken,
        notices: counters.notices,
        notices_called_off: counters.notices_called_off,
        punches: counters.punches,
        punch_errors: counters.punch_errors,
        refused: counters.refused.iter().map(|(name, n)| ((*name).into(), *n)).collect(),
    }
}

/// An event for clients; `None` for what is meant for the log alone.
pub(crate) fn event(event: balloon::Event) -> Option<api::Event> {
    use balloon::Event as E;
    Some(match event {
        E::DriverChanged(changed) => api::Event::DriverChanged { driver: driver(changed) },
        E::Hello(said) => api::Event::Hello(hello(&said)),
        E::Stolen { ranges, stolen } => api::Event::Stolen { ranges, stolen },
        E::ReturnAsked(asked) => api::Event::ReturnAsked(pending(asked)),
        E::ReturnCancelled { ticket } => api::Event::ReturnCancelled { ticket },
        E::Returned { ticket, ranges, by, stolen } => {
            api::Event::Returned { ticket, ranges, by: granted_by(by), stolen }
        }
        E::Taken { ranges, stolen } => api::Event::Taken { ranges, stolen },
        E::Telemetry(said) => api::Event::Telemetry(telemetry(&said)),
        E::Ejecting { ranges } => api::Event::Ejecting { ranges },
        E::PlugWanted { ranges } => api::Event::PlugWanted { ranges },
        E::Balloon { actual } => api::Event::Balloon { actual },
        E::Refused { .. } => return None,
    })
}

fn granted_by(by: balloon::GrantedBy) -> api::GrantedBy {
    match by {
        balloon::GrantedBy::Controller => api::GrantedBy::Controller,
        balloon::GrantedBy::Minimum => api::GrantedBy::Minimum,
        balloon::GrantedBy::LocalRule => api::GrantedBy::LocalRule,
    }
}

/// A decision; the error is the reason that no guest would understand.
pub(crate) fn decision(decision: api::Decision) -> Result<balloon::Decision, String> {
    let reason = |name: String| {
        let known = block::HoldReason::ALL.iter().find(|reason| reason.name() == name);
        known.copied().ok_or(name)
    };
    Ok(match decision {
        api::Decision::Grant => balloon::Decision::Grant,
        api::Decision::Hold(name) => balloon::Decision::Hold(reason(name)?),
        api::Decision::Deny(name) => balloon::Decision::Deny(reason(name)?),
    })
}

/// Memory that somebody plugs in; the error says what is wrong with it.
pub(crate) fn pluggable(ranges: &[GpaRange]) -> Result<balloon::RangeSet, String> {
    if ranges.len() > api::PLUGGABLE_MAX {
        let count = ranges.len();
        return Err(format!(
            "{count} ranges are more than {}: join neighbours",
            api::PLUGGABLE_MAX
        ));
    }
    let mut set = balloon::RangeSet::default();
    for range in ranges {
        if set.overlaps(*range) {
            return Err(format!("{range} is named twice"));
        }
        set.insert(*range);
    }
    Ok(set)
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Ranges for the log: a few, and how many more.
pub(crate) fn brief(ranges: &[GpaRange]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = ranges.iter().take(SHOWN).map(ToString::to_string).collect();
    match ranges.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
