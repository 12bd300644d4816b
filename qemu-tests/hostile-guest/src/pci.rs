//! The balloon's PCI function: found on the first bus, its structures by their capabilities
//! (virtio 1.3, 4.1.4).

use crate::machine::{in32, out32};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Red Hat's vendor number and the modern device number of a balloon (0x1040 + 5).
const BALLOON: u32 = 0x1045_1af4;
const CAPABILITY_VENDOR: u32 = 0x09;
/// Command register: memory decoding and bus mastering.
const COMMAND_ON: u32 = 0b110;

/// A function on bus 0.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    slot: u32,
}

/// A structure's place in memory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Structure {
    pub(crate) address: u64,
    pub(crate) length: u64,
}

/// The structures of a virtio function.
#[derive(Clone, Copy, Default)]
pub(crate) struct Structures {
    pub(crate) common: Structure,
    pub(crate) notify: Structure,
    pub(crate) isr: Structure,
    pub(crate) device: Structure,
    pub(crate) notify_multiplier: u64,
    /// Offset in configuration space of the capability through which registers can be reached too.
    pub(crate) window: u32,
}

impl Function {
    /// The balloon.
    pub(crate) fn balloon() -> Option<Self> {
        (0..32).map(|slot| Self { slot }).find(|function| function.read(0) == BALLOON)
    }

    /// Reads a register of configuration space.
    pub(crate) fn read(self, offset: u32) -> u32 {
        out32(ADDRESS, (1 << 31) | (self.slot << 11) | (offset & 0xfc));
        in32(DATA)
    }

    /// Writes one.
    pub(crate) fn write(self, offset: u32, value: u32) {
        out32(ADDRESS, (1 << 31) | (self.slot << 11) | (offset & 0xfc));
        out32(DATA, value);
    }

    /// Lets it answer to its addresses and reach memory.
    pub(crate) fn enable(self) {
        self.write(4, self.read(4) | COMMAND_ON);
    }

    /// Takes both away.
    pub(crate) fn disable(self) {
        self.write(4, self.read(4) & !COMMAND_ON);
    }

    fn bar(self, number: u32) -> u64 {
        let low = self.read(0x10 + 4 * number);
        let is_64_bits = low & 0b110 == 0b100;
        let high = if is_64_bits { self.read(0x14 + 4 * number) } else { 0 };
        (u64::from(high) << 32) | u64::from(low & !0xf)
    }

    /// Walks the capabilities.
    pub(crate) fn structures(self) -> Structures {
        let mut found = Structures::default();
        let mut at = self.read(0x34) & 0xfc;
        // A list longer than configuration space has room for would be a loop.
        for _ in 0..64 {
            if at == 0 {
                break;
            }
            let head = self.read(at);
            if head & 0xff == CAPABILITY_VENDOR {
                self.structure(at, head >> 24, &mut found);
            }
            at = (head >> 8) & 0xfc;
        }
        found
    }

    fn structure(self, at: u32, kind: u32, found: &mut Structures) {
        let (offset, length) = (self.read(at + 8), self.read(at + 12));
        let place = || Structure {
            address: self.bar(self.read(at + 4) & 0xff) + u64::from(offset),
            length: u64::from(length),
        };
        match kind {
            1 => found.common = place(),
            2 => {
                found.notify = place();
                found.notify_multiplier = u64::from(self.read(at + 16));
            }
            3 => found.isr = place(),
            4 => found.device = place(),
            5 => found.window = at,
            _ => {}
        }
    }
}
