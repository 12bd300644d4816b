//! A token bucket for log lines that a guest can cause.

use std::time::Duration;

use memtide_units::Instant;

/// Lines that may come at once: enough to see a pattern.
const BURST: u32 = 10;

/// One more line per this time. Ten a minute is what a person reads and a disk does not feel.
const REFILL: Duration = Duration::from_secs(6);

/// Lets a burst of ten lines through, then one per six seconds, and counts what it held back.
#[derive(Clone, Copy, Debug)]
pub struct LogLimiter {
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

impl LogLimiter {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { tokens: BURST, refilled: now, suppressed: 0 }
    }

    /// May a line be written now? If so: how many were held back since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        self.refill(now);
        let Some(left) = self.tokens.checked_sub(1) else {
            self.suppressed += 1;
            return None;
        };
        self.tokens = left;
        Some(std::mem::take(&mut self.suppressed))
    }

    fn refill(&mut self, now: Instant) {
        let earned = now.since(self.refilled).as_millis() / REFILL.as_millis();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX).min(BURST);
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(BURST);
            // What is earned in part stays earned, unless the bucket is full anyway.
            self.refilled =
                if self.tokens == BURST { now } else { self.refilled + REFILL * earned };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let start = Instant::from_millis(5);
        let mut limiter = LogLimiter::new(start);
        let passed = (0..100).filter(|_| limiter.admit(start).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limiter.admit(start + REFILL), Some(90));
        assert_eq!(limiter.admit(start + REFILL), None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_one_per_refill(steps in prop::collection::vec(0_u64..20_000, 1..200)) {
            let mut limiter = LogLimiter::new(Instant::from_millis(0));
            let (mut now, mut passed, mut told) = (0, 0_u64, 0);
            for step in &steps {
                now += step;
                if let Some(suppressed) = limiter.admit(Instant::from_millis(now)) {
                    passed += 1;
                    told += suppressed;
                }
            }
            prop_assert!(passed <= 10 + now / 6000);
            prop_assert!(passed + told <= steps.len() as u64);
        }
    }
}
