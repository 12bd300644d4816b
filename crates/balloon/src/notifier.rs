//! When a stock driver may be told that the configuration changed.
//!
//! It learns a new `num_pages` only through the vhost-user message `CONFIG_CHANGE_MSG`, and QEMU
//! 11.1 dies of a null pointer when that message reaches a device that is not started
//! (`vub_config_notifier`). That it does not is up to whoever sends it (the device process hands it
//! over in two halves); this is about *when*: changes are told together, only to a device that runs,
//! and not while its driver starts, which resets and starts it once or twice.

use std::time::Duration;

use memtide_units::Instant;

/// How long a device must have run: past the probe of the driver, which resets and starts the
/// device once or twice.
const SETTLED: Duration = Duration::from_millis(200);

/// Messages are at least this far apart; changes between them are told by the next. A controller
/// may set targets as often as it likes, while each message is an interrupt and a configuration
/// read in the guest.
const APART: Duration = Duration::from_millis(100);

/// Decides when the message goes out; sending is somebody else's.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConfigNotifier {
    started: Option<Instant>,
    sent: Option<Instant>,
    pending: bool,
}

impl ConfigNotifier {
    /// A stock driver's rings run from now on.
    pub fn started(&mut self, now: Instant) {
        self.started.get_or_insert(now);
    }

    /// They do not run any more. What was to be told stays to be told: the same driver may go on
    /// (a VM that was paused, a region that came back) and reads nothing by itself. One that starts
    /// anew reads the configuration once more than it needs to.
    pub fn stopped(&mut self) {
        self.started = None;
    }

    /// One of its rings has stopped, perhaps as the first of all: it has to settle again.
    pub fn disturbed(&mut self, now: Instant) {
        self.started = self.started.map(|_| now);
    }

    /// The configuration has changed.
    pub fn changed(&mut self) {
        self.pending = true;
    }

    /// When the message may go out; `None` where there is nothing to tell.
    pub fn due(&self) -> Option<Instant> {
        let settled = self.started? + SETTLED;
        let apart = self.sent.map_or(settled, |sent| sent + APART);
        self.pending.then(|| settled.max(apart))
    }

    /// True where the message is to be sent now; it counts as sent then.
    pub fn take(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.pending = false;
            self.sent = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn a_change_waits_until_the_device_has_settled() {
        let mut notifier = ConfigNotifier::default();
        notifier.started(at(100));
        notifier.changed();
        assert!(!notifier.take(at(299)));
        assert_eq!(notifier.due(), Some(at(300)));
        assert!(notifier.take(at(300)));
        assert!(!notifier.take(at(5000)), "one change is one message");
    }

    #[test]
    fn a_stopped_device_is_told_once_it_has_settled_again() {
        let mut notifier = ConfigNotifier::default();
        notifier.changed();
        assert_eq!(notifier.due(), None);
        notifier.started(at(0));
        notifier.stopped();
        assert!(!notifier.take(at(9000)), "never while it is stopped");
        notifier.started(at(9000));
        assert!(!notifier.take(at(9199)));
        assert!(notifier.take(at(9200)), "its driver goes on, and has read nothing");
        notifier.stopped();
        notifier.started(at(9300));
        assert!(!notifier.take(at(20_000)), "one change is one message");
    }

    proptest! {
        #[test]
        fn messages_are_apart_and_far_from_a_start(steps in prop::collection::vec((0_u64..400, 0_u8..6), 0..200)) {
            let mut notifier = ConfigNotifier::default();
            let (mut now, mut started, mut sent) = (0, None, None);
            for (wait, what) in steps {
                now += wait;
                match what {
                    0 => { notifier.started(at(now)); started = started.or(Some(now)); }
                    1 => { notifier.stopped(); started = None; }
                    2 => { notifier.disturbed(at(now)); started = started.map(|_| now); }
                    _ => notifier.changed(),
                }
                if notifier.take(at(now)) {
                    prop_assert!(started.is_some_and(|start| now >= start + 200));
                    prop_assert!(sent.is_none_or(|last| now >= last + 100));
                    sent = Some(now);
                }
            }
        }
    }
}
