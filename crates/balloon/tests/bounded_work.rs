//! What one guest can make its device do before others get their turn has a limit.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use memtide_balloon::fake::{Buffer, FakeDriver, FakeHost};
use memtide_balloon::{Balloon, Interrupt, Left, Moment, Pass, Ring, Rings, Settings};
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::{Hello, RESPONSE_LEN, RefuseReason, Request, Response, Verdict};
use memtide_wire::features::QueueRole;
use memtide_wire::pfn::{PFN_LEN, PFNS_MAX};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 4 << 20;
const RING: u64 = 0x4000;
const ANSWER: u64 = 0x8000;
const REQUEST: u64 = 1 << 20;

struct World {
    memory: GuestMemoryMmap,
    driver: FakeDriver,
    queue: virtio_queue::Queue,
    balloon: Balloon,
}

impl World {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let driver = FakeDriver::new(RING, 128);
        let mut balloon = Balloon::new(Settings::default(), Instant::from_millis(0));
        let all = GpaRange::new(Gpa(0), ByteSize::from_bytes(MEMORY)).unwrap();
        balloon.set_memory([all], ByteSize::from_kib(4));
        balloon.set_rings(Rings::WithBlock);
        let queue = driver.queue();
        Self { memory, driver, queue, balloon }
    }

    fn pass(&mut self, role: QueueRole, now: Instant) -> Pass {
        let mut ring = Ring { queue: &mut self.queue, memory: &self.memory };
        let mut moment = Moment { now, host: &mut FakeHost::default() };
        self.balloon.process(role, &mut ring, &mut moment).unwrap()
    }
}

#[test]
fn a_pass_ends_though_nothing_is_reclaimed() {
    let mut world = World::new();
    // Every second page from 4 GiB on: no two are neighbours, and none is memory.
    let frames: Vec<u8> =
        (0..PFNS_MAX as u32).flat_map(|n| (2 * n + (1 << 20)).to_le_bytes()).collect();
    world.memory.write_slice(&frames, GuestAddress(REQUEST)).unwrap();
    for _ in 0..64 {
        let request = Buffer::Readable(REQUEST, (PFNS_MAX * PFN_LEN) as u32);
        world.driver.add(&world.memory, &[request]);
    }
    let pass = world.pass(QueueRole::Inflate, Instant::from_millis(0));
    assert_eq!((pass.answered, pass.left), (1, Left::More));
}

#[test]
fn a_pass_ends_though_its_chains_hold_nothing() {
    const LONGEST: u16 = 1024;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let descriptor = |at: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    };
    let mut world = World::new();
    // One byte of a page each: all of it is looked at, none of it is read or can go.
    let next = |n: u16| if n < LONGEST { NEXT } else { 0 };
    let table: Vec<u8> =
        (1..=LONGEST).flat_map(|n| descriptor(ANSWER, 1, WRITE | next(n), n)).collect();
    world.memory.write_slice(&table, GuestAddress(REQUEST)).unwrap();
    for head in 0..128 {
        let indirect = (REQUEST, table.len() as u32, INDIRECT, 0);
        world.driver.put_descriptor(&world.memory, head, indirect);
        world.driver.offer(&world.memory, head);
    }
    let mut passes = Vec::new();
    while passes.last().is_none_or(|pass: &Pass| pass.left == Left::More) {
        passes.push(world.pass(QueueRole::Reporting, Instant::from_millis(0)));
    }
    let answered: Vec<u32> = passes.iter().map(|pass| pass.answered).collect();
    assert!(answered.iter().all(|chains| *chains <= 64), "{answered:?}");
    assert_eq!(answered.iter().sum::<u32>(), 128);
}

