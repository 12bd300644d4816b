//! Descriptors and page numbers that make no sense. Each is counted, logged at a limited rate and
//! answered; the next request is served as if nothing had been.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Guest, MEMORY, PAGES, range};
use memtide_balloon::Event;
use memtide_balloon::fake::Buffer;
use memtide_units::ByteSize;
use memtide_wire::features::QueueRole;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Where the good request, the bad one, and a table of descriptors lie.
const GOOD: u64 = 2 * PAGES;
const BAD: u64 = 3 * PAGES;
const TABLE: u64 = 5 * PAGES;

/// The four queues that a stock driver has.
const STANDARD: [QueueRole; 4] =
    [QueueRole::Inflate, QueueRole::Deflate, QueueRole::Stats, QueueRole::Reporting];

const WITH_BLOCK: [QueueRole; 5] = [
    QueueRole::Inflate,
    QueueRole::Deflate,
    QueueRole::Stats,
    QueueRole::Reporting,
    QueueRole::Block,
];

/// The device lives: a request after the bad one is carried out and answered.
fn still_serves(guest: &mut Guest) {
    guest.host.dropped.clear();
    guest.take_used();
    let pfns = guest.pfns(GOOD, [0x900]);
    let head = guest.add(&[pfns]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped, [range(0x90_0000, 0x1000)]);
    assert_eq!(guest.take_used().last(), Some(&(head, 0)));
}

/// Offers the chain at descriptor 0, which must come back unused but for the statistics queue, which
/// keeps it, and be counted once for `reason`.
fn comes_back(guest: &mut Guest, role: QueueRole, reason: &str) {
    let before = guest.refused(reason);
    guest.driver.offer(&guest.memory, 0);
    guest.process(role);
    let answered = if role == QueueRole::Stats { vec![] } else { vec![(0, 0)] };
    assert_eq!(guest.take_used(), answered, "{role:?}");
    assert_eq!(
        guest.refused(reason),
        before + 1,
        "{role:?}: {:?}",
        guest.balloon.counters().refused
    );
    assert!(guest.host.dropped.is_empty(), "{role:?}");
}

fn chain(guest: &Guest, descriptors: &[(u64, u32, u16, u16)]) {
    for (index, fields) in descriptors.iter().enumerate() {
        guest.driver.put_descriptor(&guest.memory, index as u16, *fields);
    }
}

/// Writes an indirect table and a descriptor that refers to it.
fn table(guest: &Guest, head: (u32, u16), descriptors: &[(u64, u32, u16, u16)]) {
    let mut bytes = Vec::new();
    for (addr, len, flags, next) in descriptors {
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
    }
    guest.memory.write_slice(&bytes, GuestAddress(TABLE)).unwrap();
    guest.driver.put_descriptor(&guest.memory, 0, (TABLE, head.0, head.1, 0));
}

#[test]
fn chains_without_an_end_come_back() {
    type Chain = &'static [(u64, u32, u16, u16)];
    let chains: [(&str, Chain); 5] = [
        ("a loop of one", &[(BAD, 4, NEXT, 0)]),
        ("a loop of two", &[(BAD, 4, NEXT, 1), (BAD, 4, NEXT, 0)]),
        ("a next that is no descriptor", &[(BAD, 4, NEXT, 16)]),
        ("a next far out", &[(BAD, 4, NEXT, u16::MAX)]),
        ("more than 4 GiB", &[(0, u32::MAX, NEXT | WRITE, 1), (0, 2, WRITE, 0)]),
    ];
    for (what, descriptors) in chains {
        for role in WITH_BLOCK {
            println!("{what} on {role:?}");
            let mut guest = Guest::new();
            chain(&guest, descriptors);
            comes_back(&mut guest, role, "bad-chain");
            still_serves(&mut guest);
        }
    }
}

