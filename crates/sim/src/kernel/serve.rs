//! What programs get, who has to wait, and who is killed.

use std::time::Duration;

use memtide_units::{ByteSize, Instant};

use super::block::{Kind, Zone};
use super::place::Depth;
use super::{Kernel, in_pages};
use crate::TICK;

/// Each file page in use is read once in so many ticks (ten seconds): of what reclaim has taken, so
/// much comes back in one tick as a refault.
const ROUND_TICKS: u64 = 200;

/// What programs want to have at one moment, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Of the kernel, for their sake: page tables, stacks, sockets.
    pub kernel: u64,
    /// Memory that they touch all the time.
    pub hot: u64,
    /// Memory that they keep and hardly touch.
    pub cold: u64,
    /// File pages that they read again and again.
    pub cache: u64,
    /// File pages that they read once, in a second.
    pub streamed: u64,
    /// Share of the time, in thousandths, in which some task stalls in a control group that is at a
    /// limit of its own, whatever the guest has.
    pub boxed: u32,
}

/// Somebody was killed for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Killed {
    /// What could not be had was the kernel's own, while `ZONE_MOVABLE` had so much free.
    pub movable_free: ByteSize,
    /// What it was that could not be had.
    pub wanted: Kind,
}

/// What one tick has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticked {
    /// The OOM killer came.
    pub killed: Option<Killed>,
    /// The PSI trigger fired.
    pub trigger: bool,
}

impl Kernel {
    /// One tick of the machine, in which programs want `demand`.
    pub fn tick(&mut self, now: Instant, demand: &Demand) -> Ticked {
        self.empty_block(now);
        self.turn(demand);
        self.shrink_to(demand);
        self.run_kswapd(demand);
        let killed = self.grow_to(demand);
        self.page_in();
        self.age();
        self.thrash_in_box(demand.boxed);
        self.read_again(demand.cache);
        self.read_once(demand.streamed);
        Ticked { killed, trigger: self.stalls.end_tick() }
    }

    /// Whether programs wait for memory that they want.
    pub fn lacks(&self, demand: &Demand) -> bool {
        // What is hardly touched may be elsewhere.
        self.held(Kind::Hot) < demand.hot || self.owned(Kind::Cold) < demand.cold
    }

    /// A control group at its limit drops its own pages and reads them again. The guest is not short,
    /// and its kernel reclaims nothing; the pages that are read again count for the guest all the same.
    fn thrash_in_box(&mut self, permille: u32) {
        let time = TICK * permille / 1000;
        let most = per_tick(self.machine.read_per_second());
        self.stalls.add(time);
        let again = super::in_bytes(most * u64::from(permille) / 1000);
        self.squeeze.reread += again;
        self.squeeze.refaulted += again;
    }

    /// What programs do not want any more is free at once.
    fn shrink_to(&mut self, demand: &Demand) {
        let wanted = [
            (Kind::Kernel, self.own + demand.kernel),
            (Kind::Hot, demand.hot),
            (Kind::Cold, demand.cold),
            // What is read no longer stays in the cache until somebody needs the room.
            (Kind::Cache, demand.cache),
        ];
        for (kind, wanted) in wanted {
            let over = self.owned(kind).saturating_sub(wanted);
            if kind == Kind::Cache {
                self.retire_cache(over);
            } else {
                let elsewhere = self.forget_swapped(kind, over);
                self.let_go(kind, over - elsewhere, None);
            }
        }
        let missing = demand.cache.saturating_sub(self.held(Kind::Cache));
        self.evicted = self.evicted.min(missing);
    }

    fn retire_cache(&mut self, mut pages: u64) {
        for block in &mut self.blocks {
            let here = block.of(Kind::Cache).min(pages);
            block.take(Kind::Cache, here);
            if here > 0 {
                block.put(Kind::Stale, here);
            }
            pages -= here;
        }
    }

    /// kswapd: wakes below `low`, works up to `high`, and nobody waits for it. It looks after the
    /// kernel's zone alone only where somebody asks for memory from there: otherwise a node is
    /// balanced when any zone is (mm/vmscan.c, `pgdat_balanced`).
    fn run_kswapd(&mut self, demand: &Demand) {
        let marks = self.marks();
        let most = per_tick(self.machine.reclaimed_per_second());
        let own = self.free_in(Zone::Kernel);
        let is_asked = self.own + demand.kernel > self.held(Kind::Kernel);
        if is_asked && own < marks.low {
            self.reclaim(most.min(marks.high - own), Some(Zone::Kernel));
        }
        let room = self.room_for(Kind::Hot, Depth::Min);
        if room < marks.low - marks.min {
            self.reclaim(most.min(marks.high - marks.min), None);
        }
    }

