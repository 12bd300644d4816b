//! A host that cannot drop backing: counted by kind, the guest answered, the books right.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Guest, MEMORY, PAGES, range};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{Event, FailKind, Moment, Rings};
use memtide_units::{BlockSize, ByteSize, GpaRange};
use memtide_wire::block::{Hello, RefuseReason, Request, Response, Verdict};
use memtide_wire::features::QueueRole;

const KINDS: [FailKind; 7] = [
    FailKind::Interrupted,
    FailKind::NoSpace,
    FailKind::Io,
    FailKind::Invalid,
    FailKind::Forbidden,
    FailKind::Outside,
    FailKind::Other,
];

const BLOCK: u64 = 2 << 20;

/// A guest whose host fails for the pages from 8 MiB to 12 MiB.
fn failing(kind: FailKind) -> Guest {
    let mut guest = Guest::new();
    guest.host.failing = vec![(range(8 * PAGES, 4 * PAGES), kind)];
    guest
}

fn ask(guest: &mut Guest, request: &Request) -> Response {
    let mut moment = Moment { now: guest.now, host: &mut guest.host };
    guest.balloon.answer(&request.encode(1), &mut moment)
}

fn hello(guest: &mut Guest, stolen: Vec<GpaRange>) -> Verdict {
    guest.balloon.set_rings(Rings::WithBlock);
    let request = Request::Hello(Hello {
        ejected: Vec::new(),
        epoch: guest.balloon.hello_epoch(),
        block_size: BlockSize::new(ByteSize::from_bytes(BLOCK)).unwrap(),
        present: ByteSize::from_bytes(MEMORY),
        online: ByteSize::from_bytes(MEMORY),
        min: ByteSize::ZERO,
        max: ByteSize::MAX,
        stolen,
    });
    ask(guest, &request).verdict
}

#[test]
fn inflate_is_answered_and_the_other_pages_go() {
    for kind in KINDS {
        let mut guest = failing(kind);
        let pfns = guest.pfns(2 * PAGES, [0x700, 0x900, 0xd00]);
        let head = guest.add(&[pfns]);
        guest.process(QueueRole::Inflate);
        assert_eq!(guest.take_used(), [(head, 0)]);
        assert_eq!(guest.host.dropped, [range(0x70_0000, 0x1000), range(0xd0_0000, 0x1000)]);
        assert_eq!((guest.refused(kind.name()), guest.host.failures), (1, 1), "tried once");
        let counters = guest.balloon.counters();
        assert_eq!((counters.punch_errors, counters.punches), (1, 2));
        assert_eq!(counters.inflated, ByteSize::from_kib(12), "it is in the balloon all the same");
    }
}

#[test]
fn a_report_is_answered_and_the_other_pages_go() {
    for kind in KINDS {
        let mut guest = failing(kind);
        let pages = [4, 8, 16].map(|at| Buffer::Writable(at * PAGES, 0x20_0000));
        let head = guest.add(&pages);
        guest.process(QueueRole::Reporting);
        assert_eq!(guest.take_used(), [(head, 0)]);
        assert_eq!(guest.host.dropped.len(), 2);
        assert_eq!((guest.refused(kind.name()), guest.host.failures), (1, 1));
    }
}

#[test]
fn a_steal_is_refused_and_the_map_stays() {
    for kind in KINDS {
        let mut guest = failing(kind);
        assert_eq!(hello(&mut guest, vec![range(16 * PAGES, BLOCK)]), Verdict::Ok);
        let steal = Request::Steal(vec![range(4 * PAGES, BLOCK), range(8 * PAGES, BLOCK)]);
        let refused = Verdict::Refused(RefuseReason::ReclaimFailed);
        assert_eq!(ask(&mut guest, &steal).verdict, refused);
        assert_eq!(guest.balloon.stolen().total().bytes(), BLOCK);
        assert_eq!(guest.balloon.counters().stolen.bytes(), 0);
        assert_eq!((guest.refused(kind.name()), guest.refused("reclaim-failed")), (1, 1));
        guest.host.failing.clear();
        assert_eq!(ask(&mut guest, &steal).verdict, Verdict::Ok, "it may be asked again");
    }
}

#[test]
fn a_hello_stands_though_a_block_of_it_stays_resident() {
    for kind in KINDS {
        let mut guest = failing(kind);
        let map = vec![range(8 * PAGES, BLOCK), range(16 * PAGES, BLOCK)];
        assert_eq!(hello(&mut guest, map), Verdict::Ok);
        assert_eq!(guest.balloon.stolen().len(), 2);
        assert_eq!(guest.host.dropped, [range(16 * PAGES, BLOCK)]);
        assert_eq!(guest.refused(kind.name()), 1);
    }
}

/// The host's table is one message ahead of the model's: nothing but a count comes of it.
#[test]
fn a_region_that_is_gone_meanwhile_is_counted() {
    let mut guest = failing(FailKind::Outside);
    for _ in 0..100 {
        guest.add(&[Buffer::Writable(8 * PAGES, 4096)]);
        guest.process(QueueRole::Reporting);
    }
    assert_eq!(guest.refused("reclaim-outside"), 100);
    let lines = guest.balloon.take_events();
    let lines = lines.iter().filter(|event| matches!(event, Event::Refused { .. })).count();
    assert_eq!(lines, 10, "and logged at a limited rate");
}

#[test]
fn neighbouring_blocks_of_one_steal_go_as_one() {
    let mut guest = Guest::new();
    assert_eq!(hello(&mut guest, vec![]), Verdict::Ok);
    let blocks = [3, 5, 4].map(|n| range(n * BLOCK, BLOCK));
    assert_eq!(ask(&mut guest, &Request::Steal(blocks.to_vec())).verdict, Verdict::Ok);
    assert_eq!(guest.host.dropped, [range(3 * BLOCK, 3 * BLOCK)]);
}