#[test]
fn bad_indirect_tables_come_back() {
    let good = (BAD, 4, 0, 0);
    let tables = [
        ("of no bytes", (0, INDIRECT), vec![good]),
        ("of a broken length", (17, INDIRECT), vec![good, good]),
        ("with more than 65535", (16 * 65_536, INDIRECT), vec![good]),
        ("nested", (16, INDIRECT), vec![(TABLE, 16, INDIRECT, 0)]),
        ("nested behind one", (32, INDIRECT), vec![(BAD, 4, NEXT, 1), (TABLE, 16, INDIRECT, 0)]),
        ("that loops", (32, INDIRECT), vec![(BAD, 4, NEXT, 1), (BAD, 4, NEXT, 0)]),
        ("whose next is out of it", (16, INDIRECT), vec![(BAD, 4, NEXT, 1)]),
    ];
    for (what, head, descriptors) in tables {
        for role in WITH_BLOCK {
            println!("a table {what} on {role:?}");
            let mut guest = Guest::new();
            table(&guest, head, &descriptors);
            comes_back(&mut guest, role, "bad-chain");
            still_serves(&mut guest);
        }
    }
    for outside in [MEMORY, MEMORY - 8, u64::MAX - 8] {
        let mut guest = Guest::new();
        guest.driver.put_descriptor(&guest.memory, 0, (outside, 32, INDIRECT, 0));
        comes_back(&mut guest, QueueRole::Inflate, "bad-chain");
    }
}

#[test]
fn a_chain_of_more_descriptors_than_anybody_needs_comes_back() {
    let mut guest = Guest::new();
    let mut descriptors = vec![(BAD, 1, NEXT, 0); 1025];
    descriptors.iter_mut().enumerate().for_each(|(n, fields)| fields.3 = n as u16 + 1);
    descriptors[1024].2 = 0;
    table(&guest, (16 * 1025, INDIRECT), &descriptors);
    comes_back(&mut guest, QueueRole::Inflate, "bad-chain");
    still_serves(&mut guest);
}

/// Virtio 1.3, 2.7.5.3.2: the write flag of the referring descriptor is ignored, and a table may
/// follow normal descriptors. `NEXT` beside `INDIRECT` is the driver's mistake and changes nothing.
#[test]
fn unusual_indirect_chains_are_carried_out() {
    for flags in [INDIRECT | WRITE, INDIRECT | NEXT] {
        let mut guest = Guest::new();
        let Buffer::Readable(at, len) = guest.pfns(BAD, [0x900]) else { unreachable!() };
        table(&guest, (16, flags), &[(at, len, 0, 0)]);
        guest.driver.offer(&guest.memory, 0);
        guest.process(QueueRole::Inflate);
        assert_eq!(guest.host.dropped, [range(0x90_0000, 0x1000)]);
    }
    let mut guest = Guest::new();
    let Buffer::Readable(at, _) = guest.pfns(BAD, [0x900, 0x902]) else { unreachable!() };
    table(&guest, (16, 0), &[(at + 4, 4, 0, 0)]);
    chain(&guest, &[(at, 4, NEXT, 1), (TABLE, 16, INDIRECT, 0)]);
    guest.driver.offer(&guest.memory, 0);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped.len(), 2);
    assert!(guest.balloon.counters().refused.is_empty());
}

#[test]
fn the_same_head_twice_is_answered_twice() {
    for role in [QueueRole::Inflate, QueueRole::Deflate, QueueRole::Reporting] {
        let mut guest = Guest::new();
        chain(&guest, &[(BAD, 4096, 0, 0)]);
        guest.driver.offer(&guest.memory, 0);
        guest.driver.offer(&guest.memory, 0);
        assert_eq!(guest.process(role).answered, 2, "{role:?}");
        still_serves(&mut guest);
    }
    let mut guest = Guest::new();
    chain(&guest, &[(BAD, 10, 0, 0)]);
    guest.driver.offer(&guest.memory, 0);
    guest.driver.offer(&guest.memory, 0);
    guest.process(QueueRole::Stats);
    assert_eq!(guest.take_used(), [(0, 0)], "one of them is kept");
}

/// Such a ring is given up until the driver sets it up anew: nothing on it can be believed.
#[test]
fn ring_indices_that_make_no_sense_end_that_ring_alone() {
    for role in WITH_BLOCK {
        let mut guest = Guest::new();
        guest.driver.set_available_index(&guest.memory, 17);
        assert!(guest.try_process(role).is_err(), "{role:?}: 17 chains in a ring of 16");
        guest.driver.set_available_index(&guest.memory, u16::MAX);
        assert!(guest.try_process(role).is_err(), "{role:?}: backwards");
        guest.driver.set_available_index(&guest.memory, 0);
        guest.driver.offer(&guest.memory, 16);
        let passed = guest.try_process(role);
        assert!(passed.is_err() || role == QueueRole::Stats, "{role:?}: a head that is none");
        assert!(guest.host.dropped.is_empty());
    }
}

