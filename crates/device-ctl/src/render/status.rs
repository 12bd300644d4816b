//! `status`, and the shorter words on the same matter.

use memtide_api::device::{Counters, Decider, DeviceStatus, Driver, LocalRule, PendingReturn};
use memtide_units::ByteSize;

use super::statistics::summary;
use super::{driver, rule, telemetry, urgency};
use crate::output::{Colour, Tone};
use crate::text::{counted, line, time};

/// A device by its own words.
pub(crate) fn status(status: &DeviceStatus, colour: Colour) -> String {
    let heading = |text: &str| colour.paint(Tone::Heading, text) + "\n";
    let mut text = heading(&format!("Device process {}", status.pid));
    text += &guest_side(status);
    text += &guarantees(status);
    if let Some(pending) = &status.pending {
        text += &(colour.paint(Tone::Attention, waits(pending, status.decider).trim_end()) + "\n");
    }
    if let Some(guest) = status.telemetry.as_ref().filter(|_| status.driver == Driver::Agent) {
        text += &format!("\n{}", heading("Its guest, by its agent"));
        text += &telemetry(guest);
    } else if !status.stats.is_empty() {
        text += &format!("\n{}", heading("Its guest, by its driver"));
        text += &summary(&status.stats, status.stats_age_ms.unwrap_or(0));
    }
    text + "\n" + &heading("Since it started") + &counters(&status.counters)
}

fn guest_side(status: &DeviceStatus) -> String {
    if !status.vmm_connected {
        return line("VMM", "not connected: start the VM")
            + &line("balloon", &format!("{} wanted of the next VM", status.target));
    }
    let memory: ByteSize = status.memory.iter().map(|region| region.range.len()).sum();
    let mut text = line("VMM", "connected") + &line("driver", &who_drives(status));
    let regions = counted(status.memory.len(), "region");
    text += &line("memory", &format!("{memory} in {regions}, {} resident", status.resident));
    text += &line("balloon", &balloon(status));
    text
}

fn who_drives(status: &DeviceStatus) -> String {
    match (status.driver, status.feature_names.is_empty()) {
        (Driver::None, _) => "none: the guest boots, or has no balloon driver".into(),
        (now, true) => format!("{} (features {:#x})", driver(now), status.features),
        (now, false) => format!("{} ({})", driver(now), status.feature_names.join(", ")),
    }
}

/// What the guest does without and what it shall do without, in its driver's way.
fn balloon(status: &DeviceStatus) -> String {
    let stolen: ByteSize = status.stolen.iter().map(|range| range.len()).sum();
    let wanted = status.target;
    let stolen_in = || format!("{stolen} stolen in {}", counted(status.stolen.len(), "range"));
    match status.driver {
        Driver::Agent => format!("{}, {wanted} wanted at least", stolen_in()),
        Driver::Stock if status.actual == wanted => format!("{wanted}, as wanted"),
        Driver::Stock => format!("{} of {wanted} wanted", status.actual),
        // The guest's kernel keeps blocks offline that an agent stole, also without the agent.
        Driver::None if !stolen.is_zero() => format!("{}, {wanted} wanted", stolen_in()),
        Driver::None => format!("{wanted} wanted"),
    }
}

/// What the guest gets back, and who says so.
pub(crate) fn guarantees(status: &DeviceStatus) -> String {
    let above = match (status.decider, status.local_rule) {
        (Decider::Controller, _) => "decided by the controller that is attached".into(),
        (Decider::AbsentController, now) => {
            format!("wait for the controller that has left, then for the rule \"{}\"", rule(now))
        }
        (Decider::LocalRule, LocalRule::Grant) => "granted (rule \"grant\")".into(),
        (Decider::LocalRule, LocalRule::Target) => {
            "granted down to the balloon's target, held above (rule \"target\")".into()
        }
        (Decider::LocalRule, LocalRule::Hold) => {
            "held until somebody decides (rule \"hold\")".into()
        }
    };
    let min = if status.min.is_zero() { "nothing".into() } else { status.min.to_string() };
    line("guaranteed", &min) + &line("returns", &above)
}

fn waits(pending: &PendingReturn, decider: Decider) -> String {
    let how = match decider {
        Decider::LocalRule => "; decide it with \"grant\" or \"deny\"",
        Decider::Controller | Decider::AbsentController => "",
    };
    let asked = format!(
        "{} (ticket {}, {}) for {}: {}{how}",
        pending.bytes,
        pending.ticket,
        urgency(pending.urgency),
        time(pending.waited_ms),
        pending.reason
    );
    line("waits for", &asked)
}

/// A device in one line.
pub(crate) fn brief(status: &DeviceStatus) -> String {
    if !status.vmm_connected {
        return "now: no VMM is connected".into();
    }
    format!("now: driver {}, balloon {}", driver(status.driver), balloon(status))
}

fn counters(counters: &Counters) -> String {
    let mut text = String::new();
    let Counters { inflated, deflated, reported, stolen, returned, taken, .. } = counters;
    if [inflated, deflated, reported].iter().any(|size| !size.is_zero()) {
        let moved = format!("{inflated} inflated, {deflated} deflated, {reported} reported");
        text += &line("stock", &moved);
    }
    if [stolen, returned, taken].iter().any(|size| !size.is_zero()) {
        let moved = format!("{stolen} stolen, {returned} returned, {taken} taken unasked");
        text += &line("agent", &moved);
    }
    if counters.returns_asked > 0 {
        let returns = format!(
            "{} asked, {} granted, {} held",
            counters.returns_asked, counters.returns_granted, counters.returns_held
        );
        text += &line("returns", &returns);
    }
    text +=
        &line("holes", &format!("{} punched, {} failed", counters.punches, counters.punch_errors));
    for (name, count) in &counters.refused {
        text += &line("refused", &format!("{name} {count} times"));
    }
    text
}
