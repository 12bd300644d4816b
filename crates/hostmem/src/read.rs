//! Copying out of guest memory without mapping it.
//!
//! A mapping that is read where its file has a hole brings a page in, and every page that was read
//! stays in the reader's page tables. `pread(2)` does neither, on a memfd, hugetlb or not, and on any
//! file (mm/shmem.c, `shmem_file_read_iter`; fs/hugetlbfs/inode.c, `hugetlbfs_read_iter`).

use std::io;
use std::os::unix::fs::FileExt;

use memtide_units::{ByteSize, Gpa, GpaRange};

use crate::region::{OutsideMemory, Regions};

/// Why bytes could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They are not all guest memory.
    #[error(transparent)]
    Outside(#[from] OutsideMemory),
    /// The file does not have them (`UnexpectedEof` where it was truncated), or the storage failed.
    #[error("reading {range} from its file failed: {source}")]
    Failed {
        /// What was to be read.
        range: GpaRange,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The range passes the end of the address space.
    #[error(transparent)]
    Range(#[from] memtide_units::RangeError),
}

impl Regions {
    /// Copies guest memory from `at` on into `into`, all of it or with an error.
    ///
    /// # Errors
    /// [`ReadError`]; `into` may hold a part then.
    pub fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), ReadError> {
        let range = GpaRange::new(at, ByteSize::from_bytes(into.len() as u64))?;
        let mut rest = into;
        for piece in self.backed(range)?.pieces {
            let (now, later) = rest.split_at_mut(piece.len.bytes() as usize);
            piece
                .backing
                .file()
                .read_exact_at(now, piece.offset.bytes())
                .map_err(|source| ReadError::Failed { range, source })?;
            rest = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HugeMemfd, kib, memfd, range, spec};

    #[test]
    fn bytes_are_copied_across_regions_and_holes_stay_holes() {
        let file = memfd(kib(64));
        rustix::io::pwrite(&file, b"ab", (32 << 10) - 1).unwrap();
        let regions =
            Regions::new([spec(range(0, 16), &file, kib(16)), spec(range(16, 16), &file, kib(32))])
                .unwrap();
        let resident = regions.residency().unwrap();
        let mut bytes = [1; 8192];
        regions.read(Gpa(12 << 10), &mut bytes).unwrap();
        assert_eq!((&bytes[4095..4097], bytes[0]), (&b"ab"[..], 0));
        assert_eq!(regions.residency().unwrap(), resident);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let file = memfd(kib(64));
        let regions = Regions::new([spec(range(0, 64), &file, kib(0))]).unwrap();
        let outside = regions.read(Gpa((64 << 10) - 4), &mut [0; 8]).unwrap_err();
        assert!(matches!(outside, ReadError::Outside(_)), "{outside}");
        rustix::fs::ftruncate(&file, 32 << 10).unwrap();
        let gone = regions.read(Gpa((32 << 10) - 4), &mut [0; 8]).unwrap_err();
        assert!(matches!(gone, ReadError::Failed { .. }), "{gone}");
    }

    #[test]
    fn a_hole_in_huge_pages_takes_none_from_the_pool() {
        let Some(huge) = HugeMemfd::of(1) else {
            eprintln!("skipped: this host has no huge pages to spare");
            return;
        };
        let all = GpaRange::new(Gpa(0), huge.unit).unwrap();
        let regions = Regions::new([spec(all, &huge.fd, kib(0))]).unwrap();
        rustix::io::pread(&huge.fd, &mut [0; 1], 0).unwrap();
        regions.punch(all).unwrap();
        let mut bytes = [1; 64];
        regions.read(Gpa(100), &mut bytes).unwrap();
        assert_eq!((bytes, regions.residency().unwrap()), ([0; 64], ByteSize::ZERO));
    }
}
