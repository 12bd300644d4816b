//! What stealing may take of a processor.
//!
//! Emptying a block is work of the guest's own processors that PSI does not see: nobody stalls, somebody
//! just gets less done. So it is paid for like everything else that Memtide does on its own account: what
//! a steal has cost is waited for, as long as it takes at so much of each second ([`Effort`]).

use core::time::Duration;

use memtide_units::Instant;

use super::observation::{Effort, Outcome, StealFailure};

/// Nobody pays longer than this: what was seen of the guest before is no longer true. So no batch may be
/// larger than what is paid for in as long.
const LONGEST: Duration = Duration::from_secs(30);
/// But for blocks that nothing came of before their time was up: a kernel that tries and tries has a processor for all
/// of it, and the next block may be such a one as well. Each further one is paid for twice as long, up to this: 20 s of a
/// processor, the deadline of a block, take 22 minutes at 15 ms a second.
const LONGEST_IN_VAIN: Duration = Duration::from_secs(16 * 60);

/// What has been spent and not been waited for.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    debt: Duration,
    per_second: Duration,
    stealing: Duration,
    looked: Instant,
    /// When something was last spent.
    spent: Instant,
    /// Blocks whose time was up since one was stolen.
    in_vain: u32,
    /// What one block has cost lately.
    each: Duration,
    /// What was spent on blocks that are not done yet.
    unshared: Duration,
}

impl Budget {
    /// Takes in what stealing has cost since the last look, what came of it, and what time has paid of it. Time
    /// in which nothing is owed is not saved up: a batch may start at any time, and is paid for afterwards.
    ///
    /// What is owed is not less because the guest has more to spare just now: a steal is work itself, and on
    /// one or two processors it is what makes the guest look at work.
    pub(super) fn look(&mut self, now: Instant, effort: &Effort, outcomes: &[Outcome]) {
        self.count_in_vain(outcomes);
        let paid = share(self.per_second, now.since(self.looked));
        let cost = effort.stealing.saturating_sub(self.stealing);
        if !cost.is_zero() {
            self.spent = now;
        }
        self.debt = self.debt.saturating_sub(paid).saturating_add(cost);
        self.unshared = self.unshared.saturating_add(cost);
        let done = outcomes.iter().filter(|outcome| outcome.is_try()).count();
        if let Some(done) = u32::try_from(done).ok().filter(|done| *done > 0) {
            self.each = core::mem::take(&mut self.unshared) / done;
        }
        (self.per_second, self.stealing, self.looked) = (effort.per_second, effort.stealing, now);
        if self.forgets_in().is_zero() {
            self.debt = Duration::ZERO;
        }
    }

    /// How long it takes until everything is paid.
    pub(super) fn left(&self) -> Option<Duration> {
        let debt = u64::try_from(self.debt.as_micros()).unwrap_or(u64::MAX);
        let per_second = u64::try_from(self.per_second.as_micros()).unwrap_or(u64::MAX).max(1);
        let left = Duration::from_micros(debt.saturating_mul(1_000_000) / per_second);
        (!left.is_zero()).then_some(left.min(self.forgets_in()))
    }

    /// How many blocks a batch may have, by what one has cost lately: one at least.
    pub(super) fn affords(&self) -> u64 {
        let count = share(self.per_second, LONGEST).as_micros().checked_div(self.each.as_micros());
        count.map_or(u64::MAX, |count| u64::try_from(count).unwrap_or(u64::MAX).max(1))
    }

    fn count_in_vain(&mut self, outcomes: &[Outcome]) {
        for outcome in outcomes {
            self.in_vain = match outcome {
                Outcome::Stolen(_) => 0,
                Outcome::StealFailed(_, StealFailure::TimedOut) => self.in_vain.saturating_add(1),
                _ => self.in_vain,
            };
        }
    }

    fn longest(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.in_vain).unwrap_or(u32::MAX);
        LONGEST.saturating_mul(doubled).min(LONGEST_IN_VAIN)
    }

    fn forgets_in(&self) -> Duration {
        self.longest().saturating_sub(self.looked.since(self.spent))
    }
}

