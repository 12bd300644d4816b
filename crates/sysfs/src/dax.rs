//! Devices of the DAX bus: memory that a driver lends to the kernel as a whole
//! (Documentation/ABI/testing/sysfs-bus-dax).
//!
//! While the driver `kmem` is bound to a device, the device's memory is a row of memory blocks.
//! When it is unbound, and every block is offline, the blocks go and their `struct page`s with them
//! (drivers/dax/kmem.c, `dev_dax_kmem_remove`); when it is bound again they come back. Persistent
//! memory in the mode `devdax`, CXL memory and memory that the firmware sets apart come this way.

use memtide_units::{BlockId, BlockSize, ByteSize, Gpa, GpaRange};

use crate::error::optional;
use crate::{Error, Result, Root};

/// The driver that lends a device's memory to the kernel.
pub const KMEM: &str = "kmem";

const BUS: &str = "sys/bus/dax";

/// Most blocks of a device: 128 TiB in the smallest ones. A limit, so that a wrong file cannot eat
/// memory.
const BLOCKS_MAX: usize = 1 << 20;

/// Where the `struct page`s of a device's blocks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Structs {
    /// In other memory.
    Elsewhere,
    /// In the blocks' own first pages, if the kernel's parameter `memmap_on_memory` was on when
    /// the driver was bound.
    MayBeOwn,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Such as `dax0.0`.
    pub name: String,
    /// Its memory.
    pub ranges: Vec<GpaRange>,
    /// The driver that is bound to it.
    pub driver: Option<String>,
    /// Where its blocks' `struct page`s lie, or would.
    pub structs: Structs,
}

impl Device {
    /// The memory blocks that the device is made of while `kmem` is bound to it: each of its ranges
    /// is cut to whole blocks (drivers/dax/kmem.c, `dax_kmem_range`). 1048576 at most.
    pub fn blocks(&self, size: BlockSize) -> Vec<BlockId> {
        let whole = self.ranges.iter().flat_map(|range| whole(*range, size));
        whole.take(BLOCKS_MAX).map(BlockId).collect()
    }

    /// Whether `block` is one of them.
    pub fn holds(&self, block: BlockId, size: BlockSize) -> bool {
        self.ranges.iter().any(|range| whole(*range, size).contains(&block.0))
    }

    /// Whether its memory is the kernel's.
    pub fn is_memory(&self) -> bool {
        self.driver.as_deref() == Some(KMEM)
    }
}

fn whole(range: GpaRange, size: BlockSize) -> std::ops::Range<u64> {
    let bytes = size.size().bytes();
    range.start().0.div_ceil(bytes)..range.end().0 / bytes
}

/// All devices, by name; none where the kernel has no such bus. One that vanishes while this reads
/// is left out.
///
/// # Errors
/// [`Error::Garbage`], [`Error::Io`].
pub fn list(root: &Root) -> Result<Vec<Device>> {
    let mut names = optional(root.names(format!("{BUS}/devices")))?.unwrap_or_default();
    names.sort_unstable();
    let mut devices = Vec::new();
    for name in names {
        devices.extend(optional(read(root, &name))?);
    }
    Ok(devices)
}

/// One device.
///
/// # Errors
/// [`Error::Missing`]: there is no such device. [`Error::Garbage`].
pub fn read(root: &Root, name: &str) -> Result<Device> {
    Ok(Device {
        name: name.into(),
        ranges: ranges(root, name)?,
        driver: root.link_name(file(name, "driver"))?,
        structs: structs(root, name)?,
    })
}

