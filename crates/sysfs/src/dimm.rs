//! DIMMs of ACPI's, as the guest's kernel has them (`PNP0C80`, drivers/acpi/acpi_memhotplug.c).
//!
//! Each slot of the firmware's is a device, also where nothing is plugged in. The kernel links the
//! blocks of a DIMM to it, and says nowhere else what it consists of. One can be ejected from inside;
//! who plugs it in again is the host alone.

use std::collections::BTreeMap;

use memtide_units::BlockId;

use crate::error::optional;
use crate::memory::{self, dimm_of};
use crate::{Result, Root};

const DEVICES: &str = "sys/bus/acpi/devices";
/// A memory device (ACPI 6.5, section 9.11).
const MEMORY_DEVICE: &str = "PNP0C80:";

/// Whether the machine has any slot for a DIMM.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn has_slots(root: &Root) -> Result<bool> {
    let names = optional(root.names(DEVICES))?.unwrap_or_default();
    Ok(names.iter().any(|name| name.starts_with(MEMORY_DEVICE)))
}

/// The blocks of each DIMM whose memory is the kernel's, ascending.
///
/// # Errors
/// [`crate::Error::Missing`] on a kernel without memory hotplug; [`crate::Error::Io`].
pub fn list(root: &Root) -> Result<BTreeMap<String, Vec<BlockId>>> {
    let mut dimms: BTreeMap<String, Vec<BlockId>> = BTreeMap::new();
    if !has_slots(root)? {
        return Ok(dimms);
    }
    for block in memory::numbers(root)? {
        if let Some(dimm) = dimm_of(root, block)?
            && dimm.starts_with(MEMORY_DEVICE)
        {
            dimms.entry(dimm).or_default().push(block);
        }
    }
    Ok(dimms)
}

/// Asks the kernel to take a DIMM's blocks offline, to let go of its memory and to eject it. It begins
/// with that when this has returned, and says of a failure only that the blocks are still there
/// (drivers/acpi/device_sysfs.c, `eject_store`).
///
/// # Errors
/// [`crate::Error::Missing`], [`crate::Error::Refused`]: ENODEV where nothing is plugged in.
pub fn eject(root: &Root, dimm: &str) -> Result<()> {
    root.write(format!("{DEVICES}/{dimm}/eject"), "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeBlock, FakeRoot};
    use crate::memory::{AutoOnline, State, StateRequest, set_auto_online, state, write_state};
    use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
    use rustix::io::Errno;

    const SIZE: BlockSize = BlockSize::X86_SMALL;
    const NAME: &str = "PNP0C80:01";

    /// Blocks 32 and 33 are of a DIMM.
    fn guest() -> FakeRoot {
        let fake = FakeRoot::new();
        fake.add_blocks(SIZE, [(1, FakeBlock::KERNEL)]);
        let memory = GpaRange::new(Gpa(32 << 27), ByteSize::from_mib(256)).unwrap();
        fake.add_dimm(NAME, SIZE, memory);
        fake
    }

    fn states(fake: &FakeRoot) -> [Option<State>; 2] {
        [32, 33].map(|block| state(&fake.root(), BlockId(block)).ok())
    }

    #[test]
    fn a_dimm_is_what_the_kernel_links_to_it() {
        let blocks = [32, 33].map(BlockId).to_vec();
        assert_eq!(list(&guest().root()).unwrap(), [(NAME.into(), blocks)].into());
        let without = FakeRoot::new();
        assert_eq!(list(&without.root()).unwrap(), BTreeMap::new());
    }

    #[test]
    fn what_is_offline_goes_and_the_host_brings_it_back() {
        let fake = guest();
        let root = fake.root();
        for block in [32, 33] {
            write_state(&root, BlockId(block), StateRequest::Offline).unwrap();
        }
        eject(&root, NAME).unwrap();
        assert_eq!((states(&fake), list(&root).unwrap().len()), ([None; 2], 0));
        assert_eq!(eject(&root, NAME).unwrap_err().errno(), Some(Errno::NODEV), "it is empty");
        set_auto_online(&root, AutoOnline::Offline).unwrap();
        fake.plug_in_dimm(NAME);
        assert_eq!(states(&fake), [Some(State::Offline); 2]);
        assert_eq!(list(&root).unwrap()[NAME].len(), 2);
    }

    #[test]
    fn a_kernel_that_cannot_let_go_says_nothing() {
        let fake = guest();
        fake.refuse_block(BlockId(33), Errno::BUSY);
        eject(&fake.root(), NAME).unwrap();
        assert_eq!(states(&fake), [Some(State::Online); 2]);
    }
}
