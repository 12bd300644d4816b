//! Blocks whose first pages may be their own `struct page`s (`memmap_on_memory`).

use memtide_sysfs::Root;
use memtide_sysfs::memory::{self, Origins};
use memtide_units::{BlockId, BlockSize};

/// Which blocks may hold their own `struct page`s.
pub(super) enum OwnStructs {
    /// As far as the kernel tells by block.
    By(Origins),
    /// It does not tell, and its parameter says whether any may.
    AllOrNone(bool),
}

impl OwnStructs {
    pub(super) fn look(root: &Root, size: BlockSize) -> Self {
        Origins::read(root, size).map_or_else(
            |error| {
                tracing::warn!("nothing is known of where blocks came from: {error}");
                Self::AllOrNone(memory::may_hold_own_structs(root))
            },
            Self::By,
        )
    }

    pub(super) fn may_be_in(&self, block: BlockId) -> bool {
        match self {
            Self::By(origins) => origins.may_hold_own_structs(block),
            Self::AllOrNone(all) => *all,
        }
    }
}
