//! A guest that keeps to what a kernel and an agent do: the invariant above all, in full.
//!
//! The model guest knows of each block and of each page whether it uses it. It gives a page up
//! before it inflates it, takes a block offline before it steals it, and uses neither again before
//! the device has said so, or until the device is stopped. Whatever it does in whatever order, with
//! controllers coming and going, rings and VMMs stopping at any moment: the device drops nothing
//! that the guest uses, answers every chain once, in the end all of them, and keeps its books right.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};

use arbitrary::{Arbitrary, Unstructured};
use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{
    BLOCK_QUEUE, Balloon, Decision, Driver, FailKind, Left, LocalRule, MemoryPart, Moment, QUEUES,
    Reclaim, ReclaimFailed, Reclaimed, Ring, Rings, Settings,
};
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange, Instant, Pfn};
use memtide_wire::block::{
    Hello, HoldReason, RANGES_MAX, RESPONSE_LEN, Request, Response, ReturnRequest, Urgency, Verdict,
};
use memtide_wire::features::{self, QueueRole};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use super::memory::{self, BLOCK, Memory, block};
use crate::meter;

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

fn page(number: u64) -> GpaRange {
    let last = Pfn(u32::MAX);
    if number == PAGES - 1 {
        return GpaRange::of_pfn(last);
    }
    GpaRange::of_pfn(Pfn((FIRST_PAGE / 4096 + number) as u32))
}

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

/// What the guest has given up, and may not be surprised to find empty.
#[derive(Debug, Default)]
struct Given {
    /// Blocks that are offline in its kernel.
    offline: BTreeSet<u64>,
    /// Pages that are in the balloon, or on their way there.
    pages: BTreeSet<u64>,
    /// Pages that are reported free and not yet handed back.
    reported: BTreeSet<u64>,
    /// It will look for a value other than zero in them: they must stay as they are.
    poisoned: bool,
}

impl Given {
    fn covers(&self, range: GpaRange) -> bool {
        let blocks = self.offline.iter().map(|number| block(*number));
        let reported = self.reported.iter().filter(|_| !self.poisoned);
        let pages = self.pages.iter().chain(reported).map(|number| page(*number));
        let given: memtide_balloon::RangeSet = blocks.chain(pages).collect();
        given.contains(range)
    }
}

struct Host<'g> {
    given: &'g RefCell<Given>,
    fails: bool,
}

impl Reclaim for Host<'_> {
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed> {
        let given = self.given.borrow();
        assert!(given.covers(range), "{range} is dropped and the guest uses it: {given:?}");
        if self.fails {
            let text = "the host was told to fail".into();
            return Err(ReclaimFailed { kind: FailKind::Io, text });
        }
        Ok(Reclaimed { bytes: range.len(), punches: 1 })
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    Inflate(Vec<u8>),
    /// Neighbours, as many as may make a host page.
    InflateRun {
        first: u8,
        count: u8,
    },
    Deflate(Vec<u8>),
    Report(Vec<u8>),
    Statistics,
    AskStatistics,
    Steal(Vec<u8>),
    Return {
        ticket: u8,
        urgency: u8,
        blocks: Vec<u8>,
    },
    Taken(Vec<u8>),
    Cancel(u8),
    Hello,
    Goodbye,
    /// The device looks at a ring.
    Work(u8),
    /// The driver looks at its used rings.
    Look,
    /// The rings stop, with whatever waits in them, and start again.
    Restart(Start),
    /// Somebody puts a block online while no driver runs, and the next one comes.
    OnlineMeanwhile(u8),
    /// Another VMM, another guest.
    Another,
    /// A region is taken away and put back, as a VMM does.
    Blink(u8),
    /// The VM is paused and goes on, here or on another host: the rings stay as they are.
    Pause,
    Move,
    Actual(u32),
    Controller(bool),
    Decide {
        ticket: u8,
        decision: u8,
    },
    Target(u16),
    Min(u8),
    AskHello,
    Wait(u16),
    HostFails(bool),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Start {
    Agent,
    Stock { features: u8, poison: u8 },
}

/// In what pieces the host can drop memory: its pages may be larger than the guest's, and begin
/// elsewhere.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct Backing {
    shift: u8,
    offset: u8,
}

