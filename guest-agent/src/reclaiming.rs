//! Paging cold memory out, so that what is stolen next need not be free already.
//!
//! The policy says when; DAMON's second scheme finds what is coldest and how much may go without
//! more stall than the user accepts; [`SwapSpace`] is where it goes.

use std::time::Duration;

use memtide_policy::guest::{Limits, PagingBounds, Reclaim, Swap};
use memtide_sysfs::Root;
use memtide_sysfs::damon::{PageoutConfig, PageoutStats};
use memtide_sysfs::meminfo::Meminfo;
use memtide_units::{ByteSize, Instant};

use crate::processor_time::Rate;
use crate::status::ReclaimStatus;
use crate::swap_space::SwapSpace;

/// What the scheme is told on a guest with so much memory, where what was not touched for `min_age` is
/// cold.
pub fn pageout_config(limits: &Limits, present: ByteSize, min_age: Duration) -> PageoutConfig {
    let PagingBounds { bytes, stall_us } = PagingBounds::of(limits, present);
    PageoutConfig { min_age, bytes, stall_us }
}

/// What is going on.
#[derive(Debug)]
pub struct Reclaiming {
    space: SwapSpace,
    last: Option<Reclaim>,
    stats: PageoutStats,
    /// What earlier schemes have done: each counts from its own start on.
    before: PageoutStats,
    /// PSI's counter of some task's stall, and when it was read.
    stalled: Rate,
}

impl Reclaiming {
    /// With somewhere to go.
    pub fn new(space: SwapSpace) -> Self {
        Self {
            space,
            last: None,
            stats: PageoutStats::default(),
            before: PageoutStats::default(),
            stalled: Rate::default(),
        }
    }

    /// The same after DAMON has ended and was started anew.
    pub fn go_on(self, space: SwapSpace) -> Self {
        let Self { before, stats, .. } = self;
        let before = PageoutStats {
            tried: before.tried + stats.tried,
            applied: before.applied + stats.applied,
            exceeded: before.exceeded.saturating_add(stats.exceeded),
            effective: None,
        };
        Self { before, ..Self::new(space) }
    }

    /// What there is of swap, and what was paged out.
    pub fn swap(&self, root: &Root, meminfo: &Meminfo) -> Swap {
        Swap { paged_out: self.paged_out(), ..self.space.now(root, meminfo) }
    }

    fn paged_out(&self) -> ByteSize {
        self.before.applied + self.stats.applied
    }

    /// Takes a decision; answers with it where it is another than before, whatever its numbers.
    pub fn take(&mut self, reclaim: Reclaim) -> Option<Reclaim> {
        let kind = |reclaim: &Reclaim| match reclaim {
            Reclaim::On(_) => None,
            Reclaim::Off(reason) => Some(std::mem::discriminant(reason)),
        };
        let is_news = self.last.as_ref().map(kind) != Some(kind(&reclaim));
        self.last = Some(reclaim);
        is_news.then_some(reclaim)
    }

    /// What the scheme says that it has done.
    pub fn take_stats(&mut self, stats: PageoutStats) {
        self.stats = stats;
    }

    /// Microseconds of a second in which some task stalled, since the last call.
    pub fn stall_us(&mut self, now: Instant, total_us: u64) -> Option<u64> {
        self.stalled.by_the_second(now, total_us)
    }

    /// For people.
    pub fn status(&self, swap: Swap) -> ReclaimStatus {
        ReclaimStatus {
            doing: self.last.map_or_else(|| "starting".into(), |last| last.to_string()),
            paged_out: self.paged_out(),
            tried: self.before.tried + self.stats.tried,
            per_second: self.stats.effective,
            swap_total: swap.total,
            swap_free: swap.free,
            own_device: match self.space {
                SwapSpace::Existing => None,
                SwapSpace::Ours(zram) => Some(zram.device()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_policy::guest::{COLD_AFTER, Gain, LimitsWish, NoReclaim};

    #[test]
    fn the_bounds_follow_the_guest() {
        let of = |gib| {
            let present = ByteSize::from_gib(gib);
            let limits = Limits::new(present, LimitsWish::default()).unwrap();
            let config = pageout_config(&limits, present, COLD_AFTER);
            (config.bytes.mib(), config.stall_us)
        };
        assert_eq!([of(1), of(8), of(64)], [(32, 500), (128, 500), (256, 500)]);
    }

    #[test]
    fn only_another_thought_is_news() {
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        let on = |mib| Reclaim::On(Gain::Block { missing: ByteSize::from_mib(mib) });
        let full = |mib| Reclaim::Off(NoReclaim::SwapFull { free: ByteSize::from_mib(mib) });
        let thoughts = [on(1), on(2), full(1), full(2), Reclaim::Off(NoReclaim::NotNeeded)];
        let news = thoughts.map(|thought| reclaiming.take(thought).is_some());
        assert_eq!(news, [true, false, true, false, true]);
    }

    #[test]
    fn what_was_paged_out_is_counted_on_when_damon_begins_anew() {
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        for applied in [7, 5] {
            let (tried, applied) = (ByteSize::from_mib(100), ByteSize::from_mib(applied));
            reclaiming.take_stats(PageoutStats { tried, applied, ..PageoutStats::default() });
            reclaiming = reclaiming.go_on(SwapSpace::Existing);
        }
        let status = reclaiming.status(Swap::default());
        assert_eq!((status.paged_out.mib(), status.tried.mib()), (12, 200));
    }

    #[test]
    fn a_stall_is_counted_by_the_second() {
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        let mut at = |ms, total| reclaiming.stall_us(Instant::from_millis(ms), total);
        assert_eq!([at(0, 900), at(2_000, 1_900), at(2_000, 1_900)], [None, Some(500), None]);
        assert_eq!(at(3_000, 5), Some(0), "a counter that went back");
    }
}
