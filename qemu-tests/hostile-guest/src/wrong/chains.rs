//! Descriptor chains that are no chains.

use super::places::{arena_page, length_at, no_memory};
use crate::chance::Chance;
use crate::layout::{ARENA, BUFFERS, END};
use crate::machine::write;
use crate::virtio::{Balloon, INDIRECT, NEXT, QUEUES, Rings, SIZE, WRITE};

/// The device as it should be, and one of its queues.
fn begin(balloon: &Balloon, chance: &mut Chance) -> (u16, Rings) {
    balloon.start(chance.bits());
    let queue = chance.below(u64::from(QUEUES)) as u16;
    (queue, Rings::of(queue))
}

/// A buffer that may be named without harm.
fn harmless(chance: &mut Chance) -> u64 {
    let address = arena_page(chance);
    // As page numbers, if it is taken for some: none that exists.
    for word in 0..16 {
        write(address + 4 * word, u32::MAX);
    }
    address
}

/// The same head twice, and heads that the table does not have.
pub(super) fn heads(balloon: &Balloon, chance: &mut Chance) {
    let (queue, rings) = begin(balloon, chance);
    rings.describe(0, (harmless(chance), 64), 0, 0);
    for head in [0, 0, SIZE, SIZE - 1, 0x7fff, 0xffff, 0] {
        rings.offer(head);
    }
    balloon.poke(queue, rings);
    balloon.poke(queue, rings);
}

/// Chains that come back to where they began, after one step or many.
pub(super) fn loops(balloon: &Balloon, chance: &mut Chance) {
    let (queue, rings) = begin(balloon, chance);
    let length = chance.of_these(&[1, 2, 3, 64, SIZE]);
    let flags = chance.of_these(&[0, WRITE]);
    for entry in 0..length {
        rings.describe(entry, (harmless(chance), 64), NEXT | flags, (entry + 1) % length);
    }
    rings.offer(0);
    balloon.poke(queue, rings);
}

/// Chains whose next descriptor does not exist.
pub(super) fn out_of_the_table(balloon: &Balloon, chance: &mut Chance) {
    let (queue, rings) = begin(balloon, chance);
    let next = chance.of_these(&[SIZE, SIZE + 1, 0x7fff, 0xffff]);
    rings.describe(0, (harmless(chance), 64), NEXT, 1);
    rings.describe(1, (harmless(chance), 64), NEXT, next);
    rings.offer(0);
    balloon.poke(queue, rings);
}

/// Buffers of no bytes, or of an odd number.
pub(super) fn of_nothing(balloon: &Balloon, chance: &mut Chance) {
    let (queue, rings) = begin(balloon, chance);
    let length = chance.of_these(&[0, 1, 2, 3, 5, 7, 4095]);
    let flags = chance.of_these(&[0, WRITE, NEXT, NEXT | WRITE]);
    rings.describe(0, (harmless(chance), length), flags, 1);
    rings.describe(1, (harmless(chance), 0), 0, 0);
    rings.offer(0);
    balloon.poke(queue, rings);
}

/// All descriptors in one chain, again and again, as many as the ring has room for; and more bytes
/// than any address has.
pub(super) fn too_long(balloon: &Balloon, chance: &mut Chance) {
    let (queue, rings) = begin(balloon, chance);
    let length = chance.of_these(&[0x1000_u32, 0x10_0000, 0x7fff_ffff, 0xffff_ffff]);
    for entry in 0..SIZE {
        let flags = if entry + 1 < SIZE { NEXT } else { 0 };
        rings.describe(entry, (ARENA.start + 0x1000, length), flags, entry + 1);
    }
    for _ in 0..SIZE {
        rings.offer(0);
    }
    balloon.poke(queue, rings);
}

/// Tables that may not be, or that hold tables, or nothing, or are no memory.
pub(super) fn indirect(balloon: &Balloon, chance: &mut Chance) {
    let (queue, rings) = begin(balloon, chance);
    let table = Rings { descriptors: BUFFERS, available: BUFFERS, used: BUFFERS };
    let flags = chance.of_these(&[0, NEXT, INDIRECT, INDIRECT | NEXT, WRITE]);
    for entry in 0..64 {
        table.describe(entry, (BUFFERS, 64 * 16), flags, entry + 1);
    }
    let place = if chance.below(2) == 0 { BUFFERS } else { no_memory(chance) };
    let length = chance.of_these(&[0_u32, 1, 15, 16, 17, 64 * 16, 0x10_0000, 0xffff_fff0]);
    let also = chance.of_these(&[0, NEXT, WRITE]);
    rings.describe(0, (place, length), INDIRECT | also, 0);
    rings.offer(0);
    balloon.poke(queue, rings);
}

/// Buffers that are no memory, or only begin in it.
pub(super) fn anywhere(balloon: &Balloon, chance: &mut Chance) {
    let (queue, rings) = begin(balloon, chance);
    for entry in 0..8 {
        let place = if chance.below(3) == 0 { END - 2 } else { no_memory(chance) };
        let length = length_at(place, chance);
        rings.describe(entry, (place, length), chance.of_these(&[0, WRITE]), 0);
        rings.offer(entry);
    }
    balloon.poke(queue, rings);
}