impl Backing {
    fn parts(self) -> [MemoryPart; 3] {
        let unit = Pfn::SIZE.times(1 << (self.shift % 5));
        memory::ranges().map(|range| MemoryPart {
            range,
            unit,
            file_offset: Pfn::SIZE.times(self.offset.into()),
        })
    }
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

    /// Makes a chain available, unless its ring is full or is not there; `buffers` are made for the
    /// slot at an address.
    fn add(&mut self, role: QueueRole, content: Content, buffers: impl FnOnce(u64) -> Vec<Buffer>) {
        let Some(ring) = self.ring_of(role).filter(|_| self.can_add(role)) else { return };
        let slot = self.slot();
        let head = self.drivers[ring].add(self.memory, &buffers(slot));
        self.waiting[ring].push_back(Waiting { head, slot, content });
        self.slots += 1;
    }

    fn can_add(&self, role: QueueRole) -> bool {
        let room = |ring: usize| self.is_running(ring) && self.waiting[ring].len() < WAITING_MAX;
        self.ring_of(role).is_some_and(room)
    }

    /// A stock driver does not know the block queue.
    fn is_running(&self, ring: usize) -> bool {
        self.balloon.rings() == Rings::WithBlock || ring != BLOCK_QUEUE
    }

    /// Where the next chain's buffers go: there are more slots than chains can wait in all rings.
    fn slot(&self) -> u64 {
        let count = (QUEUES * (WAITING_MAX + 1)) as u64;
        let mut slots = (self.slots..self.slots + count).map(|n| BUFFERS + n % count * SLOT);
        let is_free = |slot: &u64| self.waiting.iter().flatten().all(|chain| chain.slot != *slot);
        slots.find(is_free).expect("one is free")
    }

    fn write_pages(&self, pages: &[u64]) -> Buffer {
        let frame = |number: &u64| (page(*number).start().0 / 4096) as u32;
        let bytes: Vec<u8> = pages.iter().flat_map(|number| frame(number).to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(self.slot())).expect("a slot is memory");
        Buffer::Readable(self.slot(), bytes.len() as u32)
    }

    /// Is the page on its way into the balloon or out of it?
    fn is_on_its_way(&self, number: u64) -> bool {
        self.waiting.iter().flatten().any(|chain| match &chain.content {
            Content::Inflate(pages) | Content::Deflate(pages) => pages.contains(&number),
            _ => false,
        })
    }

    fn is_used(&self, number: u64) -> bool {
        let given = self.given.borrow();
        let is_given = given.pages.contains(&number) || given.reported.contains(&number);
        !is_given && !self.is_on_its_way(number)
    }

    /// Pages that the guest uses go into the balloon.
    fn inflate(&mut self, pages: &[u8]) {
        if !self.can_add(QueueRole::Inflate) {
            return;
        }
        let pages: Vec<u64> = page_numbers(pages).filter(|n| self.is_used(*n)).collect();
        self.given.borrow_mut().pages.extend(&pages);
        let buffer = self.write_pages(&pages);
        self.add(QueueRole::Inflate, Content::Inflate(pages), |_| vec![buffer]);
    }

    /// Pages come out again: those whose inflation was acknowledged; and some that never were in.
    fn deflate(&mut self, pages: &[u8]) {
        if !self.can_add(QueueRole::Deflate) {
            return;
        }
        let pages: Vec<u64> = page_numbers(pages).filter(|n| !self.is_on_its_way(*n)).collect();
        if self.balloon.features() & features::MUST_TELL_HOST == 0 {
            // It uses them at once, and tells later.
            pages.iter().for_each(|n| _ = self.given.borrow_mut().pages.remove(n));
        }
        let buffer = self.write_pages(&pages);
        self.add(QueueRole::Deflate, Content::Deflate(pages), |_| vec![buffer]);
    }

    /// Free pages, as buffers themselves: two at most, as descriptors are few.
    fn report(&mut self, pages: &[u8]) {
        if !self.can_add(QueueRole::Reporting) {
            return;
        }
        let pages: Vec<u64> = page_numbers(pages).filter(|n| self.is_used(*n)).take(2).collect();
        self.given.borrow_mut().reported.extend(&pages);
        if pages.is_empty() {
            return;
        }
        let buffers = pages.iter().map(|n| Buffer::Writable(page(*n).start().0, 4096)).collect();
        self.add(QueueRole::Reporting, Content::Report(pages), |_| buffers);
    }

