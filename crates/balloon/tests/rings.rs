//! What the standard says of split virtqueues, beside the order of answers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Guest, PAGES};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{FreePageReporting, Interrupt, OomDeflate, Pass, Rings, Settings};
use memtide_wire::block::{RESPONSE_LEN, Request};
use memtide_wire::features::{DEFLATE_ON_OOM, QueueRole, REPORTING};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

const ROLES: [QueueRole; 6] = [
    QueueRole::Inflate,
    QueueRole::Deflate,
    QueueRole::Stats,
    QueueRole::Hinting,
    QueueRole::Reporting,
    QueueRole::Block,
];

fn inflate_one(guest: &mut Guest) -> Interrupt {
    let pfns = guest.pfns(2 * PAGES, [0x900]);
    guest.add(&[pfns]);
    guest.process(QueueRole::Inflate).interrupt
}

/// `used_event`, behind the available ring's entries.
fn set_used_event(guest: &Guest, index: u16) {
    let at = guest.driver.available_ring() + 4 + 2 * u64::from(guest.driver.size());
    guest.memory.write_obj(index.to_le(), GuestAddress(at)).unwrap();
}

fn set_flags(guest: &Guest, flags: u16) {
    let at = GuestAddress(guest.driver.available_ring());
    guest.memory.write_obj(flags.to_le(), at).unwrap();
}

#[test]
fn without_event_indices_the_flag_decides() {
    let mut guest = Guest::new();
    set_used_event(&guest, 40);
    assert_eq!(inflate_one(&mut guest), Interrupt::Wanted);
    set_flags(&guest, 1);
    assert_eq!(inflate_one(&mut guest), Interrupt::NotWanted);
}

#[test]
fn with_event_indices_the_index_decides() {
    let mut guest = Guest::new();
    guest.queue.set_event_idx(true);
    set_flags(&guest, 1);
    set_used_event(&guest, 2);
    let interrupts: Vec<Interrupt> = (0..5).map(|_| inflate_one(&mut guest)).collect();
    let wanted = |n: &usize| interrupts[*n] == Interrupt::Wanted;
    assert_eq!((0..5).filter(wanted).collect::<Vec<_>>(), [2], "the third buffer, no other");
}

#[test]
fn a_device_that_works_wants_to_be_told_of_more() {
    for event_idx in [false, true] {
        let mut guest = Guest::new();
        guest.queue.set_event_idx(event_idx);
        inflate_one(&mut guest);
        let flags: u16 = guest.memory.read_obj(GuestAddress(guest.driver.used_ring())).unwrap();
        assert_eq!(flags, 0);
        let avail_event = guest.driver.used_ring() + 4 + 8 * u64::from(guest.driver.size());
        let avail_event: u16 = guest.memory.read_obj(GuestAddress(avail_event)).unwrap();
        assert_eq!(avail_event, u16::from(event_idx), "the next buffer is told of");
    }
}

#[test]
fn a_kick_for_nothing_does_nothing() {
    for role in ROLES {
        let mut guest = Guest::new();
        assert_eq!(guest.process(role), Pass::default(), "{role:?}");
    }
}

#[test]
fn descriptors_and_readable_buffers_are_never_written() {
    for role in ROLES {
        let mut guest = Guest::new();
        guest.balloon.set_rings(Rings::WithBlock);
        let request = guest.bytes(2 * PAGES, &Request::Goodbye.encode(7));
        guest.add(&[request, Buffer::Writable(3 * PAGES, 64)]);
        let seen = |guest: &Guest| {
            let (mut table, mut sent) = ([0; 16 * 16], [0; 64]);
            let descriptors = GuestAddress(guest.driver.descriptors());
            guest.memory.read_slice(&mut table, descriptors).unwrap();
            guest.memory.read_slice(&mut sent, GuestAddress(2 * PAGES)).unwrap();
            (table, sent)
        };
        let before = seen(&guest);
        guest.process(role);
        assert!(seen(&guest) == before, "{role:?}");
    }
}

#[test]
fn the_used_length_is_what_was_written() {
    let mut guest = Guest::new();
    guest.balloon.set_rings(Rings::WithBlock);
    let request = guest.bytes(2 * PAGES, &Request::Goodbye.encode(7));
    // The answer may lie in pieces, and behind readable ones in any arrangement.
    let head =
        guest.add(&[request, Buffer::Writable(3 * PAGES, 5), Buffer::Writable(3 * PAGES + 5, 200)]);
    guest.process(QueueRole::Block);
    assert_eq!(guest.take_used(), [(head, RESPONSE_LEN as u32)]);
    for role in [QueueRole::Inflate, QueueRole::Deflate, QueueRole::Reporting] {
        let mut guest = Guest::new();
        let pfns = guest.pfns(2 * PAGES, [0x900]);
        let head = guest.add(&[pfns, Buffer::Writable(8 * PAGES, 4096)]);
        guest.process(role);
        assert_eq!(guest.take_used(), [(head, 0)], "{role:?}");
    }
}

#[test]
fn deflate_on_oom_is_an_option() {
    let offered = |oom_deflate| {
        let settings = Settings { oom_deflate, ..Settings::default() };
        Guest::with(settings).balloon.offered_features() & DEFLATE_ON_OOM
    };
    assert_eq!(offered(OomDeflate::NotOffered), 0);
    assert_eq!(offered(OomDeflate::Offered), DEFLATE_ON_OOM);
}

#[test]
fn free_page_reporting_can_be_left_to_another_balloon() {
    let offered = |free_page_reporting| {
        let settings = Settings { free_page_reporting, ..Settings::default() };
        Guest::with(settings).balloon.offered_features() & REPORTING
    };
    assert_eq!(offered(FreePageReporting::Offered), REPORTING);
    assert_eq!(offered(FreePageReporting::NotOffered), 0);
}

#[test]
fn every_field_can_be_read_before_features_are_agreed_on() {
    let guest = Guest::new();
    let mut bytes = [0xff; 64];
    guest.balloon.read_config(0, &mut bytes);
    assert_eq!(bytes[..16], [0; 16]);
    assert_eq!(&bytes[16..20], b"MTDE");
}

#[test]
fn statistics_keep_their_order_what_is_unknown_and_what_comes_twice() {
    let mut guest = Guest::new();
    let tags = [15_u16, 0, 7, 999, 7, u16::MAX];
    let bytes: Vec<u8> = tags
        .iter()
        .zip(1_u64..)
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect();
    let buffer = guest.bytes(2 * PAGES, &bytes);
    guest.add(&[buffer]);
    guest.process(QueueRole::Stats);
    let seen: Vec<(u16, u64)> =
        guest.balloon.statistics().iter().map(|stat| (stat.tag, stat.value)).collect();
    assert_eq!(seen, tags.into_iter().zip(1..).collect::<Vec<_>>());
    assert!(guest.balloon.counters().refused.is_empty());
}
