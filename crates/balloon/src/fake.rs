//! A driver and a host for tests.

use std::sync::atomic::Ordering;

use memtide_units::GpaRange;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::reclaim::{FailKind, Reclaim, ReclaimFailed, Reclaimed};

/// A host that writes down what it was asked to drop.
#[derive(Debug, Default)]
pub struct FakeHost {
    /// Every range that was dropped, in order.
    pub dropped: Vec<GpaRange>,
    /// Ranges from here on fail, where set.
    pub fails_from: Option<memtide_units::Gpa>,
    /// Whatever touches one of these fails in its way.
    pub failing: Vec<(GpaRange, FailKind)>,
    /// How often it failed.
    pub failures: u64,
}

impl FakeHost {
    fn fault(&self, range: GpaRange) -> Option<FailKind> {
        let beyond = self.fails_from.is_some_and(|from| range.end() > from);
        let named = self.failing.iter().find(|(bad, _)| bad.intersection(range).is_some());
        named.map(|(_, kind)| *kind).or(beyond.then_some(FailKind::Other))
    }
}

impl Reclaim for FakeHost {
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed> {
        if let Some(kind) = self.fault(range) {
            self.failures += 1;
            let text = format!("the fake host does not drop {range}: {}", kind.name());
            return Err(ReclaimFailed { kind, text });
        }
        self.dropped.push(range);
        Ok(Reclaimed { bytes: range.len(), punches: 1 })
    }
}

/// One buffer of a chain that a [`FakeDriver`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// So many bytes at this address, for the device to read.
    Readable(u64, u32),
    /// So many bytes at this address, for the device to write.
    Writable(u64, u32),
}

/// The guest's side of one split virtqueue, laid out from `base` on: descriptors, available ring,
/// used ring. Descriptors are used round and round and never checked for being free.
#[derive(Debug)]
pub struct FakeDriver {
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

impl FakeDriver {
    /// Bytes that a queue takes at most.
    pub const LEN: u64 = 0x2000;

    /// A queue of `size` descriptors at `base`, which must be 4 KiB aligned; at most 128.
    pub fn new(base: u64, size: u16) -> Self {
        Self { base, size, next_descriptor: 0, available: 0, seen: 0 }
    }

    /// Zeroes the rings, as a driver does before it hands them to a device.
    pub fn clear<M: GuestMemory>(&self, memory: &M) {
        let zeros = [0; Self::LEN as usize];
        memory.write_slice(&zeros, GuestAddress(self.base)).expect("the ring lies in memory");
    }

    /// Address of the descriptor table.
    pub fn descriptors(&self) -> u64 {
        self.base
    }

    /// Address of the available ring.
    pub fn available_ring(&self) -> u64 {
        self.base + 0x1000
    }

    /// Address of the used ring.
    pub fn used_ring(&self) -> u64 {
        self.base + 0x1800
    }

    /// Descriptors of the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The device's end of it, at the start.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two was given");
        queue.try_set_desc_table_address(GuestAddress(self.descriptors())).expect("aligned");
        queue.try_set_avail_ring_address(GuestAddress(self.available_ring())).expect("aligned");
        queue.try_set_used_ring_address(GuestAddress(self.used_ring())).expect("aligned");
        queue.set_ready(true);
        queue
    }

    /// Makes a chain of `buffers` available; returns its head.
    pub fn add<M: GuestMemory>(&mut self, memory: &M, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (n, buffer) in buffers.iter().enumerate() {
            let (addr, len, mut flags) = match *buffer {
                Buffer::Readable(addr, len) => (addr, len, 0),
                Buffer::Writable(addr, len) => (addr, len, VRING_DESC_F_WRITE as u16),
            };
            let next = (self.next_descriptor + 1) % self.size;
            if n + 1 < buffers.len() {
                flags |= VRING_DESC_F_NEXT as u16;
            }
            self.put_descriptor(memory, self.next_descriptor, (addr, len, flags, next));
            self.next_descriptor = next;
        }
        self.offer(memory, head);
        head
    }

    /// Writes a descriptor as it is: address, length, flags, next.
    pub fn put_descriptor<M: GuestMemory>(
        &self,
        memory: &M,
        index: u16,
        fields: (u64, u32, u16, u16),
    ) {
        let at = self.descriptors() + 16 * u64::from(index);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&fields.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&fields.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&fields.2.to_le_bytes());
        bytes[14..].copy_from_slice(&fields.3.to_le_bytes());
        memory.write_slice(&bytes, GuestAddress(at)).expect("the ring lies in memory");
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn offer<M: GuestMemory>(&mut self, memory: &M, head: u16) {
        let at = self.available_ring() + 4 + 2 * u64::from(self.available % self.size);
        memory.write_obj(head.to_le(), GuestAddress(at)).expect("the ring lies in memory");
        self.available = self.available.wrapping_add(1);
        self.set_available_index(memory, self.available);
    }

    /// Writes the available index as it is.
    pub fn set_available_index<M: GuestMemory>(&self, memory: &M, index: u16) {
        let at = GuestAddress(self.available_ring() + 2);
        memory.store(index.to_le(), at, Ordering::Release).expect("the ring lies in memory");
    }

    /// Chains that the device has answered since this was last asked: head and bytes written.
    pub fn take_used<M: GuestMemory>(&mut self, memory: &M) -> Vec<(u16, u32)> {
        let index: u16 = memory
            .load(GuestAddress(self.used_ring() + 2), Ordering::Acquire)
            .expect("the ring lies in memory");
        let index = u16::from_le(index);
        let mut used = Vec::new();
        while self.seen != index {
            let at = self.used_ring() + 4 + 8 * u64::from(self.seen % self.size);
            let (id, len): (u32, u32) = (
                memory.read_obj(GuestAddress(at)).expect("the ring lies in memory"),
                memory.read_obj(GuestAddress(at + 4)).expect("the ring lies in memory"),
            );
            used.push((u32::from_le(id) as u16, u32::from_le(len)));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}
