//! What of guest memory the host still holds, from the files themselves.

use std::io;

use memtide_units::ByteSize;

use crate::region::Regions;

impl Regions {
    /// All that the host holds of the files behind the regions, pages in swap included. A file is
    /// counted once and as a whole, also where only a part of it is this guest's memory.
    ///
    /// # Errors
    /// Those of `fstat(2)`: none in practice.
    pub fn residency(&self) -> io::Result<ByteSize> {
        self.files().into_iter().map(|file| file.resident()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{filled_memfd, kib, memfd, range, spec};

    #[test]
    fn only_touched_pages_are_resident() {
        let file = memfd(kib(1024));
        let regions = Regions::new([spec(range(0, 1024), &file, kib(0))]).unwrap();
        assert_eq!(regions.residency().unwrap(), ByteSize::ZERO);
        rustix::io::pwrite(&file, &[1; 8192], 64 << 10).unwrap();
        rustix::io::pwrite(&file, &[1], 1000 << 10).unwrap();
        assert_eq!(regions.residency().unwrap(), kib(12));
    }

    #[test]
    fn a_punched_range_is_not_resident() {
        let file = filled_memfd(kib(256));
        let regions = Regions::new([spec(range(0, 256), &file, kib(0))]).unwrap();
        regions.punch(range(64, 64)).unwrap();
        assert_eq!(regions.residency().unwrap(), kib(192));
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
