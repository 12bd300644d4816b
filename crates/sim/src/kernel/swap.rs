//! Swap: what is paged out, and comes back when somebody touches it.
//!
//! Pages are counted by what they are to those who own them. What is touched hardly ever is missed
//! hardly ever; what is touched all the time is wanted back at once, and its owner stalls until it is
//! there.

use std::collections::VecDeque;

use memtide_policy::guest::{COLD_AFTER, Swap};
use memtide_units::{ByteSize, Permille};

use super::block::{Kind, Zone};
use super::place::Depth;
use super::serve::{Demand, per_tick, share};
use super::{Kernel, in_bytes, in_pages};
use crate::TICK;

/// Where what is paged out goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwapSpace {
    /// Nowhere.
    #[default]
    None,
    /// To a disk as large as the guest.
    Disk,
    /// To compressed memory of the guest's own, half as large as the guest when it is not compressed.
    Zram,
}

impl SwapSpace {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Disk, Self::Zram];

    /// As it is written on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Disk => "disk",
            Self::Zram => "zram",
        }
    }

    /// Memory that what is in it takes: on zram a quarter of its size (817 MiB took 203, `bench size`).
    const fn costs(self) -> Permille {
        match self {
            Self::None | Self::Disk => Permille(0),
            Self::Zram => Permille(250),
        }
    }
}

/// What nobody has touched for so long is cold.
const COLD_AFTER_TICKS: usize = (COLD_AFTER.as_millis() / TICK.as_millis()) as usize;
/// Of programs' text this part looks as if nobody used it for a minute, and is read again after all (some
/// 5 MiB a minute of the 200 that a Debian guest has, by `bench size`). What else is in the cache is read
/// more often.
const LOOKS_COLD: u64 = 40;
const TEXT: ByteSize = ByteSize::from_mib(200);
/// Memory that is touched hardly ever is touched once in six hours.
const TOUCHED_TICKS: u64 = 6 * 3600 * 20;
const MINUTE_TICKS: u64 = 60 * 20;

/// What is in swap.
#[derive(Clone, Debug, Default)]
pub(super) struct Swapped {
    space: SwapSpace,
    total: u64,
    cold: u64,
    hot: u64,
    /// Parts of a page that are due to be touched, or taken, of as many as make one.
    touched: u64,
    mistaken: u64,
    /// What was paged out for the policy's sake, in all.
    for_policy: u64,
    /// How much memory programs had that they hardly touch.
    kept: u64,
    /// By how much that grew, in each of the last ticks: it has been touched lately.
    young: VecDeque<u64>,
}

impl Swapped {
    /// Pages of this kind that are in it.
    pub(super) fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Cold => self.cold,
            Kind::Hot => self.hot,
            Kind::Kernel | Kind::Cache | Kind::Stale | Kind::Stored => 0,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Cold => &mut self.cold,
            Kind::Hot => &mut self.hot,
            Kind::Kernel | Kind::Cache | Kind::Stale | Kind::Stored => {
                unreachable!("only programs' memory is swapped")
            }
        }
    }

    fn used(&self) -> u64 {
        self.cold + self.hot
    }

    /// Pages of memory that what is in it takes.
    fn stored(&self) -> u64 {
        (self.used() * u64::from(self.space.costs().0)).div_ceil(1000)
    }
}

impl Kernel {
    /// Somewhere to page out to, from now on.
    pub fn swap_on(&mut self, space: SwapSpace) {
        let total = match space {
            SwapSpace::None => 0,
            SwapSpace::Disk => in_pages(self.present()),
            SwapSpace::Zram => in_pages(self.present()) / 2,
        };
        self.swapped = Swapped { space, total, ..Swapped::default() };
    }

    /// `/proc/swaps`, and what the agent counts; `None` where there is no swap.
    pub fn swap(&self) -> Option<Swap> {
        let Swapped { space, total, for_policy, .. } = self.swapped;
        (space != SwapSpace::None).then(|| Swap {
            total: in_bytes(total),
            free: in_bytes(total - self.swapped.used()),
            costs: space.costs(),
            paged_out: in_bytes(for_policy),
            swapped: self.swapped_out(),
        })
    }

    /// Pages of this kind that programs have, in memory or not.
    pub(super) fn owned(&self, kind: Kind) -> u64 {
        self.held(kind) + self.swapped.of(kind)
    }

    /// Bytes that are in swap.
    pub fn swapped_out(&self) -> ByteSize {
        in_bytes(self.swapped.used())
    }

