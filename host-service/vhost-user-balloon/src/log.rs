//! What of the device's events goes to the log, and how loud.

use memtide_balloon::{Event, LogLimiter};
use memtide_units::Instant;

use crate::control::brief;

/// The log of one guest's doings, which it cannot make as long as it likes.
#[derive(Debug)]
pub(crate) struct EventLog {
    limiter: LogLimiter,
    comings: LogLimiter,
}

impl EventLog {
    pub(crate) fn new(now: Instant) -> Self {
        Self { limiter: LogLimiter::new(now), comings: LogLimiter::new(now) }
    }

    /// Writes one event down, unless there were too many of its kind lately. Refusals were limited
    /// where they were counted.
    pub(crate) fn write(&mut self, event: &Event, now: Instant) {
        if !is_loud(event) {
            write(event);
            return;
        }
        if self.admits(now) {
            write(event);
        }
    }

    /// Writes down what somebody on the host can make happen as often as they like.
    pub(crate) fn warn(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if self.admits(now) {
            tracing::warn!("{}", text());
        }
    }

    /// Writes down who has come, or gone: they may do so as often as they like.
    pub(crate) fn coming(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if let Some(suppressed) = self.comings.admit(now) {
            tracing::info!(suppressed, "{}", text());
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        let suppressed = self.limiter.admit(now);
        if let Some(1..) = suppressed {
            tracing::info!(suppressed, "more of the like was not written down before this");
        }
        suppressed.is_some()
    }
}

/// Is it written down unless somebody asks for less, and at the guest's pleasure?
fn is_loud(event: &Event) -> bool {
    matches!(
        event,
        Event::DriverChanged(_)
            | Event::Hello(_)
            | Event::Taken { .. }
            | Event::Ejecting { .. }
            | Event::PlugWanted { .. }
    )
}

/// What comes often is for those who ask for it with `--log debug`.
fn write(event: &Event) {
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
        Event::Ejecting { ranges } => {
            tracing::info!(ranges = %brief(ranges), "the guest ejects what is stolen");
        }
        Event::PlugWanted { ranges } => {
            tracing::info!(ranges = %brief(ranges), "the guest waits for memory to be plugged in");
        }
        Event::Telemetry(_) => {}
        Event::Balloon { actual } => tracing::debug!(%actual, "the balloon has another size"),
        Event::Refused { reason, text, suppressed } => {
            tracing::warn!(reason, suppressed, "{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::ByteSize;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_guest_does_not_fill_the_log_by_what_is_no_refusal() {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let taken = Event::Taken { ranges: vec![], stolen: ByteSize::ZERO };
        tracing::subscriber::with_default(log, || {
            let mut log = EventLog::new(Instant::from_millis(0));
            for ms in 0..60_000 {
                log.write(&taken, Instant::from_millis(ms));
            }
        });
        let lines = String::from_utf8(written.0.lock().unwrap().clone()).unwrap().lines().count();
        assert!((10..40).contains(&lines), "{lines} lines in a minute");
    }
}
