//! `watch`: one line per event.

use memtide_api::device::{Event, GrantedBy};
use memtide_units::{ByteSize, GpaRange};

use super::{driver, urgency};

/// What happened, without its time and without a newline.
pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::DriverChanged { driver: now } => format!("driver: {}", driver(*now)),
        Event::Hello(hello) => format!(
            "hello: {} online of {}, {} stolen, blocks of {}",
            hello.online,
            hello.present,
            total(&hello.stolen),
            hello.block_size
        ),
        Event::Stolen { ranges, stolen } => {
            format!("stolen: {}, {stolen} in all", total(ranges))
        }
        Event::ReturnAsked(asked) => format!(
            "return asked: {} (ticket {}, {})",
            asked.bytes,
            asked.ticket,
            urgency(asked.urgency)
        ),
        Event::ReturnCancelled { ticket } => format!("return taken back: ticket {ticket}"),
        Event::Returned { ticket, ranges, by, stolen } => format!(
            "returned: {} (ticket {ticket}, {}), {stolen} still stolen",
            total(ranges),
            granted_by(*by)
        ),
        Event::Taken { ranges, stolen } => {
            format!("taken unasked: {}, {stolen} still stolen", total(ranges))
        }
        Event::Telemetry(guest) => format!(
            "guest: {} of {} available, pressure {}",
            guest.available, guest.total, guest.psi_some_avg10
        ),
        Event::Ejecting { ranges } => {
            format!("ejecting: {} of what is stolen leaves the VM", total(ranges))
        }
        Event::PlugWanted { ranges } => format!("to be plugged in: {}", total(ranges)),
        Event::Balloon { actual } => format!("balloon: {actual}"),
    }
}

fn granted_by(by: GrantedBy) -> &'static str {
    match by {
        GrantedBy::Controller => "granted by a decision",
        GrantedBy::Minimum => "below the guarantee",
        GrantedBy::LocalRule => "by the local rule",
    }
}

fn total(ranges: &[GpaRange]) -> ByteSize {
    ranges.iter().map(|range| range.len()).sum()
}