    /// DAMON's scheme: up to so many pages of what looks cold. Some of it is not.
    pub fn page_out(&mut self, pages: u64) {
        let stale = self.let_go(Kind::Stale, pages, None);
        let old = self.held(Kind::Cold).saturating_sub(self.swapped.young.iter().sum());
        let cold = self.swap_out(Kind::Cold, old.min(pages - stale), None);
        self.swapped.mistaken += self.held(Kind::Cache).min(in_pages(TEXT)) / LOOKS_COLD;
        let mistaken = (self.swapped.mistaken / MINUTE_TICKS).min(pages - stale - cold);
        self.swapped.mistaken %= MINUTE_TICKS;
        let text = self.let_go(Kind::Cache, mistaken, None);
        self.evicted += text;
        self.swapped.for_policy += stale + cold + text;
    }

    /// What has become cold in this tick is young.
    pub(super) fn age(&mut self) {
        let kept = self.owned(Kind::Cold);
        let Swapped { kept: before, young, .. } = &mut self.swapped;
        young.push_back(kept.saturating_sub(std::mem::replace(before, kept)));
        if young.len() > COLD_AFTER_TICKS {
            young.pop_front();
        }
    }

    /// Writes up to `pages` of this kind to swap; answers with how many.
    pub(super) fn swap_out(&mut self, kind: Kind, pages: u64, zone: Option<Zone>) -> u64 {
        let room = self.swapped.total - self.swapped.used();
        let out = self.let_go(kind, pages.min(room), zone);
        *self.swapped.of_mut(kind) += out;
        let missing = self.swapped.stored().saturating_sub(self.held(Kind::Stored));
        // zram writes where memory is short, and into what it has just made free.
        self.hand_out(Kind::Stored, missing, Depth::Min);
        out
    }

    /// Programs touch what is not there. What they use all the time comes back at once, and they wait for it.
    pub(super) fn page_in(&mut self) {
        let most = per_tick(self.swap_read_per_second()).max(1);
        let hot = self.swapped.hot.min(most);
        self.swapped.touched += self.swapped.cold;
        let cold = (self.swapped.touched / TOUCHED_TICKS).min(most - hot);
        self.swapped.touched %= TOUCHED_TICKS;
        for (kind, wanted) in [(Kind::Hot, hot), (Kind::Cold, cold)] {
            let got = self.give(kind, wanted);
            // Whoever gave way for it may have been of the same kind.
            *self.swapped.of_mut(kind) -= got;
            self.squeeze.swapped_in += got;
            self.squeeze.refaulted += in_bytes(got);
            self.stalls.add(share(TICK, got, most));
        }
        self.free_stored();
    }

    /// From a disk as fast as files, from compressed memory about as fast as new memory is touched.
    fn swap_read_per_second(&self) -> ByteSize {
        match self.swapped.space {
            SwapSpace::None | SwapSpace::Disk => self.machine.read_per_second(),
            SwapSpace::Zram => ByteSize::from_bytes(self.machine.touched_per_second().bytes() / 2),
        }
    }

    /// What programs do not want any more is freed wherever it is.
    pub(super) fn forget_swapped(&mut self, kind: Kind, over: u64) -> u64 {
        let owned = self.owned(kind);
        let part = over.min(owned) * self.swapped.of(kind) / owned.max(1);
        if part > 0 {
            *self.swapped.of_mut(kind) -= part;
            self.free_stored();
        }
        part
    }

    /// Everything in swap was of those who are gone.
    pub(super) fn empty_swap(&mut self) {
        (self.swapped.cold, self.swapped.hot) = (0, 0);
        self.free_stored();
    }

    fn free_stored(&mut self) {
        let over = self.held(Kind::Stored).saturating_sub(self.swapped.stored());
        self.let_go(Kind::Stored, over, None);
    }

    /// What was hardly touched is wanted all the time from now on, or the other way round: it is the
    /// same memory.
    pub(super) fn turn(&mut self, demand: &Demand) {
        let pairs = [(Kind::Hot, demand.hot), (Kind::Cold, demand.cold)];
        for ((from, less), (to, more)) in [(pairs[0], pairs[1]), (pairs[1], pairs[0])] {
            let over = self.owned(from).saturating_sub(less);
            let pages = over.min(more.saturating_sub(self.owned(to)));
            let out = pages * self.swapped.of(from) / self.owned(from).max(1);
            if out > 0 {
                *self.swapped.of_mut(from) -= out;
                *self.swapped.of_mut(to) += out;
            }
            let mut left = pages - out;
            for block in &mut self.blocks {
                let here = block.of(from).min(left);
                if here > 0 {
                    block.take(from, here);
                    block.put(to, here);
                }
                left -= here;
            }
        }
    }
}
