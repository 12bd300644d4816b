//! Anonymous memory from the kernel, as pages that safe code may read and write.
//!
//! The only unsafe code that touches memory. The mappings are never locked: a workload whose
//! memory cannot be migrated, swapped or offlined would test nothing.

use std::ffi::c_void;
use std::hint::black_box;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::pattern::{PAGE_BYTES, Page};

/// Whether the kernel may back the memory with huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Thp {
    /// Ask for huge pages (`MADV_HUGEPAGE`).
    On,
    /// Forbid them (`MADV_NOHUGEPAGE`).
    Off,
    /// Say nothing: the guest's own setting decides.
    #[default]
    Default,
}

/// A private anonymous mapping, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<Page>,
    pages: usize,
}

impl Mapping {
    /// Maps `pages` pages, at least one; nothing is backed until it is touched.
    ///
    /// # Errors
    /// What `mmap(2)` or `madvise(2)` say: `ENOMEM` where overcommit or a limit forbids that much,
    /// `EINVAL` where `thp` asks a kernel that has no huge pages.
    pub(crate) fn new(pages: usize, thp: Thp) -> io::Result<Self> {
        let bytes = pages.checked_mul(PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: without MAP_FIXED the kernel chooses an address where nothing else is mapped.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }?;
        let start = NonNull::new(start.cast::<Page>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { start, pages };
        mapping.advise(thp)?;
        Ok(mapping)
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The address of page `index`, in bytes, for messages and for /proc/self/pagemap.
    pub(crate) fn address(&self, index: usize) -> usize {
        self.start.addr().get() + index * PAGE_BYTES
    }

    /// Page `index`, as it is in memory now.
    pub(crate) fn page(&self, index: usize) -> &Page {
        // SAFETY: `slot` points to a whole page inside this mapping, which lives as long as `self`;
        // it is page-aligned, readable, and any bits are valid words.
        let page = unsafe { &*self.slot(index) };
        // The check exists because memory may have changed behind the program's back: the compiler
        // must not answer from what it remembers to have written.
        black_box(page)
    }

    /// Page `index`, to be written.
    pub(crate) fn page_mut(&mut self, index: usize) -> &mut Page {
        // SAFETY: as in `page`; `&mut self` makes this the only reference into the mapping.
        let page = unsafe { &mut *self.slot(index) };
        black_box(page)
    }

    /// The first `pages` pages as bytes, for reading files into and writing them from.
    pub(crate) fn bytes_mut(&mut self, pages: usize) -> &mut [u8] {
        assert!(pages <= self.pages, "{pages} pages of {}", self.pages);
        let (start, bytes) = (self.start.as_ptr().cast::<u8>(), pages * PAGE_BYTES);
        // SAFETY: the range lies inside the mapping, bytes have no alignment and no invalid
        // values, and `&mut self` makes this the only reference into it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, bytes) };
        black_box(bytes)
    }

    /// Gives all pages from `pages` on back to the kernel; `pages` is at least one.
    ///
    /// # Errors
    /// What `munmap(2)` says (`ENOMEM` when the process has too many mappings to split one).
    pub(crate) fn truncate(&mut self, pages: usize) -> io::Result<()> {
        assert!(pages > 0, "a mapping without pages is to be dropped instead");
        if pages < self.pages {
            // SAFETY: the range is the end of this mapping, `&mut self` means that nobody holds a
            // reference into it, and the next line forgets it.
            unsafe { unmap(self.start.as_ptr().wrapping_add(pages), self.pages - pages) }?;
            self.pages = pages;
        }
        Ok(())
    }

    /// Where page `index` is; inside the mapping, or not at all.
    fn slot(&self, index: usize) -> *mut Page {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        self.start.as_ptr().wrapping_add(index)
    }

    fn advise(&self, thp: Thp) -> io::Result<()> {
        let advice = match thp {
            Thp::On => Advice::LinuxHugepage,
            Thp::Off => Advice::LinuxNoHugepage,
            Thp::Default => return Ok(()),
        };
        let start = self.start.as_ptr().cast::<c_void>();
        // SAFETY: the range is exactly this mapping, and neither advice changes its content.
        unsafe { madvise(start, self.pages * PAGE_BYTES, advice) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the whole mapping, and nothing can use it after its drop.
        let unmapped = unsafe { unmap(self.start.as_ptr(), self.pages) };
        // A refusal leaves the memory mapped until the process ends, which harms nobody here.
        let _ = unmapped;
    }
}

/// Unmaps `pages` pages at `start`.
///
/// # Safety
/// They are mapped, belong to the caller alone, and nobody uses them afterwards.
unsafe fn unmap(start: *mut Page, pages: usize) -> io::Result<()> {
    // SAFETY: as the caller promises.
    unsafe { munmap(start.cast::<c_void>(), pages * PAGE_BYTES) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_pages_are_zero_and_keep_what_is_written() {
        let mut mapping = Mapping::new(3, Thp::Default).unwrap();
        assert!(mapping.page(2).iter().all(|&word| word == 0));
        mapping.page_mut(1).fill(7);
        assert_eq!(mapping.page(1)[511], 7);
        assert_eq!(mapping.bytes_mut(3)[PAGE_BYTES], 7);
        assert_eq!(mapping.address(2) - mapping.address(0), 2 * PAGE_BYTES);
    }

    #[test]
    fn the_front_survives_freeing_the_end() {
        let mut mapping = Mapping::new(4, Thp::Off).unwrap();
        mapping.page_mut(0).fill(9);
        mapping.truncate(1).unwrap();
        assert_eq!((mapping.pages(), mapping.page(0)[0]), (1, 9));
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(Mapping::new(usize::MAX / 2, Thp::Default).is_err());
        assert!(Mapping::new(1 << 50, Thp::Default).is_err());
    }
}