#[test]
fn a_guest_that_talks_too_much_waits_and_then_goes_on() {
    let mut world = World::new();
    let request = Request::Goodbye.encode(1);
    world.memory.write_slice(&request, GuestAddress(REQUEST)).unwrap();
    let (mut now, mut answered) = (Instant::from_millis(0), 0);
    for _ in 0..1000 {
        let buffers = [
            Buffer::Readable(REQUEST, request.len() as u32),
            Buffer::Writable(ANSWER, RESPONSE_LEN as u32),
        ];
        world.driver.add(&world.memory, &buffers);
        let pass = world.pass(QueueRole::Block, now);
        answered += pass.answered;
        if let Left::Until(when) = pass.left {
            assert!(when > now && answered > 200, "a burst is let through");
            now = when;
        }
    }
    // What waited when the last one came is answered in its time.
    assert!(answered >= 999);
    assert!((2500..3500).contains(&now.as_millis()), "1000 small requests took {now:?}");
}

const GIB: u64 = 1 << 30;

/// A guest of 64 GiB, whose agent has said hello; what the device reads and writes lies at its start.
fn large() -> (World, FakeHost) {
    let mut world = World::new();
    let all = GpaRange::new(Gpa(0), ByteSize::from_gib(64)).unwrap();
    world.balloon.set_memory([all], ByteSize::from_kib(4));
    (world, FakeHost::default())
}

impl World {
    fn pass_on(&mut self, role: QueueRole, host: &mut FakeHost) -> Pass {
        let mut ring = Ring { queue: &mut self.queue, memory: &self.memory };
        let mut moment = Moment { now: Instant::from_millis(0), host };
        self.balloon.process(role, &mut ring, &mut moment).unwrap()
    }

    fn ask(&mut self, request: &Request) {
        self.ask_at(0, request);
    }

    fn ask_at(&mut self, page: u64, request: &Request) {
        let (at, answer) = (REQUEST + 4096 * page, ANSWER + 64 * page);
        let bytes = request.encode(1);
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        let buffers = [
            Buffer::Readable(at, bytes.len() as u32),
            Buffer::Writable(answer, RESPONSE_LEN as u32),
        ];
        self.driver.add(&self.memory, &buffers);
    }

    fn answer(&self) -> Response {
        let mut bytes = [0; RESPONSE_LEN];
        self.memory.read_slice(&mut bytes, GuestAddress(ANSWER)).unwrap();
        Response::decode(&bytes).unwrap()
    }
}

fn hello() -> Request {
    let (block, whole) = (BlockSize::new(ByteSize::from_mib(128)).unwrap(), ByteSize::from_gib(64));
    Request::Hello(Hello {
        ejected: Vec::new(),
        epoch: 1,
        block_size: block,
        present: whole,
        online: whole,
        min: ByteSize::ZERO,
        max: whole,
        stolen: vec![],
    })
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), ByteSize::from_bytes(len)).unwrap()
}

#[test]
fn a_steal_of_nearly_everything_goes_slice_by_slice_and_is_answered_once() {
    let (mut world, mut host) = large();
    world.ask(&hello());
    world.pass_on(QueueRole::Block, &mut host);
    world.ask(&Request::Steal(vec![range(GIB, 62 * GIB)]));
    // What the request says is not looked at again.
    let (mut passes, mut answered) = (0, 0);
    loop {
        let pass = world.pass_on(QueueRole::Block, &mut host);
        world.memory.write_slice(&[0xff; 64], GuestAddress(REQUEST)).unwrap();
        answered += pass.answered;
        assert_eq!(world.balloon.stolen().is_empty(), answered == 0, "when all has gone");
        if pass.left == Left::Nothing {
            break;
        }
        passes += 1;
        assert!(passes < 1000);
    }
    assert!(passes >= 62 * 4 - 1, "{passes} passes of 256 MiB");
    assert_eq!(host.dropped.iter().map(|range| range.len()).max(), Some(ByteSize::from_mib(256)));
    assert_eq!(world.balloon.stolen().total(), ByteSize::from_gib(62));
    assert_eq!(world.answer().bytes, ByteSize::from_gib(62));
    assert_eq!(world.driver.take_used(&world.memory).len(), 2);
}

