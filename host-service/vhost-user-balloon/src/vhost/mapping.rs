//! Maps a region of guest memory. With `lost`, the only unsafe code about memory in this program.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use memtide_hostmem::{Backing, Region};
use memtide_units::ByteSize;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::lost::Watched;

/// Why a region could not be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("mapping {0} of guest memory failed: {1}")]
    Mmap(ByteSize, rustix::io::Errno),
    #[error("guest memory at file offset {0} cannot be mapped: {1}")]
    Region(ByteSize, MmapRegionError),
    #[error("guest memory cannot be watched for pages that are not there: {0}")]
    Watch(std::io::Error),
    #[error("guest memory ends past the address space")]
    TooHigh,
}

/// A mapping of a file, unmapped when dropped. Only what is touched of it becomes resident, and
/// this program touches rings and buffers, never what it reclaims.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    backing: Arc<Backing>,
    offset: ByteSize,
    watched: Watched,
}

impl Mapping {
    /// Maps the whole units of the file that hold `region`, and returns the mapping with a view on
    /// just the region. A huge page file can be mapped in whole huge pages only, while a guest's
    /// first region often ends at 640 KiB.
    ///
    /// The view must not be used after the mapping is dropped; [`super::memory::MemoryTable`] keeps
    /// both together.
    pub(crate) fn of(region: &Region) -> Result<(Self, GuestRegionMmap), MapError> {
        let unit = region.backing().unit();
        let start = region.file_offset().round_down_to(unit);
        let end = (region.file_offset() + region.range().len()).round_up_to(unit);
        let mapping = Self::map(region.backing(), start, end - start)?;
        let inset = (region.file_offset() - start).bytes() as usize;
        let offset = region.file_offset();
        let builder = MmapRegionBuilder::<()>::new(region.range().len().bytes() as usize);
        let first = mapping.start.as_ptr().wrapping_add(inset);
        // SAFETY: the mapping spans `start..end` of the file, the region lies `inset` bytes into it
        // and ends before `end`, and the mapping lives as long as the view is used.
        let builder = unsafe { builder.with_raw_mmap_pointer(first) };
        let view = builder.build().map_err(|e| MapError::Region(offset, e))?;
        let base = GuestAddress(region.range().start().0);
        Ok((mapping, GuestRegionMmap::new(view, base).ok_or(MapError::TooHigh)?))
    }

    fn map(backing: &Arc<Backing>, offset: ByteSize, len: ByteSize) -> Result<Self, MapError> {
        let bytes = len.bytes() as usize;
        let start = map_anywhere(backing, offset, bytes).map_err(|e| MapError::Mmap(len, e))?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(MapError::TooHigh)?;
        let unit = backing.unit().bytes() as usize;
        let watched = Watched::new(start.as_ptr() as usize, bytes, unit).inspect_err(|_| {
            // SAFETY: nobody has seen this mapping yet.
            let _ = unsafe { rustix::mm::munmap(start.as_ptr().cast(), bytes) };
        });
        let watched = watched.map_err(MapError::Watch)?;
        let backing = Arc::clone(backing);
        Ok(Self { start, len: bytes, backing, offset, watched })
    }

    /// Takes all of it out of the page tables, and frees those: the file is mapped once more, and
    /// the new mapping moved to where the old one is. Huge pages need next to no tables and are left
    /// alone. What stands in for pages that are not there goes too, and stays noted as lost.
    ///
    /// # Errors
    /// Those of `mmap` and `mremap`: the old mapping is still there then.
    pub(crate) fn renew(&self) -> rustix::io::Result<()> {
        if self.backing.is_huge() {
            return Ok(());
        }
        let new = map_anywhere(&self.backing, self.offset, self.len)?;
        let (len, here) = (self.len, self.start.as_ptr().cast());
        // SAFETY: the new mapping was made above and nobody has seen it. Where it goes lies this
        // mapping and nothing else, of the same length and of the same bytes of the same file, so
        // views stay valid; no other thread touches it meanwhile, and no reference points into it.
        let moved = unsafe { rustix::mm::mremap_fixed(new, len, len, MremapFlags::MAYMOVE, here) };
        if moved.is_err() {
            // SAFETY: it has not moved, and nobody has seen it.
            let _ = unsafe { rustix::mm::munmap(new, len) };
        }
        moved.map(drop)
    }

    /// True where pages of it were not there when they were touched, until [`Mapping::restore`].
    pub(crate) fn is_lost(&self) -> bool {
        self.watched.lost().is_some()
    }

