//! A driver that takes registers full of noise at their word.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use memtide_agent::virtio::caps::Layout;
use memtide_agent::virtio::mmio::Registers;
use memtide_agent::virtio::transport::{QueueAddresses, Transport};
use memtide_wire::config::Extension;

use super::BLOCK_QUEUE;

/// Registers that hold nothing but noise.
struct Noise {
    size: usize,
    noise: RefCell<Vec<u8>>,
}

impl Noise {
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        self.check(at, N);
        let mut noise = self.noise.borrow_mut();
        std::array::from_fn(|_| noise.pop().unwrap_or(0))
    }

    /// As the mapped registers do: outside them, or off a boundary, is a bug of the driver's.
    fn check(&self, at: usize, width: usize) {
        assert!(at + width <= self.size && at.is_multiple_of(width), "no register at {at:#x}");
    }
}

impl Registers for Noise {
    fn size(&self) -> usize {
        self.size
    }
    fn read_u8(&self, at: usize) -> u8 {
        u8::from_le_bytes(self.read(at))
    }
    fn read_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.read(at))
    }
    fn read_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.read(at))
    }
    fn write_u8(&self, at: usize, _: u8) {
        self.check(at, 1);
    }
    fn write_u16(&self, at: usize, _: u16) {
        self.check(at, 2);
    }
    fn write_u32(&self, at: usize, _: u32) {
        self.check(at, 4);
    }
}

/// A function whose configuration space is `data`, and a driver that takes it at its word.
pub(super) fn capabilities(data: &[u8]) {
    let Ok(layout) = Layout::find(&data[..data.len().min(256)]) else { return };
    let noise = data.iter().rev().copied().collect();
    let registers: Rc<dyn Registers> = Rc::new(Noise { size: 0x4000, noise: RefCell::new(noise) });
    let Ok(transport) = Transport::open(&layout, |_| Ok(Rc::clone(&registers))) else { return };
    _ = transport.negotiate(u64::MAX);
    _ = transport.is_broken();
    for index in [0, BLOCK_QUEUE, u16::MAX] {
        let addresses = QueueAddresses { desc: 0x1000, avail: 0x1800, used: 0x1a00 };
        _ = transport.queue_size_max(index);
        if let Ok(doorbell) = transport.enable_queue(index, 128, addresses) {
            transport.ring(doorbell);
        }
    }
    _ = transport.acknowledge_interrupt();
    if let Ok(config) = transport.config() {
        _ = Extension::find(&config);
    }
    (0..64).step_by(4).for_each(|offset| _ = transport.config_u32(offset));
    _ = transport.reset(Duration::ZERO);
}
