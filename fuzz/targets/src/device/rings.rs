//! A guest without manners: raw descriptors, indirect tables, indices, ring memory that is written
//! while the device works, rings laid anywhere.
//!
//! What must hold for the worst of guests: nothing is dropped outside guest memory; every chain is
//! answered once and none twice; a ring that makes no sense is given up and not touched again; a
//! pass ends; refusals are told at a limited rate; memory stays within a limit.

mod steps;

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{
    BLOCK_QUEUE, Balloon, Decision, Event, FailKind, Left, LocalRule, Moment, Pass, QUEUES,
    Reclaim, ReclaimFailed, Reclaimed, Ring, Rings, Settings,
};
use memtide_units::{ByteSize, GpaRange, Instant};
use memtide_wire::block::HoldReason;
use memtide_wire::features::QueueRole;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::memory::{self, Memory};
use crate::meter;

use steps::{Ask, Place, Step};

/// The largest request is looked at in pieces of 128 KiB, which name 32768 ranges at most; a vector
/// of them that grows is there twice for a moment.
const MEMORY_MAX: usize = 3 << 20;

/// Steps of one input.
const STEPS_MAX: usize = 96;
/// Passes over each ring at the end. A ring of 32768 takes more; that each gets further is checked.
const PASSES_MAX: usize = 4;
/// A pass takes milliseconds, some tens where all of it is checked and counted: a VMM that stops the
/// ring waits for its end.
const PASS_TIME_MAX: Duration = Duration::from_millis(500);
/// Where the rings are laid by a driver that lays them well.
const RINGS: u64 = 0x1_0000;
/// Where requests are put.
const BUFFERS: u64 = 0x4_0000;
/// Descriptors of such a ring.
const SIZE: u16 = 16;

/// A host that looks at what it is to drop.
struct Host {
    memory: Vec<GpaRange>,
    fails: bool,
    drops: u64,
}

impl Reclaim for Host {
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed> {
        let inside = self.memory.iter().any(|memory| memory.contains(range));
        assert!(inside, "{range} is not all memory: {:?}", self.memory);
        self.drops += 1;
        if self.fails {
            let text = "the host was told to fail".into();
            return Err(ReclaimFailed { kind: FailKind::Io, text });
        }
        Ok(Reclaimed { bytes: range.len(), punches: 1 })
    }
}

struct World<'m> {
    memory: &'m Memory,
    balloon: Balloon,
    host: Host,
    drivers: Vec<FakeDriver>,
    queues: [Option<Queue>; QUEUES],
    now: u64,
    refusals: u64,
}

/// Carries out the steps in `data`.
pub fn run(data: &[u8]) {
    memory::with(|memory| {
        meter::within(MEMORY_MAX, || {
            let mut input = Unstructured::new(data);
            let Ok(mut world) = World::new(memory, &mut input) else { return };
            for _ in 0..STEPS_MAX {
                let Ok(step) = Step::arbitrary(&mut input) else { break };
                world.step(&step);
                world.check();
                if input.is_empty() {
                    break;
                }
            }
            world.drain();
        });
    });
}

