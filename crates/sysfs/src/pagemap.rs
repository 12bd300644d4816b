//! `/proc/self/pagemap`: where this process's memory physically lies
//! (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memtide_units::Gpa;

use crate::{Error, Result, Root};

const PRESENT: u64 = 1 << 63;
const PFN: u64 = (1 << 55) - 1;

/// The open file.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    path: PathBuf,
    page: u64,
}

impl Pagemap {
    /// Opens this process's map.
    ///
    /// # Errors
    /// [`Error::Missing`]: no `CONFIG_PROC_PAGE_MONITOR`. [`Error::Io`].
    pub fn open(root: &Root) -> Result<Self> {
        let path = root.path("proc/self/pagemap");
        let file = File::open(&path).map_err(|error| Error::reading(&path, error))?;
        Ok(Self { file, path, page: rustix::param::page_size() as u64 })
    }

    /// The physical address of the byte at the virtual `address` now, or `None` where no page is
    /// there (never touched, or swapped out). Only a pinned page keeps the answer: mlock(2) is no
    /// pin.
    ///
    /// # Errors
    /// [`Error::Hidden`]: the page is there, and its number reads as 0, which is how the kernel
    /// answers a process without CAP_SYS_ADMIN. [`Error::Io`].
    pub fn locate(&self, address: usize) -> Result<Option<Gpa>> {
        let address = address as u64;
        let mut entry = [0; 8];
        match self.file.read_exact_at(&mut entry, address / self.page * 8) {
            // Past the end of the address space.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other.map_err(|error| Error::reading(&self.path, error))?,
        }
        let entry = u64::from_ne_bytes(entry);
        match entry & PFN {
            _ if entry & PRESENT == 0 => Ok(None),
            0 => Err(Error::Hidden { path: self.path.clone() }),
            pfn => self.physical(pfn, address).map(Some),
        }
    }

    fn physical(&self, pfn: u64, address: u64) -> Result<Gpa> {
        let start = pfn.checked_mul(self.page);
        start.map(|start| Gpa(start + address % self.page)).ok_or_else(|| {
            Error::garbage(&self.path, "a page frame below 16 EiB", &format!("{pfn:#x}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

    fn map(entries: &[u64]) -> Pagemap {
        let fake = FakeRoot::new();
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_ne_bytes()).collect();
        fake.put_bytes("proc/self/pagemap", &bytes);
        Pagemap::open(&fake.root()).unwrap()
    }

    #[test]
    fn the_offset_within_the_page_is_kept() {
        let map = map(&[0, PRESENT | 1 << 61 | 0x1234]);
        let page = usize::try_from(map.page).unwrap();
        assert_eq!(map.locate(page + 5).unwrap(), Some(Gpa(0x1234 * map.page + 5)));
    }

    #[test]
    fn absent_and_hidden_pages_are_told_apart() {
        let map = map(&[0, PRESENT]);
        let page = usize::try_from(map.page).unwrap();
        assert_eq!(map.locate(0).unwrap(), None);
        assert!(matches!(map.locate(page), Err(Error::Hidden { .. })));
        assert_eq!(map.locate(page * 9).unwrap(), None);
    }

    #[test]
    fn a_frame_outside_the_address_space_is_garbage() {
        assert!(matches!(map(&[u64::MAX]).locate(0), Err(Error::Garbage { .. })));
    }

    #[test]
    fn a_kernel_without_it_says_so() {
        assert!(Pagemap::open(&FakeRoot::new().root()).unwrap_err().is_missing());
    }
}
