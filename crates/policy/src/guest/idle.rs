//! For how long memory has been idle, while DAMON pages it out.
//!
//! DAMON sets the age of a region to zero when a scheme has done something to it, also where there
//! was nothing to do: free memory is tried like any other (mm/damon/core.c, `damos_apply_scheme`). Its
//! age alone would then say that memory that nobody has touched for an hour was touched a moment
//! ago, and the working set would grow by all that is cold. So what was idle for longer than it
//! takes to be paged out counts as idle until it is *seen* touched.

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{GpaRange, Permille};

use super::heat::AccessRegion;

/// Part of the time from which on memory is paged out that counts as that time: DAMON averages ages
/// when it merges regions, and rounds them.
const NEARLY: u32 = 4;
/// What an age is behind the clock by at most: two aggregations of the longest that the agent has DAMON make.
const BEHIND: Duration = Duration::from_secs(4);

/// What the last snapshot said, corrected.
#[derive(Clone, Debug, Default)]
pub struct IdleTimes {
    last: Vec<AccessRegion>,
    /// The kernel's own ages of the same regions.
    told: Vec<AccessRegion>,
}

impl IdleTimes {
    /// Corrects the ages of a snapshot, `elapsed` after the one before. `cold` is for how long memory
    /// must have been idle to be paged out; `None` while nothing is, and has not been for as long.
    /// The regions come by ascending address, and so they are left.
    ///
    /// Memory that was idle for so long and is touched only between two snapshots counts as idle
    /// still where the scheme may have tried it meanwhile: that is the price.
    pub fn correct(
        &mut self,
        elapsed: Duration,
        cold: Option<Duration>,
        regions: &mut [AccessRegion],
    ) {
        let told = regions.to_vec();
        if let Some(cold) = cold {
            let enough = nearly(cold);
            let mut first = 0;
            for region in &mut *regions {
                while self.last.get(first).is_some_and(|l| l.range.end() <= region.range.start()) {
                    first += 1;
                }
                let idle_for = idle(&self.last[first..], region.range).saturating_add(elapsed);
                // The scheme tries what is cold by the kernel's own account. What was not, and is younger
                // than it would be by now, was touched.
                let untouched = idle(&self.told[first..], region.range).saturating_add(elapsed);
                let is_touched =
                    untouched < enough && region.age.saturating_add(BEHIND) < nearly(untouched);
                if region.accessed == Permille(0) && idle_for >= enough + elapsed && !is_touched {
                    region.age = region.age.max(idle_for);
                }
            }
        }
        (self.last, self.told) = (regions.to_vec(), told);
    }
}

fn nearly(time: Duration) -> Duration {
    time - time / NEARLY
}

/// For how long `range` was idle: the average by size, as DAMON has it. What was touched, or not
/// watched, was not idle at all.
fn idle(last: &[AccessRegion], range: GpaRange) -> Duration {
    let mut weighted = 0_u128;
    for region in last.iter().take_while(|region| region.range.start() < range.end()) {
        let shared = region.range.intersection(range).filter(|_| region.accessed == Permille(0));
        let bytes = shared.map_or(0, |shared| shared.len().bytes());
        weighted = weighted.saturating_add(region.age.as_millis().saturating_mul(bytes.into()));
    }
    let millis = weighted / u128::from(range.len().bytes().max(1));
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::{ByteSize, Gpa};
    use proptest::prelude::*;

    const COLD: Option<Duration> = Some(Duration::from_secs(60));
    const STEP: Duration = Duration::from_secs(3);

    fn region(start_mib: u64, len_mib: u64, accessed: u32, age_s: u64) -> AccessRegion {
        let range = GpaRange::new(Gpa(start_mib << 20), ByteSize::from_mib(len_mib)).unwrap();
        AccessRegion { range, accessed: Permille(accessed), age: Duration::from_secs(age_s) }
    }

    /// Ages after each snapshot, in seconds.
    fn ages(cold: Option<Duration>, snapshots: &[&[AccessRegion]]) -> Vec<Vec<u64>> {
        let mut times = IdleTimes::default();
        let mut seen = vec![];
        for snapshot in snapshots {
            let mut regions = snapshot.to_vec();
            times.correct(STEP, cold, &mut regions);
            seen.push(regions.iter().map(|region| region.age.as_secs()).collect());
        }
        seen
    }

    #[test]
    fn what_was_paged_out_is_idle_for_as_long_as_it_was() {
        let snapshots: [&[_]; 4] = [
            &[region(0, 100, 0, 70), region(100, 100, 500, 70)],
            &[region(0, 100, 0, 1), region(100, 100, 500, 73)],
            &[region(0, 50, 0, 4), region(50, 50, 0, 4), region(100, 100, 0, 2)],
            &[region(0, 50, 0, 7), region(50, 50, 10, 0), region(100, 100, 0, 5)],
        ];
        let expected = [vec![70, 70], vec![73, 73], vec![76, 76, 2], vec![79, 0, 5]];
        assert_eq!(ages(COLD, &snapshots), expected);
    }

    /// Ten seconds after it was tried it is three seconds old: it was touched, in no aggregation that was
    /// read.
    #[test]
    fn what_is_younger_than_the_scheme_can_have_made_it_was_touched() {
        let snapshots: [&[_]; 4] = [
            &[region(0, 100, 0, 70)],
            &[region(0, 100, 0, 1)],
            &[region(0, 100, 0, 4)],
            &[region(0, 100, 0, 0)],
        ];
        let mut times = IdleTimes::default();
        let mut seen = vec![];
        for snapshot in snapshots {
            let mut regions = snapshot.to_vec();
            times.correct(Duration::from_secs(10), COLD, &mut regions);
            seen.push(regions[0].age.as_secs());
        }
        assert_eq!(seen, [70, 80, 4, 0]);
    }

    #[test]
    fn while_nothing_is_paged_out_the_kernels_ages_stand() {
        let snapshots: [&[_]; 2] = [&[region(0, 100, 0, 70)], &[region(0, 100, 0, 1)]];
        assert_eq!(ages(None, &snapshots), [vec![70], vec![1]]);
    }

    #[test]
    fn what_was_not_idle_for_long_enough_was_touched() {
        let snapshots: [&[_]; 2] = [
            &[region(0, 100, 0, 44), region(100, 100, 0, 90), region(200, 100, 900, 9)],
            // The second spans half of what was touched: 45 seconds on the average are enough.
            &[region(0, 100, 0, 1), region(100, 200, 0, 1)],
        ];
        assert_eq!(ages(COLD, &snapshots)[1], [1, 48]);
    }

    proptest! {
        #[test]
        fn no_region_is_made_younger_and_none_that_is_touched_older(
            sizes in prop::collection::vec((1_u64..500, 0_u32..2, 0_u64..200), 0..20),
            others in prop::collection::vec((1_u64..500, 0_u32..2, 0_u64..200), 0..20),
        ) {
            let lay = |sizes: &[(u64, u32, u64)]| {
                let mut start = 0;
                sizes.iter().map(|&(len, accessed, age)| {
                    start += len;
                    region(start - len, len, accessed, age)
                }).collect::<Vec<_>>()
            };
            let mut times = IdleTimes::default();
            times.correct(STEP, COLD, &mut lay(&sizes));
            let before = lay(&others);
            let mut after = before.clone();
            times.correct(STEP, COLD, &mut after);
            for (old, new) in before.iter().zip(&after) {
                prop_assert!(new.age >= old.age);
                prop_assert!(old.accessed == Permille(0) || new.age == old.age);
            }
        }
    }
}
