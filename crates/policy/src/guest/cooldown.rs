//! Blocks that could not be stolen rest before the next try.

use alloc::collections::BTreeMap;
use core::time::Duration;

use memtide_units::{BlockId, Instant};

/// First rest: long enough for a burst of page pins (I/O in flight) to pass.
const FIRST: Duration = Duration::from_secs(10);
/// Longest rest: kernel pages rarely leave, but they do.
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    length: Duration,
}

/// Which blocks rest until when.
#[derive(Clone, Debug, Default)]
pub(super) struct Cooldowns {
    rests: BTreeMap<BlockId, Rest>,
}

impl Cooldowns {
    /// `block` failed: it rests for ten seconds, twice as long each further time, ten minutes at
    /// most.
    pub(super) fn failed(&mut self, now: Instant, block: BlockId) {
        let length =
            self.rests.get(&block).map_or(FIRST, |rest| rest.length.saturating_mul(2).min(LONGEST));
        self.rests.insert(block, Rest { until: now + length, length });
    }

    /// `block` was stolen: its failures are forgotten.
    pub(super) fn succeeded(&mut self, block: BlockId) {
        self.rests.remove(&block);
    }

    /// Whether `block` still rests.
    pub(super) fn rests(&self, now: Instant, block: BlockId) -> bool {
        self.rests.get(&block).is_some_and(|rest| now < rest.until)
    }

    /// How many rest.
    pub(super) fn count(&self, now: Instant) -> usize {
        self.rests.values().filter(|rest| now < rest.until).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_rest_up_to_ten_minutes() {
        let (mut rests, block) = (Cooldowns::default(), BlockId(7));
        let mut now = Instant::default();
        for seconds in [10, 20, 40, 80, 160, 320, 600, 600] {
            rests.failed(now, block);
            let end = now + Duration::from_secs(seconds);
            assert!(rests.rests(Instant::from_millis(end.as_millis() - 1), block));
            assert!(!rests.rests(end, block));
            now = end;
        }
        rests.succeeded(block);
        rests.failed(now, block);
        assert!(!rests.rests(now + FIRST, block));
        assert_eq!((rests.count(now), rests.count(now + FIRST)), (1, 0));
    }
}
