//! Real memfds for the tests of this crate.

use std::os::fd::{AsFd, OwnedFd};

use memtide_units::{ByteSize, Gpa, GpaRange};
use rustix::fs::MemfdFlags;

use crate::RegionSpec;

pub(crate) fn kib(kib: u64) -> ByteSize {
    ByteSize::from_kib(kib)
}

/// A range by start and length in KiB.
pub(crate) fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start << 10), kib(len)).unwrap()
}

pub(crate) fn memfd(len: ByteSize) -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostmem-test", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, len.bytes()).unwrap();
    fd
}

pub(crate) fn filled_memfd(len: ByteSize) -> OwnedFd {
    let fd = memfd(len);
    assert_eq!(
        rustix::io::pwrite(&fd, &vec![0xa5; len.bytes() as usize], 0).unwrap(),
        len.bytes() as usize
    );
    fd
}

pub(crate) fn contents(fd: &OwnedFd) -> Vec<u8> {
    let len = rustix::fs::fstat(fd).unwrap().st_size as usize;
    let mut bytes = vec![0; len];
    assert_eq!(rustix::io::pread(fd, &mut bytes, 0).unwrap(), len);
    bytes
}

/// A memfd of huge pages, all present. Where the host has none to spare and allows it, they are
/// reserved for as long as this lives.
pub(crate) struct HugeMemfd {
    pub(crate) fd: OwnedFd,
    pub(crate) unit: ByteSize,
    /// Last, so that the pages are free before their number goes down.
    _reserved: Option<Reserved>,
}

impl HugeMemfd {
    /// So many pages; `None` where the host does not have them.
    pub(crate) fn of(pages: u64) -> Option<Self> {
        if let Some((fd, unit)) = huge_memfd(pages) {
            return Some(Self { fd, unit, _reserved: None });
        }
        let reserved = Reserved::more(pages)?;
        let (fd, unit) = huge_memfd(pages)?;
        Some(Self { fd, unit, _reserved: Some(reserved) })
    }
}

fn huge_memfd(pages: u64) -> Option<(OwnedFd, ByteSize)> {
    let fd = rustix::fs::memfd_create("hostmem-huge", MemfdFlags::HUGETLB).ok()?;
    let unit = ByteSize::from_bytes(rustix::fs::fstat(&fd).ok()?.st_blksize as u64);
    let len = unit.times(pages).bytes();
    rustix::fs::ftruncate(&fd, len).ok()?;
    rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, len).ok()?;
    Some((fd, unit))
}

/// The number of huge pages that the host keeps (Documentation/admin-guide/mm/hugetlbpage.rst).
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages that were added to the host's pool, and are taken out of it again.
struct Reserved(u64);

impl Reserved {
    fn more(pages: u64) -> Option<Self> {
        let before = pool()?;
        std::fs::write(POOL, (before + pages).to_string()).ok()?;
        Some(Self(pages))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(now) = pool() {
            // The host may have taken them back itself; that is as well.
            _ = std::fs::write(POOL, now.saturating_sub(self.0).to_string());
        }
    }
}

fn pool() -> Option<u64> {
    std::fs::read_to_string(POOL).ok()?.trim().parse().ok()
}

pub(crate) fn spec(range: GpaRange, fd: &OwnedFd, file_offset: ByteSize) -> RegionSpec {
    RegionSpec { range, fd: fd.as_fd().try_clone_to_owned().unwrap(), file_offset }
}
