//! A split virtqueue in one 4 KiB page (virtio 1.3, 2.7).
//!
//! ```text
//!    0  128 descriptors of 16 bytes: addr u64 | len u32 | flags u16 | next u16
//! 2048  available: flags u16 | idx u16 | ring[128] u16 | used_event u16
//! 2560  used: flags u16 | idx u16 | ring[128] of (id u32 | len u32) | avail_event u16
//! ```
//! Who uses it says where in the table a chain's descriptors lie, and a chain goes out when none of
//! those is in flight; or a batch of chains of one descriptor each, when nothing is. What the device
//! writes is compared with what was asked, never followed.

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
    /// Descriptors of each chain in flight, by its first one; 0 for none.
    chains: Vec<u8>,
}

/// A chain that has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u16,
    /// Bytes that the device wrote into it, as it says.
    pub len: u32,
}

impl Ring {
    /// A ring of `size` entries (a power of two up to [`SIZE_MAX`], checked by the caller) in
    /// `page`, which is cleared: the device must have been reset.
    pub fn new(page: Pages, size: u16) -> Self {
        debug_assert!(size.is_power_of_two() && size <= SIZE_MAX);
        page.clear();
        Self { page, size, avail: 0, used: 0, chains: vec![0; size.into()] }
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

    /// Makes one chain of `buffers` available, in the descriptors from `first` on. The caller rings the
    /// doorbell. Where the table has no such descriptors, or one of them is in flight, nothing is done
    /// and `false` comes back.
    #[must_use]
    pub fn submit(&mut self, first: u16, chain: &[Buffer]) -> bool {
        let end = usize::from(first) + chain.len();
        if chain.is_empty() || end > usize::from(self.size) || self.is_in_use(first, end) {
            return false;
        }
        for (n, buffer) in (first..).zip(chain) {
            let more = if usize::from(n) + 1 < end { F_NEXT } else { 0 };
            self.describe(n, *buffer, more);
        }
        self.publish([(first, chain.len() as u8)]);
        true
    }

    /// Makes a chain of each of `buffers` available, all at once. At most `size` of them, and none
    /// in flight, or nothing is done and `false` comes back.
    #[must_use]
    pub fn submit_each(&mut self, buffers: &[Buffer]) -> bool {
        if self.is_busy() || buffers.is_empty() || buffers.len() > usize::from(self.size) {
            return false;
        }
        for (n, buffer) in (0..).zip(buffers) {
            self.describe(n, *buffer, 0);
        }
        self.publish((0..).zip(std::iter::repeat_n(1, buffers.len())));
        true
    }

    /// True where a descriptor from `first` to before `end` is in flight.
    fn is_in_use(&self, first: u16, end: usize) -> bool {
        let reaches = |head: usize, len: u8| len > 0 && head + usize::from(len) > first.into();
        self.chains[..end].iter().enumerate().any(|(head, len)| reaches(head, *len))
    }

    fn describe(&self, n: u16, buffer: Buffer, more: u16) {
        let (at, write) = (16 * usize::from(n), buffer.direction == Direction::FromDevice);
        self.page.store_u64(at, buffer.gpa.0);
        self.page.store_u32(at + 8, buffer.len);
        self.page.store_u16(at + 12, more | if write { F_WRITE } else { 0 });
        self.page.store_u16(at + 14, n + 1);
    }

    /// Chains, by first descriptor and length.
    fn publish(&mut self, chains: impl IntoIterator<Item = (u16, u8)>) {
        for (head, len) in chains {
            let slot = usize::from(self.avail % self.size);
            self.page.store_u16(AVAIL + 4 + 2 * slot, head);
            self.chains[usize::from(head)] = len;
            self.avail = self.avail.wrapping_add(1);
        }
        // Descriptors and ring entries must be seen before the index that publishes them ...
        fence(Ordering::Release);
        self.page.store_u16(AVAIL + 2, self.avail);
        // ... and the index before the device is told to look (a store to its registers).
        fence(Ordering::SeqCst);
    }

    /// The next chain that has come back, if one has. What the device wrote into it is visible to loads
    /// after this.
    ///
    /// # Errors
    /// [`RingError`]: the device must be reset.
    pub fn take(&mut self) -> Result<Option<Used>, RingError> {
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
        let chain = usize::try_from(id).ok().and_then(|head| self.chains.get_mut(head));
        let chain = chain.filter(|len| **len > 0).ok_or(RingError::NotInFlight { id, index })?;
        *chain = 0;
        self.used = self.used.wrapping_add(1);
        Ok(Some(Used { head: id as u16, len }))
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
            assert!(ring.submit(0, &[buffer(Direction::ToDevice), buffer(Direction::FromDevice)]));
            assert!(!ring.submit(1, &[buffer(Direction::ToDevice)]), "its descriptor is in flight");
            assert_eq!(page.load_u16(AVAIL + 2), index);
            assert_eq!((page.load_u16(12), page.load_u16(14)), (F_NEXT, 1));
            assert_eq!(page.load_u16(16 + 12), F_WRITE);
            assert_eq!(ring.take(), Ok(None));
            device_uses(&page, index, 0, 32);
            assert_eq!(ring.take(), Ok(Some(Used { head: 0, len: 32 })));
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
        assert!(ring.submit(0, &[buffer(Direction::ToDevice)]));
        device_uses(&page, 2, 0, 0);
        assert_eq!(ring.take(), Err(RingError::Index { from: 0, to: 2, in_flight: 1 }));
        device_uses(&page, 1, 3, 0);
        assert_eq!(ring.take(), Err(RingError::NotInFlight { id: 3, index: 1 }));
    }

    #[test]
    fn a_batch_comes_back_in_any_order_and_each_chain_once() {
        let (mut ring, page) = ring();
        let back = |head| Ok(Some(Used { head, len: 0 }));
        for round in 0..30_000_u16 {
            let base = round.wrapping_mul(3);
            assert!(ring.submit_each(&[buffer(Direction::ToDevice); 3]));
            assert_eq!(page.load_u16(AVAIL + 2), base.wrapping_add(3));
            device_uses(&page, base.wrapping_add(1), 2, 0);
            assert_eq!((ring.take(), ring.take()), (back(2), Ok(None)));
            assert!(ring.is_busy() && !ring.submit_each(&[buffer(Direction::ToDevice)]));
            device_uses(&page, base.wrapping_add(2), 0, 0);
            device_uses(&page, base.wrapping_add(3), 1, 0);
            assert!(ring.has_used());
            assert_eq!((ring.take(), ring.take()), (back(0), back(1)));
            assert!(!ring.is_busy() && !ring.has_used());
        }
        assert!(ring.submit_each(&[buffer(Direction::ToDevice); 2]));
        let start = page.load_u16(USED + 2);
        device_uses(&page, start.wrapping_add(1), 1, 0);
        device_uses(&page, start.wrapping_add(2), 1, 0);
        assert_eq!(ring.take(), back(1));
        let twice = RingError::NotInFlight { id: 1, index: start.wrapping_add(2) };
        assert_eq!(ring.take(), Err(twice));
    }

    /// Two chains take turns in the table: each waits for its own descriptors alone.
    #[test]
    fn chains_side_by_side_do_not_touch_each_other() {
        let (mut ring, page) = ring();
        let two = [buffer(Direction::ToDevice), buffer(Direction::FromDevice)];
        assert!(ring.submit(0, &two) && ring.submit(2, &two));
        for first in 0..4 {
            assert!(!ring.submit(first, &two[..1]), "{first} is in flight");
        }
        assert_eq!((page.load_u16(16 * 2 + 14), page.load_u16(16 * 3 + 12)), (3, F_WRITE));
        for round in 0..30_000_u16 {
            let (index, head) = (round.wrapping_add(1), 2 * (round % 2));
            device_uses(&page, index, head.into(), 7);
            assert_eq!(ring.take(), Ok(Some(Used { head, len: 7 })));
            assert!(!ring.submit(2 - head, &two), "the other one is in flight");
            assert!(ring.submit(head, &two));
        }
    }

    #[test]
    fn a_chain_longer_than_the_ring_is_not_sent() {
        let (mut ring, page) = ring();
        assert!(!ring.submit(0, &[buffer(Direction::ToDevice); 5]));
        assert!(!ring.submit(3, &[buffer(Direction::ToDevice); 2]));
        assert!(!ring.submit(0, &[]));
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
