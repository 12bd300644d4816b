//! No file that says anything at all makes a reader panic.

use memtide_sysfs::fake::FakeRoot;
use memtide_sysfs::{damon, iomem, kpageflags, meminfo, memory, pagemap, pci, psi, vmstat};
use memtide_units::{BlockId, ByteSize, Gpa, GpaRange};
use proptest::prelude::*;

const BALLOON: &str = "0000:00:03.0";

/// Every file that is read, in a system with one of everything.
const FILES: [&str; 18] = [
    "proc/pressure/memory",
    "proc/meminfo",
    "proc/vmstat",
    "proc/iomem",
    "proc/kpageflags",
    "proc/self/pagemap",
    "sys/devices/system/memory/block_size_bytes",
    "sys/devices/system/memory/auto_online_blocks",
    "sys/devices/system/memory/memory0/state",
    "sys/devices/system/memory/memory0/valid_zones",
    "sys/module/memory_hotplug/parameters/memmap_on_memory",
    "sys/module/damon_stat/parameters/enabled",
    "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds",
    "sys/kernel/mm/damon/admin/kdamonds/0/state",
    "sys/bus/pci/devices/0000:00:03.0/vendor",
    "sys/bus/pci/devices/0000:00:03.0/device",
    "sys/bus/pci/devices/0000:00:03.0/subsystem_vendor",
    "sys/bus/pci/devices/0000:00:03.0/subsystem_device",
];

fn read_everything(fake: &FakeRoot) {
    let root = fake.root();
    let _ = psi::Psi::read(&root);
    let _ = meminfo::Meminfo::read(&root);
    let _ = vmstat::Vmstat::read(&root);
    let _ = iomem::system_ram(&root);
    let _ = memory::block_size(&root);
    let _ = memory::auto_online(&root);
    let _ = memory::memmap_on_memory(&root);
    let _ = memory::list(&root);
    let _ = memory::read(&root, BlockId(0));
    let _ = pci::list(&root);
    let _ = pci::read(&root, BALLOON.parse().expect("a PCI address"));
    let _ = damon::probe(&root);
    let _ = damon::stop_leftover(&root);
    let range = GpaRange::new(Gpa(1), ByteSize::from_bytes(4096)).expect("a page is a range");
    let _ = kpageflags::PageFlags::open(&root).map(|flags| flags.census(range));
    let _ = pagemap::Pagemap::open(&root).map(|map| map.locate(0));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn readers_survive_any_bytes(contents in prop::collection::vec(any::<u8>(), 0..40)) {
        let fake = FakeRoot::new();
        for file in FILES {
            fake.put_bytes(file, &contents);
        }
        read_everything(&fake);
    }

    #[test]
    fn readers_survive_text_that_is_almost_right(
        contents in "(online|offline|none|Movable|Y|N|on|off|0x|8000000|[0-9a-f]{1,20}|[ :.=\n-]){0,6}",
    ) {
        let fake = FakeRoot::new();
        for file in FILES {
            fake.put(file, &contents);
        }
        read_everything(&fake);
    }
}
