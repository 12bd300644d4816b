//! The device's registers, as a modern virtio device on PCI has them (virtio 1.3, 4.1.4).

use memtide_agent::virtio::mmio::Registers;

use super::device::Device;

fn check(at: usize, width: usize) {
    assert!(at.is_multiple_of(width) && at + width <= 0x4000, "no register at {at:#x}");
}

impl Registers for Device {
    fn size(&self) -> usize {
        0x4000
    }

    fn read_u8(&self, at: usize) -> u8 {
        let state = &mut *self.0.borrow_mut();
        match at {
            20 => state.status,
            21 => {
                state.generation = state.generation.wrapping_add(state.generation_step);
                state.generation
            }
            0x2000..0x3000 => state.config_bytes::<1>(at)[0],
            _ => 0,
        }
    }

    fn read_u16(&self, at: usize) -> u16 {
        check(at, 2);
        let state = self.0.borrow();
        match at {
            18 => state.queues,
            24 => state.queue_max,
            30 => state.notify_offset,
            0x2000..0x3000 => u16::from_le_bytes(state.config_bytes(at)),
            _ => 0,
        }
    }

    fn read_u32(&self, at: usize) -> u32 {
        check(at, 4);
        let state = self.0.borrow();
        match at {
            4 => (state.offered >> (32 * (state.select & 1))) as u32,
            0x2000..0x3000 => u32::from_le_bytes(state.config_bytes(at)),
            _ => 0,
        }
    }

    fn write_u8(&self, at: usize, value: u8) {
        let state = &mut *self.0.borrow_mut();
        match (at, value) {
            (20, 0) => state.reset(),
            (20, bits) if bits & 8 != 0 && !state.accepts => state.status = bits & !8,
            (20, bits) => state.status = bits,
            _ => {}
        }
    }

    fn write_u16(&self, at: usize, value: u16) {
        check(at, 2);
        let state = &mut *self.0.borrow_mut();
        match at {
            22 => state.queue_select = value,
            24 => state.selected().size = value,
            28 => {
                let queue = state.selected();
                assert!(queue.size.is_power_of_two(), "a queue of {}", queue.size);
                (queue.enabled, queue.seen) = (value != 0, 0);
            }
            _ => {}
        }
    }

    fn write_u32(&self, at: usize, value: u32) {
        check(at, 4);
        let state = &mut *self.0.borrow_mut();
        let half = |old: u64, high: bool| {
            let shift = if high { 32 } else { 0 };
            old & !(0xffff_ffff << shift) | u64::from(value) << shift
        };
        match at {
            0 => state.select = value,
            32 | 36 | 40 | 44 | 48 | 52 => {
                let part = &mut state.selected().parts[(at - 32) / 8];
                *part = half(*part, at % 8 == 4);
            }
            0x2000..0x3000 => _ = state.config.write(at - 0x2000, &value.to_le_bytes()),
            _ => {}
        }
    }
}