    /// Blocks are offline before the device hears of it.
    fn steal(&mut self, blocks: &[u8]) {
        if !self.can_add(QueueRole::Block) {
            return;
        }
        let blocks: BTreeSet<u64> = numbers(blocks).collect();
        // Of a block that is on its way back nothing is certain.
        if blocks.iter().any(|number| self.waits_to_return(*number)) {
            return;
        }
        self.given.borrow_mut().offline.extend(&blocks);
        self.unheard.retain(|number| !blocks.contains(number));
        self.ask(Request::Steal(blocks.iter().map(|number| block(*number)).collect()));
    }

    fn hello(&mut self) {
        if !self.can_add(QueueRole::Block) || self.waiting[BLOCK_QUEUE].iter().any(drops_or_returns)
        {
            return;
        }
        let stolen = self.given.borrow().offline.iter().map(|number| block(*number)).collect();
        self.ask(Request::Hello(Hello {
            epoch: self.balloon.hello_epoch(),
            block_size: BlockSize::new(BLOCK).expect("it is one"),
            present: ByteSize::from_mib(34),
            online: BLOCK,
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen,
        }));
    }

    /// The guest cannot wait: but it does wait for what the device may still drop.
    fn take_unasked(&mut self, blocks: &[u8]) {
        if !self.can_add(QueueRole::Block) || self.waiting[BLOCK_QUEUE].iter().any(drops_or_returns)
        {
            return;
        }
        let blocks: BTreeSet<u64> = numbers(blocks).collect();
        self.given.borrow_mut().offline.retain(|number| !blocks.contains(number));
        // Until the device has read it, and for good where it refuses.
        self.unheard.extend(&blocks);
        self.ask(Request::Taken(blocks.iter().map(|number| block(*number)).collect()));
    }

    fn online_unheard(&mut self, number: u64) {
        if self.given.borrow_mut().offline.remove(&number) {
            self.unheard.insert(number);
        }
    }

    fn waits_to_return(&self, number: u64) -> bool {
        self.waiting[BLOCK_QUEUE].iter().any(|chain| match &chain.content {
            Content::Request(Request::Return(wanted)) => wanted.ranges.contains(&block(number)),
            _ => false,
        })
    }

    fn ask(&mut self, request: Request) {
        if !self.can_add(QueueRole::Block) {
            return;
        }
        self.sequence += 1;
        let bytes = request.encode(self.sequence);
        assert!(bytes.len() as u64 + RESPONSE_LEN as u64 <= SLOT, "a slot holds any request here");
        self.memory.write_slice(&bytes, GuestAddress(self.slot())).expect("a slot is memory");
        self.add(QueueRole::Block, Content::Request(request), |at| {
            let answer = at + SLOT - RESPONSE_LEN as u64;
            vec![
                Buffer::Readable(at, bytes.len() as u32),
                Buffer::Writable(answer, RESPONSE_LEN as u32),
            ]
        });
    }

    /// The device works on one ring; says what it left.
    fn work(&mut self, ring: usize) -> Option<Left> {
        let now = self.now();
        let role = QueueRole::of(ring, self.balloon.features(), BLOCK_QUEUE)?;
        if !self.is_running(ring) {
            return None;
        }
        self.given.borrow_mut().poisoned = self.poison != 0;
        let mut moment = Moment { now, host: &mut self.host };
        let mut queue = Ring { queue: &mut self.queues[ring], memory: self.memory };
        let pass = self.balloon.process(role, &mut queue, &mut moment);
        Some(pass.expect("these rings make sense").left)
    }

    fn ask_statistics(&mut self) {
        let now = self.now();
        self.balloon.want_stats(now);
        let Some(ring) = self.ring_of(QueueRole::Stats) else { return };
        let mut queue = Ring { queue: &mut self.queues[ring], memory: self.memory };
        self.balloon.ask_stats(&mut queue, now).expect("these rings make sense");
    }

    /// The driver takes what has been used, in any order that it was answered in.
    fn look(&mut self) {
        for ring in 0..QUEUES {
            for (head, written) in self.drivers[ring].take_used(self.memory) {
                let at = self.waiting[ring].iter().position(|chain| chain.head == head);
                let at = at.unwrap_or_else(|| panic!("{head} is answered and was not asked"));
                let chain = self.waiting[ring].remove(at).expect("it is there");
                self.answered(head, written, chain.content);
            }
        }
    }

