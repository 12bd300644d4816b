//! What people see. Every function turns one type of the API into text.

mod device;
mod event;
mod host;
mod vm;

#[cfg(test)]
mod golden;

use memtide_api::device::{Driver, GuestTelemetry, Urgency};
use memtide_api::http::{HeldReturn, VmState};
use memtide_units::ByteSize;

pub(crate) use device::device;
pub(crate) use event::event;
pub(crate) use host::host;
pub(crate) use vm::vm;

use crate::output::{Colour, Tone};
use crate::table::{printable, wrapped};

/// Width of the names that stand before values.
const LABEL: usize = 12;

/// `name  value`, below each other.
fn line(label: &str, value: &str) -> String {
    format!("  {label:LABEL$}{}", printable(value)).trim_end().to_owned() + "\n"
}

fn driver(driver: Driver) -> &'static str {
    match driver {
        Driver::None => "-",
        Driver::Stock => "stock",
        Driver::Agent => "agent",
    }
}

fn state(state: &VmState) -> (&'static str, Tone) {
    match state {
        VmState::Starting => ("starting", Tone::Attention),
        VmState::Connected => ("connected", Tone::Plain),
        VmState::Lost(_) => ("lost", Tone::Alarm),
    }
}

fn urgency(urgency: Urgency) -> &'static str {
    match urgency {
        Urgency::Comfort => "comfort",
        Urgency::Pressure => "pressure",
        Urgency::Emergency => "emergency",
    }
}

fn limit(max: ByteSize) -> String {
    if max == ByteSize::MAX { "none".into() } else { max.to_string() }
}

/// Milliseconds as people say them.
fn time(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// A held return: what, for how long, the reason's name, and the explanation below.
fn held(name: &str, held: &HeldReturn, colour: Colour) -> String {
    let asked = &held.asked;
    let head = format!(
        "{name} has waited for {} for {} (ticket {}, {}): {}",
        asked.bytes,
        time(asked.waited_ms),
        asked.ticket,
        urgency(asked.urgency),
        asked.reason
    );
    colour.paint(Tone::Attention, &head) + "\n" + &wrapped(&held.explanation, 2)
}

/// How a guest is, as its agent says.
fn telemetry(guest: &GuestTelemetry) -> String {
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
