//! How often something is looked at: as often as that is cheap.
//!
//! What a look costs grows with the guest: DAMON's regions are four files of sysfs each and memory blocks
//! three, pages are counted one by one. With a fixed pause a large guest, or a slow one, would pay several
//! per cent of a processor for ever. A pause that follows what the looks themselves have cost is the same
//! small part everywhere, and needs no knob.

use std::time::Duration;

use crate::processor_time::thread_time;

/// One kind of look takes one part of so many of a processor: a tenth of a per cent, of the one per cent
/// that the agent and its monitor may take. There are four kinds.
const PART: u32 = 1000;

/// Within which bounds the pause after a look lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// However cheap it is.
    pub shortest: Duration,
    /// However dear it is: what is known must not be older.
    pub longest: Duration,
}

impl Pace {
    /// How long to wait after a look that took `cost` of a processor's time.
    pub fn pause(self, cost: Duration) -> Duration {
        cost.saturating_mul(PART).clamp(self.shortest, self.longest)
    }
}

/// Does something; answers also with the processor time that the calling thread has taken for it.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = thread_time();
    let done = work();
    (done, thread_time().saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_a_small_part_of_a_processor_within_bounds() {
        let pace = Pace { shortest: Duration::from_secs(2), longest: Duration::from_secs(10) };
        let ms = Duration::from_millis;
        let pauses = [0, 2, 3, 8, 10, 1_000].map(|cost| pace.pause(ms(cost)));
        assert_eq!(pauses, [2_000, 2_000, 3_000, 8_000, 10_000, 10_000].map(ms));
        assert_eq!(pace.pause(Duration::MAX), pace.longest);
    }

    #[test]
    fn work_is_what_costs_and_not_waiting() {
        let (sum, cost) = timed(|| (0..3_000_000_u64).fold(0, |a, b| std::hint::black_box(a ^ b)));
        assert!(cost >= Duration::from_micros(100), "{cost:?} {sum}");
        let ((), cost) = timed(|| std::thread::park_timeout(Duration::from_millis(50)));
        assert!(cost < Duration::from_millis(25), "{cost:?}");
    }
}