    /// File pages that were read once go first, then what programs hardly touch, file pages that are read
    /// again and again, and what programs touch all the time. What is programs' goes to swap, as far as there is any.
    pub(super) fn reclaim(&mut self, pages: u64, zone: Option<Zone>) -> u64 {
        let mut made = self.let_go(Kind::Stale, pages, zone);
        made += self.swap_out(Kind::Cold, pages - made, zone);
        let cache = self.let_go(Kind::Cache, pages - made, zone);
        made += cache;
        made += self.swap_out(Kind::Hot, pages - made, zone);
        self.evicted += cache;
        self.squeeze.events += pages;
        made
    }

    fn grow_to(&mut self, demand: &Demand) -> Option<Killed> {
        let wanted = [
            (Kind::Kernel, self.own + demand.kernel),
            (Kind::Hot, demand.hot),
            (Kind::Cold, demand.cold),
        ];
        let mut touched = per_tick(self.machine.touched_per_second());
        let mut got_nothing = None;
        for (kind, wanted) in wanted {
            let more = wanted.saturating_sub(self.owned(kind)).min(touched);
            let got = self.give(kind, more);
            touched -= got;
            if got == 0 && more > 0 {
                got_nothing = Some(kind);
            }
        }
        let Some(kind) = got_nothing else {
            self.starving = Duration::ZERO;
            return None;
        };
        self.starving += TICK;
        (self.starving >= self.machine.oom_after()).then(|| self.kill(kind))
    }

    /// Up to `pages`, by direct reclaim where they are not free: then whoever asks stalls.
    pub(super) fn give(&mut self, kind: Kind, pages: u64) -> u64 {
        let got = self.hand_out(kind, pages, Depth::Min);
        if got == pages {
            return got;
        }
        let most = per_tick(self.machine.reclaimed_per_second()).max(1);
        let zone = (kind == Kind::Kernel).then_some(Zone::Kernel);
        let missing = (pages - got).min(most);
        let reclaimed = self.reclaim(missing, zone);
        let stall = if reclaimed < missing { TICK } else { share(TICK, reclaimed, most) };
        self.stalls.add(stall);
        got + self.hand_out(kind, reclaimed, Depth::Min)
    }

    /// File pages in use that are not there are read. Those that reclaim had taken are refaults,
    /// and whoever reads them stalls (mm/workingset.c).
    fn read_again(&mut self, wanted: u64) {
        let missing = wanted.saturating_sub(self.held(Kind::Cache));
        if missing == 0 {
            return;
        }
        let most = per_tick(self.machine.read_per_second()).max(1);
        let lost = self.evicted.min(missing);
        let refaults = lost.div_ceil(ROUND_TICKS).min(most);
        let read = refaults + (missing - lost).min(most - refaults);
        self.evicted -= refaults;
        self.squeeze.reread += super::in_bytes(refaults);
        self.squeeze.refaulted += super::in_bytes(refaults);
        self.stalls.add(share(TICK, refaults, most));
        let got = self.hand_out(Kind::Cache, read, Depth::Min);
        let made = self.let_go(Kind::Stale, read - got, None);
        self.squeeze.events += read - got;
        let got = got + self.hand_out(Kind::Cache, made, Depth::Min);
        // One page of it pushes out another: what was not kept will be a refault again.
        self.evicted += read - got;
    }

    /// Files that are read once fill what is free, and then push out each other.
    fn read_once(&mut self, per_second: u64) {
        self.hand_out(Kind::Stale, per_second * TICK.as_millis() as u64 / 1000, Depth::Low);
    }

    fn kill(&mut self, wanted: Kind) -> Killed {
        self.starving = Duration::ZERO;
        let movable_free = super::in_bytes(self.free_in(Zone::Movable));
        let of_programs = self.held(Kind::Kernel).saturating_sub(self.own);
        self.let_go(Kind::Kernel, of_programs, None);
        self.let_go(Kind::Hot, u64::MAX, None);
        self.let_go(Kind::Cold, u64::MAX, None);
        self.empty_swap();
        Killed { movable_free, wanted }
    }
}

pub(super) fn per_tick(per_second: ByteSize) -> u64 {
    in_pages(per_second) * TICK.as_millis() as u64 / 1000
}

pub(super) fn share(time: Duration, part: u64, whole: u64) -> Duration {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(us.saturating_mul(part.min(whole)) / whole.max(1))
}