/// Devices that were made of parts have a directory for each (`mapping0` and so on, with the last
/// address in `end`); the others are one range from `resource` on, which says -1 to those who may
/// not know.
fn ranges(root: &Root, name: &str) -> Result<Vec<GpaRange>> {
    let size = root.value(file(name, "size"), "a number of bytes")?;
    let parts = root.numbers(format!("{BUS}/devices/{name}"), "mapping")?;
    if parts.is_empty() {
        let resource = file(name, "resource");
        let start = address(root, &resource)?;
        let range = GpaRange::new(Gpa(start), ByteSize::from_bytes(size));
        return match range {
            Ok(range) => Ok(vec![range]),
            // A device of no size is one that has not been given any memory yet.
            Err(_) if size == 0 => Ok(Vec::new()),
            Err(_) => Err(Error::garbage(root.path(&resource), PLACE, &format!("{start:#x}"))),
        };
    }
    let part = |number: u64| {
        let [first, last] =
            ["start", "end"].map(|end| file(name, &format!("mapping{number}/{end}")));
        let (start, last_byte) = (address(root, &first)?, address(root, &last)?);
        let len = last_byte.checked_sub(start).and_then(|len| len.checked_add(1));
        len.and_then(|len| GpaRange::new(Gpa(start), ByteSize::from_bytes(len)).ok())
            .ok_or_else(|| Error::garbage(root.path(&last), PLACE, &format!("{last_byte:#x}")))
    };
    parts.into_iter().map(part).collect()
}

const PLACE: &str = "an address such as 0x140000000, and memory that ends below 2^64";

fn address(root: &Root, file: &str) -> Result<u64> {
    root.parsed(file, PLACE, |text| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok())
}

/// Kernels before 6.8 have no such file, and never put them there.
fn structs(root: &Root, name: &str) -> Result<Structs> {
    let says = root.parsed(file(name, "memmap_on_memory"), "0 or 1", |text| match text {
        "0" => Some(Structs::Elsewhere),
        "1" => Some(Structs::MayBeOwn),
        _ => None,
    });
    // Whether the device is there at all, its size says.
    Ok(optional(says)?.unwrap_or(Structs::Elsewhere))
}

/// Has the `struct page`s of a device's blocks lie elsewhere when `kmem` is bound to it next time.
///
/// # Errors
/// [`Error::Refused`] with EBUSY while `kmem` is bound to it; [`Error::Missing`].
pub fn keep_structs_elsewhere(root: &Root, name: &str) -> Result<()> {
    root.write(file(name, "memmap_on_memory"), "0")
}

/// Takes a device from `kmem`. Every block of it must be offline: where one is not the kernel
/// unbinds the driver all the same, keeps the memory, and can neither remove nor add it again until
/// it is booted anew.
///
/// # Errors
/// [`Error::Refused`] with ENODEV where `kmem` is not bound to it; [`Error::Missing`] where the
/// driver is not loaded.
pub fn unbind(root: &Root, name: &str) -> Result<()> {
    root.write(format!("{BUS}/drivers/{KMEM}/unbind"), name)
}

/// Gives a device to `kmem`. Its blocks are there when this returns, in the state that
/// `auto_online_blocks` says.
///
/// # Errors
/// [`Error::Refused`]: ENODEV where another driver is bound to it or `kmem` was never told of it
/// (`new_id`), EBUSY where its memory is taken, ENOMEM where `struct page`s find no room.
/// [`Error::Missing`].
pub fn bind(root: &Root, name: &str) -> Result<()> {
    root.write(format!("{BUS}/drivers/{KMEM}/bind"), name)
}

