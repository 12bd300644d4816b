//! `/proc/kpageflags`: what each physical page is used for, and so whether a block can be emptied.
//!
//! The bits are those of include/uapi/linux/kernel-page-flags.h, and bit 32 of
//! include/linux/kernel-page-flags.h. Every page of a free chunk says that it is free (fs/proc/page.c,
//! `stable_page_flags`; on a running 6.18 such pages are as many as `/proc/buddyinfo` says). Where
//! only the first one does (very old kernels), and where struct pages are set up lazily, the other
//! free pages count as unknown.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memtide_units::{ByteSize, GpaRange};

use crate::{Error, Result, Root};

const LRU: u64 = 1 << 5;
const SLAB: u64 = 1 << 7;
const BUDDY: u64 = 1 << 10;
const ANON: u64 = 1 << 12;
const COMPOUND_TAIL: u64 = 1 << 16;
const HUGE: u64 = 1 << 17;
const HWPOISON: u64 = 1 << 19;
const NOPAGE: u64 = 1 << 20;
const THP: u64 = 1 << 22;
const OFFLINE: u64 = 1 << 23;
const ZERO_PAGE: u64 = 1 << 24;
const PGTABLE: u64 = 1 << 26;
/// `KPF_RESERVED`: `struct page`s, the kernel image, firmware.
const RESERVED: u64 = 1 << 32;

/// Bytes per page in the file.
const ENTRY: usize = 8;
/// Entries read at once: 64 KiB, so that a 128 MiB block takes four reads.
const CHUNK: usize = 8192;

/// How many pages of a range are used for what. Every page counts once, `anon` excepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCensus {
    /// All pages of the range.
    pub total: u64,
    /// Free, in the buddy allocator.
    pub free: u64,
    /// Of processes and the page cache: offlining migrates them.
    pub lru: u64,
    /// Those of `lru` that are anonymous: without swap they can only be migrated.
    pub anon: u64,
    /// Held by hugetlb. Free ones and used 2 MiB ones can be migrated, 1 GiB ones seldom.
    pub hugetlb: u64,
    /// Slab, page tables, reserved: the kernel's own, which never moves.
    pub unmovable: u64,
    /// Marked offline by a driver: inflated balloon pages, which the balloon driver can move, and
    /// unplugged virtio-mem ones, which are skipped.
    pub offline: u64,
    /// Broken. Offlining skips them.
    pub hwpoison: u64,
    /// No page there: a hole, or an offline block.
    pub nopage: u64,
    /// Pages that say nothing of themselves. Most are free ones in per-CPU lists, which offlining
    /// drains; the others are the kernel's own (stacks, vmalloc, drivers' buffers), which do not
    /// move, or pages on their way to the LRU lists.
    pub unknown: u64,
}

impl PageCensus {
    /// Most pages that offlining can have to move elsewhere: so much must be free. An upper bound,
    /// since unknown pages are in it.
    pub fn to_migrate(&self) -> u64 {
        self.lru.saturating_add(self.hugetlb).saturating_add(self.unknown)
    }

    /// True where offlining will fail with EBUSY, unless the kernel frees those pages meanwhile.
    /// False is no promise: a pinned page (io_uring, VFIO) looks like any other page of a process,
    /// and some unknown pages never move. Leave the first pages of a block that was added with
    /// `memmap_on_memory` out of the range: its own `struct page`s there look reserved, and are no
    /// obstacle.
    pub fn cannot_be_emptied(&self) -> bool {
        self.unmovable > 0
    }

    /// Pages that hold something: neither free nor absent.
    pub fn used(&self) -> u64 {
        self.total - self.free - self.nopage
    }
}

/// What one page counts as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Free,
    Anon,
    File,
    Hugetlb,
    Unmovable,
    Offline,
    Broken,
    Absent,
    Unknown,
}

impl Kind {
    /// `head` is the kind of the page before: the tail pages of slabs and large folios carry no
    /// flags of their own on older kernels (6.1), and are what their head is.
    fn of(flags: u64, head: Self) -> Self {
        let any = |mask: u64| flags & mask != 0;
        match flags {
            _ if any(NOPAGE) => Self::Absent,
            _ if any(HWPOISON) => Self::Broken,
            _ if any(BUDDY) => Self::Free,
            _ if any(OFFLINE) => Self::Offline,
            _ if any(HUGE) => Self::Hugetlb,
            _ if any(SLAB | PGTABLE | RESERVED | ZERO_PAGE) => Self::Unmovable,
            _ if any(ANON) => Self::Anon,
            _ if any(LRU | THP) => Self::File,
            _ if any(COMPOUND_TAIL) && head != Self::Free => head,
            _ => Self::Unknown,
        }
    }
}

impl PageCensus {
    fn count(&mut self, kind: Kind) {
        self.total += 1;
        match kind {
            Kind::Free => self.free += 1,
            Kind::Anon => (self.lru, self.anon) = (self.lru + 1, self.anon + 1),
            Kind::File => self.lru += 1,
            Kind::Hugetlb => self.hugetlb += 1,
            Kind::Unmovable => self.unmovable += 1,
            Kind::Offline => self.offline += 1,
            Kind::Broken => self.hwpoison += 1,
            Kind::Absent => self.nopage += 1,
            Kind::Unknown => self.unknown += 1,
        }
    }
}

/// The open file. Reading it takes no lock: a census is a picture with a long exposure.
#[derive(Debug)]
pub struct PageFlags {
    file: File,
    path: PathBuf,
    page: ByteSize,
}

