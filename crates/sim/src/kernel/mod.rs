//! A guest kernel, as far as a policy can tell it from a real one.
//!
//! It counts pages, by what they hold, in memory blocks; it does not store them. Programs ask for
//! memory ([`Demand`]), and the kernel gives it out of `ZONE_MOVABLE` first, reclaims page cache when
//! it runs short, stalls who has to wait, and kills when nothing is left. Blocks go offline as they
//! do under Linux: at once refused, slowly emptied, or never done.
//!
//! * `block`: what a block holds.
//! * `machine`: how long things take; `marks`: what is kept back; `stall`: PSI.
//! * `place`: which block a page comes from; `serve`: what programs get, reclaim, the OOM killer.
//! * `swap`: what is paged out, and comes back.
//! * `offline`: a block on its way out, and back.

mod block;
mod machine;
mod marks;
mod offline;
mod place;
mod serve;
mod stall;
mod swap;
#[cfg(test)]
mod tests;

use std::time::Duration;

use memtide_policy::guest::{Memory, PsiTotals, Squeeze};
use memtide_units::{BlockId, BlockSize, ByteSize};

use crate::chance::{Chance, Stream};

pub use block::{Block, Kind, PAGE, State, Zone};
pub use machine::{Machine, Pace, Release};
pub use marks::Marks;
pub use offline::{End, Refusal};
pub use serve::{Demand, Killed, Ticked};
pub use swap::SwapSpace;

use offline::Offlining;
use stall::Stalls;
use swap::Swapped;

/// Memory that never shows in `MemTotal` besides the `struct page`s: the kernel's image, the crash
/// and initial RAM disks. A 2 GiB guest's `MemTotal` was 122 MiB short of 2 GiB, 32 of them for
/// `struct page`s.
const IMAGE: ByteSize = ByteSize::from_mib(90);
/// `struct page`s: 64 bytes for each page of 4 KiB, online or not.
const STRUCT_PAGE_SHARE: u64 = 64;
/// What the kernel uses for itself soon after boot, besides: slab, page tables, per-CPU data.
const AT_BOOT: ByteSize = ByteSize::from_mib(40);
/// Of a fresh guest's 14 blocks without holes, one or two held pages that do not move.
const BOOT_BLOCKS_UNMOVABLE: u64 = 100;

/// The kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    blocks: Vec<Block>,
    unit: BlockSize,
    machine: Machine,
    chance: Chance,
    stalls: Stalls,
    /// Pages that never count in `MemTotal`.
    reserved: u64,
    /// Pages of [`Kind::Kernel`] that no workload has asked for.
    own: u64,
    /// Pages of [`Kind::Cache`] that reclaim has taken: to read them again is a refault.
    evicted: u64,
    swapped: Swapped,
    squeeze: Squeeze,
    /// How long an allocation has got nowhere.
    starving: Duration,
    /// In so many of a thousand cases a block that could be emptied is busy all the same.
    busy_permille: u64,
    offlining: Option<Offlining>,
}

impl Kernel {
    /// A kernel that has just booted, with `count` blocks of this size.
    pub fn boot(seed: u64, machine: Machine, unit: BlockSize, count: u64) -> Self {
        let pages = unit.size().bytes() / PAGE.bytes();
        let blocks: Vec<_> = (0..count).map(|n| Block::at_boot(BlockId(n), pages)).collect();
        let reserved = count * pages / STRUCT_PAGE_SHARE + in_pages(IMAGE);
        let mut kernel = Self {
            blocks,
            unit,
            machine,
            chance: Chance::of(seed, Stream::Kernel),
            stalls: Stalls::default(),
            reserved,
            own: 0,
            evicted: 0,
            swapped: Swapped::default(),
            squeeze: Squeeze::default(),
            starving: Duration::ZERO,
            busy_permille: 20,
            offlining: None,
        };
        kernel.settle();
        kernel
    }

    /// Puts what a kernel has at boot where it is: the image and the `struct page`s at the bottom,
    /// a little here and there that does not move.
    fn settle(&mut self) {
        let mut left = self.reserved + in_pages(AT_BOOT);
        self.own = left;
        let scattered = self.blocks.len() as u64;
        for n in 1..self.blocks.len() {
            if self.chance.happens(BOOT_BLOCKS_UNMOVABLE) && left > scattered {
                self.blocks[n].put(Kind::Kernel, 1);
                left -= 1;
            }
        }
        for block in &mut self.blocks {
            let here = left.min(block.unused());
            block.put(Kind::Kernel, here);
            left -= here;
        }
        assert_eq!(left, 0, "the guest is too small for its kernel");
        // The first block has the legacy hole, the last low one ends at the PCI hole.
        self.blocks[0].has_hole = true;
        if let Some(last) = self.blocks.last_mut() {
            last.has_hole = true;
        }
    }

    /// Size of a block.
    pub fn unit(&self) -> BlockSize {
        self.unit
    }

    /// The machine it runs on.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// All blocks, ascending.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// One block.
    pub fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }

    /// Memory in blocks, online or not.
    pub fn present(&self) -> ByteSize {
        self.unit.size().times(self.blocks.len() as u64)
    }

    /// Memory in blocks that are online.
    pub fn online(&self) -> ByteSize {
        let online = self.blocks.iter().filter(|block| block.state != State::Offline).count();
        self.unit.size().times(online as u64)
    }

    /// `/proc/meminfo` (mm/show_mem.c, `si_mem_available`).
    pub fn memory(&self) -> Memory {
        let marks = self.marks();
        let total = in_pages(self.online()) - self.reserved;
        let free = self.free_in(Zone::Movable) + self.free_in(Zone::Kernel);
        let cache = self.held(Kind::Cache) + self.held(Kind::Stale);
        let kept = cache.div_ceil(2).min(marks.low);
        let available = (free + cache - kept).saturating_sub(marks.high + marks.reserve);
        Memory {
            total: in_bytes(total),
            free: in_bytes(free),
            available: in_bytes(available),
            cache: in_bytes(cache),
        }
    }

    /// `/proc/vmstat`.
    pub fn squeeze(&self) -> Squeeze {
        self.squeeze
    }

    /// `/proc/pressure/memory`.
    pub fn psi(&self) -> PsiTotals {
        self.stalls.totals()
    }

    /// Bytes of this kind.
    pub fn bytes_of(&self, kind: Kind) -> ByteSize {
        in_bytes(self.held(kind))
    }

    /// From now on so many of a thousand blocks that could be emptied are busy: I/O in flight, pages
    /// pinned for a while.
    pub fn set_busy(&mut self, permille: u64) {
        self.busy_permille = permille;
    }

    fn held(&self, kind: Kind) -> u64 {
        self.blocks.iter().map(|block| block.of(kind)).sum()
    }

    fn free_in(&self, zone: Zone) -> u64 {
        self.blocks.iter().filter(|block| block.zone == zone).map(Block::free).sum()
    }

    fn marks(&self) -> Marks {
        let managed = |zone| {
            let online = |block: &&Block| block.zone == zone && block.state != State::Offline;
            self.blocks.iter().filter(online).map(Block::pages).sum::<u64>()
        };
        Marks::of(managed(Zone::Kernel), managed(Zone::Movable))
    }
}

/// Whole pages in this many bytes.
pub fn in_pages(size: ByteSize) -> u64 {
    size.bytes() / PAGE.bytes()
}

/// Bytes of so many pages.
pub fn in_bytes(pages: u64) -> ByteSize {
    PAGE.times(pages)
}
