//! Guest memory as the device model sees it, without what a guest could make of that.
//!
//! Rings, indirect tables and answers are reached through the mapping, requests through the file. A
//! guest may put any of them into any page. What was touched through the mapping stays in this
//! process's page tables: up to all of the guest's memory, and 2 MiB of tables for each GiB. So what
//! is touched is counted, and the mapping made anew in its place before it is much.

use std::cell::RefCell;

use memtide_units::Gpa;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};

use super::memory::MemoryTable;

/// A fault for reading maps the pages around it as well, as far as they are there: 64 KiB
/// (mm/memory.c, `fault_around_pages`).
pub(super) const WINDOW: u64 = 64 << 10;

/// Windows that may be mapped at a time: 2 MiB, and as many page tables at worst. The rings of a
/// driver with 128 entries a queue lie in six to twelve.
const WINDOWS_MAX: usize = 32;

/// What was touched through the mapping since it was made.
#[derive(Debug, Default)]
pub(crate) struct Touched(RefCell<Vec<u64>>);

impl Touched {
    /// Notes an access. Where it is one too many, says what was touched before.
    fn note(&self, at: GuestAddress, count: usize) -> Option<Vec<Gpa>> {
        let mut windows = self.0.borrow_mut();
        let last = at.0.saturating_add((count as u64).saturating_sub(1));
        for window in at.0 / WINDOW..=last / WINDOW {
            if !windows.contains(&window) {
                windows.push(window);
            }
        }
        if windows.len() <= WINDOWS_MAX {
            return None;
        }
        let before = windows.drain(..).map(|window| Gpa(window * WINDOW)).collect();
        Some(before)
    }
}

/// The memory of one table, for as long as a ring is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(super) table: &'a MemoryTable,
    pub(super) memory: &'a GuestMemoryMmap,
    pub(super) touched: &'a Touched,
}

impl GuestMemory for View<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(self.memory, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        if let Some(before) = self.touched.note(addr, count) {
            self.table.unload(&before);
        }
        GuestMemory::get_slices(self.memory, addr, count, access)
    }
}

impl memtide_balloon::RequestMemory for View<'_> {
    fn copy_out(&self, at: GuestAddress, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        let done = self.table.regions().read(Gpa(at.0), into);
        done.map_err(|error| GuestMemoryError::IOError(std::io::Error::other(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_places_may_be_used_for_ever_and_many_may_not() {
        let touched = Touched::default();
        for n in 0..10_000 {
            assert_eq!(touched.note(GuestAddress(n % 32 * WINDOW), 16), None);
        }
        let before = touched.note(GuestAddress(32 * WINDOW), 16).unwrap();
        assert_eq!((before.len(), before[32]), (33, Gpa(32 * WINDOW)));
        assert_eq!(touched.note(GuestAddress(WINDOW - 1), 2), None, "it begins anew");
        assert_eq!(touched.0.borrow().len(), 2);
        assert_eq!(touched.note(GuestAddress(u64::MAX), usize::MAX), None);
    }
}
