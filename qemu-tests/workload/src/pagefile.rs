//! A file made of stamped pages, for memory that is page cache.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::mapping::{Mapping, Thp};
use crate::pattern::{self, Fault, PAGE_BYTES, Salt, Stamp};

/// Pages that are written or read at once: 64 KiB, below the kernel's usual readahead of 128 KiB,
/// so that reads are seldom slower than one disk access.
const CHUNK_PAGES: usize = 16;

/// The file, without a name: the kernel removes it however the program ends.
#[derive(Debug)]
pub(crate) struct PageFile {
    file: File,
    id: u16,
    salt: Salt,
    pages: usize,
    buffer: Mapping,
}

impl PageFile {
    /// An empty file for `pages` pages in `dir`.
    ///
    /// # Errors
    /// What the kernel says when the file or its buffer cannot be made.
    pub(crate) fn create(dir: &Path, id: u16, pages: usize, salt: Salt) -> io::Result<Self> {
        u32::try_from(pages).map_err(|_| io::ErrorKind::InvalidInput)?;
        let path = dir.join(format!(".memtide-workload.{}.{id}", std::process::id()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Self { file, id, salt, pages, buffer: Mapping::new(CHUNK_PAGES, Thp::Default)? })
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The first pages of all chunks.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.pages).step_by(CHUNK_PAGES)
    }

    /// Writes the chunk that begins with page `first`.
    ///
    /// # Errors
    /// What `pwrite(2)` says, such as `ENOSPC`.
    pub(crate) fn write(&mut self, first: usize) -> io::Result<()> {
        let pages = self.chunk_pages(first);
        for index in 0..pages {
            let seed = self.stamp(first + index).seed(self.salt);
            pattern::write(self.buffer.page_mut(index), seed);
        }
        self.file.write_all_at(self.buffer.bytes_mut(pages), offset_of(first))
    }

    /// Hands the written pages to the disk: clean page cache is what a guest gives up first.
    ///
    /// # Errors
    /// What `fdatasync(2)` says.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Reads the chunk that begins with page `first`; returns how many pages it has.
    ///
    /// # Errors
    /// What `pread(2)` says; `UnexpectedEof` where the file lost its end.
    pub(crate) fn read(&mut self, first: usize) -> io::Result<usize> {
        let pages = self.chunk_pages(first);
        self.file.read_exact_at(self.buffer.bytes_mut(pages), offset_of(first))?;
        Ok(pages)
    }

    /// Faults in the chunk that was read last and begins with page `first`, each with its page's
    /// offset in the file.
    pub(crate) fn faults(&self, first: usize) -> Vec<(u64, Fault)> {
        let fault = |index| {
            let stamp = self.stamp(first + index);
            let page = self.buffer.page(index);
            if pattern::is_intact(page, stamp.seed(self.salt)) {
                return None;
            }
            let fault = pattern::diagnose(page, stamp, self.salt)?;
            Some((offset_of(first + index), fault))
        };
        (0..self.chunk_pages(first)).filter_map(fault).collect()
    }

    #[cfg(test)]
    pub(crate) fn lose(&mut self, page: usize) {
        self.file.write_all_at(&[0; PAGE_BYTES], offset_of(page)).unwrap();
    }

    fn chunk_pages(&self, first: usize) -> usize {
        CHUNK_PAGES.min(self.pages - first)
    }

    fn stamp(&self, page: usize) -> Stamp {
        // Lossless: `create` refuses more pages than 32 bits number. Files are written once.
        Stamp { extent: self.id, page: page as u32, generation: 0 }
    }
}

fn offset_of(page: usize) -> u64 {
    (page * PAGE_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_lost_a_page_and_has_two_swapped_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let salt = Salt::of_run(1, 1);
        let mut file = PageFile::create(dir.path(), 9, 40, salt).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it has a name");
        let chunks: Vec<_> = file.chunks().collect();
        assert_eq!(chunks, [0, 16, 32]);
        chunks.iter().for_each(|&first| file.write(first).unwrap());
        file.sync().unwrap();
        assert_eq!((file.read(32).unwrap(), file.faults(32)), (8, vec![]));

        let mut page = [0; PAGE_BYTES];
        file.file.write_all_at(&page, offset_of(17)).unwrap();
        file.file.read_exact_at(&mut page, offset_of(3)).unwrap();
        file.file.write_all_at(&page, offset_of(18)).unwrap();
        file.read(16).unwrap();
        let found = Stamp { extent: 9, page: 3, generation: 0 };
        let faults = [(17 * 4096, Fault::Zeroed), (18 * 4096, Fault::Foreign { found })];
        assert_eq!(file.faults(16), faults);
    }
}
