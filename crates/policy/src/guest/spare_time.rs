//! How much of a processor's time Memtide may take on its own account, for stealing and for paging out.

use core::time::Duration;

use memtide_units::{Instant, PpMillion};

/// ACMA's bound: 15 ms of each second. It is what a guest at work bears unnoticed.
const AT_WORK: Duration = Duration::from_millis(15);
/// A quarter of one processor. What is cold, or empty, costs the same work sooner or later; while nobody
/// else wants the processor, and the pressure goal holds, sooner is better.
const AT_REST: Duration = Duration::from_millis(250);
/// With less than half of the processors' time left over, somebody works.
const RESTS: PpMillion = PpMillion(500_000);
/// The least that the kernel knows, for where somebody else waits for the disk that pages go to.
const DISK_IS_BUSY: Duration = Duration::from_millis(1);
/// A guest that works in turns of seconds is at work. Each change is a commit of all of DAMON's files, so
/// this is also what bounds them: one up and one down in half a minute, for each of the two reasons.
const SETTLES: Duration = Duration::from_secs(30);

/// Less at once when somebody works or waits for the disk, more when nobody does; for paging out once nobody
/// has for half a minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpareTime {
    /// Since when nobody works.
    resting: Option<Instant>,
    /// When somebody last waited for the disk that pages go to.
    disk_was_busy: Option<Instant>,
    /// The last time that anything was looked at.
    looked: Instant,
}

impl SpareTime {
    /// At `now` the processors had idled for this share of the last second or so. Its own work counts as
    /// well: with one processor it leaves three quarters idle, and goes on.
    pub fn look(&mut self, now: Instant, idle: PpMillion) {
        let since = self.resting.unwrap_or(now);
        self.resting = (idle > RESTS).then_some(since);
        self.looked = now;
    }

    /// Where pages go to a disk: at `now` some task had waited for input or output for this share of the
    /// last second or so. What paging out waits for itself, in the time that it has beside a guest at work,
    /// and what the pressure `goal` accepts besides, is nobody else's wait.
    ///
    /// Idle processors do not tell: a guest that waits for its disk has them as well.
    pub fn look_at_disk(&mut self, now: Instant, stall: PpMillion, goal: PpMillion) {
        let own = PpMillion::of_time(AT_WORK.as_millis() as u64, 1_000);
        if stall.0 > own.0.saturating_add(goal.0) {
            self.disk_was_busy = Some(now);
        }
        self.looked = now;
    }

    /// Processor time of each second that paging out may take.
    pub fn for_paging(&self) -> Duration {
        if self.disk_was_busy.is_some_and(|at| self.looked.since(at) < SETTLES) {
            return DISK_IS_BUSY;
        }
        let is_settled = |since| self.looked.since(since) >= SETTLES;
        if self.resting.is_some_and(is_settled) { AT_REST } else { AT_WORK }
    }

    /// Processor time of each second that stealing may take. It is for no longer than a batch, and nothing
    /// has to be told when it changes: it goes by the last second alone.
    pub fn for_stealing(&self) -> Duration {
        if self.resting.is_some() { AT_REST } else { AT_WORK }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    /// What it is from second to second.
    fn times(idle: impl IntoIterator<Item = u32>) -> Vec<Duration> {
        let mut effort = SpareTime::default();
        let look = |(s, idle): (u64, u32)| {
            effort.look(Instant::from_millis(s * 1_000), PpMillion(idle));
            effort.for_paging()
        };
        (7..).zip(idle).map(look).collect()
    }

    #[test]
    fn who_works_is_left_alone() {
        assert_eq!(SpareTime::default().for_paging(), AT_WORK);
        for idle in [0, 200_000, 500_000] {
            assert_eq!(times([idle; 40]), [AT_WORK; 40]);
        }
    }

    #[test]
    fn for_stealing_the_last_second_tells() {
        let mut spare = SpareTime::default();
        let mut look = |s: u64, idle| {
            spare.look(Instant::from_millis(s * 1_000), PpMillion(idle));
            spare.for_stealing()
        };
        assert_eq!([look(1, 500_000), look(2, 500_001), look(3, 0)], [AT_WORK, AT_REST, AT_WORK]);
    }

    #[test]
    fn half_a_minute_of_rest_is_used_and_ends_at_once() {
        let idle = [[500_001; 31], [0; 31], [900_000; 31]].concat();
        let expected = [[AT_WORK; 30].as_slice(), &[AT_REST], &[AT_WORK; 61], &[AT_REST]].concat();
        assert_eq!(times(idle), expected);
    }

    #[test]
    fn its_own_work_does_not_end_it_on_one_processor() {
        let left = 1_000_000 - u32::try_from(AT_REST.as_micros()).unwrap();
        assert_eq!(times([left; 40])[39], AT_REST);
    }

    #[test]
    fn a_disk_that_somebody_waits_for_is_left_to_them_for_half_a_minute() {
        let mut effort = SpareTime::default();
        let goal = PpMillion(1_000);
        let mut look = |s: u64, stall| {
            let now = Instant::from_millis(s * 1_000);
            effort.look(now, PpMillion(900_000));
            effort.look_at_disk(now, PpMillion(stall), goal);
            effort.for_paging()
        };
        assert_eq!((look(0, 16_000), look(30, 16_000)), (AT_WORK, AT_REST), "it may be its own");
        assert_eq!(look(31, 16_001), DISK_IS_BUSY, "at once, however idle the processors");
        assert_eq!((look(60, 0), look(61, 0)), (DISK_IS_BUSY, AT_REST));
    }

    proptest! {
        #[test]
        fn it_changes_four_times_a_minute_at_most(
            turns in prop::collection::vec((1_usize..50, any::<bool>()), 1..30),
        ) {
            let idle = |(s, rests): &(usize, bool)| [if *rests { 800_000 } else { 0 }].repeat(*s);
            let times = times(turns.iter().flat_map(idle));
            let changes = |minute: &[Duration]| {
                minute.windows(2).filter(|pair| pair[0] != pair[1]).count()
            };
            // 60 changes are possible between 61 looks.
            prop_assert!(times.windows(61).all(|minute| changes(minute) <= 4));
        }
    }
}