/// Its driver has the next one ready by the time that the second is done.
#[test]
fn a_driver_with_two_steals_in_the_ring_hears_of_the_first_before_the_second_begins() {
    let (mut world, mut host) = large();
    world.ask(&hello());
    world.pass_on(QueueRole::Block, &mut host);
    let ranges = [range(GIB, GIB / 8), range(2 * GIB, GIB / 8)];
    for (page, range) in (0..).zip(ranges) {
        world.ask_at(page, &Request::Steal(vec![range]));
    }
    for gone in 1..=2 {
        let pass = world.pass_on(QueueRole::Block, &mut host);
        assert_eq!((pass.answered, pass.interrupt), (1, Interrupt::Wanted));
        assert_eq!(pass.left, Left::More);
        assert_eq!(host.dropped, ranges[..gone]);
    }
    assert_eq!(world.pass_on(QueueRole::Block, &mut host).left, Left::Nothing);
}

#[test]
fn a_ring_that_stops_in_the_middle_has_its_request_back() {
    let (mut world, mut host) = large();
    world.ask(&hello());
    world.pass_on(QueueRole::Block, &mut host);
    world.ask(&Request::Steal(vec![range(GIB, 8 * GIB)]));
    assert_eq!(world.pass_on(QueueRole::Block, &mut host).left, Left::More);
    world.balloon.ring_stops(QueueRole::Block, &mut world.queue);
    assert_eq!((world.queue.next_avail(), world.queue.next_used()), (1, 1));
    world.balloon.set_rings(Rings::Stopped);
    assert!(world.balloon.stolen().is_empty());
    // Where it starts again its agent has to greet first: the request is refused, not half done.
    let gone = host.dropped.len();
    world.balloon.set_rings(Rings::WithBlock);
    assert_eq!(world.pass_on(QueueRole::Block, &mut host).answered, 1);
    assert_eq!(world.answer().verdict, Verdict::Refused(RefuseReason::NoHello));
    assert_eq!(host.dropped.len(), gone);
}

#[test]
fn a_report_of_everything_again_and_again_ends_in_between() {
    let (mut world, mut host) = large();
    let pages = [Buffer::Writable(GIB, u32::MAX - 4095), Buffer::Writable(8 * GIB, 1 << 31)];
    world.driver.add(&world.memory, &pages);
    world.driver.add(&world.memory, &pages);
    let mut passes = vec![];
    loop {
        let before = host.dropped.len();
        let pass = world.pass_on(QueueRole::Reporting, &mut host);
        let sizes = host.dropped[before..].iter().map(|range| range.len());
        passes.push(sizes.sum::<ByteSize>());
        if pass.left == Left::Nothing {
            break;
        }
    }
    assert!(passes.iter().all(|bytes| *bytes <= ByteSize::from_mib(512)), "{passes:?}");
    assert_eq!(world.driver.take_used(&world.memory).len(), 2);
}

#[test]
fn scattered_pages_are_counted_by_the_hole() {
    let (mut world, mut host) = large();
    for n in 0..100_u32 {
        let frames: Vec<u8> =
            (0..256).flat_map(|page| (2 * (256 * n + page)).to_le_bytes()).collect();
        let at = REQUEST + 1024 * u64::from(n);
        world.memory.write_slice(&frames, GuestAddress(at)).unwrap();
        world.driver.add(&world.memory, &[Buffer::Readable(at, 1024)]);
    }
    let pass = world.pass_on(QueueRole::Inflate, &mut host);
    assert_eq!((pass.answered, pass.left), (16, Left::More));
}

#[test]
fn an_answer_that_has_no_place_in_memory_grants_nothing() {
    let (mut world, mut host) = large();
    world.ask(&hello());
    world.pass_on(QueueRole::Block, &mut host);
    let steal = Request::Steal(vec![range(GIB, GIB)]).encode(1);
    world.memory.write_slice(&steal, GuestAddress(REQUEST)).unwrap();
    let outside = Buffer::Writable(MEMORY - 8, RESPONSE_LEN as u32);
    world.driver.add(&world.memory, &[Buffer::Readable(REQUEST, steal.len() as u32), outside]);
    assert_eq!(world.pass_on(QueueRole::Block, &mut host).answered, 1);
    assert!(world.balloon.stolen().is_empty() && host.dropped.is_empty());
    assert_eq!(world.balloon.counters().refused["outside-memory"], 1);
}
