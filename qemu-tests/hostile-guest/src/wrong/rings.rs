//! Rings where they cannot be, of sizes that they cannot have.

use super::places::{arena_page, no_memory};
use crate::chance::Chance;
use crate::layout::{BUFFERS, END, PAGE};
use crate::machine::write;
use crate::virtio::{Balloon, QUEUES, Rings, SIZE, VERSION_1, common};

/// A request that would be fine if its ring were.
fn ask(balloon: &Balloon, queue: u16, rings: Rings) {
    write(BUFFERS, 0_u32);
    if rings.descriptors < END && rings.available < END {
        rings.describe(0, (BUFFERS, 4), 0, 0);
        rings.offer(0);
    }
    balloon.notify(queue);
}

/// Begins anew, with one queue as it should be beside the one that is not.
fn begin(balloon: &Balloon, chance: &mut Chance) -> u16 {
    balloon.reset();
    balloon.negotiate(chance.bits() | VERSION_1);
    let queue = chance.below(u64::from(QUEUES)) as u16;
    balloon.set_up((queue + 1) % QUEUES);
    queue
}

fn place_and_go(balloon: &Balloon, queue: u16, rings: Rings, size: u16) {
    balloon.place(queue, rings, size);
    balloon.enable(queue);
    balloon.go();
    balloon.notify(queue);
    balloon.notify((queue + 1) % QUEUES);
}

/// Parts of a ring that are not in memory: one, two or all three.
pub(super) fn anywhere(balloon: &Balloon, chance: &mut Chance) {
    let queue = begin(balloon, chance);
    let mut rings = Rings::of(queue);
    let which = 1 + chance.below(7);
    if which & 1 != 0 {
        rings.descriptors = no_memory(chance);
    }
    if which & 2 != 0 {
        rings.available = no_memory(chance);
    }
    if which & 4 != 0 {
        rings.used = no_memory(chance);
    }
    place_and_go(balloon, queue, rings, SIZE);
}

/// Parts that are not aligned as 2.7 asks for.
pub(super) fn unaligned(balloon: &Balloon, chance: &mut Chance) {
    let queue = begin(balloon, chance);
    let mut rings = Rings::of(queue);
    rings.clear();
    let off = chance.below(15) + 1;
    match chance.below(3) {
        0 => rings.descriptors += off,
        1 => rings.available += off,
        _ => rings.used += off,
    }
    balloon.place(queue, rings, SIZE);
    balloon.enable(queue);
    balloon.go();
    ask(balloon, queue, rings);
}

/// Parts that begin in memory and end beyond it.
pub(super) fn across_the_end(balloon: &Balloon, chance: &mut Chance) {
    let queue = begin(balloon, chance);
    let mut rings = Rings::of(queue);
    let last = END - 16 * (1 + chance.below(8));
    match chance.below(3) {
        0 => rings.descriptors = last,
        1 => rings.available = last,
        _ => rings.used = last,
    }
    place_and_go(balloon, queue, rings, SIZE);
}

/// All parts, or all queues, in one place: what the device writes is what it reads.
pub(super) fn on_each_other(balloon: &Balloon, chance: &mut Chance) {
    balloon.reset();
    balloon.negotiate(chance.bits() | VERSION_1);
    let one = arena_page(chance);
    let rings = Rings { descriptors: one, available: one, used: one };
    for queue in 0..QUEUES {
        balloon.place(queue, rings, SIZE);
        balloon.enable(queue);
    }
    balloon.go();
    write(one + 2, chance.below(200) as u16);
    for queue in 0..QUEUES {
        balloon.notify(queue);
    }
}

/// New addresses for a ring that runs.
pub(super) fn moved_while_running(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let queue = chance.below(u64::from(QUEUES)) as u16;
    ask(balloon, queue, Rings::of(queue));
    let place = no_memory(chance);
    balloon.place(queue, Rings { descriptors: place, available: place, used: place }, SIZE);
    balloon.enable(queue);
    balloon.notify(queue);
}

/// Sizes that are no power of two, none, or more than there is.
pub(super) fn sizes(balloon: &Balloon, chance: &mut Chance) {
    let queue = begin(balloon, chance);
    let size = chance.of_these(&[0, 1, 2, 3, 5, 127, 129, 256, 1024, 0x8000, 0xffff]);
    let rings = Rings::of(queue);
    rings.clear();
    balloon.place(queue, rings, size);
    balloon.enable(queue);
    balloon.go();
    ask(balloon, queue, rings);
}

/// A queue that is enabled again and again, before and after it runs.
pub(super) fn enabled_twice(balloon: &Balloon, chance: &mut Chance) {
    let queue = begin(balloon, chance);
    balloon.set_up(queue);
    balloon.enable(queue);
    balloon.go();
    balloon.enable(queue);
    ask(balloon, queue, Rings::of(queue));
    balloon.enable(queue);
    balloon.go();
}

/// A ring whose queue is disabled by the wrong means, or made empty while it runs.
pub(super) fn taken_away(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let queue = chance.below(u64::from(QUEUES)) as u16;
    ask(balloon, queue, Rings::of(queue));
    write(balloon.common(common::QUEUE_SELECT), queue);
    let value = chance.of_these(&[0_u16, 2, 0x8000, 0xffff]);
    write(balloon.common(common::QUEUE_ENABLE), value);
    Rings::of(queue).clear();
    balloon.notify(queue);
}

/// DRIVER_OK without a single queue.
pub(super) fn none(balloon: &Balloon, chance: &mut Chance) {
    balloon.reset();
    balloon.negotiate(chance.bits() | VERSION_1);
    balloon.go();
    for queue in 0..QUEUES {
        balloon.notify(queue);
    }
}

/// An available index that says more than the ring can hold.
pub(super) fn available_jumps(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let queue = chance.below(u64::from(QUEUES)) as u16;
    let rings = Rings::of(queue);
    for entry in 0..SIZE {
        rings.describe(entry, (arena_page(chance) & !(PAGE - 1), 4), 0, 0);
    }
    let by = chance.of_these(&[2_u16, SIZE - 1, SIZE, SIZE + 1, 0x7fff, 0x8000, 0xffff]);
    rings.jump(by);
    balloon.poke(queue, rings);
    rings.jump(by.wrapping_neg());
    balloon.poke(queue, rings);
}
