//! The memory table of the session: guest addresses, the VMM's addresses, files, and a mapping.

use std::sync::Arc;

use memtide_balloon::{FailKind, Reclaim, ReclaimFailed, Reclaimed};
use memtide_hostmem::{PunchError, RegionError, RegionSpec, Regions};
use memtide_units::{ByteSize, Gpa, GpaRange, RangeError};
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

use super::lost;
use super::mapping::{MapError, Mapping};
use super::protocol::{MEMORY_SLOTS_MAX, MemoryRegion};
use super::view::{Touched, View, WINDOW};

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
    mapping: Mapping,
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
    touched: Touched,
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
        let slot = Slot { range, user_address, view: Arc::new(view), mapping };
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
    pub(crate) fn memory(&self) -> View<'_> {
        View { table: self, memory: &self.memory, touched: &self.touched }
    }

    /// Makes the mappings anew in which these addresses lie, so that nothing of them is in the page
    /// tables. Where that fails they stay as they are.
    pub(super) fn unload(&self, touched: &[Gpa]) {
        for slot in &self.slots {
            // A window may begin before its region.
            let window = |at: &Gpa| GpaRange::new(*at, ByteSize::from_bytes(WINDOW)).ok();
            let is_in =
                |at: &Gpa| window(at).is_some_and(|it| it.intersection(slot.range).is_some());
            if touched.iter().any(is_in)
                && let Err(error) = slot.mapping.renew()
            {
                tracing::debug!("guest memory {} stays mapped as it is: {error}", slot.range);
            }
        }
    }

    /// Guest memory, as files.
    pub(crate) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// True where memory was touched that is not there, until [`MemoryTable::restore_lost`].
    fn is_lost(&self) -> bool {
        self.slots.iter().any(|slot| slot.mapping.is_lost())
    }

    /// After memory was touched: an error where some of it was not there. What was read of it is
    /// worth nothing then and what was written to it is gone. Later accesses try again.
    pub(crate) fn restore_lost(&self) -> Result<(), LostMemory> {
        let mut outcome = Ok(());
        for slot in &self.slots {
            if let Some(offset) = slot.mapping.restore() {
                outcome = Err(LostMemory { region: slot.range, offset });
            }
        }
        outcome
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

/// Guest memory was touched that its file does not have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the memory region {region} has no page at {offset} of its file: the file was truncated, or its \
     huge page was given back and the host's pool is empty (see /proc/sys/vm/nr_hugepages)"
)]
pub(crate) struct LostMemory {
    region: GpaRange,
    offset: ByteSize,
}

/// The backing of the session's memory, as the device model wants it while it serves a ring.
pub(crate) struct HostMemory<'a> {
    table: &'a MemoryTable,
    losses: u64,
}

impl<'a> HostMemory<'a> {
    pub(crate) fn new(table: &'a MemoryTable) -> Self {
        Self { table, losses: lost::losses() }
    }
}

impl Reclaim for HostMemory<'_> {
    /// Nothing is dropped after the ring or a request was read from memory that is not there: what
    /// was read is zeros, and zero is the number of a page.
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed> {
        if lost::losses() != self.losses && self.table.is_lost() {
            let text = format!("{range} is kept: it was asked for in memory that is not there");
            return Err(ReclaimFailed { kind: FailKind::Io, text });
        }
        let report = self.table.regions.punch(range).map_err(|error| {
            let kind = match &error {
                PunchError::Outside(_) => FailKind::Outside,
                PunchError::Failed { source, .. } => FailKind::from(source),
            };
            ReclaimFailed { kind, text: error.to_string() }
        })?;
        Ok(Reclaimed { bytes: report.bytes, punches: report.punches })
    }
}
