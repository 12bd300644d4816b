//! A guest that keeps to what a kernel and an agent do: the invariant above all, in full.
//!
//! The model guest knows of each block and of each page whether it uses it. It gives a page up
//! before it inflates it, takes a block offline before it steals it, and uses neither again before
//! the device has said so, or until the device is stopped. Whatever it does in whatever order, with
//! controllers coming and going, rings and VMMs stopping at any moment: the device drops nothing
//! that the guest uses, answers every chain once, in the end all of them, and keeps its books right.

mod answers;
mod asks;
mod given;
mod steps;

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{BLOCK_QUEUE, Balloon, Decision, LocalRule, QUEUES, Rings, Settings};
use memtide_units::{Instant, Pfn};
use memtide_wire::block::{HoldReason, Request, ReturnRequest, Urgency};
use memtide_wire::features::{self, QueueRole};
use virtio_queue::Queue;

use super::memory::{self, BLOCK, Memory, block};
use crate::meter;

use asks::numbers;
use given::{Given, Host};
use steps::{Backing, Start, Step};

/// See the target `rings`; requests are small here.
const MEMORY_MAX: usize = 1 << 20;
const STEPS_MAX: usize = 128;

const RINGS: u64 = 0x1_0000;
const SIZE: u16 = 16;
/// Chains of two descriptors at most that wait in one ring, so that none takes another's.
const WAITING_MAX: usize = 5;
/// Where the buffers lie: one slot for each chain that may wait, and the next.
const BUFFERS: u64 = 0x4_0000;
const SLOT: u64 = 0x800;

/// Blocks that may go offline: all of both regions but the first, which holds rings and buffers.
const BLOCKS: [u64; 15] = [1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
/// Pages that may go into the balloon, from here on; the last is the last that has a number.
const PAGES: u64 = 48;
const FIRST_PAGE: u64 = 0x10_0000;
/// Where `poison_val` stands in the configuration.
const POISON_VAL: usize = 12;
/// Tickets that are used, so that they meet.
const TICKETS: u32 = 3;

/// What a chain that waits is about.
#[derive(Clone, Debug)]
enum Content {
    Inflate(Vec<u64>),
    Deflate(Vec<u64>),
    Report(Vec<u64>),
    Statistics,
    Request(Request),
}

/// A chain that has not been answered, as far as the driver knows.
#[derive(Debug)]
struct Waiting {
    head: u16,
    /// Where its buffers lie. No other chain's may lie there: the device reads them when it will.
    slot: u64,
    content: Content,
}

struct World<'m> {
    memory: &'m Memory,
    backing: Backing,
    settings: Settings,
    /// What the guest fills its free pages with, and wants to find there again.
    poison: u32,
    given: &'m RefCell<Given>,
    balloon: Balloon,
    host: Host<'m>,
    drivers: Vec<FakeDriver>,
    queues: Vec<Queue>,
    waiting: [VecDeque<Waiting>; QUEUES],
    /// Blocks that went online without a word that the device could hear, until the next hello.
    unheard: BTreeSet<u64>,
    slots: u64,
    sequence: u32,
    now: u64,
}

/// Carries out the steps in `data`.
pub fn run(data: &[u8]) {
    memory::with(|memory| {
        meter::within(MEMORY_MAX, || {
            let given = RefCell::new(Given::default());
            let mut input = Unstructured::new(data);
            let Ok((rule, backing)) = <(u8, Backing)>::arbitrary(&mut input) else { return };
            let rules = [LocalRule::Grant, LocalRule::Target, LocalRule::Hold];
            let rule = rules[usize::from(rule) % 3];
            let mut world = World::new(memory, backing, &given, rule);
            for _ in 0..STEPS_MAX {
                let Ok(step) = Step::arbitrary(&mut input) else { break };
                world.step(step);
                world.check_books();
                if input.is_empty() {
                    break;
                }
            }
            world.finish();
        });
    });
}