impl PageFlags {
    /// Opens `/proc/kpageflags`.
    ///
    /// # Errors
    /// [`Error::Missing`]: no `CONFIG_PROC_PAGE_MONITOR`. [`Error::Io`]: it is for root only.
    pub fn open(root: &Root) -> Result<Self> {
        let path = root.path("proc/kpageflags");
        let file = File::open(&path).map_err(|error| Error::reading(&path, error))?;
        let page = ByteSize::from_bytes(rustix::param::page_size() as u64);
        Ok(Self { file, path, page })
    }

    /// Counts the pages that `range` touches. Those past the end of memory count as absent.
    ///
    /// # Errors
    /// [`Error::Io`] (EIO, EFAULT): no kernel answers so of itself.
    pub fn census(&self, range: GpaRange) -> Result<PageCensus> {
        let mut census = PageCensus::default();
        let mut buffer = vec![0; CHUNK * ENTRY];
        let mut head = Kind::Unknown;
        let mut next = range.start().0 / self.page.bytes();
        let end = range.end().0.div_ceil(self.page.bytes());
        while next < end {
            let wanted = usize::try_from(end - next).map_or(CHUNK, |left| left.min(CHUNK));
            let read = self.read_at(&mut buffer[..wanted * ENTRY], next)?;
            if read == 0 {
                census.total += end - next;
                census.nopage += end - next;
                break;
            }
            for entry in buffer[..read * ENTRY].as_chunks::<ENTRY>().0 {
                head = Kind::of(u64::from_ne_bytes(*entry), head);
                census.count(head);
            }
            next += read as u64;
        }
        Ok(census)
    }

    /// Reads entries from frame `pfn` on, and says how many: none past the last page.
    fn read_at(&self, buffer: &mut [u8], pfn: u64) -> Result<usize> {
        let Some(offset) = pfn.checked_mul(ENTRY as u64) else { return Ok(0) };
        loop {
            match self.file.read_at(buffer, offset) {
                Ok(bytes) => return Ok(bytes / ENTRY),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::reading(&self.path, error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use memtide_units::Gpa;
    use proptest::prelude::*;

    const HEAD: u64 = 1 << 15;

    fn census(flags: &[u64], first: u64, pages: u64) -> PageCensus {
        let fake = FakeRoot::new();
        fake.put_page_flags(0, flags);
        let page = rustix::param::page_size() as u64;
        let range = GpaRange::new(Gpa(first * page), ByteSize::from_bytes(pages * page)).unwrap();
        PageFlags::open(&fake.root()).unwrap().census(range).unwrap()
    }

    #[test]
    fn every_kind_of_page_is_told_apart() {
        let flags =
            [BUDDY, ANON | LRU, LRU, SLAB, PGTABLE, RESERVED, OFFLINE, HWPOISON | LRU, NOPAGE, 0];
        let seen = census(&flags, 0, 10);
        assert_eq!((seen.total, seen.free, seen.lru, seen.anon), (10, 1, 2, 1));
        assert_eq!((seen.unmovable, seen.offline, seen.hwpoison), (3, 1, 1));
        assert_eq!((seen.nopage, seen.unknown), (1, 1));
        assert_eq!(seen.to_migrate(), 3);
        assert!(seen.cannot_be_emptied());
    }

    #[test]
    fn free_and_process_memory_can_be_emptied() {
        let seen = census(&[BUDDY, BUDDY, LRU | ANON, LRU], 0, 4);
        assert!(!seen.cannot_be_emptied());
        assert_eq!((seen.used(), seen.to_migrate()), (2, 2));
    }

    #[test]
    fn tails_are_what_their_head_is() {
        let seen = census(&[HEAD | SLAB, COMPOUND_TAIL, HEAD | THP | ANON, COMPOUND_TAIL], 0, 4);
        assert_eq!((seen.unmovable, seen.anon, seen.unknown), (2, 2, 0));
        let huge = census(&[HEAD | HUGE, COMPOUND_TAIL | HUGE], 0, 2);
        assert_eq!(huge.hugetlb, 2);
    }

    #[test]
    fn an_older_kernel_marks_only_the_first_page_of_a_free_chunk() {
        let seen = census(&[BUDDY, 0, 0, 0], 0, 4);
        assert_eq!((seen.free, seen.unknown), (1, 3));
        assert!(!seen.cannot_be_emptied());
    }

    #[test]
    fn what_lies_past_the_end_of_memory_is_absent() {
        assert_eq!(census(&[BUDDY, BUDDY], 1, 3).nopage, 2);
        assert_eq!(census(&[BUDDY], 1 << 40, 5).nopage, 5);
    }

    #[test]
    fn ranges_longer_than_one_read_are_read_whole() {
        let mut flags = vec![BUDDY; CHUNK + 7];
        flags[CHUNK] = SLAB;
        let seen = census(&flags, 3, CHUNK as u64 + 4);
        assert_eq!((seen.free, seen.unmovable), (CHUNK as u64 + 3, 1));
    }

    #[test]
    fn a_kernel_without_page_flags_says_so() {
        assert!(PageFlags::open(&FakeRoot::new().root()).unwrap_err().is_missing());
    }

    proptest! {
        #[test]
        fn every_page_counts_once(flags in prop::collection::vec(any::<u64>(), 1..64)) {
            let seen = census(&flags, 0, flags.len() as u64);
            let sum = seen.free + seen.lru + seen.hugetlb + seen.unmovable + seen.offline
                + seen.hwpoison + seen.nopage + seen.unknown;
            prop_assert_eq!(sum, seen.total);
            prop_assert_eq!(seen.total, flags.len() as u64);
            prop_assert!(seen.anon <= seen.lru);
        }
    }
}
