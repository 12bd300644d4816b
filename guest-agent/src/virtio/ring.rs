//! A split virtqueue in one 4 KiB page, with one chain in flight (virtio 1.3, 2.7).
//!
//! ```text
//!    0  128 descriptors of 16 bytes: addr u64 | len u32 | flags u16 | next u16
//! 2048  available: flags u16 | idx u16 | ring[128] u16 | used_event u16
//! 2560  used: flags u16 | idx u16 | ring[128] of (id u32 | len u32) | avail_event u16
//! ```
//! The chain always starts at descriptor 0; the device finds it in the available ring, and what
//! the device writes is compared with what was asked, never followed.

use std::sync::atomic::{Ordering, fence};

use memtide_units::Gpa;

use super::transport::QueueAddresses;
use crate::dma::Pages;

/// Entries of the ring at most: the most that fits a page.
pub const SIZE_MAX: u16 = 128;

const AVAIL: usize = 2048;
const USED: usize = 2560;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;

/// Who writes a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The driver has filled it.
    ToDevice,
    /// The device fills it.
    FromDevice,
}

/// One descriptor's worth of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where.
    pub gpa: Gpa,
    /// How long, in bytes.
    pub len: u32,
    /// Who writes it.
    pub direction: Direction,
}

/// What the device may not do to a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// It used a chain that was not in flight.
    #[error(
        "the device used descriptor {id} at index {index}, and chain 0 was the only one in flight"
    )]
    NotInFlight {
        /// The descriptor that it named.
        id: u32,
        /// Its used index.
        index: u16,
    },
    /// It moved its index by more than the one chain in flight.
    #[error("the device's used index went from {from} to {to} with one chain in flight")]
    Index {
        /// Where it was.
        from: u16,
        /// Where it is.
        to: u16,
    },
}

/// The driver's side of the ring.
#[derive(Debug)]
pub struct Ring {
    page: Pages,
    size: u16,
    /// The next free place in the available ring, free-running.
    avail: u16,
    /// How many used entries were seen, free-running.
    used: u16,
}

impl Ring {
    /// A ring of `size` entries (a power of two up to [`SIZE_MAX`], checked by the caller) in
    /// `page`, which is cleared: the device must have been reset.
    pub fn new(page: Pages, size: u16) -> Self {
        debug_assert!(size.is_power_of_two() && size <= SIZE_MAX);
        page.clear();
        Self { page, size, avail: 0, used: 0 }
    }

