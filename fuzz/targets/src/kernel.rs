//! The kernel's text files, as the agent reads them: any bytes at all are read or refused.
//!
//! The files of one reader lie in a directory that is made once; an input says which reader, and
//! what its files hold, one after the other with a zero byte between them.

use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use memtide_sysfs::{Root, dax, iomem, kpageflags, meminfo, memory, pagemap, pci, psi, vmstat};
use memtide_units::{BlockId, BlockSize, ByteSize, Gpa, GpaRange};
use tempfile::TempDir;

use crate::meter;

/// A text may be there as bytes, as a string, in pieces and in an error: some times its length.
const MEMORY_MAX: usize = 512 << 10;

const FUNCTION: &str = "0000:00:03.0";

/// A reader and its files.
struct Reader {
    files: &'static [&'static str],
    read: fn(&Root),
}

const READERS: &[Reader] = &[
    Reader { files: &["proc/pressure/memory"], read: pressure },
    Reader { files: &["proc/meminfo"], read: |root| ignore(meminfo::Meminfo::read(root)) },
    Reader { files: &["proc/vmstat"], read: counters },
    Reader { files: &["proc/iomem"], read: ram },
    Reader { files: &["proc/kpageflags"], read: page_flags },
    Reader { files: &["proc/self/pagemap"], read: places },
    Reader {
        files: &["sys/devices/system/memory/block_size_bytes"],
        read: |root| ignore(memory::block_size(root)),
    },
    Reader {
        files: &["sys/devices/system/memory/auto_online_blocks"],
        read: |root| ignore(memory::auto_online(root)),
    },
    Reader {
        files: &["sys/module/memory_hotplug/parameters/memmap_on_memory"],
        read: |root| _ = (memory::memmap_on_memory(root), memory::may_hold_own_structs(root)),
    },
    Reader {
        files: &[
            "sys/bus/dax/devices/dax0.0/size",
            "sys/bus/dax/devices/dax0.0/resource",
            "sys/bus/dax/devices/dax0.0/memmap_on_memory",
        ],
        read: lent_memory,
    },
    Reader {
        files: &[
            "sys/devices/system/memory/memory7/state",
            "sys/devices/system/memory/memory7/valid_zones",
        ],
        read: block,
    },
    Reader {
        files: &[
            "sys/bus/pci/devices/0000:00:03.0/vendor",
            "sys/bus/pci/devices/0000:00:03.0/device",
            "sys/bus/pci/devices/0000:00:03.0/subsystem_vendor",
            "sys/bus/pci/devices/0000:00:03.0/subsystem_device",
        ],
        read: |root| ignore(pci::read(root, FUNCTION.parse().expect("an address"))),
    },
];

/// Nothing is known of a value but that it was read; an error must be one that can be told.
fn ignore<T>(read: memtide_sysfs::Result<T>) {
    if let Err(error) = read {
        assert!(!error.to_string().is_empty());
    }
}

fn pressure(root: &Root) {
    match psi::Psi::read(root) {
        Ok(psi) => assert!(psi.some.avg10.0 <= 1_000_000 && psi.full.avg300.0 <= 1_000_000),
        Err(error) => ignore::<()>(Err(error)),
    }
}

fn lent_memory(root: &Root) {
    let blocks = |devices: Vec<dax::Device>| {
        devices.iter().map(|device| device.blocks(BlockSize::X86_SMALL).len()).max()
    };
    ignore(dax::list(root).map(blocks));
}

fn counters(root: &Root) {
    match vmstat::Vmstat::read(root) {
        Ok(seen) => _ = (seen.oom_kills(), seen.refaults(), seen.memmap_pages()),
        Err(error) => ignore::<()>(Err(error)),
    }
}

fn ram(root: &Root) {
    match iomem::system_ram(root) {
        Ok(ram) => {
            assert!(!ram.is_empty());
            assert!(ram.windows(2).all(|two| two[0].range.start() <= two[1].range.start()));
        }
        Err(error) => ignore::<()>(Err(error)),
    }
}

fn page_flags(root: &Root) {
    let pages = 40;
    let range = GpaRange::new(Gpa(4096), ByteSize::from_kib(4 * pages)).expect("not empty");
    let flags = kpageflags::PageFlags::open(root).expect("the file is there");
    let seen = flags.census(range).expect("any bits are bits");
    let kinds = [seen.free, seen.lru, seen.hugetlb, seen.unmovable, seen.offline, seen.hwpoison];
    assert_eq!(kinds.iter().sum::<u64>() + seen.nopage + seen.unknown, pages);
    assert!(seen.anon <= seen.lru && seen.used() <= pages && seen.to_migrate() <= pages);
}

fn places(root: &Root) {
    let map = pagemap::Pagemap::open(root).expect("the file is there");
    for page in 0..4 {
        ignore(map.locate(page * 4096 + 9));
    }
}

fn block(root: &Root) {
    ignore(memory::list(root));
    if let Ok(block) = memory::read(root, BlockId(7)) {
        assert!(!(block.never_offline() && block.can_be_movable()));
        _ = block.current_zone();
    }
}

/// The directory, with every file in it.
struct Files {
    root: Root,
    open: Vec<Vec<File>>,
    _dir: TempDir,
}

impl Files {
    fn make() -> Self {
        let dir = TempDir::with_prefix("memtide-fuzz").expect("a temporary directory");
        let make = |path: &&str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            File::create(path).expect("a file")
        };
        let open = READERS.iter().map(|reader| reader.files.iter().map(make).collect()).collect();
        Self { root: Root::new(dir.path()), open, _dir: dir }
    }

    fn put(&self, reader: usize, contents: &[u8]) {
        let mut parts = contents.splitn(self.open[reader].len(), |byte| *byte == 0);
        for file in &self.open[reader] {
            let part = parts.next().unwrap_or_default();
            file.write_all_at(part, 0).expect("a file of our own");
            file.set_len(part.len() as u64).expect("a file of our own");
        }
    }
}

thread_local! {
    static FILES: OnceCell<Files> = const { OnceCell::new() };
}

/// Reads what `data` says as the reader that its first byte names.
pub fn run(data: &[u8]) {
    let Some((which, contents)) = data.split_first() else { return };
    let which = usize::from(*which) % READERS.len();
    FILES.with(|files| {
        let files = files.get_or_init(Files::make);
        files.put(which, contents);
        meter::within(MEMORY_MAX, || (READERS[which].read)(&files.root));
    });
}
