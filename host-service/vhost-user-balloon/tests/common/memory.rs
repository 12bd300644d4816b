//! The guest's memory.

use std::os::fd::{AsRawFd, OwnedFd};

use memtide_units::ByteSize;
use rustix::fs::MemfdFlags;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::{HIGH_START, LOW_END, MEMORY, USER_BASE};

/// Guest memory as a file, mapped here as the guest sees it.
pub struct Memory {
    pub fd: OwnedFd,
    pub map: GuestMemoryMmap,
    layout: Vec<(u64, u64, u64)>,
}

impl Memory {
    /// All of it is touched, so that every hole shows.
    pub fn new() -> Self {
        let fd = rustix::fs::memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
        Self::filled(fd)
    }

    /// The same in a file of the caller's.
    pub fn filled(fd: OwnedFd) -> Self {
        rustix::fs::ftruncate(&fd, MEMORY.bytes()).unwrap();
        let low = (0, LOW_END, 0);
        let high = (HIGH_START, MEMORY.bytes() - HIGH_START, HIGH_START);
        let memory = Self::laid_out(fd, vec![low, high]);
        memory.fill();
        memory
    }

    /// Touches all of it.
    pub fn fill(&self) {
        let page = [0xa5; 4096];
        for (start, len, _) in &self.layout {
            for at in (*start..start + len).step_by(4096) {
                self.map.write_slice(&page, GuestAddress(at)).unwrap();
            }
        }
        // What a disk is yet to be given is not there to be counted.
        rustix::fs::fsync(&self.fd).unwrap();
    }

    /// Regions by guest address, length and offset in the file, which is as it is.
    pub fn laid_out(fd: OwnedFd, layout: Vec<(u64, u64, u64)>) -> Self {
        let file = |offset| {
            let file = std::fs::File::from(fd.try_clone().unwrap());
            Some(FileOffset::new(file, offset))
        };
        let ranges = layout
            .iter()
            .map(|(start, len, offset)| (GuestAddress(*start), *len as usize, file(*offset)));
        let map = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        Self { fd, map, layout }
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |(start, len, offset): &(u64, u64, u64)| VhostUserMemoryRegionInfo {
            guest_phys_addr: *start,
            memory_size: *len,
            userspace_addr: USER_BASE + start,
            mmap_offset: *offset,
            mmap_handle: self.fd.as_raw_fd(),
        };
        self.layout.iter().map(region).collect()
    }

    pub fn resident(&self) -> ByteSize {
        let blocks = rustix::fs::fstat(&self.fd).unwrap().st_blocks;
        ByteSize::from_bytes(blocks as u64 * 512)
    }

    pub fn all_resident() -> ByteSize {
        MEMORY - ByteSize::from_bytes(HIGH_START - LOW_END)
    }
}