    /// Maps the file again where empty pages stand in for pages that were not there, and says where
    /// in the file that was; they may have come back meanwhile. Where even that fails the empty
    /// pages stay, and are lost for good.
    pub(crate) fn restore(&self) -> Option<ByteSize> {
        let lost = self.watched.lost()?;
        let offset = self.offset + ByteSize::from_bytes(lost.start as u64);
        let address = self.start.as_ptr().wrapping_add(lost.start).cast();
        let (flags, file) = (FLAGS | MapFlags::FIXED, self.backing.file());
        // SAFETY: the range lies in this mapping and consists of whole units, so what is replaced
        // is the same bytes of the same file, or an empty page of ours. Views stay valid.
        let mapped =
            unsafe { rustix::mm::mmap(address, lost.len(), PROT, flags, file, offset.bytes()) };
        if mapped.is_ok() {
            self.watched.restored();
            advise(self.start.as_ptr().cast(), self.len);
        }
        Some(offset)
    }
}

const PROT: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const FLAGS: MapFlags = MapFlags::SHARED.union(MapFlags::NORESERVE);

fn map_anywhere(
    backing: &Backing,
    offset: ByteSize,
    len: usize,
) -> rustix::io::Result<*mut c_void> {
    let hint = std::ptr::null_mut();
    // SAFETY: the kernel chooses an address that nothing else uses (no hint, no MAP_FIXED), and
    // what lies there is only ever accessed through vm-memory's volatile reads and writes, as a
    // guest may write it at any time.
    let start =
        unsafe { rustix::mm::mmap(hint, len, PROT, FLAGS, backing.file(), offset.bytes()) }?;
    advise(start, len);
    Ok(start)
}

/// Touching a hole must bring in a page and not a huge one of what was just given back; and no core
/// dump of this program shall hold the guest's memory. Kernels that do not know either go without.
fn advise(start: *mut c_void, len: usize) {
    for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontDump] {
        // SAFETY: both pieces of advice leave the content and its validity alone, and the range is
        // a mapping of this module's.
        let _ = unsafe { rustix::mm::madvise(start, len, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are what mmap returned, this is the only owner, and the views
        // on it are gone or never used again (see `of`). The handler of `lost` knows the range
        // until this has returned, but is only entered where somebody touches it.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap takes back what mmap gave");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_hostmem::{RegionSpec, Regions};
    use memtide_units::{Gpa, GpaRange};
    use rustix::fs::{FallocateFlags, MemfdFlags};
    use vm_memory::{Bytes, GuestMemoryMmap};

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), ByteSize::from_bytes(len)).unwrap()
    }

    /// Maps `range` of a file that has `len` bytes, and writes through the mapping at its start.
    fn written_through(flags: MemfdFlags, len: u64, range: GpaRange) -> Option<Vec<u8>> {
        let fd = rustix::fs::memfd_create("mapping", flags).ok()?;
        rustix::fs::ftruncate(&fd, len).ok()?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len).ok()?;
        let spec = RegionSpec {
            range,
            fd: fd.try_clone().unwrap(),
            file_offset: ByteSize::from_bytes(range.start().0),
        };
        let regions = Regions::new([spec]).unwrap();
        let (mapping, view) = Mapping::of(regions.iter().next().unwrap()).unwrap();
        let memory = GuestMemoryMmap::<()>::from_regions(vec![view]).unwrap();
        memory.write_slice(b"here", GuestAddress(range.start().0)).unwrap();
        assert!(memory.write_slice(b"no", GuestAddress(range.end().0 - 1)).is_err());
        drop((memory, mapping));
        let mut bytes = vec![0; 4];
        rustix::io::pread(&fd, &mut bytes, range.start().0).unwrap();
        Some(bytes)
    }

    #[test]
    fn a_region_is_seen_where_it_lies() {
        let written = written_through(MemfdFlags::CLOEXEC, 4 << 20, range(0xc_0000, 0x1_0000));
        assert_eq!(written.unwrap(), b"here");
    }

    #[test]
    fn a_region_that_starts_inside_a_huge_page_is_mapped() {
        match written_through(MemfdFlags::HUGETLB, 4 << 20, range(0xc_0000, 0x1_0000)) {
            Some(written) => assert_eq!(written, b"here"),
            None => eprintln!("skipped: this host has no huge pages to spare"),
        }
    }
}
