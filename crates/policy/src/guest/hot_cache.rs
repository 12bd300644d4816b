//! How much of the page cache is in use.
//!
//! `MemAvailable` counts all of it as available. Which of it is read again and again shows only when
//! some of that is gone: whoever reads it waits, and the kernel counts pages that it should have kept.
//! `Active(file)` says little: a page that was read twice stays there for as long as nothing is
//! reclaimed, and in a guest with plenty of memory nothing is.

use memtide_units::{ByteSize, Instant};

use super::observation::{Observation, Squeeze};
use super::pressure::WINDOW;
use super::quiet::LONGEST;

/// What was found out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HotCache {
    reread: Option<ByteSize>,
    /// What was read again lately before it was known whether somebody minds, and since when.
    lately: (ByteSize, Instant),
    /// So much of the cache was too little until then.
    kept: Option<(ByteSize, Instant)>,
}

impl HotCache {
    /// Looks at the counters of `now`; `stalls` says whether some task has waited too much for
    /// want of memory lately. Answers with how much of the cache there is counts as in use.
    pub(super) fn observe(&mut self, now: Instant, seen: &Observation, stalls: bool) -> ByteSize {
        let reread = seen.squeeze.map(|Squeeze { reread, .. }| reread);
        let more = match (self.reread, reread) {
            (Some(before), Some(reread)) => reread - before,
            _ => ByteSize::ZERO,
        };
        self.reread = reread;
        self.kept = self.kept.filter(|(_, until)| now < *until);
        let (before, since) = self.lately;
        let is_recent = now.since(since) < WINDOW;
        let missing = if is_recent { before + more } else { more };
        self.lately = (missing, if is_recent { since } else { now });
        if stalls && !missing.is_zero() {
            let known = self.kept.map_or(ByteSize::ZERO, |(kept, _)| kept);
            // What is in the cache was not enough, and as much as was missing comes on top.
            self.kept = Some((known.max(seen.memory.cache + missing), now + LONGEST));
            self.lately = (ByteSize::ZERO, now);
        }
        self.known(now, seen)
    }

    /// How much of it counts as in use by what is known already.
    pub(super) fn known(&self, now: Instant, seen: &Observation) -> ByteSize {
        let kept = self.kept.filter(|(_, until)| now < *until);
        let kept = kept.map_or(ByteSize::ZERO, |(kept, _)| kept);
        // What nobody touches is not in use, where somebody watches.
        kept.min(seen.working_set.unwrap_or(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::super::observation::Memory;
    use super::*;

    fn seen(cache: u64, reread: Option<u64>, working_set: Option<u64>) -> Observation {
        let mib = ByteSize::from_mib;
        Observation {
            memory: Memory { cache: mib(cache), ..Memory::default() },
            squeeze: reread.map(|reread| Squeeze { reread: mib(reread), ..Squeeze::default() }),
            working_set: working_set.map(mib),
            ..Observation::of_nothing()
        }
    }

    #[test]
    fn what_was_missed_counts_as_in_use_for_ten_minutes() {
        let mut cache = HotCache::default();
        let mut at = |s: u64, seen, stalls| {
            cache.observe(Instant::from_millis(s * 1_000), &seen, stalls).mib()
        };
        assert_eq!(at(0, seen(900, Some(50), None), true), 0, "who knows when that was");
        assert_eq!(at(1, seen(400, Some(50), None), true), 0, "somebody stalls for something else");
        assert_eq!(at(2, seen(400, Some(70), None), false), 0, "nobody minds");
        assert_eq!(at(5, seen(410, Some(80), None), false), 0);
        assert_eq!(at(6, seen(410, Some(90), None), true), 430, "of the last window all counts");
        assert_eq!(at(7, seen(450, Some(100), None), true), 460);
        assert_eq!(at(8, seen(300, Some(101), None), true), 460, "less of it says nothing");
        assert_eq!(at(607, seen(800, Some(101), None), false), 460);
        assert_eq!(at(608, seen(800, Some(101), None), false), 0);
    }

    #[test]
    fn what_nobody_touches_is_not_in_use() {
        let mut cache = HotCache::default();
        let mut at =
            |s: u64, seen| cache.observe(Instant::from_millis(s * 1_000), &seen, true).mib();
        at(0, seen(400, Some(0), Some(1_000)));
        assert_eq!(at(1, seen(400, Some(9), Some(1_000))), 409);
        assert_eq!(at(2, seen(400, Some(9), Some(100))), 100);
        assert_eq!(at(3, seen(400, None, None)), 409);
    }
}
