//! How fast the guest grows: a return takes time, so it is asked for before the memory is gone.

use core::time::Duration;

use memtide_units::{ByteSize, Instant};

use super::observation::Memory;

/// How far ahead is looked at least: the time from asking for a block to having it (a question to
/// the gate, a decision, and 20 to 80 ms to put a block online), with a margin.
pub(super) const AHEAD: Duration = Duration::from_millis(500);
/// How far at most: by then another look has long been had.
const AHEAD_MOST: Duration = Duration::from_secs(3);
/// Growth is measured over at least this long, or a burst of a few pages looks like a flood.
const SPAN: Duration = Duration::from_millis(100);
/// How long the largest burst is remembered, at least; twice as long at most.
const MEMORY: Duration = Duration::from_secs(60);

/// What the last looks say about the time that a return takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    /// How much more will be in use when a return that is asked for now has come, if the guest
    /// grows on as it does. Of the last two spans the slower counts: one step up is no climb.
    pub(super) ahead: ByteSize,
    /// The same by the last span alone: what a guest that is short already may want.
    pub(super) surge: ByteSize,
    /// The largest step up of the last minute or two, within one span: it may come again, and
    /// nothing foretells it.
    pub(super) burst: ByteSize,
}

/// Remembers how much was used a moment ago.
#[derive(Clone, Debug)]
pub(super) struct Trend {
    last: Option<(Instant, ByteSize)>,
    /// What the last two spans foretell, the newer second.
    foretold: [ByteSize; 2],
    /// Largest burst of the last full minute and of the present one, which began then.
    bursts: [ByteSize; 2],
    minute: Instant,
    /// How far ahead is looked now.
    ahead: Duration,
}

impl Default for Trend {
    fn default() -> Self {
        Self {
            last: None,
            foretold: [ByteSize::ZERO; 2],
            bursts: [ByteSize::ZERO; 2],
            minute: Instant::default(),
            ahead: AHEAD,
        }
    }
}

impl Trend {
    /// Looks at the memory of `now`.
    pub(super) fn observe(&mut self, now: Instant, memory: &Memory) -> Growth {
        let used = memory.used();
        match self.last {
            None => self.last = Some((now, used)),
            Some((at, then)) if now.since(at) >= SPAN => {
                self.last = Some((now, used));
                self.grew(now, used - then, now.since(at));
            }
            Some(_) => {}
        }
        Growth {
            ahead: self.foretold[0].min(self.foretold[1]),
            surge: self.foretold[1],
            burst: self.bursts[0].max(self.bursts[1]),
        }
    }

    /// What was used is still used, and nothing more, as far as is known without a look.
    pub(super) fn lay_still(&mut self, at: Instant) {
        if let Some((last, used)) = self.last.filter(|(last, _)| at.since(*last) >= SPAN) {
            self.last = Some((at, used));
            self.grew(at, ByteSize::ZERO, at.since(last));
        }
    }

    /// A return took so long from its grant to being online: from now on twice that is looked
    /// ahead, on top of half a second for the question; a quicker one lets it fall by a quarter.
    pub(super) fn return_took(&mut self, time: Duration) {
        let wanted = AHEAD + time.saturating_mul(2);
        self.ahead = wanted.max(self.ahead * 3 / 4).clamp(AHEAD, AHEAD_MOST);
    }

    fn grew(&mut self, now: Instant, grown: ByteSize, elapsed: Duration) {
        let ahead = u128::from(grown.bytes()) * self.ahead.as_millis() / elapsed.as_millis().max(1);
        let ahead = ByteSize::from_bytes(u64::try_from(ahead).unwrap_or(u64::MAX));
        self.foretold = [self.foretold[1], ahead];
        if now.since(self.minute) >= MEMORY {
            self.bursts = [self.bursts[1], ByteSize::ZERO];
            self.minute = now;
        }
        // Growth over a longer span than is looked ahead counts as far as it may be one burst.
        self.bursts[1] = self.bursts[1].max(grown.min(ahead));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(total: u64, available: u64) -> Memory {
        Memory {
            total: ByteSize::from_mib(total),
            available: ByteSize::from_mib(available),
            ..Memory::default()
        }
    }

    #[test]
    fn growth_is_foretold_and_a_stolen_block_is_no_growth() {
        let mut trend = Trend::default();
        let mut at = |ms, memory| trend.observe(Instant::from_millis(ms), &memory).ahead.mib();
        assert_eq!(at(0, memory(1000, 600)), 0);
        assert_eq!(at(100, memory(1000, 580)), 0, "one step");
        assert_eq!(at(200, memory(1000, 550)), 100, "a climb");
        assert_eq!(at(250, memory(1000, 400)), 100, "too soon to tell");
        assert_eq!(at(1_100, memory(1000, 580)), 0);
        assert_eq!(at(2_100, memory(872, 452)), 0, "stolen");
        assert_eq!(at(3_100, memory(872, 600)), 0, "shrinking");
    }

    /// Else what a guest grows by in a tenth of a second would count as a whole second's growth.
    #[test]
    fn growth_is_measured_from_when_memory_lay_still() {
        let at = Instant::from_millis;
        let grown = |still: Option<u64>| {
            let mut trend = Trend::default();
            trend.observe(at(0), &memory(1000, 600));
            if let Some(still) = still {
                trend.lay_still(at(still));
            }
            trend.observe(at(1000), &memory(1000, 560)).surge.mib()
        };
        assert_eq!((grown(None), grown(Some(900))), (20, 200));
        assert_eq!(grown(Some(950)), 0, "too soon to tell");
    }

    #[test]
    fn a_guest_whose_returns_are_slow_looks_further_ahead() {
        let mut trend = Trend::default();
        let climb = |trend: &mut Trend| {
            let mut last = ByteSize::ZERO;
            for n in 1..=10 {
                let at = trend.last.map_or(0, |(at, _)| at.as_millis()) + 100;
                last = trend.observe(Instant::from_millis(at), &memory(1000, 1000 - 10 * n)).ahead;
            }
            last.mib()
        };
        assert_eq!(climb(&mut trend), 50);
        trend.return_took(Duration::from_millis(750));
        assert_eq!(climb(&mut trend), 200);
        (0..9).for_each(|_| trend.return_took(Duration::ZERO));
        assert_eq!(climb(&mut trend), 50);
        trend.return_took(Duration::from_secs(60));
        assert_eq!(climb(&mut trend), 300);
    }

    #[test]
    fn the_largest_burst_is_remembered_for_a_minute() {
        let mut trend = Trend::default();
        let mut at =
            |ms, free| trend.observe(Instant::from_millis(ms), &memory(1000, free)).burst.mib();
        assert_eq!(at(0, 900), 0);
        assert_eq!(at(100, 800), 100);
        assert_eq!(at(200, 750), 100);
        assert_eq!(at(60_000, 750), 100);
        assert_eq!(at(119_000, 750), 100);
        assert_eq!(at(121_000, 750), 0);
        assert_eq!(at(123_000, 350), 100, "400 MiB in two seconds are 100 in half of one");
    }
}
