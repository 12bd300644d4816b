//! Blocks whose first pages may be their own `struct page`s (`memmap_on_memory`).

use memtide_sysfs::Root;
use memtide_sysfs::memory::{self, Origins};
use memtide_units::{BlockId, BlockSize};

/// Where the `struct page`s of one block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structs {
    /// Not in it, by what plugged it in, as far as the kernel has said by then: that a block is of a DIMM it
    /// says a moment after the block is there (drivers/acpi/acpi_memhotplug.c,
    /// `acpi_memory_enable_device`), so whoever takes it looks whether it says so now.
    Elsewhere,
    /// Not in it as far as is known: whoever takes it looks at all of that.
    NotTold,
    /// Perhaps in it.
    MayBeInside,
}

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

    fn may_be_in(&self, block: BlockId) -> bool {
        match self {
            Self::By(origins) => origins.may_hold_own_structs(block),
            Self::AllOrNone(all) => *all,
        }
    }

    /// Where those of a block are.
    pub(super) fn of(&self, block: BlockId) -> Structs {
        if self.may_be_in(block) {
            Structs::MayBeInside
        } else if self.can_be_in(block) {
            Structs::NotTold
        } else {
            Structs::Elsewhere
        }
    }

    fn can_be_in(&self, block: BlockId) -> bool {
        match self {
            Self::By(origins) => origins.can_hold_own_structs(block),
            Self::AllOrNone(_) => true,
        }
    }
}
