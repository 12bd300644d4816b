//! Whether the host brings back what it has agreed to bring back.
//!
//! By DIMM: one that does not come must not keep the others away.

use std::collections::BTreeSet;
use std::time::Duration;

use memtide_units::{BlockId, Instant};

/// After the host has not plugged in a DIMM that it was asked for, nobody relies on that one for so long; twice as
/// long each further time, up to the last.
const FIRST: Duration = Duration::from_secs(10);
const LAST: Duration = Duration::from_secs(600);

/// What the host is not relied on for, and why not longer.
#[derive(Debug, Default)]
pub(super) struct Trust {
    doubts: Vec<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    /// Blocks of one DIMM.
    blocks: Vec<BlockId>,
    pause: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host has not done it just now.
    Fresh,
    /// It is asked again then.
    Until(Instant),
    /// It may be asked again; should it not do it, the next pause is longer.
    Over,
}

impl Trust {
    /// These did not come, though they were asked for.
    pub(super) fn lose(&mut self, blocks: &[BlockId]) {
        let before = self.take(blocks).map(|doubt| doubt.pause.saturating_mul(2).min(LAST));
        let (blocks, pause) = (blocks.to_vec(), before.unwrap_or(FIRST));
        self.doubts.push(Doubt { blocks, pause, state: State::Fresh });
    }

    /// These have come.
    pub(super) fn regain(&mut self, blocks: &[BlockId]) {
        self.take(blocks);
    }

    /// Only of what is out there is a doubt: a host that was late has brought the rest all the same.
    pub(super) fn keep_only(&mut self, is_out: impl Fn(BlockId) -> bool) {
        self.doubts.retain(|doubt| doubt.blocks.iter().any(|block| is_out(*block)));
    }

    /// Time has passed.
    pub(super) fn judge(&mut self, now: Instant) {
        for doubt in &mut self.doubts {
            doubt.state = match doubt.state {
                State::Fresh => State::Until(now + doubt.pause),
                State::Until(at) if now >= at => State::Over,
                same => same,
            };
        }
    }

    /// Blocks that the host is not relied on for now.
    pub(super) fn doubted(&self) -> BTreeSet<BlockId> {
        let now = self.doubts.iter().filter(|doubt| doubt.state != State::Over);
        now.flat_map(|doubt| &doubt.blocks).copied().collect()
    }

    fn take(&mut self, blocks: &[BlockId]) -> Option<Doubt> {
        let is_of = |doubt: &Doubt| doubt.blocks.iter().any(|block| blocks.contains(block));
        let at = self.doubts.iter().position(is_of)?;
        Some(self.doubts.swap_remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [BlockId; 2] = [BlockId(8), BlockId(9)];
    const OTHER: [BlockId; 2] = [BlockId(10), BlockId(11)];

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    #[test]
    fn one_that_does_not_come_casts_no_doubt_on_another() {
        let mut trust = Trust::default();
        trust.lose(&ONE);
        assert_eq!(trust.doubted(), ONE.into());
        trust.lose(&OTHER);
        trust.regain(&ONE[1..]);
        assert_eq!(trust.doubted(), OTHER.into());
    }

    #[test]
    fn the_pause_is_twice_as_long_each_time_it_does_not_come_again() {
        let mut trust = Trust::default();
        let mut now = 0;
        for seconds in [10, 20, 40, 80, 160, 320, 600, 600] {
            trust.lose(&ONE);
            trust.judge(at(now));
            trust.judge(at(now + seconds - 1));
            assert_eq!(trust.doubted(), ONE.into(), "{seconds} s");
            now += seconds;
            trust.judge(at(now));
            assert_eq!(trust.doubted(), [].into(), "{seconds} s");
        }
        trust.regain(&ONE);
        trust.lose(&ONE);
        trust.judge(at(now));
        trust.judge(at(now + 10));
        assert_eq!(trust.doubted(), [].into(), "it had come in between");
    }
}
