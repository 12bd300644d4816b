//! One memory block, and what its pages hold.

use memtide_units::{BlockId, ByteSize};

/// A page of this kernel.
pub const PAGE: ByteSize = ByteSize::from_kib(4);

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's own: slab, page tables, stacks. It does not move.
    Kernel,
    /// A program's, touched all the time.
    Hot,
    /// A program's, touched hardly ever.
    Cold,
    /// Of files that are read again and again: programs' text, a database's index.
    Cache,
    /// Of files that were read once.
    Stale,
    /// Of zram: what was paged out, compressed.
    Stored,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Kernel, Self::Hot, Self::Cold, Self::Cache, Self::Stale, Self::Stored];
    /// Those that can be migrated.
    pub const MOVABLE: [Self; 5] = [Self::Hot, Self::Cold, Self::Cache, Self::Stale, Self::Stored];
    /// Those that reclaim knows: on its lists of pages (`LRU`).
    pub const LISTED: [Self; 4] = [Self::Hot, Self::Cold, Self::Cache, Self::Stale];
}

/// Where a block's pages are handed out from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// `ZONE_DMA32` or `ZONE_NORMAL`: for everything.
    Kernel,
    /// `ZONE_MOVABLE`: for what can be migrated.
    Movable,
}

/// What the block's `state` file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In use.
    Online,
    /// Isolated, and being emptied: nothing more is handed out from it.
    GoingOffline,
    /// Out of use, with nothing in it.
    Offline,
}

/// One block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its number.
    pub id: BlockId,
    /// Where it belongs.
    pub zone: Zone,
    /// Whether it is in use.
    pub state: State,
    /// It spans a hole: the kernel refuses to take it offline, `valid_zones` is `none`.
    pub has_hole: bool,
    pages: u64,
    used: [u64; Kind::ALL.len()],
}

impl Block {
    /// An empty block of `pages` pages, online in the kernel's zone, as at boot.
    pub fn at_boot(id: BlockId, pages: u64) -> Self {
        let (zone, state) = (Zone::Kernel, State::Online);
        Self { id, zone, state, has_hole: false, pages, used: [0; Kind::ALL.len()] }
    }

    /// Its pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages of this kind in it.
    pub fn of(&self, kind: Kind) -> u64 {
        self.used[kind as usize]
    }

    /// Pages that hold nothing.
    pub fn unused(&self) -> u64 {
        self.pages - self.used.iter().sum::<u64>()
    }

    /// Pages that can be handed out. Isolation takes free pages out of the free lists
    /// (mm/page_isolation.c, `set_migratetype_isolate`).
    pub fn free(&self) -> u64 {
        if self.state == State::Online { self.unused() } else { 0 }
    }

    /// Pages that have to go elsewhere before it can be offline.
    pub fn to_migrate(&self) -> u64 {
        Kind::MOVABLE.iter().map(|kind| self.of(*kind)).sum()
    }

    /// Fills `pages` of its free pages.
    pub fn put(&mut self, kind: Kind, pages: u64) {
        assert!(pages <= self.unused(), "{} has no {pages} pages", self.id);
        assert_ne!(self.state, State::Offline, "{} is offline and was used", self.id);
        self.used[kind as usize] += pages;
    }

    /// Empties `pages` of this kind.
    pub fn take(&mut self, kind: Kind, pages: u64) {
        assert!(pages <= self.of(kind), "{} holds no {pages} pages of {kind:?}", self.id);
        self.used[kind as usize] -= pages;
    }
}
