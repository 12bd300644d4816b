//! The guest's memory as files that are shared with the device, and the targets' own view of them.

use std::fs::File;
use std::os::fd::AsFd;

use memtide_units::{ByteSize, Gpa, GpaRange};
use rustix::fs::FallocateFlags;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::descriptors::{Descriptors, Kind, ODD_LEN};

/// Rings and buffers lie below this; it is little, as all of it is zeroed after each input.
pub(super) const LOW_LEN: u64 = 0x3_0000;
/// Memory that may go away under the device: whole pages of the odd file.
pub(super) const ODD_START: u64 = 1 << 20;
pub(super) const ODD_PAGES_LEN: u64 = 1 << 16;
/// Memory blocks lie from here on, in a file of their own.
pub(super) const BLOCKS_START: u64 = 4 << 20;
pub(super) const BLOCKS_LEN: u64 = 16 << 20;
/// Where the VMM has the guest's memory: its addresses are these, plus the guest's.
pub(super) const USER_BASE: u64 = 0x7000_0000_0000;

/// The files, and both mapped.
pub(super) struct GuestMemory {
    pub(super) files: Descriptors,
    map: GuestMemoryMmap,
}

impl GuestMemory {
    pub(super) fn new() -> Self {
        let files = Descriptors::new(LOW_LEN, BLOCKS_LEN);
        let region = |start: u64, len: u64, fd: &std::os::fd::OwnedFd| {
            let file = File::from(fd.try_clone().expect("a descriptor more"));
            (GuestAddress(start), len as usize, Some(FileOffset::new(file, 0)))
        };
        let regions =
            [region(0, LOW_LEN, &files.low), region(BLOCKS_START, BLOCKS_LEN, &files.blocks)];
        let map = GuestMemoryMmap::from_ranges_with_files(regions).expect("memory can be mapped");
        Self { files, map }
    }

    /// To be written to.
    pub(super) fn map(&self) -> &GuestMemoryMmap {
        self.files.touch(Kind::Low);
        &self.map
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.files.touch(Kind::Low);
        // Where there is no memory there is nothing to write to.
        _ = match at.checked_sub(ODD_START).filter(|into| *into < ODD_PAGES_LEN) {
            // Not through a mapping: it may be cut short.
            Some(into) => rustix::io::pwrite(&self.files.odd, bytes, into).is_ok(),
            None => self.map.write_slice(bytes, GuestAddress(at)).is_ok(),
        };
    }

    /// Cuts the odd file short, or makes it longer again.
    pub(super) fn cut(&self, len: u64) {
        self.files.touch(Kind::Odd);
        rustix::fs::ftruncate(&self.files.odd, len).expect("it is not sealed");
    }

    /// As before the first input. What lies in the blocks is seldom touched, and goes as a whole.
    pub(super) fn clean(&self) {
        let is_touched = self.files.is_memory_touched();
        self.files.drain();
        // Most inputs never come as far as to hand memory over.
        if !is_touched {
            return;
        }
        let zeros = [0; LOW_LEN as usize];
        self.map.write_slice(&zeros, GuestAddress(0)).expect("it is memory");
        if rustix::fs::fstat(&self.files.blocks).expect("a file").st_blocks > 0 {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(self.files.blocks.as_fd(), mode, 0, BLOCKS_LEN)
                .expect("a memfd takes holes");
        }
        let odd = rustix::fs::fstat(&self.files.odd).expect("a file");
        if odd.st_blocks > 0 || odd.st_size as u64 != ODD_LEN {
            self.cut(0);
            self.cut(ODD_LEN);
        }
    }
}

/// The addresses of a block, also of some that are not there.
pub(super) fn block(number: u8) -> GpaRange {
    const BLOCK: ByteSize = ByteSize::from_mib(2);
    let number = 1 + u64::from(number % 12);
    GpaRange::new(Gpa(number * BLOCK.bytes()), BLOCK).expect("a small number")
}
