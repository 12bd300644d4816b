//! hugetlb: memory set apart in huge pages (Documentation/admin-guide/mm/hugetlbpage.rst), and what
//! its `struct page`s cost (Documentation/mm/vmemmap_dedup.rst).

use std::path::PathBuf;

use memtide_units::ByteSize;

use crate::error::optional;
use crate::{Error, Result, Root};

/// The huge pages that a mapping of the middle page table level has: 2 MiB with pages of 4 KiB.
pub const PAGE: ByteSize = ByteSize::from_mib(2);

const POOL: &str = "sys/kernel/mm/hugepages/hugepages-2048kB";
const OVERCOMMIT: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
const OPTIMIZE: &str = "proc/sys/vm/hugetlb_optimize_vmemmap";
const MOUNTS: &str = "proc/self/mountinfo";

/// The pool of 2 MiB pages, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// In nobody's use.
    pub free: u64,
    /// Those of `free` that are promised to a mapping.
    pub reserved: u64,
    /// Beyond what an administrator wants there to be: they go when they are let go of.
    pub surplus: u64,
    /// How many of these there may be.
    pub overcommit: u64,
}

impl Pool {
    /// Pages that somebody has set apart and that nobody uses yet: a new mapping would get these.
    pub fn idle(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }
}

/// Reads the pool.
///
/// # Errors
/// [`Error::Missing`]: the kernel has no pages of this size. [`Error::Garbage`].
pub fn read(root: &Root) -> Result<Pool> {
    let number = |name| root.value(format!("{POOL}/{name}"), "a number of pages");
    Ok(Pool {
        free: number("free_hugepages")?,
        reserved: number("resv_hugepages")?,
        surplus: number("surplus_hugepages")?,
        overcommit: number("nr_overcommit_hugepages")?,
    })
}

/// Sets how many surplus pages there may be. Those that are there already stay.
///
/// # Errors
/// [`Error::Missing`], [`Error::Refused`].
pub fn set_overcommit(root: &Root, pages: u64) -> Result<()> {
    root.write(OVERCOMMIT, &pages.to_string())
}

/// What becomes of the `struct page`s of pages that get into the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structs {
    /// Seven of eight go back to the kernel while the page is in the pool.
    Freed,
    /// They stay, though the kernel could free them.
    Kept,
    /// They stay: the kernel was built without that (`CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP`).
    NotOffered,
}

/// What the sysctl `vm.hugetlb_optimize_vmemmap` says.
///
/// # Errors
/// [`Error::Garbage`], [`Error::Io`].
pub fn structs(root: &Root) -> Result<Structs> {
    let says = root.parsed(OPTIMIZE, "0 or 1", |text| match text {
        "0" => Some(Structs::Kept),
        "1" => Some(Structs::Freed),
        _ => None,
    });
    Ok(optional(says)?.unwrap_or(Structs::NotOffered))
}

/// Where a file system of 2 MiB pages is mounted, if one is: the first.
///
/// # Errors
/// [`Error::Missing`], [`Error::Io`].
pub fn mount_point(root: &Root) -> Result<Option<PathBuf>> {
    Ok(root.read(MOUNTS)?.lines().find_map(mounted))
}

/// A line of mountinfo (Documentation/filesystems/proc.rst, 3.5), if it is such a file system, whole
/// and writable. A place with blanks in its name, which are written in octal, is none.
fn mounted(line: &str) -> Option<PathBuf> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (within, place, options) = (place.next()?, place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let (name, settings) = (kind.next()?, kind.nth(1)?);
    let has = |list: &str, wanted: &str| list.split(',').any(|option| option == wanted);
    let fits = name == "hugetlbfs" && has(settings, "pagesize=2M") && has(options, "rw");
    (fits && within == "/" && !place.contains('\\')).then(|| place.into())
}

