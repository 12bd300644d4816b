//! Guest memory as regions of files, checked once when the VMM hands it over.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use memtide_units::{ByteSize, Gpa, GpaRange};

use crate::backing::{Backing, BackingError};

/// A region as the VMM states it.
#[derive(Debug)]
pub struct RegionSpec {
    /// Its guest-physical addresses.
    pub range: GpaRange,
    /// The file that backs it.
    pub fd: OwnedFd,
    /// Where in the file `range` starts.
    pub file_offset: ByteSize,
}

/// Why a region is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Two regions claim the same addresses.
    #[error("the memory region {new} overlaps the region {old} that is already there")]
    Overlap {
        /// The one that came.
        new: GpaRange,
        /// The one that was there.
        old: GpaRange,
    },
    /// The region reaches past the end of its file.
    #[error("the memory region {range} needs {needed} of its file, which has {len}")]
    BeyondFile {
        /// Its addresses.
        range: GpaRange,
        /// The length that the file would need.
        needed: ByteSize,
        /// The length that it has.
        len: ByteSize,
    },
    /// No hole can be punched into the file.
    #[error("the file behind the memory region {range} cannot be reclaimed from: {why}")]
    Unusable {
        /// The region's addresses.
        range: GpaRange,
        /// The reason, in words.
        why: String,
    },
}

/// One accepted region.
#[derive(Clone, Debug)]
pub struct Region {
    range: GpaRange,
    file_offset: ByteSize,
    backing: Arc<Backing>,
}

impl Region {
    /// Its guest-physical addresses.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// Where in its file it starts, in bytes.
    pub fn file_offset(&self) -> ByteSize {
        self.file_offset
    }

    /// Its file; regions of one file share it.
    pub fn backing(&self) -> &Arc<Backing> {
        &self.backing
    }

    fn checked(
        range: GpaRange,
        offset: ByteSize,
        backing: Arc<Backing>,
    ) -> Result<Self, RegionError> {
        let unusable = |e: io::Error| RegionError::Unusable { range, why: e.to_string() };
        let len = backing.len().map_err(unusable)?;
        let needed = offset + range.len();
        if needed > len {
            return Err(RegionError::BeyondFile { range, needed, len });
        }
        Ok(Self { range, file_offset: offset, backing })
    }

    /// The piece of the file behind those of `range`'s bytes that lie in this region.
    fn piece(&self, range: GpaRange) -> Option<Piece<'_>> {
        let part = self.range.intersection(range)?;
        let into = ByteSize::from_bytes(part.start().0 - self.range.start().0);
        Some(Piece { backing: &self.backing, offset: self.file_offset + into, len: part.len() })
    }
}

/// Some bytes of one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) backing: &'a Backing,
    pub(crate) offset: ByteSize,
    pub(crate) len: ByteSize,
}

impl Piece<'_> {
    pub(crate) fn end(&self) -> ByteSize {
        self.offset + self.len
    }
}

/// A range of which every byte is known to be backed, and by what.
#[derive(Debug)]
pub struct BackedRange<'a> {
    pub(crate) range: GpaRange,
    pub(crate) pieces: Vec<Piece<'a>>,
}

impl BackedRange<'_> {
    /// The addresses.
    pub fn range(&self) -> GpaRange {
        self.range
    }
}

/// A range that is not guest memory throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the range {range} is not all guest memory: nothing backs {missing}")]
pub struct OutsideMemory {
    /// What was asked about.
    pub range: GpaRange,
    /// Its first part that no region backs.
    pub missing: GpaRange,
}

/// All memory of one guest: disjoint regions in address order.
#[derive(Clone, Default)]
pub struct Regions {
    list: Vec<Region>,
}

impl Regions {
    /// Checks and takes over a whole memory table.
    ///
    /// # Errors
    /// [`RegionError`] names the first region that overlaps another, passes the end of its file, or
    /// lies in something that no hole can be punched into.
    pub fn new(specs: impl IntoIterator<Item = RegionSpec>) -> Result<Self, RegionError> {
        let mut regions = Self::default();
        for spec in specs {
            regions.add(spec)?;
        }
        Ok(regions)
    }

    /// Adds one region (memory hotplug). The descriptor is closed where its file is known already.
    ///
    /// # Errors
    /// As [`Regions::new`]; the table is unchanged then.
    pub fn add(&mut self, spec: RegionSpec) -> Result<(), RegionError> {
        let RegionSpec { range, fd, file_offset } = spec;
        if let Some(old) = self.list.iter().find(|old| old.range.intersection(range).is_some()) {
            return Err(RegionError::Overlap { new: range, old: old.range });
        }
        let backing = Backing::new(fd)
            .map_err(|why: BackingError| RegionError::Unusable { range, why: why.to_string() })?;
        let known = self.list.iter().find(|old| old.backing.id() == backing.id());
        let backing = known.map_or_else(|| Arc::new(backing), |old| Arc::clone(&old.backing));
        let region = Region::checked(range, file_offset, backing)?;
        let at = self.list.partition_point(|old| old.range.start() < range.start());
        self.list.insert(at, region);
        Ok(())
    }

    /// Takes the region with exactly these addresses out, and says whether it was there.
    pub fn remove(&mut self, range: GpaRange) -> Option<Region> {
        let at = self.list.iter().position(|region| region.range == range)?;
        Some(self.list.remove(at))
    }