#[test]
fn buffers_outside_memory_are_not_touched() {
    let places = [
        (MEMORY, 4),
        (MEMORY - 2, 4),
        (1 << 40, 4096),
        (u64::MAX - 3, 4),
        (u64::MAX, u32::MAX),
        (0, u32::MAX),
    ];
    for (at, len) in places {
        for role in STANDARD {
            println!("{len} bytes at {at:#x} on {role:?}");
            let mut guest = Guest::new();
            let direction = if role == QueueRole::Reporting { WRITE } else { 0 };
            chain(&guest, &[(at, len, direction, 0)]);
            guest.driver.offer(&guest.memory, 0);
            guest.process(role);
            assert_eq!(guest.take_used().len(), usize::from(role != QueueRole::Stats));
            let counted = guest.refused("outside-memory") + guest.refused("too-long");
            let reads_first = role == QueueRole::Stats && at == 0;
            assert!(
                counted == 1 || reads_first,
                "{role:?}: {:?}",
                guest.balloon.counters().refused
            );
            let inside = range(0, MEMORY);
            assert!(guest.host.dropped.iter().all(|range| inside.contains(*range)));
            still_serves(&mut guest);
        }
    }
}

#[test]
fn the_wrong_direction_is_counted_and_nothing_is_written() {
    for role in STANDARD {
        let mut guest = Guest::new();
        let pattern = [0x5a; 64];
        guest.memory.write_slice(&pattern, GuestAddress(BAD)).unwrap();
        let direction = if role == QueueRole::Reporting { 0 } else { WRITE };
        chain(&guest, &[(BAD, 64, direction, 0)]);
        comes_back(&mut guest, role, "wrong-direction");
        let mut after = [0; 64];
        guest.memory.read_slice(&mut after, GuestAddress(BAD)).unwrap();
        assert_eq!(after, pattern);
        still_serves(&mut guest);
    }
}

#[test]
fn requests_of_no_bytes_and_of_odd_bytes_are_counted() {
    for role in STANDARD {
        let mut guest = Guest::new();
        let direction = if role == QueueRole::Reporting { WRITE } else { 0 };
        chain(&guest, &[(BAD, 0, direction, 0)]);
        comes_back(&mut guest, role, "empty");
    }
    for role in [QueueRole::Inflate, QueueRole::Deflate, QueueRole::Stats] {
        let mut guest = Guest::new();
        chain(&guest, &[(BAD, 3, 0, 0)]);
        comes_back(&mut guest, role, "odd-length");
    }
    // The pages that an odd request does name are dropped.
    let mut guest = Guest::new();
    let Buffer::Readable(at, _) = guest.pfns(BAD, [0x900, 0x902]) else { unreachable!() };
    guest.add(&[Buffer::Readable(at, 7)]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped, [range(0x90_0000, 0x1000)]);
    assert_eq!(guest.refused("odd-length"), 1);
}

#[test]
fn a_report_of_parts_of_pages_drops_the_whole_ones() {
    let mut guest = Guest::new();
    guest.add(&[Buffer::Writable(8 * PAGES + 1, 8192 + 4095), Buffer::Writable(9 * PAGES, 100)]);
    guest.process(QueueRole::Reporting);
    assert_eq!(guest.host.dropped, [range(8 * PAGES + 4096, 8192)]);
    assert_eq!(guest.refused("misaligned"), 1);
}

#[test]
fn huge_requests_are_not_carried_out() {
    for role in [QueueRole::Inflate, QueueRole::Deflate] {
        let mut guest = Guest::new();
        chain(&guest, &[(BAD, 1 << 20, NEXT, 1), (BAD, 4, 0, 0)]);
        comes_back(&mut guest, role, "too-long");
        still_serves(&mut guest);
    }
}