impl<'m> World<'m> {
    fn new(
        memory: &'m Memory,
        backing: Backing,
        given: &'m RefCell<Given>,
        local_rule: LocalRule,
    ) -> Self {
        let settings = Settings { local_rule, ..Settings::default() };
        let balloon = Balloon::new(settings, Instant::from_millis(0));
        let mut world = Self {
            memory,
            backing,
            settings,
            poison: 0,
            given,
            balloon,
            host: Host { given, fails: false },
            drivers: Vec::new(),
            queues: Vec::new(),
            waiting: Default::default(),
            unheard: BTreeSet::new(),
            slots: 0,
            sequence: 0,
            now: 0,
        };
        world.balloon.set_memory_parts(backing.parts());
        world.start(Start::Agent);
        world
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    /// A driver sets the device up: fresh rings, and the roles that its features give them.
    fn start(&mut self, start: Start) {
        let (acked, rings) = match start {
            Start::Agent => (!features::PAGE_POISON, Rings::WithBlock),
            Start::Stock { features: bits, poison } => {
                // As a VMM does, which tells the features only when the driver is done.
                let value = [0, 0, 0xaaaa_aaaa, 1][usize::from(poison) % 4];
                self.balloon.write_config(POISON_VAL, &u32::to_le_bytes(value));
                self.poison = value;
                let kept = features::MUST_TELL_HOST
                    | features::STATS_VQ
                    | features::PAGE_POISON
                    | features::REPORTING;
                let bits = u64::from(bits);
                (!kept | bits & kept, Rings::Standard)
            }
        };
        self.balloon.set_features(acked & self.balloon.offered_features());
        if self.balloon.features() & features::PAGE_POISON == 0 {
            self.poison = 0;
        }
        let driver = |n| FakeDriver::new(RINGS + n * FakeDriver::LEN, SIZE);
        self.drivers = (0..QUEUES as u64).map(driver).collect();
        self.drivers.iter().for_each(|driver| driver.clear(self.memory));
        self.queues = self.drivers.iter().map(FakeDriver::queue).collect();
        self.balloon.set_rings(rings);
        self.balloon.driver_begins();
    }

    /// What was taken of the rings and not answered is the driver's again.
    fn untake(&mut self) {
        for (ring, queue) in self.queues.iter_mut().enumerate() {
            if let Some(role) = QueueRole::of(ring, self.balloon.features(), BLOCK_QUEUE) {
                self.balloon.ring_stops(role, queue);
            }
        }
    }

    /// The rings stop, and go on where they were.
    fn pause(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        let rings = self.balloon.rings();
        self.untake();
        self.balloon.set_rings(Rings::Stopped);
        meanwhile(self);
        self.balloon.set_rings(rings);
    }

    /// Another device takes over, with what this one saved.
    fn change_hosts(&mut self) {
        let (state, acked) = (self.balloon.save_state(), self.balloon.features());
        self.balloon = Balloon::new(self.settings, self.now());
        self.balloon.set_memory_parts(self.backing.parts());
        self.balloon.load_state(&state).expect("what a device saves, a device loads");
        self.balloon.set_features(acked);
    }

    /// The rings stop. What waited in them will never be carried out: its pages are the guest's.
    fn stop(&mut self) {
        self.untake();
        self.balloon.set_rings(Rings::Stopped);
        self.waiting = Default::default();
        let mut given = self.given.borrow_mut();
        given.pages.clear();
        given.reported.clear();
    }

    fn ring_of(&self, role: QueueRole) -> Option<usize> {
        let of = |n| QueueRole::of(n, self.balloon.features(), BLOCK_QUEUE);
        (0..QUEUES).find(|n| of(*n) == Some(role))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Inflate(pages) => self.inflate(&pages),
            Step::InflateRun { first, count } => {
                let run: Vec<u8> = (0..count % 32).map(|n| first.wrapping_add(n)).collect();
                self.inflate(&run);
            }
            Step::Deflate(pages) => self.deflate(&pages),
            Step::Report(pages) => self.report(&pages),
            Step::Statistics => {
                self.add(QueueRole::Stats, Content::Statistics, |at| {
                    vec![Buffer::Readable(at, 40)]
                });
            }
            Step::Steal(blocks) => self.steal(&blocks),
            Step::Return { ticket, urgency, blocks } => {
                let all = [Urgency::Comfort, Urgency::Pressure, Urgency::Emergency];
                let urgency = all[usize::from(urgency) % 3];
                let ticket = u32::from(ticket) % TICKETS;
                let ranges = numbers(&blocks).map(block).collect();
                self.ask(Request::Return(ReturnRequest { ticket, urgency, ranges }));
            }
            Step::Taken(blocks) => self.take_unasked(&blocks),
            Step::Cancel(ticket) => {
                self.ask(Request::Cancel { ticket: u32::from(ticket) % TICKETS });
            }
            Step::Hello => self.hello(),
            Step::Goodbye => self.ask(Request::Goodbye),
            Step::Work(ring) => _ = self.work(usize::from(ring) % QUEUES),
            Step::Look => self.look(),
            Step::Restart(start) => {
                self.stop();
                self.start(start);
            }
            Step::OnlineMeanwhile(number) => {
                self.stop();
                self.online_unheard(BLOCKS[usize::from(number) % BLOCKS.len()]);
                self.start(Start::Agent);
            }
            _ => self.steer(step),
        }
    }

    /// Steps of those above the guest.
    fn steer(&mut self, step: Step) {
        let now = self.now();
        match step {
            Step::Another => {
                self.stop();
                self.balloon.vmm_left();
                *self.given.borrow_mut() = Given::default();
                self.unheard.clear();
                self.balloon.set_memory_parts(self.backing.parts());
                self.start(Start::Agent);
            }
            Step::Blink(region) => {
                let gone = usize::from(region) % 3;
                let parts = self.backing.parts().into_iter().enumerate();
                let rest = parts.filter(|(n, _)| *n != gone).map(|(_, part)| part);
                self.balloon.set_memory_parts(rest);
                self.balloon.set_memory_parts(self.backing.parts());
            }
            Step::Pause => self.pause(|_| {}),
            Step::Move => self.pause(Self::change_hosts),
            Step::Actual(pages) => self.balloon.write_config(4, &pages.to_le_bytes()),
            Step::AskStatistics => self.ask_statistics(),
            Step::Controller(true) => self.balloon.controller_attached(),
            Step::Controller(false) => self.balloon.controller_left(now),
            Step::Decide { ticket, decision } => {
                let decision = match decision % 3 {
                    0 => Decision::Grant,
                    1 => Decision::Hold(HoldReason::HostBudget),
                    _ => Decision::Deny(HoldReason::VmLimit),
                };
                _ = self.balloon.decide(u32::from(ticket) % TICKETS, decision, now);
            }
            Step::Target(pages) => self.balloon.set_target(Pfn::SIZE.times(pages.into())),
            Step::Min(blocks) => self.balloon.set_min(BLOCK.times((blocks % 20).into())),
            Step::AskHello => self.balloon.ask_hello(),
            Step::Wait(ms) => self.now += u64::from(ms),
            Step::HostFails(fails) => self.host.fails = fails,
            _ => {}
        }
    }
}