    fn answered(&mut self, head: u16, written: u32, content: Content) {
        let mut given = self.given.borrow_mut();
        match content {
            Content::Inflate(_) | Content::Statistics => assert_eq!(written, 0),
            Content::Deflate(pages) => pages.iter().for_each(|n| _ = given.pages.remove(n)),
            Content::Report(pages) => pages.iter().for_each(|n| _ = given.reported.remove(n)),
            Content::Request(request) => {
                drop(given);
                assert_eq!(written as usize, RESPONSE_LEN);
                let response = self.response(head);
                self.told(&request, response);
            }
        }
    }

    /// The response of the chain with this head: its second descriptor says where.
    fn response(&self, head: u16) -> Response {
        let table = self.drivers[BLOCK_QUEUE].descriptors();
        let second = table + 16 * u64::from((head + 1) % SIZE);
        let at: u64 = self.memory.read_obj(GuestAddress(second)).expect("the ring is memory");
        let mut bytes = [0; RESPONSE_LEN];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("a slot is memory");
        Response::decode(&bytes).expect("a device of this version")
    }

    fn told(&mut self, request: &Request, response: Response) {
        match (request, response.verdict) {
            (Request::Return(wanted), Verdict::Ok) => {
                let mut given = self.given.borrow_mut();
                for range in &wanted.ranges {
                    let number = range.start().0 / BLOCK.bytes();
                    given.offline.remove(&number);
                }
            }
            (Request::Taken(ranges), Verdict::Ok) => {
                let taken = |number: &u64| ranges.contains(&block(*number));
                self.unheard.retain(|number| !taken(number));
            }
            (Request::Hello(_), Verdict::Ok) => self.unheard.clear(),
            (Request::Return(_), _) => {}
            (_, Verdict::Held(_) | Verdict::Denied(_)) => panic!("{request:?}: {response:?}"),
            _ => {}
        }
    }

    fn check_books(&mut self) {
        _ = self.balloon.take_events();
        let stolen = self.balloon.stolen();
        assert!(stolen.len() <= RANGES_MAX);
        let given = self.given.borrow();
        for number in BLOCKS.iter().filter(|number| stolen.overlaps(block(**number))) {
            let known = given.offline.contains(number) || self.unheard.contains(number);
            assert!(known, "block {number} is in the books, and online");
        }
        assert!(stolen.iter().all(|range| range.end() <= Gpa(24 * BLOCK.bytes())));
    }

    /// In the end everything that waits is answered, and a hello sets the books right.
    fn finish(&mut self) {
        self.host.fails = false;
        self.settle();
        if self.balloon.rings() != Rings::WithBlock {
            return;
        }
        self.hello();
        self.settle();
        let offline = self.given.borrow().offline.iter().map(|number| block(*number)).collect();
        assert_eq!(self.balloon.stolen(), &offline);
        assert_eq!(self.balloon.driver(), Driver::Agent);
    }

    fn settle(&mut self) {
        for ring in 0..QUEUES {
            let mut passes = 0;
            while let Some(left) = self.work(ring) {
                passes += 1;
                assert!(passes < 100, "ring {ring} does not end");
                match left {
                    Left::Nothing => break,
                    Left::More => {}
                    Left::Until(when) => self.now = when.as_millis(),
                }
            }
        }
        self.look();
        self.check_books();
        for (ring, waiting) in self.waiting.iter().enumerate() {
            let kept = usize::from(self.ring_of(QueueRole::Stats) == Some(ring));
            assert!(waiting.len() <= kept, "ring {ring}: {waiting:?} was never answered");
        }
    }
}

/// May the device drop blocks for it still, or hand some back?
fn drops_or_returns(chain: &Waiting) -> bool {
    let Content::Request(request) = &chain.content else { return false };
    matches!(request, Request::Steal(_) | Request::Hello(_) | Request::Return(_))
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.iter().take(BLOCKS.len()).map(|byte| BLOCKS[usize::from(*byte) % BLOCKS.len()])
}

fn page_numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let distinct: BTreeSet<u64> = bytes.iter().map(|byte| u64::from(*byte) % PAGES).collect();
    distinct.into_iter()
}