/// Memory that is free in the zones that the kernel's own allocations can come from: all but
/// `ZONE_MOVABLE` and devices' (`/proc/zoneinfo`).
///
/// # Errors
/// [`Error::Missing`]; [`Error::Garbage`] for a file without such a zone.
pub fn free_for_kernel(root: &Root) -> Result<ByteSize> {
    const FILE: &str = "proc/zoneinfo";
    let text = root.read(FILE)?;
    let mut is_kernels = false;
    let mut pages: Option<u64> = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["Node", _, "zone", zone] => is_kernels = !matches!(zone, "Movable" | "Device"),
            ["pages", "free", number] if is_kernels => {
                let number: Option<u64> = number.parse().ok();
                pages = number.map(|number| pages.unwrap_or(0).saturating_add(number));
            }
            _ => {}
        }
    }
    let page = ByteSize::from_bytes(rustix::param::page_size() as u64);
    pages.map(|pages| page.times(pages)).ok_or_else(|| {
        Error::garbage(root.path(FILE), "zones with lines such as pages free 137700", &text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

    fn guest() -> FakeRoot {
        let fake = FakeRoot::new();
        fake.add_huge_pages("/dev/hugepages");
        fake
    }

    #[test]
    fn the_pool_is_read_and_may_grow_over() {
        let fake = guest();
        let root = fake.root();
        let file = |name: &str| format!("{POOL}/{name}");
        fake.put(&file("free_hugepages"), "7\n");
        fake.put(&file("resv_hugepages"), "3\n");
        set_overcommit(&root, 64).unwrap();
        let pool = read(&root).unwrap();
        assert_eq!((pool.idle(), pool.surplus, pool.overcommit), (4, 0, 64));
        assert!(read(&FakeRoot::new().root()).unwrap_err().is_missing());
    }

    #[test]
    fn what_becomes_of_struct_pages_is_a_sysctl() {
        let fake = guest();
        let structs = || structs(&fake.root());
        assert_eq!(structs().unwrap(), Structs::Kept);
        fake.put(OPTIMIZE, "1\n");
        assert_eq!(structs().unwrap(), Structs::Freed);
        fake.put(OPTIMIZE, "on\n");
        assert!(matches!(structs(), Err(Error::Garbage { .. })));
        fake.remove(OPTIMIZE);
        assert_eq!(structs().unwrap(), Structs::NotOffered);
    }

    #[test]
    fn only_a_whole_writable_file_system_of_the_right_size_will_do() {
        let fake = FakeRoot::new();
        let line = |within: &str, place: &str, options: &str, kind: &str| {
            format!("31 2 0:27 {within} {place} {options},relatime shared:9 - {kind}\n")
        };
        let tmpfs = line("/", "/dev/shm", "rw", "tmpfs tmpfs rw");
        for (other, fits) in [
            (line("/", "/dev/hugepages", "rw", "hugetlbfs h rw,pagesize=2M"), true),
            (line("/", "/dev/hugepages1G", "rw", "hugetlbfs h rw,pagesize=1024M"), false),
            (line("/", "/dev/hugepages", "ro", "hugetlbfs h rw,pagesize=2M"), false),
            (line("/db", "/srv/db", "rw", "hugetlbfs h rw,pagesize=2M"), false),
            (line("/", "/srv/my\\040pages", "rw", "hugetlbfs h rw,pagesize=2M"), false),
            ("nonsense\n - \n".into(), false),
        ] {
            fake.put(MOUNTS, &(tmpfs.clone() + &other));
            let found = mount_point(&fake.root()).unwrap();
            assert_eq!(found.is_some(), fits, "{other}");
        }
    }

    #[test]
    fn what_is_free_in_movable_zones_is_not_the_kernels() {
        let fake = FakeRoot::new();
        let zone = |name: &str, free: u64| {
            format!("Node 0, zone {name:>8}\n  pages free     {free}\n        min      190\n")
        };
        fake.put("proc/zoneinfo", &(zone("DMA", 256) + &zone("DMA32", 1024) + &zone("Movable", 9)));
        assert_eq!(free_for_kernel(&fake.root()).unwrap(), ByteSize::from_mib(5));
        fake.put("proc/zoneinfo", "Node 0, zone Movable\n  pages free 7\n");
        assert!(matches!(free_for_kernel(&fake.root()), Err(Error::Garbage { .. })));
    }
}