#[test]
fn page_numbers_outside_memory_are_ignored_to_the_32_bit_edge() {
    let mut guest = Guest::new();
    let pages = (MEMORY >> 12) as u32;
    let pfns = guest.pfns(BAD, [0, pages - 1, pages, 1 << 20, u32::MAX - 1, u32::MAX]);
    let head = guest.add(&[pfns]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.take_used(), [(head, 0)]);
    assert_eq!(guest.host.dropped, [range(0, 4096), range(MEMORY - 4096, 4096)]);
    assert_eq!(guest.refused("outside-memory"), 3, "by range: two of them begin outside");
    assert_eq!(guest.balloon.counters().inflated, ByteSize::from_kib(8));
    // With memory up to just there, the last page number is a page.
    guest.host.dropped.clear();
    guest.balloon.set_memory([range(1 << 43, 1 << 43)], ByteSize::from_kib(4));
    let pfns = guest.pfns(BAD, [u32::MAX]);
    guest.add(&[pfns]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped, [range(0xffff_ffff << 12, 4096)]);
}

#[test]
fn page_numbers_in_the_hole_and_across_regions_drop_what_is_memory() {
    let mut guest = Guest::new();
    // As QEMU has it: memory to 640 KiB and from 768 KiB on, here in two regions that touch.
    let regions = [range(0, 0xa_0000), range(0xc_0000, 0x14_0000), range(0x20_0000, 0x20_0000)];
    guest.balloon.set_memory(regions, ByteSize::from_kib(4));
    let pfns = guest.pfns(BAD, 0x90..0x210);
    guest.add(&[pfns]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped, [range(0x9_0000, 0x1_0000), range(0xc_0000, 0x15_0000)]);
    assert_eq!(guest.refused("outside-memory"), 1);
    guest.host.dropped.clear();
    guest.add(&[Buffer::Writable(0x9_0000, 0x18_0000)]);
    guest.process(QueueRole::Reporting);
    assert_eq!(guest.host.dropped, [range(0x9_0000, 0x1_0000), range(0xc_0000, 0x15_0000)]);
}

#[test]
fn a_page_twice_is_one_page_and_is_counted() {
    let mut guest = Guest::new();
    let pfns = guest.pfns(BAD, [0x900, 0x901, 0x900, 0x900]);
    guest.add(&[pfns]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped, [range(0x90_0000, 0x2000)]);
    assert_eq!(guest.refused("page-twice"), 1);
    assert_eq!(guest.balloon.counters().inflated, ByteSize::from_kib(8));
    // In two requests it is dropped twice: what was touched in between goes again.
    let pfns = guest.pfns(BAD, [0x900]);
    guest.add(&[pfns]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped.len(), 2);
}

#[test]
fn deflating_what_is_not_inflated_is_answered_and_drops_nothing() {
    let mut guest = Guest::new();
    let pfns = guest.pfns(BAD, [0x900, 0x900, u32::MAX]);
    let head = guest.add(&[pfns]);
    guest.process(QueueRole::Deflate);
    assert_eq!(guest.take_used(), [(head, 0)]);
    assert_eq!(guest.refused("page-twice"), 1);
    assert!(guest.host.dropped.is_empty());
}

/// Whichever of the two is seen first: a page is dropped before its inflate is answered and at no
/// other time, so it is the guest's own once both are.
#[test]
fn a_deflate_that_comes_before_its_inflate_was_answered_is_harmless() {
    for order in
        [[QueueRole::Inflate, QueueRole::Deflate], [QueueRole::Deflate, QueueRole::Inflate]]
    {
        let mut guest = Guest::new();
        for role in order {
            let pfns = guest.pfns(BAD, [0x900]);
            let head = guest.add(&[pfns]);
            guest.process(role);
            assert_eq!(guest.take_used(), [(head, 0)]);
        }
        assert_eq!(guest.host.dropped.len(), 1);
        still_serves(&mut guest);
    }
}

#[test]
fn a_guest_that_does_nothing_else_does_not_fill_the_log() {
    let mut guest = Guest::new();
    chain(&guest, &[(BAD, 4, NEXT, 0)]);
    for _ in 0..1000 {
        guest.driver.offer(&guest.memory, 0);
        guest.process(QueueRole::Inflate);
    }
    assert_eq!(guest.refused("bad-chain"), 1000);
    let events = guest.balloon.take_events();
    let lines = events.iter().filter(|event| matches!(event, Event::Refused { .. })).count();
    assert_eq!(lines, 10);
}
