//! Pressure over the last window, by difference of PSI's counters.
//!
//! The kernel's own averages are over ten seconds and up; a thief should hear sooner. The counters
//! are microseconds of stall since boot (Documentation/accounting/psi.rst).

use alloc::collections::VecDeque;
use core::time::Duration;

use memtide_units::{Instant, PpMillion};

use super::observation::PsiTotals;

/// Pressure is looked at over this long: twice the kernel's own update period, so that a window
/// never falls between two updates.
pub const WINDOW: Duration = Duration::from_secs(2);

/// Samples are kept this far apart at least, which bounds their number.
const SPACING: Duration = Duration::from_millis(200);

/// Shares of the last window in which tasks stalled for memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some task stalled.
    pub some: PpMillion,
    /// All tasks stalled.
    pub full: PpMillion,
}

/// Remembers counters as far back as the window reaches.
#[derive(Clone, Debug, Default)]
pub(super) struct PressureMeter {
    samples: VecDeque<(Instant, PsiTotals)>,
}

impl PressureMeter {
    /// Takes the counters of `now`; answers with the pressure over the last window, or `None`
    /// before a whole window has been seen.
    pub(super) fn observe(&mut self, now: Instant, totals: PsiTotals) -> Option<Pressure> {
        let backwards = |(_, last): &(Instant, PsiTotals)| {
            totals.some_us < last.some_us || totals.full_us < last.full_us
        };
        if self.samples.back().is_some_and(backwards) {
            self.samples.clear();
        }
        let pressure = self.since_window(now, totals);
        if self.samples.back().is_none_or(|(at, _)| now.since(*at) >= SPACING) {
            self.samples.push_back((now, totals));
        }
        pressure
    }

    fn since_window(&mut self, now: Instant, totals: PsiTotals) -> Option<Pressure> {
        while self.samples.get(1).is_some_and(|(at, _)| now.since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
        let (at, then) = self.samples.front().filter(|(at, _)| now.since(*at) >= WINDOW)?;
        let elapsed_us = u64::try_from(now.since(*at).as_micros()).unwrap_or(u64::MAX);
        Some(Pressure {
            some: PpMillion::of_time(totals.some_us - then.some_us, elapsed_us),
            full: PpMillion::of_time(totals.full_us - then.full_us, elapsed_us),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn totals(some_us: u64) -> PsiTotals {
        PsiTotals { some_us, full_us: some_us / 2 }
    }

    #[test]
    fn what_was_stalled_at_boot_is_no_pressure_now() {
        let mut meter = PressureMeter::default();
        assert_eq!(meter.observe(Instant::from_millis(0), totals(9_000_000)), None);
        assert_eq!(meter.observe(Instant::from_millis(1_900), totals(9_000_000)), None);
        let pressure = meter.observe(Instant::from_millis(2_000), totals(9_002_000)).unwrap();
        assert_eq!(pressure, Pressure { some: PpMillion(1_000), full: PpMillion(500) });
    }

    #[test]
    fn a_stall_is_forgotten_after_the_window() {
        let mut meter = PressureMeter::default();
        let mut seen = vec![];
        for ms in (0..=6_000).step_by(500) {
            let stalled = if ms >= 2_500 { 100_000 } else { 0 };
            seen.push(meter.observe(Instant::from_millis(ms), totals(stalled)).map(|p| p.some.0));
        }
        let stall = Some(50_000);
        let expected = [None, None, None, None, Some(0), stall, stall, stall, stall, Some(0)];
        assert_eq!(seen[..10], expected);
    }

    #[test]
    fn a_counter_that_goes_backwards_starts_anew() {
        let mut meter = PressureMeter::default();
        meter.observe(Instant::from_millis(0), totals(500));
        assert_eq!(meter.observe(Instant::from_millis(5_000), totals(100)), None);
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_no_order_panics(steps in prop::collection::vec((0_u64..3_000, 0_u64..1_000_000), 0..300)) {
            let (mut meter, mut now) = (PressureMeter::default(), 0);
            for (wait, total) in steps {
                now += wait;
                meter.observe(Instant::from_millis(now), totals(total));
                prop_assert!(meter.samples.len() <= 12);
            }
        }
    }
}
