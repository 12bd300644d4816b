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

/// A memfd of `pages` huge pages, all present, and their size; `None` where the host has none.
pub(crate) fn huge_memfd(pages: u64) -> Option<(OwnedFd, ByteSize)> {
    let fd = rustix::fs::memfd_create("hostmem-huge", MemfdFlags::HUGETLB).ok()?;
    let unit = ByteSize::from_bytes(rustix::fs::fstat(&fd).ok()?.st_blksize as u64);
    let len = unit.times(pages).bytes();
    rustix::fs::ftruncate(&fd, len).ok()?;
    rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, len).ok()?;
    Some((fd, unit))
}

pub(crate) fn spec(range: GpaRange, fd: &OwnedFd, file_offset: ByteSize) -> RegionSpec {
    RegionSpec { range, fd: fd.as_fd().try_clone_to_owned().unwrap(), file_offset }
}
