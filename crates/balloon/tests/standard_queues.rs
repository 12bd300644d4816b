//! The standard queues, driven ring by ring.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Guest, MEMORY, PAGES, range};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{Interrupt, Left, Pass, Ring};
use memtide_units::{Gpa, Instant};
use memtide_wire::features::QueueRole;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn linux_pages_become_few_ranges() {
    let mut guest = Guest::new();
    // As Linux sends them: from the top down, in runs.
    let pfns = guest.pfns(2 * PAGES, (0x900..0x980).rev().chain([0x700, 0x702, 0x701]));
    let head = guest.add(&[pfns]);
    let pass = guest.process(QueueRole::Inflate);
    assert_eq!(pass, Pass { answered: 1, interrupt: Interrupt::Wanted, left: Left::Nothing });
    assert_eq!(guest.host.dropped, [range(0x70_0000, 0x3000), range(0x90_0000, 0x80_000)]);
    assert_eq!(guest.take_used(), [(head, 0)]);
}

#[test]
fn a_request_in_many_buffers_is_one_request() {
    let mut guest = Guest::new();
    // The array is cut in the middle of a number, too.
    let Buffer::Readable(at, len) = guest.pfns(2 * PAGES, 0x800..0x900) else { unreachable!() };
    guest.add(&[
        Buffer::Readable(at, 6),
        Buffer::Readable(at + 6, 0),
        Buffer::Readable(at + 6, len - 6),
    ]);
    guest.process(QueueRole::Inflate);
    assert_eq!(guest.host.dropped, [range(0x80_0000, 0x10_0000)]);
}

#[test]
fn a_pass_ends_before_others_starve_and_the_next_goes_on() {
    let mut guest = Guest::new();
    let all = Buffer::Writable(0, MEMORY as u32);
    for _ in 0..6 {
        guest.add(&[all]);
    }
    // 256 MiB are enough for one pass.
    let first = guest.process(QueueRole::Reporting);
    assert_eq!((first.answered, first.left), (4, Left::More));
    let second = guest.process(QueueRole::Reporting);
    assert_eq!((second.answered, second.left), (2, Left::Nothing));
}

#[test]
fn a_host_that_fails_is_counted_and_the_guest_gets_its_answer() {
    let mut guest = Guest::new();
    guest.host.fails_from = Some(Gpa(0x80_0000));
    let pfns = guest.pfns(2 * PAGES, [0x700, 0x900]);
    guest.add(&[pfns]);
    assert_eq!(guest.process(QueueRole::Inflate).answered, 1);
    assert_eq!(guest.host.dropped, [range(0x70_0000, 0x1000)]);
    assert_eq!(guest.balloon.counters().punch_errors, 1);
}

#[test]
fn a_driver_that_polls_is_not_interrupted() {
    let mut guest = Guest::new();
    let flags = GuestAddress(guest.driver.available_ring());
    guest.memory.write_obj(1_u16.to_le(), flags).unwrap();
    let pfns = guest.pfns(2 * PAGES, [0x700]);
    guest.add(&[pfns]);
    assert_eq!(guest.process(QueueRole::Inflate).interrupt, Interrupt::NotWanted);
}

#[test]
fn indices_wrap_at_sixteen_bits() {
    let mut guest = Guest::new();
    let mut answered = 0;
    let pfns = guest.pfns(2 * PAGES, [0x700]);
    for _ in 0..70_000_u32 {
        guest.add(&[pfns]);
        answered += guest.process(QueueRole::Inflate).answered;
    }
    assert_eq!(answered, 70_000);
    assert_eq!(guest.take_used().len(), 70_000 % 65_536);
    assert_eq!(guest.queue.next_avail(), (70_000_u32 % 65_536) as u16);
}

#[test]
fn one_statistics_buffer_is_kept_and_given_back_when_it_is_time() {
    let mut guest = Guest::new();
    let stat = |value: u64| [&4_u16.to_le_bytes()[..], &value.to_le_bytes()].concat();
    guest.memory.write_slice(&stat(5), GuestAddress(2 * PAGES)).unwrap();
    let first = guest.add(&[Buffer::Readable(2 * PAGES, 10)]);
    assert_eq!(guest.process(QueueRole::Stats).interrupt, Interrupt::NotWanted);
    assert_eq!(guest.balloon.statistics()[0].value, 5);
    assert_eq!(guest.balloon.stats_due(guest.now), None, "nobody reads them");
    // A driver that hands in a second one gets the first back.
    let second = guest.add(&[Buffer::Readable(2 * PAGES, 10)]);
    guest.process(QueueRole::Stats);
    assert_eq!(guest.take_used(), [(first, 0)]);
    guest.balloon.want_stats(guest.now);
    let mut ring = Ring { queue: &mut guest.queue, memory: &guest.memory };
    assert_eq!(guest.balloon.ask_stats(&mut ring, guest.now).unwrap(), Interrupt::Wanted);
    assert_eq!(guest.take_used(), [(second, 0)]);
    // The next one is asked for a second later, unless nobody has read for long.
    guest.add(&[Buffer::Readable(2 * PAGES, 10)]);
    guest.process(QueueRole::Stats);
    assert_eq!(guest.balloon.stats_due(guest.now), Some(Instant::from_millis(1000)));
    assert_eq!(guest.balloon.stats_due(Instant::from_millis(40_000)), None);
}

#[test]
fn stopping_the_statistics_ring_gives_the_buffer_back_untaken() {
    let mut guest = Guest::new();
    guest.add(&[Buffer::Readable(2 * PAGES, 10)]);
    guest.process(QueueRole::Stats);
    assert_eq!(guest.queue.next_avail(), 1);
    guest.balloon.ring_stops(QueueRole::Stats, &mut guest.queue);
    guest.balloon.ring_stops(QueueRole::Stats, &mut guest.queue);
    assert_eq!(guest.queue.next_avail(), 0);
}
