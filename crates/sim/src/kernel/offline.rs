//! A block on its way out of use, and back.

use std::time::Duration;

use memtide_units::{BlockId, Instant};

use super::block::{Kind, State, Zone};
use super::place::Depth;
use super::serve::per_tick;
use super::{Kernel, Machine};
use crate::TICK;

/// In so many of a thousand cases a block that is being emptied has a page that never moves, and the
/// kernel tries for ever: a page under a long-term pin, a file system that holds a buffer.
const HANGS_PERMILLE: u64 = 4;

/// Why a write of `offline` fails at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// EBUSY: pages in it do not move (mm/page_isolation.c, `has_unmovable_pages`).
    Busy,
    /// EINVAL: the block spans a hole, or is not online.
    Invalid,
}

/// How a write of `offline` ended that did not fail at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The block is offline.
    Offline,
    /// EBUSY after all.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Succeeds,
    FailsAtLast,
    Hangs,
}

/// The one write of `offline` that is at work: the kernel takes a lock for it
/// (`lock_device_hotplug`).
#[derive(Clone, Debug)]
pub(super) struct Offlining {
    block: BlockId,
    isolated: Instant,
    per_page: Duration,
    credit: Duration,
    fate: Fate,
    end: Option<End>,
}

impl Kernel {
    /// Writes `offline`. The outcome comes through [`Self::offline_end`].
    ///
    /// # Errors
    /// [`Refusal`], where the kernel says no at once.
    pub fn begin_offline(&mut self, now: Instant, id: BlockId) -> Result<(), Refusal> {
        assert!(self.offlining.is_none(), "two writes of offline at once");
        let block = self.block(id);
        if block.has_hole || block.state != State::Online {
            return Err(Refusal::Invalid);
        }
        let is_pinned = self.chance.happens(self.busy_permille);
        if self.block(id).of(Kind::Kernel) > 0 || is_pinned && self.chance.happens(500) {
            return Err(Refusal::Busy);
        }
        let hangs = self.chance.happens(HANGS_PERMILLE);
        let fate = match (is_pinned, hangs) {
            (true, _) => Fate::FailsAtLast,
            (false, true) => Fate::Hangs,
            (false, false) => Fate::Succeeds,
        };
        self.block_mut(id).state = State::GoingOffline;
        let machine: Machine = self.machine;
        self.offlining = Some(Offlining {
            block: id,
            isolated: now + machine.isolation(&mut self.chance),
            per_page: machine.migration(&mut self.chance),
            credit: Duration::ZERO,
            fate,
            end: None,
        });
        Ok(())
    }

    /// Whether a write of `offline` for this block is at work, or has ended and nobody knows yet.
    pub fn is_offlining(&self, id: BlockId) -> bool {
        self.offlining.as_ref().is_some_and(|work| work.block == id)
    }

    /// How the write at work has ended, if it has.
    pub fn offline_end(&mut self) -> Option<End> {
        let end = self.offlining.as_ref()?.end?;
        self.offlining = None;
        Some(end)
    }

    /// A signal ends the write: the block is online as before, and nothing is lost.
    pub fn interrupt_offline(&mut self) {
        if let Some(Offlining { block, end: None, .. }) = self.offlining.take() {
            self.block_mut(block).state = State::Online;
        }
    }

    /// Writes `online_movable`, or `online` where the block is to stay in its zone.
    pub fn put_online(&mut self, id: BlockId, zone: Zone) {
        let block = self.block_mut(id);
        assert_eq!(block.state, State::Offline, "{id} was put online twice");
        (block.state, block.zone) = (State::Online, zone);
    }

    /// How long that takes.
    pub fn onlining_time(&mut self) -> Duration {
        let (machine, size) = (self.machine, self.unit.size());
        machine.onlining(&mut self.chance, size)
    }

    /// Takes a boot block offline and puts it online in `ZONE_MOVABLE`. False where it holds pages
    /// that do not move. Before any workload runs that takes no time to speak of (13 of 16 blocks
    /// in 0.2 to 0.8 s under emulation).
    pub fn convert(&mut self, id: BlockId) -> bool {
        let block = self.block(id);
        let can = !block.has_hole && block.of(Kind::Kernel) == 0 && block.to_migrate() == 0;
        if can {
            self.block_mut(id).zone = Zone::Movable;
        }
        can
    }

    /// A block that somebody else took offline.
    pub fn take_away(&mut self, id: BlockId) {
        let block = self.block_mut(id);
        if block.to_migrate() + block.of(Kind::Kernel) == 0 {
            block.state = State::Offline;
        }
    }

    pub(super) fn empty_block(&mut self, now: Instant) {
        let Some(mut work) = self.offlining.take() else { return };
        if work.end.is_none() && now >= work.isolated {
            work.credit += TICK;
            let can = work.credit.as_micros() / work.per_page.as_micros().max(1);
            let can = u64::try_from(can).unwrap_or(u64::MAX);
            let moved = self.migrate(work.block, can);
            let took = work.per_page * u32::try_from(moved).unwrap_or(u32::MAX);
            // Time that was not used for migration is gone.
            work.credit =
                if moved < can { Duration::ZERO } else { work.credit.saturating_sub(took) };
            if self.block(work.block).to_migrate() == 0 {
                work.end = self.end_of(&work);
            }
        }
        self.offlining = Some(work);
    }

    fn end_of(&mut self, work: &Offlining) -> Option<End> {
        let (state, end) = match work.fate {
            Fate::Hangs => return None,
            Fate::Succeeds => (State::Offline, End::Offline),
            Fate::FailsAtLast => (State::Online, End::Busy),
        };
        self.block_mut(work.block).state = state;
        Some(end)
    }

    /// Moves up to `can` pages out of the block. Where they find no room the kernel reclaims, and
    /// where there is nothing to reclaim it tries again, for ever.
    fn migrate(&mut self, id: BlockId, can: u64) -> u64 {
        let (mut moved, mut wanted) = (0, 0);
        for kind in Kind::MOVABLE {
            let here = self.block(id).of(kind).min(can - moved);
            let got = self.hand_out(kind, here, Depth::Min);
            self.block_mut(id).take(kind, got);
            moved += got;
            wanted += here;
        }
        let lacks = wanted - moved;
        let most = per_tick(self.machine.reclaimed_per_second());
        if self.reclaim(lacks.min(most), None) + moved == 0 && wanted > 0 {
            let permille = u32::try_from(self.machine.stall_of_stuck_offline()).unwrap_or(0);
            self.stalls.add(TICK * permille / 1000);
        }
        moved
    }
}
