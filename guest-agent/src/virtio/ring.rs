//! A split virtqueue in one 4 KiB page, with one batch of chains in flight (virtio 1.3, 2.7).
//!
//! ```text
//!    0  128 descriptors of 16 bytes: addr u64 | len u32 | flags u16 | next u16
//! 2048  available: flags u16 | idx u16 | ring[128] u16 | used_event u16
//! 2560  used: flags u16 | idx u16 | ring[128] of (id u32 | len u32) | avail_event u16
//! ```
//! A batch is one chain that starts at descriptor 0, or several of one descriptor each; the next one
//! goes out when all of it has come back. What the device writes is compared with what was asked,
//! never followed.

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
    #[error("the device used descriptor {id} at index {index}, and no chain of it was in flight")]
    NotInFlight {
        /// The descriptor that it named.
        id: u32,
        /// Its used index.
        index: u16,
    },
    /// It moved its index by more than the chains in flight.
    #[error("the device's used index went from {from} to {to} with {in_flight} chains in flight")]
    Index {
        /// Where it was.
        from: u16,
        /// Where it is.
        to: u16,
        /// How many had not come back.
        in_flight: u16,
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
    /// First descriptors of the chains in flight, a bit for each.
    heads: u128,
}

impl Ring {
    /// A ring of `size` entries (a power of two up to [`SIZE_MAX`], checked by the caller) in
    /// `page`, which is cleared: the device must have been reset.
    pub fn new(page: Pages, size: u16) -> Self {
        debug_assert!(size.is_power_of_two() && size <= SIZE_MAX);
        page.clear();
        Self { page, size, avail: 0, used: 0, heads: 0 }
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

    /// True where the device has used something that was not taken yet: a look at memory alone.
    pub fn has_used(&self) -> bool {
        self.page.load_u16(USED + 2) != self.used
    }

    /// Makes one chain of `buffers` available. The caller rings the doorbell. At most `size`
    /// buffers, and no chain in flight, or nothing is done and `false` comes back.
    #[must_use]
    pub fn submit(&mut self, chain: &[Buffer]) -> bool {
        if !self.takes(chain) {
            return false;
        }
        for (n, buffer) in chain.iter().enumerate() {
            let more = if n + 1 < chain.len() { F_NEXT } else { 0 };
            self.describe(n, *buffer, more);
        }
        self.publish(1);
        true
    }

    /// Makes a chain of each of `buffers` available, all at once. At most `size` of them, and none
    /// in flight, or nothing is done and `false` comes back.
    #[must_use]
    pub fn submit_each(&mut self, buffers: &[Buffer]) -> bool {
        if !self.takes(buffers) {
            return false;
        }
        for (n, buffer) in buffers.iter().enumerate() {
            self.describe(n, *buffer, 0);
        }
        self.publish(buffers.len() as u16);
        true
    }

    fn takes(&self, buffers: &[Buffer]) -> bool {
        !self.is_busy() && !buffers.is_empty() && buffers.len() <= usize::from(self.size)
    }

    fn describe(&self, n: usize, buffer: Buffer, more: u16) {
        let write = if buffer.direction == Direction::FromDevice { F_WRITE } else { 0 };
        self.page.store_u64(16 * n, buffer.gpa.0);
        self.page.store_u32(16 * n + 8, buffer.len);
        self.page.store_u16(16 * n + 12, more | write);
        self.page.store_u16(16 * n + 14, n as u16 + 1);
    }

    /// Chains that start at descriptors 0 to `chains` - 1.
    fn publish(&mut self, chains: u16) {
        for head in 0..chains {
            let slot = usize::from(self.avail.wrapping_add(head) % self.size);
            self.page.store_u16(AVAIL + 4 + 2 * slot, head);
            self.heads |= 1 << head;
        }
        self.avail = self.avail.wrapping_add(chains);
        // Descriptors and ring entries must be seen before the index that publishes them ...
        fence(Ordering::Release);
        self.page.store_u16(AVAIL + 2, self.avail);
        // ... and the index before the device is told to look (a store to its registers).
        fence(Ordering::SeqCst);
    }

    /// The number of bytes that the device wrote into the next chain that has come back, if one has.
    /// What it wrote is visible to loads after this.
    ///
    /// # Errors
    /// [`RingError`]: the device must be reset.
    pub fn take(&mut self) -> Result<Option<u32>, RingError> {
        let index = self.page.load_u16(USED + 2);
        if index == self.used {
            return Ok(None);
        }
        let in_flight = self.avail.wrapping_sub(self.used);
        if index.wrapping_sub(self.used) > in_flight {
            return Err(RingError::Index { from: self.used, to: index, in_flight });
        }
        // The index must be seen before the entry and the buffers that it publishes.
        fence(Ordering::Acquire);
        let slot = usize::from(self.used % self.size);
        let id = self.page.load_u32(USED + 4 + 8 * slot);
        let len = self.page.load_u32(USED + 8 + 8 * slot);
        let head = 1_u128.checked_shl(id).unwrap_or(0);
        if self.heads & head == 0 {
            return Err(RingError::NotInFlight { id, index });
        }
        self.heads &= !head;
        self.used = self.used.wrapping_add(1);
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
        assert_eq!(
            ring.take(),
            Err(RingError::Index { from: 0, to: 1, in_flight: 0 }),
            "nothing in flight"
        );
        let (mut ring, page) = self::ring();
        assert!(ring.submit(&[buffer(Direction::ToDevice)]));
        device_uses(&page, 2, 0, 0);
        assert_eq!(ring.take(), Err(RingError::Index { from: 0, to: 2, in_flight: 1 }));
        device_uses(&page, 1, 3, 0);
        assert_eq!(ring.take(), Err(RingError::NotInFlight { id: 3, index: 1 }));
    }

    #[test]
    fn a_batch_comes_back_in_any_order_and_each_chain_once() {
        let (mut ring, page) = ring();
        for round in 0..30_000_u16 {
            let base = round.wrapping_mul(3);
            assert!(ring.submit_each(&[buffer(Direction::ToDevice); 3]));
            assert_eq!(page.load_u16(AVAIL + 2), base.wrapping_add(3));
            device_uses(&page, base.wrapping_add(1), 2, 0);
            assert_eq!((ring.take(), ring.take()), (Ok(Some(0)), Ok(None)));
            assert!(ring.is_busy() && !ring.submit_each(&[buffer(Direction::ToDevice)]));
            device_uses(&page, base.wrapping_add(2), 0, 0);
            device_uses(&page, base.wrapping_add(3), 1, 0);
            assert!(ring.has_used());
            assert_eq!((ring.take(), ring.take()), (Ok(Some(0)), Ok(Some(0))));
            assert!(!ring.is_busy() && !ring.has_used());
        }
        assert!(ring.submit_each(&[buffer(Direction::ToDevice); 2]));
        let start = page.load_u16(USED + 2);
        device_uses(&page, start.wrapping_add(1), 1, 0);
        device_uses(&page, start.wrapping_add(2), 1, 0);
        assert_eq!(ring.take(), Ok(Some(0)));
        let twice = RingError::NotInFlight { id: 1, index: start.wrapping_add(2) };
        assert_eq!(ring.take(), Err(twice));
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