/// So much of each second, over a time.
fn share(per_second: Duration, time: Duration) -> Duration {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let micros = u64::try_from(per_second.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(micros.saturating_mul(millis) / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use memtide_units::BlockId;
    use proptest::prelude::*;

    fn effort(per_second_ms: u64, stealing_ms: u64) -> Effort {
        let ms = Duration::from_millis;
        Effort { per_second: ms(per_second_ms), stealing: ms(stealing_ms) }
    }

    fn stolen(count: usize) -> Vec<Outcome> {
        vec![Outcome::Stolen(BlockId(1)); count]
    }

    /// What is left at each look, in milliseconds.
    fn lefts(looks: &[(u64, u64, u64)]) -> Vec<u64> {
        let mut budget = Budget::default();
        let look = |&(at_ms, per_second, stealing): &(u64, u64, u64)| {
            budget.look(Instant::from_millis(at_ms), &effort(per_second, stealing), &[]);
            budget.left().map_or(0, |left| left.as_millis() as u64)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn what_was_spent_is_waited_for() {
        let looks = [(0, 15, 0), (100_000, 15, 0), (100_100, 15, 30), (101_100, 15, 30)];
        assert_eq!(lefts(&looks), [0, 0, 2_000, 1_000], "a long rest is not saved up");
        assert_eq!(lefts(&[(0, 15, 30), (2_000, 15, 30), (2_100, 15, 30)]), [2_000, 0, 0]);
    }

    #[test]
    fn who_rests_pays_sooner_and_nobody_pays_for_longer_than_half_a_minute() {
        let rests = [(0, 15, 300), (1_000, 250, 300), (2_000, 250, 300)];
        assert_eq!(lefts(&rests), [20_000, 1_140, 140]);
        let long =
            [(0, 15, 10_000), (1_000, 15, 10_000), (29_999, 15, 10_000), (30_000, 15, 10_000)];
        assert_eq!(lefts(&long), [30_000, 29_000, 1, 0]);
    }

    /// The steal itself is what the guest works at.
    #[test]
    fn a_busy_second_forgives_nothing() {
        assert_eq!(lefts(&[(0, 15, 5_000), (1_000, 250, 5_000)]), [30_000, 19_940]);
    }

    /// A dozen blocks that do not go, each with 20 s of a processor, took two fifths of one.
    #[test]
    fn blocks_that_hang_are_paid_for_longer_each_time_until_one_goes() {
        let (mut budget, mut now, mut spent) = (Budget::default(), 0, 0);
        let mut tries = |outcome: Outcome| {
            spent += 20_000;
            budget.look(Instant::from_millis(now), &effort(15, spent), &[outcome]);
            let left = budget.left().map_or(0, |left| left.as_secs());
            now += left * 1_000;
            left
        };
        let hangs = Outcome::StealFailed(BlockId(1), StealFailure::TimedOut);
        assert_eq!([hangs; 6].map(&mut tries), [60, 120, 240, 480, 960, 960]);
        assert_eq!(tries(Outcome::Stolen(BlockId(2))), 30, "one that is full, and goes");
    }

    #[test]
    fn a_count_that_starts_over_costs_nothing() {
        assert_eq!(lefts(&[(0, 15, 30), (2_000, 15, 0), (2_100, 15, 15)]), [2_000, 0, 1_000]);
    }

    #[test]
    fn a_batch_is_no_larger_than_what_half_a_minute_pays_for() {
        let mut budget = Budget::default();
        let mut look = |per_second, stealing, done| {
            budget.look(Instant::default(), &effort(per_second, stealing), &stolen(done));
            budget.affords()
        };
        assert_eq!(look(15, 0, 0), u64::MAX, "nothing is known of what one costs");
        assert_eq!([look(15, 60, 0), look(15, 100, 1), look(250, 100, 0)], [u64::MAX, 4, 75]);
        assert_eq!(look(15, 300, 4), 9);
        assert_eq!(look(15, 5_300, 1), 1, "one is tried now and then, however dear");
    }

    proptest! {
        /// However batches come, once what is owed is waited for no more is taken than may be, but for one
        /// block in half a minute that costs more than that.
        #[test]
        fn the_share_is_kept(
            costs in prop::collection::vec((1_u64..900, 1_u64..20), 2..50),
            rates in prop::collection::vec(15_u64..250, 50),
        ) {
            let (mut budget, mut now, mut spent, mut allowed) = (Budget::default(), 0, 0, 0);
            for ((each, wanted), per_second) in costs.iter().zip(rates) {
                let count = budget.affords().min(*wanted);
                spent += each * count;
                let done = stolen(count as usize);
                budget.look(Instant::from_millis(now), &effort(per_second, spent), &done);
                let left = budget.left().map_or(0, |left| left.as_millis() as u64 + 1);
                (now, allowed) = (now + left, allowed + per_second * left);
                prop_assert!(left <= 30_001);
                // What one costs is known from the batch before.
                if left < 30_000 {
                    prop_assert!(each * count * 1_000 <= per_second * (left + 1));
                }
            }
        }
    }
}