fn file(name: &str, file: &str) -> String {
    format!("{BUS}/devices/{name}/{file}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use crate::memory::{self, State, StateRequest, write_state};
    use rustix::io::Errno;

    const SIZE: BlockSize = BlockSize::X86_SMALL;

    /// 520 MiB from 4 GiB + 64 MiB on, as a namespace of persistent memory is: three whole blocks.
    fn guest() -> FakeRoot {
        let fake = FakeRoot::new();
        let memory = GpaRange::new(Gpa(0x1_0400_0000), ByteSize::from_mib(520)).unwrap();
        fake.add_dax("dax0.0", SIZE, memory);
        fake
    }

    fn offline(fake: &FakeRoot) {
        for block in [33, 34, 35] {
            write_state(&fake.root(), BlockId(block), StateRequest::Offline).unwrap();
        }
    }

    #[test]
    fn a_device_is_cut_to_whole_blocks() {
        let devices = list(&guest().root()).unwrap();
        assert_eq!(devices.len(), 1);
        assert!(devices[0].is_memory());
        assert_eq!(devices[0].structs, Structs::Elsewhere);
        assert_eq!(devices[0].blocks(SIZE), [33, 34, 35].map(BlockId));
        assert_eq!(list(&FakeRoot::new().root()).unwrap(), [], "a kernel without the bus");
    }

    #[test]
    fn a_device_of_parts_is_the_blocks_of_each() {
        let fake = guest();
        for (number, [start, end]) in
            [["0x110000000", "0x117ffffff"], ["0x120000000", "0x12fffffff"]].iter().enumerate()
        {
            fake.put(&format!("{BUS}/devices/dax0.0/mapping{number}/start"), start);
            fake.put(&format!("{BUS}/devices/dax0.0/mapping{number}/end"), end);
        }
        let device = read(&fake.root(), "dax0.0").unwrap();
        assert_eq!(device.blocks(SIZE), [34, 36, 37].map(BlockId));
    }

    #[test]
    fn blocks_go_and_come_with_the_driver() {
        let fake = guest();
        let root = fake.root();
        offline(&fake);
        unbind(&root, "dax0.0").unwrap();
        assert!(memory::state(&root, BlockId(34)).unwrap_err().is_missing());
        assert_eq!(read(&root, "dax0.0").unwrap().driver, None);
        assert_eq!(unbind(&root, "dax0.0").unwrap_err().errno(), Some(Errno::NODEV));
        fake.put("sys/devices/system/memory/auto_online_blocks", "offline\n");
        bind(&root, "dax0.0").unwrap();
        assert_eq!(memory::state(&root, BlockId(34)).unwrap(), State::Offline);
        assert_eq!(bind(&root, "dax0.0").unwrap_err().errno(), Some(Errno::NODEV));
    }

    #[test]
    fn a_driver_that_is_taken_away_too_early_leaves_memory_stuck() {
        let fake = guest();
        let root = fake.root();
        unbind(&root, "dax0.0").unwrap();
        assert_eq!(memory::state(&root, BlockId(34)).unwrap(), State::Online);
        assert_eq!(bind(&root, "dax0.0").unwrap_err().errno(), Some(Errno::BUSY));
    }

    #[test]
    fn where_struct_pages_lie_is_said_by_device_and_changed_between_drivers() {
        let fake = guest();
        let root = fake.root();
        let structs = || read(&root, "dax0.0").map(|device| device.structs);
        let file = format!("{BUS}/devices/dax0.0/memmap_on_memory");
        fake.put(&file, "1\n");
        assert_eq!(structs().unwrap(), Structs::MayBeOwn);
        let refused = keep_structs_elsewhere(&root, "dax0.0").unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::BUSY));
        offline(&fake);
        unbind(&root, "dax0.0").unwrap();
        keep_structs_elsewhere(&root, "dax0.0").unwrap();
        assert_eq!(structs().unwrap(), Structs::Elsewhere);
        fake.put(&file, "2\n");
        assert!(matches!(structs(), Err(Error::Garbage { .. })));
        fake.remove(&file);
        assert_eq!(structs().unwrap(), Structs::Elsewhere);
    }

    #[test]
    fn strange_places_are_errors_and_no_memory_is_none() {
        let fake = guest();
        let file = |name: &str| format!("{BUS}/devices/dax0.0/{name}");
        for strange in ["", "12", "0x", "0xfffffffffff00000", "-1"] {
            fake.put(&file("resource"), strange);
            assert!(matches!(list(&fake.root()), Err(Error::Garbage { .. })), "{strange}");
        }
        fake.put(&file("resource"), "0x0\n");
        fake.put(&file("size"), "0\n");
        assert_eq!(list(&fake.root()).unwrap()[0].blocks(SIZE), []);
        fake.remove(&file("size"));
        assert_eq!(list(&fake.root()).unwrap(), [], "it has just gone");
    }
}
