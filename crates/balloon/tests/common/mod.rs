//! A guest with one ring that a [`FakeDriver`] fills, for one queue after the other.
#![allow(dead_code, reason = "each test file uses its share")]

use memtide_balloon::fake::{Buffer, FakeDriver, FakeHost};
use memtide_balloon::{Balloon, Moment, Pass, Ring, RingError, Rings, Settings};
use memtide_units::{ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::features::QueueRole;
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory, from address 0 on.
pub(crate) const MEMORY: u64 = 64 << 20;

/// A mebibyte: tests put requests at multiples of it. The ring lies in the second one.
pub(crate) const PAGES: u64 = 1 << 20;

pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) driver: FakeDriver,
    pub(crate) queue: Queue,
    pub(crate) balloon: Balloon,
    pub(crate) host: FakeHost,
    pub(crate) now: Instant,
}

impl Guest {
    /// A stock driver's guest, its rings running.
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let driver = FakeDriver::new(PAGES, 16);
        let queue = driver.queue();
        let now = Instant::from_millis(0);
        let mut balloon = Balloon::new(settings, now);
        balloon.set_memory([range(0, MEMORY)], ByteSize::from_kib(4));
        balloon.set_rings(Rings::Standard);
        Self { memory, driver, queue, balloon, host: FakeHost::default(), now }
    }

    pub(crate) fn try_process(&mut self, role: QueueRole) -> Result<Pass, RingError> {
        let mut ring = Ring { queue: &mut self.queue, memory: &self.memory };
        let mut moment = Moment { now: self.now, host: &mut self.host };
        self.balloon.process(role, &mut ring, &mut moment)
    }

    pub(crate) fn process(&mut self, role: QueueRole) -> Pass {
        self.try_process(role).unwrap()
    }

    pub(crate) fn add(&mut self, buffers: &[Buffer]) -> u16 {
        self.driver.add(&self.memory, buffers)
    }

    pub(crate) fn take_used(&mut self) -> Vec<(u16, u32)> {
        self.driver.take_used(&self.memory)
    }

    /// Writes bytes to guest memory and makes one readable buffer of them.
    pub(crate) fn bytes(&self, at: u64, bytes: &[u8]) -> Buffer {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        Buffer::Readable(at, bytes.len() as u32)
    }

    /// Writes PFNs to guest memory and makes one buffer of them.
    pub(crate) fn pfns(&self, at: u64, pfns: impl IntoIterator<Item = u32>) -> Buffer {
        let bytes: Vec<u8> = pfns.into_iter().flat_map(u32::to_le_bytes).collect();
        self.bytes(at, &bytes)
    }

    /// How often something was refused or ignored for this reason.
    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.balloon.counters().refused.get(reason).copied().unwrap_or(0)
    }
}

pub(crate) fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), ByteSize::from_bytes(len)).unwrap()
}