    /// Every region, in address order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Region> {
        self.list.iter()
    }

    /// All guest memory.
    pub fn total(&self) -> ByteSize {
        self.list.iter().map(|region| region.range.len()).sum()
    }

    /// Finds what backs `range`, across as many regions as it touches.
    ///
    /// # Errors
    /// [`OutsideMemory`] names the first bytes that nothing backs.
    pub fn backed(&self, range: GpaRange) -> Result<BackedRange<'_>, OutsideMemory> {
        let mut pieces = Vec::new();
        let mut reached = range.start();
        let first = self.list.partition_point(|region| region.range.end() <= range.start());
        for region in &self.list[first..] {
            if region.range.start() > reached || reached >= range.end() {
                break;
            }
            if let Some(piece) = region.piece(range) {
                reached = Gpa(reached.0 + piece.len.bytes());
                pieces.push(piece);
            }
        }
        if reached == range.end() {
            return Ok(BackedRange { range, pieces });
        }
        Err(OutsideMemory { range, missing: self.gap(reached, range) })
    }

    /// The unbacked bytes from `from` up to the next region or the end of `range`.
    fn gap(&self, from: Gpa, range: GpaRange) -> GpaRange {
        let next = self.list.iter().map(|region| region.range.start()).find(|start| *start > from);
        let end = next.unwrap_or(range.end()).min(range.end());
        GpaRange::new(from, ByteSize::from_bytes(end.0 - from.0)).unwrap_or(range)
    }

    /// The distinct files behind the regions.
    pub(crate) fn files(&self) -> Vec<&Backing> {
        let mut files: Vec<&Backing> = self.list.iter().map(|region| &*region.backing).collect();
        files.sort_by_key(|file| file.id());
        files.dedup_by_key(|file| file.id());
        files
    }
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = |region: &Region| (region.range.to_string(), region.file_offset.to_string());
        f.debug_map().entries(self.list.iter().map(entry)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{kib, memfd, range, spec};
    use proptest::prelude::*;
    use rustix::fs::SealFlags;

    #[test]
    fn regions_of_one_file_share_it() {
        let file = memfd(kib(1024));
        let regions = Regions::new([
            spec(range(0, 640), &file, kib(0)),
            spec(range(768, 256), &file, kib(768)),
        ])
        .unwrap();
        assert_eq!(regions.total(), kib(896));
        assert_eq!(regions.files().len(), 1);
        let offsets: Vec<_> = regions.iter().map(Region::file_offset).collect();
        assert_eq!(offsets, [kib(0), kib(768)]);
    }

    #[test]
    fn a_region_that_overlaps_or_passes_its_file_is_refused() {
        let file = memfd(kib(64));
        let mut regions = Regions::new([spec(range(0, 32), &file, kib(0))]).unwrap();
        let overlap = regions.add(spec(range(28, 8), &file, kib(32))).unwrap_err();
        assert!(matches!(overlap, RegionError::Overlap { .. }), "{overlap}");
        let beyond = regions.add(spec(range(32, 8), &file, kib(60))).unwrap_err();
        assert!(matches!(beyond, RegionError::BeyondFile { .. }), "{beyond}");
        let wraps = regions.add(spec(range(32, 8), &file, ByteSize::MAX)).unwrap_err();
        assert!(matches!(wraps, RegionError::BeyondFile { .. }), "{wraps}");
        assert_eq!(regions.iter().len(), 1);
    }

    #[test]
    fn files_that_cannot_be_punched_are_refused_with_the_reason() {
        let sealed = memfd(kib(64));
        rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
        let read_only = File::open("/proc/self/exe").unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        for (fd, reason) in [
            (sealed, "F_SEAL_WRITE"),
            (read_only.into(), "reading only"),
            (socket.into(), "socket"),
        ] {
            let error = Regions::new([RegionSpec { range: range(0, 4), fd, file_offset: kib(0) }]);
            let text = error.unwrap_err().to_string();
            assert!(text.contains(reason), "{text}");
        }
    }

    #[test]
    fn what_is_outside_is_named() {
        let file = memfd(kib(1024));
        let regions = Regions::new([
            spec(range(0, 64), &file, kib(0)),
            spec(range(64, 64), &file, kib(64)),
            spec(range(256, 64), &file, kib(256)),
        ])
        .unwrap();
        assert_eq!(regions.backed(range(32, 64)).unwrap().pieces.len(), 2);
        let missing = |wanted| regions.backed(wanted).unwrap_err().missing;
        assert_eq!(missing(range(100, 200)), range(128, 128));
        assert_eq!(missing(range(300, 100)), range(320, 80));
        assert_eq!(missing(range(130, 8)), range(130, 8));
    }

    #[test]
    fn a_removed_region_is_no_memory_any_more() {
        let file = memfd(kib(64));
        let mut regions = Regions::new([spec(range(0, 64), &file, kib(0))]).unwrap();
        assert!(regions.remove(range(0, 32)).is_none());
        assert!(regions.remove(range(0, 64)).is_some());
        assert!(regions.backed(range(0, 4)).is_err());
    }

    proptest! {
        /// Whatever is asked: either every byte has a piece at the right offset, or it is refused.
        #[test]
        fn pieces_cover_just_the_range(start in 0_u64..400, len in 1_u64..300) {
            let file = memfd(kib(1024));
            let regions = Regions::new([
                spec(range(16, 100), &file, kib(200)),
                spec(range(116, 50), &file, kib(0)),
                spec(range(200, 64), &file, kib(500)),
            ]).unwrap();
            let inside = |kib| (16..166).contains(&kib) || (200..264).contains(&kib);
            let wanted = range(start, len);
            match regions.backed(wanted) {
                Ok(backed) => {
                    prop_assert!((start..start + len).all(inside));
                    let sum: ByteSize = backed.pieces.iter().map(|piece| piece.len).sum();
                    prop_assert_eq!(sum, wanted.len());
                }
                Err(outside) => {
                    prop_assert!(!(start..start + len).all(inside));
                    prop_assert!(wanted.contains(outside.missing));
                    prop_assert!(!inside(outside.missing.start().0 / 1024));
                }
            }
        }
    }

    use std::fs::File;
}
