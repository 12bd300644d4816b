//! How much of what was touched lately, by DAMON's regions, was touched in truth.
//!
//! A region counts as a whole, so that one page in use has megabytes around it called touched. Where the
//! kernel looks at single pages as well, what it finds is a sample of that memory: its share is taken for
//! the share of all of it.

use alloc::collections::VecDeque;
use core::time::Duration;

use memtide_units::{ByteSize, Instant};

/// What was found so long ago counts no more: three of the windows in which the kernel looks.
const KEPT: Duration = Duration::from_secs(30);
/// Looks that are kept; they are two seconds apart at least.
const LOOKS_MAX: usize = 32;
/// Of fewer pages nothing is concluded: 4096 of them.
const LEAST: ByteSize = ByteSize::from_mib(16);
/// Nor of less than this part of the memory that they stand for: pages next to each other are alike.
const PART: u64 = 8;

/// What was looked at, page by page, and what of that was touched between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Memory, whatever is in it.
    pub tried: ByteSize,
    /// What of it was touched.
    pub touched: ByteSize,
}

/// One look: what it has found of how much memory that was to be looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    found: Looked,
    of: ByteSize,
}

/// What the looks of the last half minute have found.
#[derive(Clone, Debug, Default)]
pub struct Recency {
    looks: VecDeque<Look>,
    /// The kernel's counters at the last look.
    total: Looked,
}

impl Recency {
    /// Takes in the kernel's counters, which only grow (where they have not, it counts anew), and of how much
    /// memory the pages are that it looks at: by the kernel's own account, which takes what was
    /// tried to be paged out for touched a moment ago. Answers with how much of that is touched in truth, once
    /// enough was looked at.
    pub fn observe(&mut self, now: Instant, total: Looked, of: ByteSize) -> Option<ByteSize> {
        let tried = total.tried.bytes().checked_sub(self.total.tried.bytes());
        let touched = total.touched.bytes().checked_sub(self.total.touched.bytes());
        self.total = total;
        let (Some(tried), Some(touched)) = (tried, touched) else {
            self.looks.clear();
            return None;
        };
        if self.looks.len() == LOOKS_MAX {
            self.looks.pop_front();
        }
        let size = ByteSize::from_bytes;
        let found = Looked { tried: size(tried), touched: size(touched) };
        self.looks.push_back(Look { at: now, found, of });
        self.looks.retain(|look| now.since(look.at) < KEPT);
        self.touched()
    }

    fn touched(&self) -> Option<ByteSize> {
        let sum = |part: fn(&Look) -> ByteSize| -> u128 {
            self.looks.iter().map(|look| u128::from(part(look).bytes())).sum()
        };
        let (tried, touched) = (sum(|look| look.found.tried), sum(|look| look.found.touched));
        let of = sum(|look| look.of) / self.looks.len().max(1) as u128;
        let is_enough = tried >= LEAST.bytes().into() && tried >= of / u128::from(PART);
        let share = of * touched.min(tried) / tried.max(1);
        is_enough.then(|| ByteSize::from_bytes(u64::try_from(share).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    fn looked(tried_mib: u64, touched_mib: u64) -> Looked {
        Looked { tried: mib(tried_mib), touched: mib(touched_mib) }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    #[test]
    fn what_is_found_in_half_a_minute_stands_for_all() {
        let mut recency = Recency::default();
        let mut touched = |seconds, total| recency.observe(at(seconds), total, mib(100));
        assert_eq!(touched(0, looked(10, 10)), None, "too little");
        assert_eq!(touched(5, looked(20, 10)), Some(mib(50)));
        assert_eq!(touched(25, looked(40, 10)), Some(mib(25)));
        assert_eq!(touched(30, looked(60, 11)), Some(mib(2)), "the first is forgotten");
        assert_eq!(touched(90, looked(60, 11)), None, "nothing was looked at lately");
    }

    #[test]
    fn much_memory_wants_a_larger_sample() {
        let mut recency = Recency::default();
        assert_eq!(recency.observe(at(0), looked(100, 1), mib(1000)), None);
        // Half as much on the average.
        assert_eq!(recency.observe(at(5), looked(200, 2), mib(200)), Some(mib(6)));
    }

    #[test]
    fn counters_that_start_anew_are_no_news() {
        let mut recency = Recency::default();
        recency.observe(at(0), looked(100, 50), mib(100)).unwrap();
        assert_eq!(recency.observe(at(5), looked(3, 1), mib(100)), None);
        assert_eq!(recency.observe(at(10), looked(35, 17), mib(100)), Some(mib(50)));
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let mut recency = Recency::default();
        for n in 1..1000 {
            recency.observe(Instant::from_millis(n), looked(n, 0), mib(1));
        }
        assert_eq!(recency.looks.len(), LOOKS_MAX);
    }
}
