//! Memory that a device reads and writes: a shared mapping, and accesses to it that the compiler
//! neither tears nor moves.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of a page. The agent's guests are x86-64; virtio's own alignments need no more.
pub const PAGE: usize = 4096;

#[derive(Debug)]
struct Mapping {
    base: *mut c_void,
    len: usize,
}

// SAFETY: the mapping is plain memory without thread affinity; all accesses to it are atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are what mmap returned and was given; the last `Pages` has gone.
        let _ = unsafe { rustix::mm::munmap(self.base, self.len) };
    }
}

/// A run of whole pages in one mapping. Clones and parts share the memory; offsets count from the
/// start of the part. All accesses are relaxed atomics: order is made by fences where it matters.
#[derive(Clone, Debug)]
pub struct Pages {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Pages {
    /// The first `count` pages of `file`, shared with it. The file must be so long and stay so.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn of_file(file: &File, count: usize) -> io::Result<Self> {
        Self::of_file_at(file, 0, count)
    }

    /// The `count` pages of `file` from byte `offset` on, which is a multiple of the file's own pages.
    ///
    /// # Errors
    /// As [`Self::of_file`].
    pub fn of_file_at(file: &File, offset: u64, count: usize) -> io::Result<Self> {
        let len = count * PAGE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address that the kernel chooses aliases nothing of ours.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, file, offset)? };
        Ok(Self { mapping: Arc::new(Mapping { base, len }), start: 0, len })
    }

    /// `count` pages of no file, for tests and fakes.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn anonymous(count: usize) -> io::Result<Self> {
        let len = count * PAGE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::SHARED)?
        };
        Ok(Self { mapping: Arc::new(Mapping { base, len }), start: 0, len })
    }

    /// `count` pages from page `first` on.
    ///
    /// # Panics
    /// Where there are not so many.
    pub fn part(&self, first: usize, count: usize) -> Self {
        let (start, len) = (self.start + first * PAGE, count * PAGE);
        assert!(first * PAGE + len <= self.len, "no page {}", first + count - 1);
        Self { mapping: Arc::clone(&self.mapping), start, len }
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a part has at least the pages it was asked for, and nobody asks for none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The virtual address of byte `offset`, for pagemap and registration.
    pub fn address(&self, offset: usize) -> usize {
        self.pointer::<u8>(offset).addr()
    }

    /// # Panics
    /// For bytes outside the part, or an offset that is not aligned.
    fn pointer<T>(&self, offset: usize) -> *mut T {
        let inside = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len);
        assert!(inside && offset.is_multiple_of(size_of::<T>()), "no field at {offset:#x}");
        self.mapping.base.cast::<u8>().wrapping_add(self.start + offset).cast()
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `pointer` has checked bounds and alignment; the mapping lives as long as self;
        // everybody in this process accesses it through atomics.
        unsafe { AtomicU8::from_ptr(self.pointer(offset)) }
    }

    /// Two bytes, little-endian. Panics, as all the others, outside the part.
    pub fn load_u16(&self, offset: usize) -> u16 {
        // SAFETY: as for `byte`.
        let field = unsafe { AtomicU16::from_ptr(self.pointer(offset)) };
        u16::from_le(field.load(Ordering::Relaxed))
    }

    /// Four bytes.
    pub fn load_u32(&self, offset: usize) -> u32 {
        // SAFETY: as for `byte`.
        let field = unsafe { AtomicU32::from_ptr(self.pointer(offset)) };
        u32::from_le(field.load(Ordering::Relaxed))
    }

    /// Eight bytes.
    pub fn load_u64(&self, offset: usize) -> u64 {
        // SAFETY: as for `byte`.
        let field = unsafe { AtomicU64::from_ptr(self.pointer(offset)) };
        u64::from_le(field.load(Ordering::Relaxed))
    }

    /// Two bytes, little-endian.
    pub fn store_u16(&self, offset: usize, value: u16) {
        // SAFETY: as for `byte`.
        let field = unsafe { AtomicU16::from_ptr(self.pointer(offset)) };
        field.store(value.to_le(), Ordering::Relaxed);
    }

    /// Four bytes.
    pub fn store_u32(&self, offset: usize, value: u32) {
        // SAFETY: as for `byte`.
        let field = unsafe { AtomicU32::from_ptr(self.pointer(offset)) };
        field.store(value.to_le(), Ordering::Relaxed);
    }

    /// Eight bytes.
    pub fn store_u64(&self, offset: usize, value: u64) {
        // SAFETY: as for `byte`.
        let field = unsafe { AtomicU64::from_ptr(self.pointer(offset)) };
        field.store(value.to_le(), Ordering::Relaxed);
    }

    /// Copies `bytes` to `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            self.byte(offset + n).store(*byte, Ordering::Relaxed);
        }
    }

    /// Copies `len` bytes from `offset`, once: what the device changes afterwards is not seen.
    pub fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        (offset..offset + len).map(|at| self.byte(at).load(Ordering::Relaxed)).collect()
    }

    /// Zeroes all of it.
    pub fn clear(&self) {
        for offset in (0..self.len).step_by(8) {
            self.store_u64(offset, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_share_their_memory() {
        let pages = Pages::anonymous(3).unwrap();
        let second = pages.part(1, 2);
        second.store_u32(4, 0xdead_beef);
        second.write(PAGE, b"memtide");
        assert_eq!(pages.load_u32(PAGE + 4), 0xdead_beef);
        assert_eq!(pages.read(2 * PAGE, 7), b"memtide");
        assert_eq!(second.address(0), pages.address(PAGE));
        pages.clear();
        assert_eq!((second.load_u64(0), second.load_u16(PAGE)), (0, 0));
    }

    #[test]
    fn a_file_keeps_what_was_written_after_the_mapping_has_gone() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
        Pages::of_file(&file, 2).unwrap().write(PAGE, &[7]);
        assert_eq!(Pages::of_file(&file, 2).unwrap().read(PAGE, 1), [7]);
    }
}