    /// Its parts' addresses, for a page that lies at `gpa`.
    pub fn addresses(gpa: Gpa) -> QueueAddresses {
        QueueAddresses { desc: gpa.0, avail: gpa.0 + AVAIL as u64, used: gpa.0 + USED as u64 }
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// True while a chain has not come back.
    pub fn is_busy(&self) -> bool {
        self.avail != self.used
    }

    /// Makes one chain of `buffers` available. The caller rings the doorbell. At most `size`
    /// buffers, and no chain in flight, or nothing is done and `false` comes back.
    #[must_use]
    pub fn submit(&mut self, buffers: &[Buffer]) -> bool {
        if self.is_busy() || buffers.is_empty() || buffers.len() > usize::from(self.size) {
            return false;
        }
        for (n, buffer) in buffers.iter().enumerate() {
            let more = if n + 1 < buffers.len() { F_NEXT } else { 0 };
            let write = if buffer.direction == Direction::FromDevice { F_WRITE } else { 0 };
            self.page.store_u64(16 * n, buffer.gpa.0);
            self.page.store_u32(16 * n + 8, buffer.len);
            self.page.store_u16(16 * n + 12, more | write);
            self.page.store_u16(16 * n + 14, n as u16 + 1);
        }
        let slot = usize::from(self.avail % self.size);
        self.page.store_u16(AVAIL + 4 + 2 * slot, 0);
        self.avail = self.avail.wrapping_add(1);
        // Descriptors and ring entry must be seen before the index that publishes them ...
        fence(Ordering::Release);
        self.page.store_u16(AVAIL + 2, self.avail);
        // ... and the index before the device is told to look (a store to its registers).
        fence(Ordering::SeqCst);
        true
    }

    /// The number of bytes that the device wrote into the chain that has come back, if it has.
    /// What it wrote is visible to loads after this.
    ///
    /// # Errors
    /// [`RingError`]: the device must be reset.
    pub fn take(&mut self) -> Result<Option<u32>, RingError> {
        let index = self.page.load_u16(USED + 2);
        if index == self.used {
            return Ok(None);
        }
        if !self.is_busy() || index != self.used.wrapping_add(1) {
            return Err(RingError::Index { from: self.used, to: index });
        }
        // The index must be seen before the entry and the buffers that it publishes.
        fence(Ordering::Acquire);
        let slot = usize::from(self.used % self.size);
        let id = self.page.load_u32(USED + 4 + 8 * slot);
        let len = self.page.load_u32(USED + 8 + 8 * slot);
        if id != 0 {
            return Err(RingError::NotInFlight { id, index });
        }
        self.used = index;
        Ok(Some(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(direction: Direction) -> Buffer {
        Buffer { gpa: Gpa(0x5000), len: 32, direction }
    }

    fn ring() -> (Ring, Pages) {
        let page = Pages::anonymous(1).unwrap();
        (Ring::new(page.clone(), 4), page)
    }

    fn device_uses(page: &Pages, index: u16, id: u32, len: u32) {
        let slot = usize::from(index.wrapping_sub(1) % 4);
        page.store_u32(USED + 4 + 8 * slot, id);
        page.store_u32(USED + 8 + 8 * slot, len);
        page.store_u16(USED + 2, index);
    }

    #[test]
    fn a_chain_goes_out_and_comes_back_for_ever() {
        let (mut ring, page) = ring();
        for round in 1..=70_000_u32 {
            let index = round as u16;
            assert!(ring.submit(&[buffer(Direction::ToDevice), buffer(Direction::FromDevice)]));
            assert!(!ring.submit(&[buffer(Direction::ToDevice)]), "one in flight");
            assert_eq!(page.load_u16(AVAIL + 2), index);
            assert_eq!((page.load_u16(12), page.load_u16(14)), (F_NEXT, 1));
            assert_eq!(page.load_u16(16 + 12), F_WRITE);
            assert_eq!(ring.take(), Ok(None));
            device_uses(&page, index, 0, 32);
            assert_eq!(ring.take(), Ok(Some(32)));
        }
    }

    #[test]
    fn a_device_that_lies_is_caught() {
        let (mut ring, page) = ring();
        device_uses(&page, 1, 0, 0);
        assert_eq!(ring.take(), Err(RingError::Index { from: 0, to: 1 }), "nothing in flight");
        let (mut ring, page) = self::ring();
        assert!(ring.submit(&[buffer(Direction::ToDevice)]));
        device_uses(&page, 2, 0, 0);
        assert_eq!(ring.take(), Err(RingError::Index { from: 0, to: 2 }));
        device_uses(&page, 1, 3, 0);
        assert_eq!(ring.take(), Err(RingError::NotInFlight { id: 3, index: 1 }));
    }

    #[test]
    fn a_chain_longer_than_the_ring_is_not_sent() {
        let (mut ring, page) = ring();
        assert!(!ring.submit(&[buffer(Direction::ToDevice); 5]));
        assert!(!ring.submit(&[]));
        assert_eq!(page.load_u16(AVAIL + 2), 0);
    }

    #[test]
    fn its_parts_fit_one_page_and_keep_their_alignment() {
        let size = usize::from(SIZE_MAX);
        assert!(16 * size <= AVAIL && AVAIL + 6 + 2 * size <= USED && USED + 6 + 8 * size <= 4096);
        let at = Ring::addresses(Gpa(0x7000));
        assert!(at.desc.is_multiple_of(16));
        assert!(at.avail.is_multiple_of(2) && at.used.is_multiple_of(4));
    }
}