impl<'m> World<'m> {
    fn new(memory: &'m Memory, input: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        let rules = [LocalRule::Grant, LocalRule::Target, LocalRule::Hold];
        let local_rule = rules[usize::from(u8::arbitrary(input)?) % 3];
        let settings = Settings { local_rule, ..Settings::default() };
        let mut balloon = Balloon::new(settings, Instant::from_millis(0));
        let ranges = memory::ranges().to_vec();
        balloon.set_memory(ranges.iter().copied(), ByteSize::from_kib(4));
        balloon.set_features(balloon.offered_features());
        balloon.set_rings(Rings::WithBlock);
        // In the hole: these could be plugged in.
        balloon.set_pluggable((9..12).map(memory::block).collect());
        let drivers: Vec<FakeDriver> = (0..QUEUES as u64)
            .map(|n| FakeDriver::new(RINGS + n * FakeDriver::LEN, SIZE))
            .collect();
        let queues = std::array::from_fn(|n| Some(drivers[n].queue()));
        let host = Host { memory: ranges, fails: false, drops: 0 };
        Ok(Self { memory, balloon, host, drivers, queues, now: 0, refusals: 0 })
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        // Outside memory there is nothing to write to; part of it may be.
        _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    fn step(&mut self, step: &Step<'_>) {
        match *step {
            Step::Descriptor { table, index, place, len, flags, next } => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&place.address().to_le_bytes());
                bytes[8..12].copy_from_slice(&len.bytes().to_le_bytes());
                bytes[12] = flags & 7;
                bytes[14] = next;
                self.write(table.address().wrapping_add(16 * u64::from(index)), &bytes);
            }
            Step::Offer { ring, head } => {
                let memory = self.memory;
                self.driver(ring).offer(memory, head);
            }
            Step::Chain { ring, read, write } => {
                let memory = self.memory;
                let read = Buffer::Readable(read.0.address(), read.1.bytes());
                let write = Buffer::Writable(write.0.address(), write.1.bytes());
                self.driver(ring).add(memory, &[read, write]);
            }
            Step::Ask { ref request, pieces, room } => self.ask(request, pieces, room),
            Step::AvailableIndex { ring, index } => {
                let memory = self.memory;
                self.driver(ring).set_available_index(memory, index);
            }
            Step::Write { at, bytes } => self.write(at.address(), bytes),
            Step::Pages { at, first, apart, count } => {
                let page = |n: u8| first.wrapping_add_signed(i32::from(n) * i32::from(apart));
                let bytes: Vec<u8> = (0..count).flat_map(|n| page(n).to_le_bytes()).collect();
                self.write(at.address(), &bytes);
            }
            Step::Lay { ring, size, parts, positions } => self.lay(ring, size, parts, positions),
            Step::LayWell { ring, event_index } => {
                let n = usize::from(ring) % QUEUES;
                self.drivers[n] = FakeDriver::new(self.drivers[n].descriptors(), SIZE);
                self.drivers[n].clear(self.memory);
                self.unpark(n);
                let mut queue = self.drivers[n].queue();
                queue.set_event_idx(event_index);
                self.queues[n] = Some(queue);
            }
            Step::Work { ring } => _ = self.work(usize::from(ring) % QUEUES),
            _ => self.steer(step),
        }
    }

    /// Steps of those above the guest, and of the guest in places other than its rings.
    fn steer(&mut self, step: &Step<'_>) {
        let now = self.now();
        match *step {
            Step::Stop => {
                (0..QUEUES).for_each(|n| self.unpark(n));
                self.balloon.set_rings(Rings::Stopped);
                self.queues = Default::default();
            }
            Step::Start { with_block: true } => self.balloon.set_rings(Rings::WithBlock),
            Step::Start { with_block: false } => self.balloon.set_rings(Rings::Standard),
            Step::Features(acked) => {
                (0..QUEUES).for_each(|n| self.unpark(n));
                self.balloon.set_features(acked & self.balloon.offered_features());
            }
            Step::Memory(which) => {
                let kept = |n: usize| which >> n & 1 == 0;
                let ranges = memory::ranges().into_iter().enumerate();
                self.host.memory = ranges.filter(|(n, _)| kept(*n)).map(|(_, r)| r).collect();
                self.balloon.set_memory(self.host.memory.iter().copied(), ByteSize::from_kib(4));
                // As the session does: what is under way is looked at anew.
                (0..QUEUES).for_each(|n| self.unpark(n));
            }
            Step::Config { offset, bytes } => {
                self.balloon.write_config(offset.into(), bytes);
                let mut out = [0xaa; 80];
                self.balloon.read_config(offset.into(), &mut out);
                assert!(usize::from(offset) < 64 || out == [0; 80]);
            }
            Step::AskStatistics => self.ask_statistics(),
            Step::Controller { attached: true } => self.balloon.controller_attached(),
            Step::Controller { attached: false } => self.balloon.controller_left(now),
            Step::Decide { ticket, decision } => {
                let decision = match decision % 3 {
                    0 => Decision::Grant,
                    1 => Decision::Hold(HoldReason::HostBudget),
                    _ => Decision::Deny(HoldReason::VmLimit),
                };
                _ = self.balloon.decide(u32::from(ticket % 4), decision, now);
            }
            Step::Target(kib) => {
                self.balloon.set_target(ByteSize::from_kib(kib.into()));
                self.balloon.set_min(ByteSize::from_kib(kib.into()));
            }
            Step::AskHello => self.balloon.ask_hello(),
            Step::Wait(ms) => self.now += u64::from(ms),
            Step::HostFails(fails) => self.host.fails = fails,
            _ => {}
        }
    }

    fn driver(&mut self, ring: u8) -> &mut FakeDriver {
        &mut self.drivers[usize::from(ring) % QUEUES]
    }

    fn ask(&mut self, request: &Ask, pieces: u8, room: u8) {
        let bytes = request.request(self.balloon.hello_epoch()).encode(7);
        self.write(BUFFERS, &bytes);
        let piece = bytes.len().div_ceil(1 + usize::from(pieces % 4)).max(1);
        let mut buffers: Vec<Buffer> = (0..bytes.len())
            .step_by(piece)
            .map(|at| {
                let len = piece.min(bytes.len() - at);
                Buffer::Readable(BUFFERS + at as u64, len as u32)
            })
            .collect();
        buffers.push(Buffer::Writable(BUFFERS + 0x8000, u32::from(room % 64)));
        self.drivers[BLOCK_QUEUE].add(self.memory, &buffers);
    }

    fn lay(&mut self, ring: u8, size: u16, parts: [Place; 3], positions: (u16, u16)) {
        let n = usize::from(ring) % QUEUES;
        self.unpark(n);
        self.queues[n] = None;
        let Ok(mut queue) = Queue::new(1 << (size % 16)) else { return };
        let [table, available, used] = parts.map(|place| GuestAddress(place.address()));
        let laid = queue.try_set_desc_table_address(table).is_ok()
            && queue.try_set_avail_ring_address(available).is_ok()
            && queue.try_set_used_ring_address(used).is_ok();
        queue.set_next_avail(positions.0);
        queue.set_next_used(positions.1);
        queue.set_ready(true);
        // The session does not let another one through.
        if laid && queue.is_valid(self.memory) {
            self.queues[n] = Some(queue);
        }
    }

    fn role(&self, ring: usize) -> Option<QueueRole> {
        QueueRole::of(ring, self.balloon.features(), BLOCK_QUEUE)
    }

    /// As the session does before it stops a ring or sets it up anew.
    fn unpark(&mut self, ring: usize) {
        if let (Some(role), Some(queue)) = (self.role(ring), &mut self.queues[ring]) {
            self.balloon.ring_stops(role, queue);
        }
    }

    fn work(&mut self, ring: usize) -> Option<Pass> {
        let (role, now) = (self.role(ring)?, self.now());
        let queue = self.queues[ring].as_mut()?;
        let before = (queue.next_avail(), queue.next_used(), self.host.drops);
        let mut moment = Moment { now, host: &mut self.host };
        let mut there = Ring { queue, memory: self.memory };
        let pass = || self.balloon.process(role, &mut there, &mut moment);
        let done = meter::soon(PASS_TIME_MAX, pass);
        let queue = there.queue;
        let taken = queue.next_avail().wrapping_sub(before.0);
        let answered = queue.next_used().wrapping_sub(before.1);
        // One chain of a queue may be kept between two passes; of a ring that is given up, the last
        // may have been taken and not answered.
        let kept = 1 + u16::from(done.is_err());
        assert!(taken.abs_diff(answered) <= kept, "{taken} taken, {answered} answered");
        let got_on = taken > 0 || answered > 0 || self.host.drops > before.2;
        match done {
            Ok(pass) => {
                assert_eq!(pass.answered, u32::from(answered));
                assert!(answered <= queue.size(), "{answered} in one pass");
                match pass.left {
                    Left::Nothing => {}
                    Left::More => assert!(got_on, "a pass that gets no further never ends"),
                    Left::Until(when) => {
                        assert!(when > now && when.as_millis() < self.now + 60_000, "{when:?}");
                    }
                }
                Some(pass)
            }
            Err(error) => {
                self.unpark(ring);
                self.queues[ring] = None;
                self.balloon.note_bad_ring(now, || error.to_string());
                None
            }
        }
    }

    fn ask_statistics(&mut self) {
        let now = self.now();
        self.balloon.want_stats(now);
        let is_stats = |n: &usize| self.role(*n) == Some(QueueRole::Stats);
        let Some(ring) = (0..QUEUES).find(is_stats) else { return };
        let Some(queue) = &mut self.queues[ring] else { return };
        let asked = self.balloon.ask_stats(&mut Ring { queue, memory: self.memory }, now);
        if asked.is_err() {
            self.unpark(ring);
            self.queues[ring] = None;
        }
    }

    fn check(&mut self) {
        for event in self.balloon.take_events() {
            self.refusals += u64::from(matches!(event, Event::Refused { .. }));
        }
        // A burst of ten, and one for each six seconds.
        assert!(self.refusals <= 10 + self.now / 6000, "{} by {} ms", self.refusals, self.now);
        let stolen = self.balloon.stolen();
        assert_eq!(stolen.total(), stolen.iter().map(GpaRange::len).sum());
        _ = self.balloon.take_look_again();
    }

    /// Whatever was kicked gets on, when time passes and nobody adds more.
    fn drain(&mut self) {
        for ring in 0..QUEUES {
            for _ in 0..PASSES_MAX {
                let Some(pass) = self.work(ring) else { break };
                self.check();
                match pass.left {
                    Left::Nothing => break,
                    Left::More => {}
                    Left::Until(when) => self.now = when.as_millis(),
                }
            }
        }
    }
}
