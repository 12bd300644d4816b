//! Blocks whose first pages may be their own `struct page`s (`memmap_on_memory`).

use memtide_sysfs::Root;
use memtide_sysfs::memory::{self, Block, Origins};
use memtide_units::{BlockId, BlockSize};

use super::Entry;

/// Where the `struct page`s of one block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structs {
    /// Not in it, by what plugged it in. That stays so as long as it is this making of it.
    Elsewhere,
    /// Not in it as far as is known: whoever takes it looks once more.
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

    pub(super) fn may_be_in(&self, block: BlockId) -> bool {
        match self {
            Self::By(origins) => origins.may_hold_own_structs(block),
            Self::AllOrNone(all) => *all,
        }
    }

    /// Where those of a block are. That they are elsewhere is believed of blocks alone that were there at
    /// the look before: those of a DIMM are there a moment before the kernel says that they are of one
    /// (drivers/acpi/acpi_memhotplug.c, `acpi_memory_enable_device`).
    pub(super) fn of(&self, block: &Block, before: Option<&Entry>) -> Structs {
        if self.may_be_in(block.id) {
            return Structs::MayBeInside;
        }
        let before = before.filter(|entry| entry.inode == Some(block.inode));
        let is_elsewhere =
            |entry: &Entry| entry.structs == Structs::Elsewhere || !self.can_be_in(block.id);
        if before.is_some_and(is_elsewhere) { Structs::Elsewhere } else { Structs::NotTold }
    }

    fn can_be_in(&self, block: BlockId) -> bool {
        match self {
            Self::By(origins) => origins.can_hold_own_structs(block),
            Self::AllOrNone(_) => true,
        }
    }
}
