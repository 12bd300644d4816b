//! `memtide device SOCKET status`.

use memtide_api::device::{Counters, DeviceStatus};
use memtide_units::ByteSize;

use super::{driver, line, telemetry, time, urgency};
use crate::output::{Colour, Tone};
use crate::table::printable;

/// A device by its own words.
pub(crate) fn device(status: &DeviceStatus, colour: Colour) -> String {
    let memory: ByteSize = status.memory.iter().map(|region| region.range.len()).sum();
    let stolen: ByteSize = status.stolen.iter().map(|range| range.len()).sum();
    let vmm = if status.vmm_connected { "connected" } else { "not connected" };
    let mut text = colour.paint(Tone::Heading, &format!("Device process {}", status.pid)) + "\n";
    text += &line("VMM", vmm);
    text +=
        &line("driver", &format!("{} (features {:#x})", driver(status.driver), status.features));
    text += &line("memory", &format!("{memory} in {} regions", status.memory.len()));
    text += &line("resident", &status.resident.to_string());
    text += &line("stolen", &format!("{stolen} in {} ranges", status.stolen.len()));
    text += &line("balloon", &format!("{} of {} wanted", status.actual, status.target));
    text += &line("min", &format!("{} guaranteed", status.min));
    if let Some(pending) = &status.pending {
        let asked = format!(
            "{} (ticket {}, {}) for {}: {}",
            pending.bytes,
            pending.ticket,
            urgency(pending.urgency),
            time(pending.waited_ms),
            pending.reason
        );
        text += &line("waits for", &asked);
    }
    if let Some(guest) = &status.telemetry {
        text += &format!("\n{}\n", colour.paint(Tone::Heading, "Its guest"));
        text += &telemetry(guest);
    }
    if !status.stats.is_empty() {
        text += &format!("\n{}\n", colour.paint(Tone::Heading, "The driver's statistics"));
        for (name, value) in &status.stats {
            text += &format!("  {:24}{value:>20}\n", printable(name));
        }
    }
    text + &format!("\n{}\n", colour.paint(Tone::Heading, "Since it started"))
        + &counters(&status.counters)
}

fn counters(counters: &Counters) -> String {
    let mut text = String::new();
    let Counters { inflated, deflated, reported, stolen, returned, taken, .. } = counters;
    text +=
        &line("stock", &format!("{inflated} inflated, {deflated} deflated, {reported} reported"));
    text += &line("agent", &format!("{stolen} stolen, {returned} returned, {taken} taken unasked"));
    let returns = format!(
        "{} asked, {} granted, {} held",
        counters.returns_asked, counters.returns_granted, counters.returns_held
    );
    text += &line("returns", &returns);
    text += &line("punches", &format!("{}, {} failed", counters.punches, counters.punch_errors));
    for (name, count) in &counters.refused {
        text += &line("refused", &format!("{name} {count} times"));
    }
    text
}
