//! Where a block came from: with what it goes, and whether it may hold its own `struct page`s.

use std::cell::OnceCell;

use memtide_units::{BlockId, BlockSize};

use super::{directory, may_hold_own_structs};
use crate::dax::{self, Structs};
use crate::{Result, Root};

/// What plugged a block in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A DIMM of ACPI's, such as `PNP0C80:00` (drivers/acpi/acpi_memhotplug.c,
    /// `acpi_bind_memblk` makes a link `firmware_node` in each of its blocks).
    Acpi(String),
    /// A device of the DAX bus, such as `dax0.0`.
    Dax(String),
    /// The firmware at boot, or a driver such as virtio-mem.
    Other,
}

/// The DIMM that a block is of, if the kernel says that it is of one: see [`Origin::Acpi`].
///
/// # Errors
/// [`crate::Error::Io`].
pub fn dimm_of(root: &Root, block: BlockId) -> Result<Option<String>> {
    root.link_name(format!("{}/firmware_node", directory(block)))
}

/// What is known of where blocks came from, at one moment. Cheap where no memory comes by the DAX bus, for
/// it may be asked before each block that is taken.
#[derive(Clone, Debug)]
pub struct Origins {
    root: Root,
    size: BlockSize,
    /// Those whose memory is the kernel's.
    dax: Vec<dax::Device>,
    /// Whether the parameter `memmap_on_memory` is on, once somebody has asked.
    is_on: OnceCell<bool>,
}

impl Origins {
    /// Looks. `size` is that of all blocks, which stays as long as the kernel runs.
    ///
    /// # Errors
    /// As [`dax::list`].
    pub fn read(root: &Root, size: BlockSize) -> Result<Self> {
        let mut dax = dax::list(root)?;
        dax.retain(dax::Device::is_memory);
        Ok(Self { root: root.clone(), size, dax, is_on: OnceCell::new() })
    }

    fn device(&self, block: BlockId) -> Option<&dax::Device> {
        self.dax.iter().find(|device| device.holds(block, self.size))
    }

    /// Where a block came from.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn of(&self, block: BlockId) -> Result<Origin> {
        if let Some(device) = self.device(block) {
            return Ok(Origin::Dax(device.name.clone()));
        }
        Ok(dimm_of(&self.root, block)?.map_or(Origin::Other, Origin::Acpi))
    }

    /// Whether a block may hold its own `struct page`s by the way that it was plugged in. The two
    /// drivers that ask for that on x86 and on arm64 are ACPI's for DIMMs, which always does, and
    /// `kmem`, by device (all users of `MHP_MEMMAP_ON_MEMORY`; on s390 and ppc64 there are more).
    pub fn can_hold_own_structs(&self, block: BlockId) -> bool {
        if let Some(device) = self.device(block) {
            return device.structs == Structs::MayBeOwn;
        }
        let knows_all_ways = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
        !knows_all_ways || !matches!(self.of(block), Ok(Origin::Other))
    }

    /// The same, as far as the parameter tells as well, which says nothing of blocks that were
    /// plugged in before somebody changed it. From 6.11 on those pages carry no flag in
    /// `/proc/kpageflags` by which to tell them (mm/memory_hotplug.c,
    /// `mhp_init_memmap_on_memory`), so a census can show that a block is free of them, and not
    /// that it has some.
    pub fn may_hold_own_structs(&self, block: BlockId) -> bool {
        *self.is_on.get_or_init(|| may_hold_own_structs(&self.root))
            && self.can_hold_own_structs(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeBlock, FakeRoot};
    use memtide_units::{ByteSize, Gpa, GpaRange};

    const PARAMETER: &str = "sys/module/memory_hotplug/parameters/memmap_on_memory";
    const SIZE: BlockSize = BlockSize::X86_SMALL;

    /// Block 1 was there at boot, 2 is of a DIMM, 32 and 33 of a DAX device.
    fn guest() -> FakeRoot {
        let fake = FakeRoot::new();
        fake.add_blocks(SIZE, [(1, FakeBlock::KERNEL), (2, FakeBlock::MOVABLE)]);
        fake.put_into_dimm(BlockId(2), "PNP0C80:03");
        let memory = GpaRange::new(Gpa(32 << 27), ByteSize::from_mib(256)).unwrap();
        fake.add_dax("dax1.0", SIZE, memory);
        fake
    }

    #[test]
    fn a_block_belongs_to_what_plugged_it_in() {
        let fake = guest();
        let origins = Origins::read(&fake.root(), SIZE).unwrap();
        assert_eq!(origins.of(BlockId(1)).unwrap(), Origin::Other);
        assert_eq!(origins.of(BlockId(2)).unwrap(), Origin::Acpi("PNP0C80:03".into()));
        assert_eq!(origins.of(BlockId(33)).unwrap(), Origin::Dax("dax1.0".into()));
        assert_eq!(origins.of(BlockId(34)).unwrap(), Origin::Other);
    }

    #[test]
    fn only_what_was_plugged_in_can_hold_its_own_struct_pages() {
        let fake = guest();
        let may = |origins: &Origins| [1, 2, 33].map(|n| origins.may_hold_own_structs(BlockId(n)));
        let can = |origins: &Origins| [1, 2, 33].map(|n| origins.can_hold_own_structs(BlockId(n)));
        let origins = Origins::read(&fake.root(), SIZE).unwrap();
        assert_eq!((may(&origins), can(&origins)), ([false; 3], [false, true, false]));
        fake.put(PARAMETER, "Y\n");
        let origins = Origins::read(&fake.root(), SIZE).unwrap();
        assert_eq!(may(&origins), [false, true, false], "boot memory never does");
        fake.put("sys/bus/dax/devices/dax1.0/memmap_on_memory", "1\n");
        let origins = Origins::read(&fake.root(), SIZE).unwrap();
        assert_eq!(may(&origins), [false, true, true]);
    }
}
