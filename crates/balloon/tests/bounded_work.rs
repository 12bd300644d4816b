//! What one guest can make its device do before others get their turn has a limit.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use memtide_balloon::fake::{Buffer, FakeDriver, FakeHost};
use memtide_balloon::{Balloon, Left, Moment, Pass, Ring, Rings, Settings};
use memtide_units::{ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::{RESPONSE_LEN, Request};
use memtide_wire::features::QueueRole;
use memtide_wire::pfn::{PFN_LEN, PFNS_MAX};
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
    assert_eq!(passes.iter().map(|pass| pass.answered).collect::<Vec<_>>(), [64, 64, 0]);
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
