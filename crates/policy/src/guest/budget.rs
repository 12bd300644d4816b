//! What stealing may take of a processor.
//!
//! Emptying a block is work of the guest's own processors that PSI does not see: nobody stalls, somebody
//! just gets less done. So it is paid for like everything else that Memtide does on its own account: what
//! a steal has cost is waited for, as long as it takes at so much of each second ([`Effort`]).

use core::time::Duration;

use memtide_units::Instant;

use super::observation::Effort;

/// Nobody pays longer than this for one batch: what was seen of the guest before is no longer true.
const LONGEST: Duration = Duration::from_secs(60);

/// What has been spent and not been waited for.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    debt: Duration,
    per_second: Duration,
    stealing: Duration,
    looked: Instant,
}

impl Budget {
    /// Takes in what stealing has cost since the last look, and what time has paid of it. Time in which
    /// nothing is owed is not saved up: a batch may start at any time, and is paid for afterwards.
    pub(super) fn look(&mut self, now: Instant, effort: &Effort) {
        let paid = share(self.per_second, now.since(self.looked));
        let cost = effort.stealing.saturating_sub(self.stealing);
        let most = share(effort.per_second, LONGEST);
        self.debt = self.debt.saturating_sub(paid).saturating_add(cost).min(most);
        (self.per_second, self.stealing, self.looked) = (effort.per_second, effort.stealing, now);
    }

    /// How long it takes until everything is paid.
    pub(super) fn left(&self) -> Option<Duration> {
        let debt = u64::try_from(self.debt.as_micros()).unwrap_or(u64::MAX);
        let per_second = u64::try_from(self.per_second.as_micros()).unwrap_or(u64::MAX).max(1);
        let left = Duration::from_micros(debt.saturating_mul(1_000_000) / per_second);
        (!left.is_zero()).then_some(left.min(LONGEST))
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
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn effort(per_second_ms: u64, stealing_ms: u64) -> Effort {
        let ms = Duration::from_millis;
        Effort { per_second: ms(per_second_ms), stealing: ms(stealing_ms) }
    }

    /// What is left at each look, in milliseconds.
    fn lefts(looks: &[(u64, u64, u64)]) -> Vec<u64> {
        let mut budget = Budget::default();
        let look = |&(at_ms, per_second, stealing): &(u64, u64, u64)| {
            budget.look(Instant::from_millis(at_ms), &effort(per_second, stealing));
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
    fn who_rests_pays_sooner_and_nobody_pays_for_longer_than_a_minute() {
        assert_eq!(
            lefts(&[(0, 15, 300), (1_000, 250, 300), (2_000, 250, 300)]),
            [20_000, 1_140, 140]
        );
        assert_eq!(lefts(&[(0, 15, 10_000), (1_000, 15, 10_000)]), [60_000, 59_000]);
        assert_eq!(lefts(&[(0, 250, 10_000), (1_000, 15, 10_000)]), [40_000, 60_000]);
    }

    #[test]
    fn a_count_that_starts_over_costs_nothing() {
        assert_eq!(lefts(&[(0, 15, 30), (2_000, 15, 0), (2_100, 15, 15)]), [2_000, 0, 1_000]);
    }

    proptest! {
        /// However batches come, once what is owed is waited for no more is taken than may be.
        #[test]
        fn the_share_is_kept(costs in prop::collection::vec(1_u64..900, 1..50), per_second in 15_u64..250) {
            let (mut budget, mut now, mut spent) = (Budget::default(), 0, 0);
            for cost in costs {
                spent += cost;
                budget.look(Instant::from_millis(now), &effort(per_second, spent));
                now += budget.left().map_or(0, |left| left.as_millis() as u64 + 1);
            }
            prop_assert!(spent * 1_000 <= per_second * now + 1_000);
        }
    }
}
