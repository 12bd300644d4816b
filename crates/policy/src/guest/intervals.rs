//! How often DAMON looks, where the kernel does not tune that itself (before 6.15).
//!
//! The rule is the kernel's own (mm/damon/core.c, `kdamond_tune_intervals`), so that a guest is seen the
//! same on either: of all access events that could be seen, so many are to be seen. More than that, and
//! what is warm cannot be told from what is hot: look more often. Fewer, and nothing stands out: look
//! less often. The kernel steps between two of its aggregations; from outside a step costs a commit, so
//! that small ones are left out.

use core::time::Duration;

use memtide_units::Instant;

use super::heat::AccessRegion;

/// The whole in the kernel's basis points.
const WHOLE_BP: u64 = 10_000;
/// The whole of [`Permille`].
const WHOLE_PERMILLE: u64 = 1_000;
/// A step that changes less than a tenth is not worth a commit.
const LEAST_STEP_BP: u64 = 1_000;

/// Towards what the intervals are tuned, and within which bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntervalsAim {
    /// Access events to see, in 1/10000 of all possible ones, at least 1.
    pub access_bp: u32,
    /// Aggregations between two steps.
    pub aggrs: u32,
    /// Shortest time between two looks at a page.
    pub least: Duration,
    /// Longest.
    pub most: Duration,
}

/// Tunes the time between two looks. Over how many looks is summed up stays as it is.
#[derive(Clone, Debug)]
pub struct IntervalTuner {
    aim: IntervalsAim,
    stepped: Instant,
}

impl IntervalTuner {
    /// Watching has begun at `now`.
    pub const fn new(aim: IntervalsAim, now: Instant) -> Self {
        Self { aim, stepped: now }
    }

    /// Takes a snapshot that was made while pages were looked at every `sample`, and the looks summed up
    /// over `aggregation`; answers with another time between two looks, where one is due.
    pub fn step(
        &mut self,
        now: Instant,
        (sample, aggregation): (Duration, Duration),
        regions: &[AccessRegion],
    ) -> Option<Duration> {
        if now.since(self.stepped) < aggregation.saturating_mul(self.aim.aggrs) {
            return None;
        }
        self.stepped = now;
        let adaptation = adaptation_bp(score_bp(self.aim.access_bp, regions)?);
        let micros = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX);
        let wanted = Duration::from_micros(micros.saturating_mul(adaptation) / WHOLE_BP);
        let wanted = wanted.min(self.aim.most).max(self.aim.least);
        let change = wanted.abs_diff(sample).as_micros() * u128::from(WHOLE_BP);
        (change >= sample.as_micros() * u128::from(LEAST_STEP_BP)).then_some(wanted)
    }
}

/// What was seen of what is to be seen (`damon_get_intervals_score`); `None` of no memory at all.
fn score_bp(access_bp: u32, regions: &[AccessRegion]) -> Option<u64> {
    let whole = u128::from(WHOLE_PERMILLE);
    let bytes = |region: &AccessRegion| u128::from(region.range.len().bytes());
    let most: u128 = regions.iter().map(|region| bytes(region) * whole).sum();
    let events = |region: &AccessRegion| bytes(region) * u128::from(region.accessed.0).min(whole);
    let seen: u128 = regions.iter().map(events).sum();
    let target = most * u128::from(access_bp) / u128::from(WHOLE_BP);
    let score = (seen * u128::from(WHOLE_BP)).checked_div(target)?;
    Some(u64::try_from(score).unwrap_or(u64::MAX))
}

