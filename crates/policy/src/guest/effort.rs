//! How much of a processor's time paging out may take.

use core::time::Duration;

use memtide_units::PpMillion;

/// ACMA's bound: 15 ms of each second. It is what a guest at work bears unnoticed.
const AT_WORK: Duration = Duration::from_millis(15);
/// A quarter of one processor. What is cold costs the same work sooner or later; while nobody else wants
/// the processor, and the pressure goal holds, sooner is better.
const AT_REST: Duration = Duration::from_millis(250);
/// With less than half of the processors' time left over, somebody works.
const RESTS: PpMillion = PpMillion(500_000);

/// Processor time of each second that paging out may take in a guest whose processors idled for this
/// share of the last second or so. Its own work counts as work: with one processor it leaves three
/// quarters idle, and goes on.
pub fn reclaim_effort(idle: PpMillion) -> Duration {
    if idle > RESTS { AT_REST } else { AT_WORK }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_works_is_left_alone() {
        for idle in [0, 200_000, 500_000] {
            assert_eq!(reclaim_effort(PpMillion(idle)), AT_WORK);
        }
        assert_eq!(reclaim_effort(PpMillion(500_001)), AT_REST);
    }

    #[test]
    fn its_own_work_does_not_end_it_on_one_processor() {
        let left = 1_000_000 - u32::try_from(AT_REST.as_micros()).unwrap();
        assert_eq!(reclaim_effort(PpMillion(left)), AT_REST);
    }
}
