//! How fast one guest may talk on the block queue.
//!
//! Each request can make an event of its own size for everybody who listens, and work for the
//! host's service, which serves other guests as well. So requests are carried out at a steady rate
//! of bytes, after a burst; those above it wait in the ring, where they cost nothing.

use std::time::Duration;

use memtide_units::Instant;

/// 250 KiB a second: seven of the largest requests, or 250 small ones. An agent sends one for each
/// block that it has taken offline, which takes its kernel milliseconds.
const BYTES_PER_MS: u64 = 256;

/// A small request is counted as one of this size: what it costs besides its bytes.
const BYTES_MIN: u64 = 1024;

/// A burst: what would take so long at the steady rate. As events for a client it is less than what
/// may wait for one that reads late.
const BURST: Duration = Duration::from_secs(1);

/// A leaky bucket, as the time at which it will be empty.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    empty: Instant,
}

impl Pace {
    /// `None` where a request may be carried out now, otherwise when.
    pub(crate) fn wait(&self, now: Instant) -> Option<Instant> {
        let ahead = self.empty.since(now);
        (ahead > BURST).then(|| now + (ahead - BURST))
    }

    /// A request of so many bytes was carried out.
    pub(crate) fn count(&mut self, bytes: u64, now: Instant) {
        let cost = Duration::from_millis(bytes.max(BYTES_MIN).div_ceil(BYTES_PER_MS));
        self.empty = self.empty.max(now) + cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_guest_gets_a_burst_and_then_its_rate(requests in prop::collection::vec(0_u64..40_000, 1..300)) {
            let (mut pace, mut now, mut bytes) = (Pace::default(), Instant::from_millis(0), 0);
            for request in requests {
                if let Some(when) = pace.wait(now) {
                    prop_assert!(when > now);
                    now = when;
                }
                prop_assert_eq!(pace.wait(now), None, "it is let in when it was told to come");
                pace.count(request, now);
                bytes += request;
                prop_assert!(bytes <= 256 * (1000 + now.as_millis()) + 40_000);
            }
        }
    }
}