/// The new interval for a score, as a share of the old one: twice of it at most, half of it at least
/// (`damon_get_intervals_adaptation_bp` over `damon_feed_loop_next_input`).
fn adaptation_bp(score_bp: u64) -> u64 {
    let next = (2 * WHOLE_BP).saturating_sub(score_bp).max(1);
    // Getting slower helps at once; getting faster in a hurry would cost more than it tells.
    if next <= WHOLE_BP { WHOLE_BP / 2 + next / 2 } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::{ByteSize, Gpa, GpaRange, Permille};
    use proptest::prelude::*;

    const AIM: IntervalsAim = IntervalsAim {
        access_bp: 400,
        aggrs: 3,
        least: Duration::from_millis(10),
        most: Duration::from_millis(100),
    };

    fn region(start_mib: u64, len_mib: u64, accessed: u32) -> AccessRegion {
        let range = GpaRange::new(Gpa(start_mib << 20), ByteSize::from_mib(len_mib)).unwrap();
        AccessRegion { range, accessed: Permille(accessed), age: Duration::ZERO }
    }

    /// Of 1000 MiB so many are touched in every look.
    fn hot(mib: u64) -> [AccessRegion; 2] {
        [region(0, mib, 1_000), region(mib, 1_000 - mib, 0)]
    }

    fn step(sample_ms: u64, regions: &[AccessRegion]) -> Option<u64> {
        let mut tuner = IntervalTuner::new(AIM, Instant::default());
        let sample = Duration::from_millis(sample_ms);
        let now = Instant::from_millis(60 * sample_ms);
        let wanted = tuner.step(now, (sample, sample * 20), regions);
        wanted.map(|wanted| u64::try_from(wanted.as_millis()).unwrap())
    }

    #[test]
    fn the_kernels_figures() {
        // No access at all doubles, the goal keeps, twice of it and more halves.
        let of = [0, 5_000, 10_000, 15_000, 19_999, 20_000, u64::MAX].map(adaptation_bp);
        assert_eq!(of, [20_000, 15_000, 10_000, 7_500, 5_000, 5_000, 5_000]);
        // 4 % of all events are 40 MiB of 1000, or 400 in every tenth look.
        assert_eq!(score_bp(400, &hot(40)), Some(10_000));
        assert_eq!(score_bp(400, &[region(0, 400, 100), region(400, 600, 0)]), Some(10_000));
        assert_eq!(score_bp(400, &hot(20)), Some(5_000));
        assert_eq!(score_bp(400, &[]), None);
    }

    #[test]
    fn little_access_slows_down_and_much_of_it_speeds_up_within_bounds() {
        assert_eq!(step(40, &hot(1)), Some(79));
        assert_eq!(step(80, &hot(1)), Some(100));
        assert_eq!(step(100, &hot(1)), None, "at the bound");
        assert_eq!(step(40, &hot(500)), Some(20));
        assert_eq!(step(15, &hot(500)), Some(10));
        assert_eq!(step(10, &hot(500)), None);
        assert_eq!(step(40, &hot(40)), None);
        assert_eq!(step(40, &hot(43)), None, "not worth it");
        assert_eq!(step(40, &[]), None);
    }

    #[test]
    fn a_step_waits_for_three_aggregations_since_the_last() {
        let mut tuner = IntervalTuner::new(AIM, Instant::default());
        let intervals = (Duration::from_millis(20), Duration::from_millis(400));
        let mut at = |ms| tuner.step(Instant::from_millis(ms), intervals, &hot(1)).is_some();
        let said = [500, 1_199, 1_200, 1_300, 2_399, 2_400].map(&mut at);
        assert_eq!(said, [false, false, true, false, false, true]);
    }

    /// Half of all memory is touched once in 200 ms: looked at every 50 ms it is seen in each fourth
    /// look. Faster looks find it less often, until they find as much as the aim says.
    #[test]
    fn it_settles_where_the_aim_is_met() {
        let mut tuner = IntervalTuner::new(AIM, Instant::default());
        let mut sample = Duration::from_millis(50);
        for n in 1..20 {
            let share = u32::try_from(sample.as_millis() * 1_000 / 200).unwrap();
            let regions = [region(0, 500, share), region(500, 500, 0)];
            let now = Instant::from_millis(n * 6_000);
            sample = tuner.step(now, (sample, sample * 20), &regions).unwrap_or(sample);
        }
        let found = sample.as_millis();
        assert!((14..=18).contains(&found), "{found} ms, and 16 would be it");
    }

    proptest! {
        #[test]
        fn whatever_is_seen_a_step_is_no_leap(
            regions in prop::collection::vec((1_u64..1 << 30, 0_u32..2_000), 0..20), sample_ms in 10_u64..100,
        ) {
            let regions: Vec<_> = regions.iter().map(|&(len, share)| region(0, len, share)).collect();
            if let Some(wanted) = step(sample_ms, &regions) {
                prop_assert!((10..=100).contains(&wanted));
                prop_assert!(wanted >= sample_ms / 2 && wanted <= sample_ms * 2);
            }
        }
    }
}
