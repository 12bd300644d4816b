//! A guest that fills its free pages with a value finds that value in them again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Guest, PAGES, range};
use memtide_balloon::Rings;
use memtide_balloon::fake::Buffer;
use memtide_wire::features::{PAGE_POISON, QueueRole, REPORTING, STATS_VQ};

/// Offset of `poison_val`, and what a kernel with `page_poison=1` writes there (`PAGE_POISON` of
/// include/linux/poison.h, four times).
const POISON_AT: usize = 12;
const AA: u32 = 0xaaaa_aaaa;

fn poison_val(guest: &Guest) -> u32 {
    let mut bytes = [0xff; 4];
    guest.balloon.read_config(POISON_AT, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// As QEMU passes it on: the value before `DRIVER_OK`, then the features, then the rings.
fn start(guest: &mut Guest, poison: Option<u32>) {
    guest.balloon.set_rings(Rings::Stopped);
    if let Some(poison) = poison {
        guest.balloon.write_config(POISON_AT, &poison.to_le_bytes());
    }
    let poisons = if poison.is_some() { PAGE_POISON } else { 0 };
    guest.balloon.set_features(STATS_VQ | REPORTING | poisons);
    guest.balloon.set_rings(Rings::Standard);
}

fn report(guest: &mut Guest) -> usize {
    let head = guest.add(&[Buffer::Writable(8 * PAGES, 0x20_0000)]);
    guest.process(QueueRole::Reporting);
    assert_eq!(guest.take_used(), [(head, 0)], "a report is answered, whatever is done with it");
    guest.host.dropped.drain(..).len()
}

#[test]
fn it_is_offered_so_that_such_guests_keep_reporting() {
    // Linux gives up reporting where it initialises free pages and cannot say so
    // (`virtballoon_validate`).
    assert_ne!(Guest::new().balloon.offered_features() & PAGE_POISON, 0);
}

#[test]
fn reported_pages_stay_where_a_hole_would_change_them() {
    let mut guest = Guest::new();
    start(&mut guest, Some(AA));
    assert_eq!(report(&mut guest), 0);
    assert_eq!(guest.balloon.counters().refused["page-poison"], 1);
    assert_eq!(guest.balloon.counters().reported.bytes(), 0);
}

#[test]
fn zeroed_pages_go_since_a_hole_reads_as_zeros() {
    let mut guest = Guest::new();
    start(&mut guest, Some(0));
    assert_eq!(report(&mut guest), 1);
    assert!(guest.balloon.counters().refused.is_empty());
}

#[test]
fn what_the_guest_inflates_goes_with_any_poison() {
    let mut guest = Guest::new();
    start(&mut guest, Some(AA));
    let pfns = guest.pfns(2 * PAGES, 0x800..0x900);
    guest.add(&[pfns]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped, [range(0x80_0000, 0x10_0000)]);
}

#[test]
fn a_paused_vm_goes_on_with_the_poison_that_its_driver_named() {
    let mut guest = Guest::new();
    start(&mut guest, Some(AA));
    guest.balloon.set_rings(Rings::Stopped);
    guest.balloon.set_features(STATS_VQ | REPORTING | PAGE_POISON);
    guest.balloon.set_rings(Rings::Standard);
    assert_eq!(report(&mut guest), 0, "nobody tells the value a second time");
}

#[test]
fn the_next_driver_starts_without_it() {
    let mut guest = Guest::new();
    start(&mut guest, Some(AA));
    start(&mut guest, None);
    assert_eq!(poison_val(&guest), 0);
    assert_eq!(report(&mut guest), 1);
    start(&mut guest, Some(AA));
    start(&mut guest, Some(0));
    assert_eq!(report(&mut guest), 1, "a kernel booted with other options");
    start(&mut guest, Some(AA));
    guest.balloon.vmm_left();
    assert_eq!(poison_val(&guest), 0);
}

#[test]
fn it_is_read_and_written_only_as_negotiated() {
    let mut guest = Guest::new();
    start(&mut guest, None);
    // QEMU writes all fields back when a driver writes `actual`.
    guest.balloon.write_config(0, &[0xaa; 16]);
    assert_eq!(poison_val(&guest), 0);
    assert_eq!(guest.balloon.actual().bytes(), 0xaaaa_aaaa << 12, "its neighbour is taken");
    assert_eq!(report(&mut guest), 1);
    start(&mut guest, Some(AA));
    assert_eq!(poison_val(&guest), AA);
    guest.balloon.write_config(POISON_AT + 1, &[0; 3]);
    assert_eq!(poison_val(&guest), AA, "a part of a field is no value");
}

#[test]
fn a_device_that_took_anothers_place_does_not_guess_the_poison() {
    let mut guest = Guest::new();
    guest.balloon.set_rings(Rings::Stopped);
    guest.balloon.set_features(STATS_VQ | REPORTING | PAGE_POISON);
    guest.balloon.set_rings(Rings::Standard);
    assert_eq!(report(&mut guest), 0, "its driver has told somebody else");
    // The VMM writes the whole space for another field, with the zero that it has read here.
    let mut space = [0; 64];
    space[4] = 3;
    guest.balloon.write_config(0, &space);
    assert_eq!(guest.balloon.actual().bytes(), 3 << 12);
    assert_eq!(report(&mut guest), 0);
    start(&mut guest, Some(0));
    assert_eq!(report(&mut guest), 1, "the next driver says what it wants");
}
