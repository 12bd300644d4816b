//! When each page was last touched, by the program that touches it: what a monitor in the kernel says
//! of the same pages can be held against this.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The record of one mapping. The player writes it, and whoever counts may read it at any time: single
/// numbers, which nothing else depends on.
#[derive(Debug)]
pub(crate) struct Touches {
    /// The address of the first page.
    address: usize,
    /// Pages that are still mapped.
    mapped: AtomicUsize,
    since: Instant,
    /// For each page the second of the record's life in which it was touched last, counted from one;
    /// zero before the first touch. Four bytes for 4 KiB, and 136 years.
    last: Vec<AtomicU32>,
}

impl Touches {
    /// None yet, of `pages` pages from `address` on.
    pub(crate) fn new(address: usize, pages: usize) -> Self {
        let last = (0..pages).map(|_| AtomicU32::new(0)).collect();
        Self { address, mapped: AtomicUsize::new(pages), since: Instant::now(), last }
    }

    /// The address of the first page.
    pub(crate) fn address(&self) -> usize {
        self.address
    }

    /// Pages that are still mapped.
    pub(crate) fn mapped(&self) -> usize {
        self.mapped.load(Ordering::Relaxed)
    }

    /// These pages have been touched, at `now`.
    pub(crate) fn note(&self, pages: Range<usize>, now: Instant) {
        let second = self.second(now);
        for last in &self.last[pages] {
            last.store(second, Ordering::Relaxed);
        }
    }

    /// Whether page `index` was touched within the time before `now`; up to a second longer ago counts
    /// too, since whole seconds are kept.
    pub(crate) fn is_hot(&self, index: usize, now: Instant, within: Duration) -> bool {
        let last = self.last[index].load(Ordering::Relaxed);
        let ago = self.second(now).saturating_sub(last);
        last != 0 && Duration::from_secs(ago.into()) <= within
    }

    /// All pages from `pages` on are about to be unmapped.
    pub(crate) fn truncate(&self, pages: usize) {
        self.mapped.fetch_min(pages, Ordering::Relaxed);
    }

    fn second(&self, now: Instant) -> u32 {
        let second = now.saturating_duration_since(self.since).as_secs() + 1;
        u32::try_from(second).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_hot_for_as_long_as_is_asked_for_and_never_before_its_first_touch() {
        let touches = Touches::new(0x1000, 3);
        let minute = Duration::from_secs(60);
        let at = |seconds| touches.since + Duration::from_secs(seconds);
        touches.note(1..3, at(5));
        touches.note(2..3, at(30));
        let hot = |seconds| (0..3).map(|page| touches.is_hot(page, at(seconds), minute)).collect();
        let hot: [Vec<bool>; 3] = [hot(65), hot(66), hot(91)];
        assert_eq!(hot, [[false, true, true], [false, false, true], [false; 3]]);
    }

    #[test]
    fn what_is_unmapped_stays_so() {
        let touches = Touches::new(0x1000, 8);
        touches.truncate(3);
        touches.truncate(5);
        assert_eq!(touches.mapped(), 3);
    }
}
