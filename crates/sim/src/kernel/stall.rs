//! PSI: time that was stalled for memory, and the trigger on it.

use std::collections::VecDeque;
use std::time::Duration;

use memtide_policy::guest::PsiTotals;

use crate::TICK;

/// The agent's trigger: 25 ms of stall in half a second (guest-agent/src/senses.rs).
const TRIGGER_STALL_US: u64 = 25_000;
const TRIGGER_WINDOW_TICKS: usize = 10;

/// The counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Stalls {
    totals: PsiTotals,
    this_tick_us: u64,
    last_ticks: VecDeque<u64>,
    /// The kernel reports a trigger once a window.
    quiet_ticks: usize,
}

impl Stalls {
    /// Some task waited for memory so long in this tick.
    pub(super) fn add(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.this_tick_us = self.this_tick_us.saturating_add(us);
    }

    /// The tick is over. True when the trigger fires.
    pub(super) fn end_tick(&mut self) -> bool {
        let tick_us = u64::try_from(TICK.as_micros()).unwrap_or(u64::MAX);
        // However many tasks stall, a second has one.
        let some_us = std::mem::take(&mut self.this_tick_us).min(tick_us);
        self.totals.some_us += some_us;
        // There are other tasks that run on in half of the time.
        self.totals.full_us += some_us / 2;
        self.last_ticks.push_back(some_us);
        if self.last_ticks.len() > TRIGGER_WINDOW_TICKS {
            self.last_ticks.pop_front();
        }
        self.quiet_ticks = self.quiet_ticks.saturating_sub(1);
        let fires =
            self.quiet_ticks == 0 && self.last_ticks.iter().sum::<u64>() >= TRIGGER_STALL_US;
        if fires {
            self.quiet_ticks = TRIGGER_WINDOW_TICKS;
        }
        fires
    }

    /// Since boot.
    pub(super) fn totals(&self) -> PsiTotals {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trigger_fires_once_a_window_and_a_second_has_one_second() {
        let mut stalls = Stalls::default();
        let mut fired = 0;
        for _ in 0..20 {
            stalls.add(Duration::from_millis(400));
            fired += u32::from(stalls.end_tick());
        }
        assert_eq!((fired, stalls.totals().some_us), (2, 1_000_000));
        let mut calm = Stalls::default();
        calm.add(Duration::from_millis(24));
        assert!(!calm.end_tick());
    }
}
