//! The memory table of the session: guest addresses, the VMM's addresses, files, and a mapping.

use std::sync::Arc;

use memtide_balloon::{FailKind, Reclaim, ReclaimFailed, Reclaimed};
use memtide_hostmem::{PunchError, RegionError, RegionSpec, Regions};
use memtide_units::{ByteSize, Gpa, GpaRange, RangeError};
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

use super::mapping::{MapError, Mapping};
use super::protocol::{MEMORY_SLOTS_MAX, MemoryRegion};

/// Why the VMM's memory is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("{MEMORY_SLOTS_MAX} memory regions are there already")]
    TooMany,
    #[error("there is no memory region {0} to remove")]
    Unknown(GpaRange),
    #[error("the regions do not fit together: {0}")]
    Collection(#[from] vm_memory::GuestRegionCollectionError),
}

/// One region as the VMM knows it.
#[derive(Debug)]
struct Slot {
    range: GpaRange,
    user_address: u64,
    view: Arc<GuestRegionMmap>,
    /// Keeps `view` valid.
    _mapping: Mapping,
}

/// All regions of the session.
///
/// `memory` holds views into the mappings of `slots`: whoever takes a slot away rebuilds `memory`
/// first. Nothing outside can keep a view, as [`MemoryTable::memory`] lends it.
#[derive(Debug, Default)]
pub(crate) struct MemoryTable {
    memory: GuestMemoryMmap,
    regions: Regions,
    slots: Vec<Slot>,
}

impl MemoryTable {
    /// Makes a table of the regions that came with one message.
    pub(crate) fn new(
        regions: impl IntoIterator<Item = (MemoryRegion, std::os::fd::OwnedFd)>,
    ) -> Result<Self, MemoryError> {
        let mut table = Self::default();
        for (region, fd) in regions {
            table.add(region, fd)?;
        }
        Ok(table)
    }

    /// Adds a region; on an error the table is as it was.
    pub(crate) fn add(
        &mut self,
        wire: MemoryRegion,
        fd: std::os::fd::OwnedFd,
    ) -> Result<(), MemoryError> {
        if self.slots.len() == MEMORY_SLOTS_MAX {
            return Err(MemoryError::TooMany);
        }
        let range = range_of(wire)?;
        let file_offset = ByteSize::from_bytes(wire.mmap_offset);
        self.regions.add(RegionSpec { range, fd, file_offset })?;
        let added = self.map(range, wire.user_address);
        if added.is_err() {
            self.regions.remove(range);
        }
        added
    }

    fn map(&mut self, range: GpaRange, user_address: u64) -> Result<(), MemoryError> {
        let region = self.regions.iter().find(|region| region.range() == range);
        let (mapping, view) = Mapping::of(region.ok_or(MemoryError::Unknown(range))?)?;
        let slot = Slot { range, user_address, view: Arc::new(view), _mapping: mapping };
        let at = self.slots.partition_point(|old| old.range.start() < range.start());
        self.slots.insert(at, slot);
        match self.collect() {
            Ok(memory) => {
                self.memory = memory;
                Ok(())
            }
            Err(error) => {
                self.slots.remove(at);
                Err(error)
            }
        }
    }

    /// Removes the region that the VMM names; its offset in the file is not compared, as QEMU
    /// leaves it out.
    pub(crate) fn remove(&mut self, wire: MemoryRegion) -> Result<(), MemoryError> {
        let range = range_of(wire)?;
        let is_it = |slot: &Slot| slot.range == range && slot.user_address == wire.user_address;
        let at = self.slots.iter().position(is_it).ok_or(MemoryError::Unknown(range))?;
        let slot = self.slots.remove(at);
        match self.collect() {
            Ok(memory) => self.memory = memory,
            Err(error) => {
                self.slots.insert(at, slot);
                return Err(error);
            }
        }
        self.regions.remove(range);
        Ok(())
    }

    fn collect(&self) -> Result<GuestMemoryMmap, MemoryError> {
        if self.slots.is_empty() {
            return Ok(GuestMemoryMmap::default());
        }
        let views = self.slots.iter().map(|slot| Arc::clone(&slot.view)).collect();
        Ok(GuestMemoryMmap::from_arc_regions(views)?)
    }

    /// Guest memory, mapped.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Guest memory, as files.
    pub(crate) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The guest-physical address behind an address of the VMM.
    pub(crate) fn translate(&self, user_address: u64) -> Option<Gpa> {
        self.slots.iter().find_map(|slot| {
            let into = user_address.checked_sub(slot.user_address)?;
            (into < slot.range.len().bytes()).then(|| Gpa(slot.range.start().0 + into))
        })
    }
}

fn range_of(wire: MemoryRegion) -> Result<GpaRange, RangeError> {
    GpaRange::new(Gpa(wire.guest_address), ByteSize::from_bytes(wire.size))
}

/// The backing of the session's memory, as the device model wants it.
pub(crate) struct HostMemory<'a>(pub(crate) &'a Regions);

impl Reclaim for HostMemory<'_> {
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed> {
        let report = self.0.punch(range).map_err(|error| {
            let kind = match &error {
                PunchError::Outside(_) => FailKind::Outside,
                PunchError::Failed { source, .. } => FailKind::from(source),
            };
            ReclaimFailed { kind, text: error.to_string() }
        })?;
        Ok(Reclaimed { bytes: report.bytes, punches: report.punches })
    }
}
