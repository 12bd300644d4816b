//! Sound chains that ask for what makes no sense.

use super::places::{arena_page, length_at, no_memory};
use crate::chance::Chance;
use crate::layout::{ARENA, BUFFERS, END, PAGE};
use crate::machine::write;
use crate::virtio::{Balloon, NEXT, QUEUES, Rings, SIZE, WRITE};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const BLOCK: u16 = QUEUES - 1;

/// Page numbers that are none: the first, the last, the hole, the end of memory and beyond; and
/// some of the arena, which may be named.
fn page_number(chance: &mut Chance) -> u32 {
    match chance.below(5) {
        0 => (arena_page(chance) / PAGE) as u32,
        1 => 0xa0 + chance.below(0x20) as u32,
        2 => (END / PAGE) as u32,
        3 => chance.of_these(&[0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff]),
        // Never below the end.
        _ => chance.bits() as u32 | (END / PAGE) as u32,
    }
}

fn fill_with_page_numbers(chance: &mut Chance, count: u32) {
    for number in 0..u64::from(count) {
        write(BUFFERS + 4 * number, page_number(chance));
    }
}

/// Writable where it must be read, readable where it must be written.
pub(super) fn wrong_direction(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    for queue in 0..QUEUES {
        let rings = Rings::of(queue);
        let place = arena_page(chance);
        let (first, second) = chance.of_these(&[(WRITE, 0), (0, WRITE), (WRITE, WRITE), (0, 0)]);
        rings.describe(0, (place, 64), NEXT | first, 1);
        rings.describe(1, (place + 64, 64), second, 0);
        rings.offer(0);
        balloon.poke(queue, rings);
    }
}

/// Numbers of pages that do not exist, twice, and too many.
pub(super) fn page_numbers(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let rings = Rings::of(INFLATE);
    for round in 0..4 {
        let count = chance.of_these(&[1, 2, 255, 256, 257, 4096, 65536]);
        fill_with_page_numbers(chance, count);
        rings.describe(round, (BUFFERS, 4 * count), 0, 0);
        rings.offer(round);
        rings.offer(round);
        balloon.poke(INFLATE, rings);
    }
}

/// What was never inflated, and what has not been answered yet.
pub(super) fn deflated_first(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    fill_with_page_numbers(chance, 256);
    for queue in [DEFLATE, INFLATE] {
        let rings = Rings::of(queue);
        rings.describe(0, (BUFFERS, 1024), 0, 0);
        rings.offer(0);
        balloon.notify(queue);
    }
    balloon.poke(DEFLATE, Rings::of(DEFLATE));
}

/// Reports of memory that is none, of half pages, of more than there is, on any queue that may be
/// the reporting queue.
pub(super) fn reports(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    for queue in 2..BLOCK {
        let rings = Rings::of(queue);
        for entry in 0..32 {
            let place = match chance.below(3) {
                0 => arena_page(chance) + chance.below(PAGE),
                1 => ARENA.end - 1,
                _ => no_memory(chance),
            };
            let length = length_at(place, chance);
            rings.describe(
                entry,
                (place, length),
                WRITE | (NEXT * u16::from(entry < 31)),
                entry + 1,
            );
        }
        rings.offer(0);
        balloon.poke(queue, rings);
    }
}

/// Statistics that nobody knows, of odd sizes, and the one buffer given back again and again.
pub(super) fn statistics(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let rings = Rings::of(2);
    for word in 0..512 {
        write(BUFFERS + 8 * word, chance.bits());
    }
    for round in 0..8 {
        let length = chance.of_these(&[0, 1, 9, 10, 11, 160, 4096, 0xffff_ffff]);
        rings.describe(round, (BUFFERS, length), 0, 0);
        rings.offer(round);
        rings.offer(round);
        balloon.poke(2, rings);
    }
}

/// Requests of the block queue: kinds that there are and are not, lengths that are not so, ranges
/// that are no memory or lie across everything from the arena on.
pub(super) fn block_requests(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let rings = Rings::of(BLOCK);
    for round in 0..16 {
        let words = chance.below(64);
        for word in 0..words {
            let range = match chance.below(4) {
                0 => no_memory(chance),
                1 => arena_page(chance),
                2 => chance.bits() | END,
                _ => u64::MAX,
            };
            write(BUFFERS + 16 + 8 * word, range);
        }
        let body = chance.of_these(&[8 * words as u32, 0, 7, 48, 0x7fff_ffff, 0xffff_ffff]);
        write(BUFFERS, chance.below(9) as u16);
        write(BUFFERS + 2, chance.of_these(&[0_u16, 1]));
        write(BUFFERS + 4, chance.bits() as u32);
        write(BUFFERS + 8, body);
        write(BUFFERS + 12, 0_u32);
        let length = chance.of_these(&[16 + 8 * words as u32, 15, 16, 0x9001]);
        let place = if chance.below(4) == 0 { no_memory(chance) } else { arena_page(chance) };
        rings.describe(0, (BUFFERS, length), NEXT, 1);
        rings.describe(1, (place, chance.of_these(&[0, 1, 31, 32, 4096])), WRITE, 0);
        rings.offer(0);
        if round % 4 == 3 {
            balloon.poke(BLOCK, rings);
        }
    }
}

/// All queues full of requests that take their time, and then a reset, or a new start without one.
pub(super) fn reset_in_flight(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let first = (ARENA.start / PAGE) as u32;
    for number in 0..16384 {
        write(BUFFERS + 4 * u64::from(number), first + number);
    }
    for queue in [INFLATE, DEFLATE] {
        let rings = Rings::of(queue);
        for entry in 0..SIZE {
            rings.describe(entry, (BUFFERS, 65536), 0, 0);
            rings.offer(entry);
        }
        balloon.notify(queue);
    }
    if chance.below(2) == 0 {
        balloon.reset();
    } else {
        balloon.go();
        balloon.start(chance.bits());
    }
}
