//! Registers read and written where, when and as wide as they should not be.

use super::places::{arena_page, no_memory};
use crate::chance::Chance;
use crate::machine::{read, write};
use crate::pci::Structure;
use crate::virtio::{
    ACKNOWLEDGE, Balloon, DRIVER, DRIVER_OK, FEATURES_OK, QUEUES, Rings, common, send_pages,
};

/// Reads and writes so much of a structure, in any width, also across its end.
fn scribble(structure: Structure, chance: &mut Chance, times: u32) {
    for _ in 0..times {
        let at = structure.address + chance.below(structure.length.clamp(8, 0x100) + 8);
        let value = chance.bits();
        match chance.below(8) {
            0 => write(at, value as u8),
            1 => write(at, value as u16),
            2 => write(at, value as u32),
            3 => write(at, value),
            4 => ignore(read::<u8>(at)),
            5 => ignore(read::<u16>(at)),
            6 => ignore(read::<u32>(at)),
            _ => ignore(read::<u64>(at)),
        }
    }
}

/// A value that only had to be asked for.
fn ignore<T>(_: T) {}

/// The device's own configuration: any offset, any width, before, while and after it runs.
pub(super) fn configuration(balloon: &Balloon, chance: &mut Chance) {
    scribble(balloon.at.device, chance, 32);
    balloon.start(chance.bits());
    scribble(balloon.at.device, chance, 64);
    balloon.reset();
    scribble(balloon.at.device, chance, 32);
}

/// Features that nobody offered, statuses in any order, and features changed while it runs.
pub(super) fn features_and_status(balloon: &Balloon, chance: &mut Chance) {
    balloon.reset();
    balloon.want(chance.bits());
    for _ in 0..8 {
        let bits = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, 0x40, 0x80, 0x0f, 0xff];
        balloon.set_status(chance.of_these(&bits) | chance.of_these(&bits));
        if chance.below(2) == 0 {
            balloon.want(chance.bits());
        }
    }
    balloon.start(chance.bits());
    balloon.want(chance.bits());
    balloon.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    balloon.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
}

/// Kicks of queues that are not there or were never set up, in any width, at any place.
pub(super) fn notifications(balloon: &Balloon, chance: &mut Chance) {
    balloon.reset();
    balloon.negotiate(chance.bits());
    for round in 0..64 {
        if round == 32 {
            balloon.set_up(chance.below(u64::from(QUEUES)) as u16);
            balloon.go();
        }
        let queue = chance.of_these(&[0_u16, 1, 5, QUEUES, 100, 1023, 1024, 0x7fff, 0xffff]);
        let span = balloon.at.notify.length.max(8);
        let at = balloon.at.notify.address + (4 * chance.below(span / 4));
        match chance.below(3) {
            0 => write(at, queue),
            1 => write(at, u32::from(queue)),
            _ => write(at, queue as u8),
        }
    }
}

/// Interrupt vectors that do not exist; queues that do not exist; the window through which
/// registers can be reached from configuration space, pointed anywhere.
pub(super) fn vectors_and_windows(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    for queue in [0, 5, QUEUES, 64, 1023, 1024, 0xffff] {
        write(balloon.common(common::QUEUE_SELECT), queue);
        let vector = chance.of_these(&[0_u16, 1, 2, 0x7ff, 0x800, 0xfffe, 0xffff]);
        write(balloon.common(common::QUEUE_MSIX_VECTOR), vector);
        write(balloon.common(common::CONFIG_MSIX_VECTOR), vector);
        let _ = read::<u16>(balloon.common(common::QUEUE_MSIX_VECTOR));
        let _ = read::<u16>(balloon.common(common::QUEUE_SIZE));
    }
    send_pages(balloon, 0, arena_page(chance), 1);
    let (function, window) = (balloon.function, balloon.at.window);
    for _ in 0..32 {
        if window == 0 {
            break;
        }
        function.write(window + 4, chance.below(8) as u32);
        function
            .write(window + 8, chance.of_these(&[0, 0x1000, 0x2000, 0x3000, 0x4000, 0xffff_fffc]));
        function.write(window + 12, chance.of_these(&[0, 1, 2, 3, 4, 8, 0xffff_ffff]));
        let _ = function.read(window + 16);
    }
}

/// The function may not reach memory any more while requests are in flight.
pub(super) fn bus_master_off(balloon: &Balloon, chance: &mut Chance) {
    balloon.start(chance.bits());
    let rings = Rings::of(0);
    rings.describe(0, (arena_page(chance), 4096), 0, 0);
    rings.offer(0);
    balloon.notify(0);
    balloon.function.disable();
    balloon.function.enable();
    rings.describe(0, (no_memory(chance), 4096), 0, 0);
    rings.offer(0);
    balloon.notify(0);
}
