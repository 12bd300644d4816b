//! What of the device's events goes to the log, and how loud.

use memtide_balloon::Event;

use crate::control::brief;

/// Writes one event down. What comes often is for those who ask for it with `--log debug`.
pub(crate) fn event(event: &Event) {
    match event {
        Event::DriverChanged(driver) => tracing::info!(?driver, "the device has another driver"),
        Event::Hello(hello) => {
            tracing::info!(epoch = hello.epoch, stolen = %brief(&hello.stolen), "the agent says hello");
        }
        Event::Stolen { ranges, stolen } => {
            tracing::debug!(ranges = %brief(ranges), %stolen, "stolen");
        }
        Event::ReturnAsked(asked) => {
            let (ticket, bytes, urgency) = (asked.ticket, asked.bytes, asked.urgency);
            tracing::debug!(ticket, %bytes, ?urgency, "a return is asked for");
        }
        Event::ReturnCancelled { ticket } => tracing::debug!(ticket, "a return is cancelled"),
        Event::Returned { ticket, ranges, by, stolen } => {
            tracing::debug!(ticket, ranges = %brief(ranges), ?by, %stolen, "returned");
        }
        Event::Taken { ranges, stolen } => {
            tracing::warn!(ranges = %brief(ranges), %stolen, "the guest took blocks unasked");
        }
        Event::Telemetry(_) => {}
        Event::Balloon { actual } => tracing::debug!(%actual, "the balloon has another size"),
        Event::Refused { reason, text, suppressed } => {
            tracing::warn!(reason, suppressed, "{text}");
        }
    }
}
