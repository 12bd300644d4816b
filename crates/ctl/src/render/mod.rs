//! What people see. Every function turns one type of the API into text.

mod host;
mod vm;

#[cfg(test)]
mod golden;

use memtide_api::device::{Driver, Urgency};
use memtide_api::http::{HeldReturn, VmState};
use memtide_device_ctl::output::{Colour, Tone};
use memtide_device_ctl::text::{time, wrapped};
use memtide_units::ByteSize;

pub(crate) use host::host;
pub(crate) use vm::vm;

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
