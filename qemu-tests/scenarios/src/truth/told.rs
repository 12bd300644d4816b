//! What was told of a working set while it stayed the same, and whether that was right.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use memtide_units::{ByteSize, Permille};

/// Of a phase's end so much counts: as long as what `wss` is asked for, and what a user would wait for.
const COUNTS: Duration = Duration::from_secs(20);
/// Of the hot set so much must be told at the least: 15 % less, on 7.3. That holds on 6.12 as well, where a
/// quarter would be allowed.
const LEAST: Permille = Permille(850);
/// And at the most so much more, with what the system itself touches.
const MOST_BESIDE: Permille = Permille(150);

/// What was told in one phase.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// By `status.json`: from when on, since the phase began, and what. Each change once.
    status: Vec<(Duration, ByteSize)>,
    /// When `status.json` was last read.
    until: Duration,
    /// What `wss` said last.
    wss: ByteSize,
}

impl Told {
    /// The agent's status said this.
    pub(super) fn status(&mut self, at: Duration, set: ByteSize) {
        if self.status.last().is_none_or(|(_, last)| *last != set) {
            self.status.push((at, set));
        }
        self.until = at;
    }

    /// `wss` said this.
    pub(super) fn wss(&mut self, middle: ByteSize) {
        self.wss = middle;
    }

    /// True if all that counts was right: what was told at its beginning, all that was since, and `wss` at last.
    /// A phase of which nobody heard the end was not told.
    pub(super) fn is_right(&self, hot: ByteSize) -> bool {
        let bounds = bounds(hot);
        let counts = self.counting();
        let is_long = self.until >= COUNTS;
        is_long
            && !counts.is_empty()
            && counts.iter().all(|(_, set)| bounds.contains(&set.bytes()))
            && bounds.contains(&self.wss.bytes())
    }

    /// From the one that was told when what counts began.
    fn counting(&self) -> &[(Duration, ByteSize)] {
        let begins = self.until.saturating_sub(COUNTS);
        let before = self.status.iter().take_while(|(at, _)| *at <= begins).count();
        &self.status[before.saturating_sub(1)..]
    }
}

impl fmt::Display for Told {
    /// In MiB, with the seconds from which on it was told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for (at, set) in &self.status {
            if last.replace(set.mib()) != Some(set.mib()) {
                write!(f, "{} ({} s), ", set.mib(), at.as_secs())?;
            }
        }
        write!(f, "until {} s; by wss {}", self.until.as_secs(), self.wss.mib())
    }
}

fn bounds(hot: ByteSize) -> RangeInclusive<u64> {
    LEAST.of(hot).bytes()..=(hot + MOST_BESIDE.of(hot)).bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOT: ByteSize = ByteSize::from_mib(200);

    /// Looked at each second for 75.
    fn told(set_mib: impl Fn(u64) -> u64, wss_mib: u64) -> Told {
        let mut told = Told::default();
        for second in 0..=75 {
            told.status(Duration::from_secs(second), ByteSize::from_mib(set_mib(second)));
        }
        told.wss(ByteSize::from_mib(wss_mib));
        told
    }

    #[test]
    fn what_is_found_and_stays_is_right() {
        let found = told(|second| if second < 50 { 1024 } else { 210 }, 210);
        assert!(found.is_right(HOT));
        assert_eq!(found.to_string(), "1024 (0 s), 210 (50 s), until 75 s; by wss 210");
        assert!(told(|_| 170, 230).is_right(HOT), "both ends of what is allowed");
    }

    #[test]
    fn what_only_passes_is_not() {
        assert!(!told(|second| 100 + 2 * second, 210).is_right(HOT), "it rises through it");
        assert!(!told(|second| 400 - 3 * second, 210).is_right(HOT), "it falls through it");
        assert!(!told(|second| if second == 60 { 300 } else { 200 }, 200).is_right(HOT));
    }

    #[test]
    fn what_is_found_too_late_was_wrong_when_it_counted() {
        assert!(told(|second| if second < 55 { 1024 } else { 210 }, 210).is_right(HOT));
        assert!(!told(|second| if second < 56 { 1024 } else { 210 }, 210).is_right(HOT));
    }

    #[test]
    fn both_have_to_be_right() {
        assert!(!told(|_| 200, 240).is_right(HOT), "wss tells too much");
        assert!(!told(|_| 169, 200).is_right(HOT), "status tells too little");
    }

    #[test]
    fn nothing_was_told_of_a_phase_that_nobody_listened_to() {
        assert!(!Told::default().is_right(HOT));
        let mut short = Told::default();
        short.status(Duration::ZERO, HOT);
        short.status(Duration::from_secs(19), HOT);
        short.wss(HOT);
        assert!(!short.is_right(HOT));
    }
}
