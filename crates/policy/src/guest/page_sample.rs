//! How much memory was touched lately, by a sample of its pages.

use core::time::Duration;

use memtide_units::{ByteSize, Instant};

/// What was found so long ago counts no more.
const KEPT: Duration = Duration::from_secs(40);

/// Pages of the sample, once for each time that they were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Whatever happened to them.
    pub looked_at: ByteSize,
    /// Those that were touched lately.
    pub touched: ByteSize,
}

/// The sample of one piece of memory, from the time on at which it was drawn.
#[derive(Clone, Copy, Debug)]
pub struct PageSample {
    /// From when on the counts are right: before, no page has been left alone for long enough.
    settled: Instant,
    /// What was counted at the last look.
    total: Counted,
    /// What was counted between the last two looks that found any.
    found: Option<(Instant, Counted)>,
}

impl PageSample {
    /// One that was drawn now, in which a page counts that was touched within this time.
    pub fn new(now: Instant, within: Duration) -> Self {
        Self { settled: now + within, total: Counted::default(), found: None }
    }

    /// Takes in the counts, which only grow. True where they have.
    pub fn observe(&mut self, now: Instant, total: Counted) -> bool {
        let less = |a: ByteSize, b: ByteSize| a.bytes().saturating_sub(b.bytes());
        let before = core::mem::replace(&mut self.total, total);
        let looked_at = less(total.looked_at, before.looked_at);
        if now >= self.settled && looked_at > 0 {
            let touched = less(total.touched, before.touched).min(looked_at);
            let size = ByteSize::from_bytes;
            let counted = Counted { looked_at: size(looked_at), touched: size(touched) };
            self.found = Some((now, counted));
        }
        looked_at > 0
    }

    /// How much of `memory`, all that the sample was drawn from, was touched lately, where that is known.
    pub fn touched(&self, now: Instant, memory: ByteSize) -> Option<ByteSize> {
        let (at, Counted { looked_at, touched }) = self.found?;
        let share = u128::from(memory.bytes()) * u128::from(touched.bytes());
        let share = share / u128::from(looked_at.bytes().max(1));
        let is_fresh = now.since(at) < KEPT;
        is_fresh.then(|| ByteSize::from_bytes(u64::try_from(share).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(looked_at: u64, touched: u64) -> Counted {
        let pages = |count| ByteSize::from_kib(4 * count);
        Counted { looked_at: pages(looked_at), touched: pages(touched) }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    /// MiB that are touched of a GiB.
    fn told(sample: &PageSample, seconds: u64) -> Option<u64> {
        sample.touched(at(seconds), ByteSize::from_gib(1)).map(ByteSize::mib)
    }

    #[test]
    fn a_share_of_the_sample_is_a_share_of_memory() {
        let mut sample = PageSample::new(at(0), Duration::from_secs(30));
        sample.observe(at(29), counted(2000, 2000));
        assert_eq!(told(&sample, 29), None, "all counts as touched at first");
        sample.observe(at(31), counted(3000, 2250));
        assert_eq!(told(&sample, 31), Some(256));
        sample.observe(at(33), counted(3000, 2250));
        assert_eq!(told(&sample, 33), Some(256), "nothing was counted meanwhile");
        sample.observe(at(52), counted(5000, 3250));
        assert_eq!(told(&sample, 52), Some(512), "twice, since the last look");
        assert_eq!(told(&sample, 91), Some(512));
        assert_eq!(told(&sample, 92), None, "who counts has stopped");
    }

    #[test]
    fn counts_that_go_back_are_no_news() {
        let mut sample = PageSample::new(at(0), Duration::ZERO);
        sample.observe(at(1), counted(100, 50));
        sample.observe(at(11), counted(3, 2));
        assert_eq!(told(&sample, 11), Some(512));
        sample.observe(at(21), counted(103, 2));
        assert_eq!(told(&sample, 21), Some(0));
    }

    #[test]
    fn no_count_is_too_large() {
        let all = ByteSize::from_bytes(u64::MAX);
        let mut sample = PageSample::new(at(0), Duration::ZERO);
        sample.observe(at(1), Counted { looked_at: ByteSize::from_bytes(1), touched: all });
        assert_eq!(sample.touched(at(1), all), Some(all));
    }
}
