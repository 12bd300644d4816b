//! What people see of a device.

mod event;
mod statistics;
mod status;

#[cfg(test)]
mod golden;

use memtide_api::device::{Driver, GuestTelemetry, LocalRule, Urgency};

use crate::text::{LABEL, line, wrapped};

pub(crate) use event::event;
pub(crate) use statistics::statistics;
pub(crate) use status::{brief, guarantees, status};

fn driver(driver: Driver) -> &'static str {
    match driver {
        Driver::None => "none",
        Driver::Stock => "stock",
        Driver::Agent => "agent",
    }
}

fn rule(rule: LocalRule) -> &'static str {
    match rule {
        LocalRule::Grant => "grant",
        LocalRule::Target => "target",
        LocalRule::Hold => "hold",
    }
}

fn urgency(urgency: Urgency) -> &'static str {
    match urgency {
        Urgency::Comfort => "comfort",
        Urgency::Pressure => "pressure",
        Urgency::Emergency => "emergency",
    }
}

/// How a guest is, as its agent says.
pub fn telemetry(guest: &GuestTelemetry) -> String {
    let GuestTelemetry { total, free, available, cached, .. } = guest;
    let mut text = line(
        "memory",
        &format!("{total} online: {available} available, {free} free, {cached} cached"),
    );
    if !guest.working_set.is_zero() || !guest.cold.is_zero() {
        text +=
            &line("heat", &format!("{} touched lately, {} cold", guest.working_set, guest.cold));
    }
    text += &line("pressure", &format!("{} some, over ten seconds", guest.psi_some_avg10));
    let blocks = format!(
        "{} stolen of {} movable, {} in all; {} steals failed",
        guest.blocks_stolen, guest.blocks_movable, guest.blocks_total, guest.steals_failed
    );
    text += &line("blocks", &blocks);
    if guest.oom_kills > 0 {
        text += &line("OOM kills", &guest.oom_kills.to_string());
    }
    text += &line("agent", &format!("{} resident", guest.agent_rss));
    if !guest.note.is_empty() {
        let note = wrapped(&guest.note, 2 + LABEL);
        text += &format!("  {:LABEL$}{}\n", "decided", note.trim());
    }
    text
}
