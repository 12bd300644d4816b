//! What of guest memory the host still holds, from the files themselves.

use std::io;

use memtide_units::{ByteSize, GpaRange};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::region::{OutsideMemory, Piece, Regions};

/// Why a range's residency is not known.
#[derive(Debug, thiserror::Error)]
pub enum ResidencyError {
    /// It is not guest memory.
    #[error(transparent)]
    Outside(#[from] OutsideMemory),
    /// Its file is of huge pages, which the kernel counts but does not locate (hugetlbfs has no
    /// `SEEK_DATA`): only [`Regions::residency`] can tell.
    #[error("the backing of {0} is made of huge pages, which the kernel does not locate")]
    HugePages(GpaRange),
    /// The kernel did not answer.
    #[error("the kernel does not tell what of {range} is resident: {source}")]
    Kernel {
        /// What was asked about.
        range: GpaRange,
        /// Its reason.
        source: io::Error,
    },
}

impl Regions {
    /// All that the host holds of the files behind the regions, pages in swap included. A file is
    /// counted once and as a whole, also where only a part of it is this guest's memory.
    ///
    /// # Errors
    /// Those of `fstat(2)`: none in practice.
    pub fn residency(&self) -> io::Result<ByteSize> {
        self.files().into_iter().map(|file| file.resident()).sum()
    }

    /// What the host holds of `range`.
    ///
    /// # Errors
    /// [`ResidencyError`]
    pub fn resident_in(&self, range: GpaRange) -> Result<ByteSize, ResidencyError> {
        let mut sum = ByteSize::ZERO;
        for piece in self.backed(range)?.pieces {
            if piece.backing.is_huge() {
                return Err(ResidencyError::HugePages(range));
            }
            sum +=
                data_in(&piece).map_err(|e| ResidencyError::Kernel { range, source: e.into() })?;
        }
        Ok(sum)
    }
}

fn data_in(piece: &Piece<'_>) -> Result<ByteSize, Errno> {
    let end = piece.end().bytes();
    let mut at = piece.offset.bytes();
    let mut sum = 0;
    while at < end {
        let data = match rustix::fs::seek(piece.backing.probe(), SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            // No data from here to the end of the file.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        // There is always a hole behind the data, if only the one at the end of the file.
        at = rustix::fs::seek(piece.backing.probe(), SeekFrom::Hole(data))
            .or_else(|e| if e == Errno::NXIO { Ok(end) } else { Err(e) })?
            .min(end);
        sum += at - data;
    }
    Ok(ByteSize::from_bytes(sum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{filled_memfd, kib, memfd, range, spec};
    use std::io::Seek;

    #[test]
    fn only_touched_pages_are_resident() {
        let file = memfd(kib(1024));
        let regions = Regions::new([spec(range(0, 1024), &file, kib(0))]).unwrap();
        assert_eq!(regions.residency().unwrap(), ByteSize::ZERO);
        rustix::io::pwrite(&file, &[1; 8192], 64 << 10).unwrap();
        rustix::io::pwrite(&file, &[1], 1000 << 10).unwrap();
        assert_eq!(regions.residency().unwrap(), kib(12));
        assert_eq!(regions.resident_in(range(0, 1024)).unwrap(), kib(12));
        assert_eq!(regions.resident_in(range(68, 900)).unwrap(), kib(4));
        assert_eq!(regions.resident_in(range(128, 64)).unwrap(), ByteSize::ZERO);
    }

    #[test]
    fn a_punched_range_is_not_resident_and_its_neighbours_are() {
        let file = filled_memfd(kib(256));
        let regions = Regions::new([spec(range(0, 256), &file, kib(0))]).unwrap();
        regions.punch(range(64, 64)).unwrap();
        assert_eq!(regions.resident_in(range(64, 64)).unwrap(), ByteSize::ZERO);
        assert_eq!(regions.resident_in(range(60, 72)).unwrap(), kib(8));
    }

    #[test]
    fn the_offset_that_the_vmm_sees_does_not_move() {
        let file = filled_memfd(kib(64));
        let mut vmm = std::fs::File::from(file.try_clone().unwrap());
        vmm.seek(std::io::SeekFrom::Start(123)).unwrap();
        let regions = Regions::new([spec(range(0, 64), &file, kib(0))]).unwrap();
        regions.resident_in(range(0, 64)).unwrap();
        assert_eq!(vmm.stream_position().unwrap(), 123);
    }

    #[test]
    fn a_file_behind_two_regions_counts_once() {
        let file = filled_memfd(kib(64));
        let regions =
            Regions::new([spec(range(0, 32), &file, kib(0)), spec(range(64, 32), &file, kib(32))])
                .unwrap();
        assert_eq!(regions.residency().unwrap(), kib(64));
    }
}
