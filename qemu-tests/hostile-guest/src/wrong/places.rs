//! Addresses that are wrong, each in its own way.

use crate::chance::Chance;
use crate::layout::{ARENA, END};

/// No memory: beyond the end, below the hole of the PC's first megabyte, among the registers of PCI
/// devices and the interrupt controllers, at addresses that an IOMMU would hand out, and at the
/// edges of what numbers can hold.
const NO_MEMORY: [u64; 14] = [
    END,
    END + 0x1000,
    0xa_0000,
    0xb_8000,
    0x8000_0000,
    0xb000_0000,
    0xfec0_0000,
    0xfee0_0000,
    0xffff_f000,
    0x1_0000_0000,
    0x7fff_ffff_f000,
    0xffff_8000_0000_0000,
    0x7fff_ffff_ffff_f000,
    0xffff_ffff_ffff_f000,
];

/// An address that is no memory.
pub(crate) fn no_memory(chance: &mut Chance) -> u64 {
    match chance.below(4) {
        // Never below the end: what lies there is ours.
        0 => (chance.bits() >> chance.below(32)) | (END << 8),
        _ => chance.of_these(&NO_MEMORY),
    }
}

/// How long a buffer at such a place is said to be: up to everything there is, but not where it
/// begins below our own memory, for what lies behind the hole would be ours.
pub(crate) fn length_at(place: u64, chance: &mut Chance) -> u32 {
    if place < ARENA.start {
        return chance.of_these(&[1, 4, 64, 0x1000]);
    }
    chance.of_these(&[1, 4, 64, 4095, 4097, 0x40_0000, 0x8000_0000, 0xffff_ffff])
}

/// A page of the arena.
pub(crate) fn arena_page(chance: &mut Chance) -> u64 {
    ARENA.start + chance.below((ARENA.end - ARENA.start) / 4096) * 4096
}
