//! The invariant above all, against any agent: nothing is dropped that the guest may use.
//!
//! A model guest keeps for each block what its kernel would: online, or offline. It puts a block
//! offline before it steals it, and online only on a grant or unasked. Whatever it asks, in whatever
//! order, with controllers coming and going: the device drops offline blocks only.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use memtide_balloon::fake::FakeHost;
use memtide_balloon::{
    Balloon, Decision, Driver, LocalRule, MemoryPart, Moment, RangeSet, Rings, Settings,
};
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::{
    Hello, HoldReason, RANGES_MAX, RefuseReason, Request, Response, ReturnRequest, Urgency, Verdict,
};
use proptest::prelude::*;

const BLOCK: ByteSize = ByteSize::from_mib(2);
const BLOCKS: u64 = 24;

fn block(number: u64) -> GpaRange {
    GpaRange::new(Gpa(number * BLOCK.bytes()), BLOCK).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Steal(Vec<u64>),
    Return(u32, Vec<u64>),
    Taken(Vec<u64>),
    Hello,
    Cancel(u32),
    Goodbye,
    Killed,
    AskHello,
    Controller(bool),
    Decide(u32, Decision),
    SetMin(u64),
    Wait(u64),
}

fn some_blocks() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(0..BLOCKS + 2, 1..5)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let decision = prop_oneof![
        Just(Decision::Grant),
        Just(Decision::Hold(HoldReason::HostBudget)),
        Just(Decision::Deny(HoldReason::VmLimit)),
    ];
    let step = prop_oneof![
        4 => some_blocks().prop_map(Step::Steal),
        4 => (0_u32..3, some_blocks()).prop_map(|(ticket, blocks)| Step::Return(ticket, blocks)),
        1 => some_blocks().prop_map(Step::Taken),
        2 => Just(Step::Hello),
        1 => (0_u32..3).prop_map(Step::Cancel),
        1 => Just(Step::Goodbye),
        1 => Just(Step::Killed),
        1 => Just(Step::AskHello),
        1 => any::<bool>().prop_map(Step::Controller),
        3 => (0_u32..3, decision).prop_map(|(ticket, decision)| Step::Decide(ticket, decision)),
        1 => (0..BLOCKS).prop_map(Step::SetMin),
        1 => (0_u64..100_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

struct World {
    balloon: Balloon,
    host: FakeHost,
    now: u64,
    offline: BTreeSet<u64>,
}

impl World {
    fn new(local_rule: LocalRule) -> Self {
        let settings = Settings { local_rule, ..Settings::default() };
        let mut balloon = Balloon::new(settings, Instant::from_millis(0));
        let all = GpaRange::new(Gpa(0), BLOCK.times(BLOCKS)).unwrap();
        balloon.set_memory([all], ByteSize::from_kib(4));
        balloon.set_rings(Rings::WithBlock);
        Self { balloon, host: FakeHost::default(), now: 0, offline: BTreeSet::new() }
    }

    fn ask(&mut self, request: &Request) -> Response {
        let mut moment = Moment { now: Instant::from_millis(self.now), host: &mut self.host };
        self.balloon.answer(&request.encode(1), &mut moment)
    }

    fn hello(&mut self) -> Response {
        self.hello_of_blocks(BLOCK)
    }

    fn hello_of_blocks(&mut self, size: ByteSize) -> Response {
        let stolen = self.offline.iter().map(|number| block(*number)).collect();
        self.ask(&Request::Hello(Hello {
            ejected: Vec::new(),
            epoch: self.balloon.hello_epoch(),
            block_size: BlockSize::new(size).unwrap(),
            present: BLOCK.times(BLOCKS),
            online: BLOCK,
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen,
        }))
    }

    fn step(&mut self, step: Step) {
        let now = Instant::from_millis(self.now);
        let ranges = |blocks: &[u64]| blocks.iter().map(|number| block(*number)).collect();
        match step {
            Step::Steal(blocks) => {
                // Its kernel takes them offline first, those that it has.
                self.offline.extend(blocks.iter().filter(|number| **number < BLOCKS));
                self.ask(&Request::Steal(ranges(&blocks)));
            }
            Step::Return(ticket, blocks) => {
                let urgency = Urgency::Pressure;
                let wanted = ReturnRequest { ticket, urgency, ranges: ranges(&blocks) };
                if self.ask(&Request::Return(wanted)).verdict == Verdict::Ok {
                    blocks.iter().for_each(|number| _ = self.offline.remove(number));
                }
            }
            Step::Taken(blocks) => {
                blocks.iter().for_each(|number| _ = self.offline.remove(number));
                self.ask(&Request::Taken(ranges(&blocks)));
            }
            Step::Hello => assert_eq!(self.hello().verdict, Verdict::Ok),
            Step::Cancel(ticket) => _ = self.ask(&Request::Cancel { ticket }),
            Step::Goodbye => _ = self.ask(&Request::Goodbye),
            Step::Killed => {
                self.balloon.set_rings(Rings::Stopped);
                self.balloon.set_rings(Rings::WithBlock);
            }
            Step::AskHello => self.balloon.ask_hello(),
            Step::Controller(true) => self.balloon.controller_attached(),
            Step::Controller(false) => self.balloon.controller_left(now),
            Step::Decide(ticket, decision) => _ = self.balloon.decide(ticket, decision, now),
            Step::SetMin(blocks) => self.balloon.set_min(BLOCK.times(blocks)),
            Step::Wait(ms) => self.now += ms,
        }
    }
}

proptest! {
    #[test]
    fn only_offline_blocks_are_dropped(steps in steps(), hold: bool) {
        let mut world = World::new(if hold { LocalRule::Hold } else { LocalRule::Grant });
        for step in steps {
            world.step(step.clone());
            for dropped in world.host.dropped.drain(..) {
                let offline: RangeSet = world.offline.iter().map(|number| block(*number)).collect();
                prop_assert!(offline.contains(dropped), "{step:?} dropped {dropped}");
            }
            // The books never claim a block that the guest has, unless it took it without a word
            // that the device could hear.
            if matches!(step, Step::Hello) {
                let offline: RangeSet = world.offline.iter().map(|number| block(*number)).collect();
                prop_assert_eq!(world.balloon.stolen(), &offline);
                prop_assert_eq!(world.balloon.driver(), Driver::Agent);
            }
        }
    }

    #[test]
    fn any_bytes_get_an_answer(requests in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let mut world = World::new(LocalRule::Grant);
        for bytes in requests {
            let mut moment = Moment { now: Instant::from_millis(0), host: &mut world.host };
            world.balloon.answer(&bytes, &mut moment);
        }
    }
}

#[test]
fn a_failed_drop_leaves_the_map_as_it_was() {
    let mut world = World::new(LocalRule::Grant);
    world.hello();
    world.host.fails_from = Some(block(5).start());
    let steal = Request::Steal(vec![block(3), block(5)]);
    assert_eq!(world.ask(&steal).verdict, Verdict::Refused(RefuseReason::ReclaimFailed));
    assert!(world.balloon.stolen().is_empty());
    world.host.fails_from = None;
    assert_eq!(world.ask(&steal).verdict, Verdict::Ok, "it may be asked again");
}

/// Huge pages of the guest's that stand for a block which cannot be emptied.
#[test]
fn large_blocks_may_go_in_pieces_of_two_mib() {
    let mut world = World::new(LocalRule::Grant);
    world.hello_of_blocks(BLOCK.times(4));
    let pieces = vec![block(5), block(8), block(9)];
    assert_eq!(world.ask(&Request::Steal(pieces.clone())).verdict, Verdict::Ok);
    assert_eq!(world.balloon.stolen().total(), BLOCK.times(3));
    let half = GpaRange::new(block(12).start(), ByteSize::from_mib(1)).unwrap();
    let crooked = world.ask(&Request::Steal(vec![half])).verdict;
    assert_eq!(crooked, Verdict::Refused(RefuseReason::Misaligned));
    let wanted = ReturnRequest { ticket: 1, urgency: Urgency::Comfort, ranges: pieces };
    assert_eq!(world.ask(&Request::Return(wanted)).verdict, Verdict::Ok);
    assert!(world.balloon.stolen().is_empty());
}

/// Pages of 1 GiB, as on a host that has set such apart for its guests: no piece is one of them.
#[test]
fn pieces_are_offered_while_the_host_can_drop_one_wherever_it_lies() {
    let mut world = World::new(LocalRule::Grant);
    let (small, gib) = (ByteSize::from_kib(4), ByteSize::from_gib(1));
    let half = BLOCK.times(BLOCKS / 2);
    let parts = |low: ByteSize, high: ByteSize| {
        let part = |start, unit| MemoryPart::new(GpaRange::new(start, half).unwrap(), unit);
        [part(Gpa(0), low), part(Gpa(half.bytes()), high)]
    };
    let offered = |world: &World| {
        let mut field = [0; 4];
        world.balloon.read_config(40, &mut field);
        u32::from_le_bytes(field)
    };
    // Before there is an agent nobody has to be told.
    let epoch = world.balloon.hello_epoch();
    world.balloon.set_memory_parts(parts(gib, gib));
    assert_eq!((offered(&world), world.balloon.hello_epoch()), (0, epoch));
    world.balloon.set_memory_parts(parts(small, small));
    assert_eq!((offered(&world), world.balloon.hello_epoch()), (2 << 20, epoch));
    assert_eq!(world.hello().verdict, Verdict::Ok);
    // A DIMM of another kind is plugged in: what is not sure to go is not offered.
    world.balloon.set_memory_parts(parts(small, gib));
    assert_eq!((offered(&world), world.balloon.hello_epoch()), (0, epoch + 1));
    let steal = Request::Steal(vec![block(1)]);
    assert_eq!(world.ask(&steal).verdict, Verdict::Refused(RefuseReason::NoHello));
    assert_eq!(world.hello().verdict, Verdict::Ok);
    // The table is away for a message, and says nothing.
    world.balloon.set_memory_parts([]);
    world.balloon.set_memory_parts(parts(small, gib));
    assert_eq!((offered(&world), world.balloon.hello_epoch()), (0, epoch + 1));
    world.balloon.set_memory_parts(parts(small, ByteSize::from_mib(2)));
    assert_eq!((offered(&world), world.balloon.hello_epoch()), (2 << 20, epoch + 2));
}

#[test]
fn the_map_never_outgrows_a_hello() {
    let settings = Settings::default();
    let mut balloon = Balloon::new(settings, Instant::from_millis(0));
    let all = GpaRange::new(Gpa(0), BLOCK.times(8 * RANGES_MAX as u64)).unwrap();
    balloon.set_memory([all], ByteSize::from_kib(4));
    balloon.set_rings(Rings::WithBlock);
    let mut world = World { balloon, host: FakeHost::default(), now: 0, offline: BTreeSet::new() };
    assert_eq!(world.hello().verdict, Verdict::Ok);
    let every_second = |from: u64, count: u64| (0..count).map(|n| block(from + 2 * n)).collect();
    let count = RANGES_MAX as u64;
    assert_eq!(world.ask(&Request::Steal(every_second(0, count))).verdict, Verdict::Ok);
    let too_many = Verdict::Refused(RefuseReason::TooManyRanges);
    assert_eq!(world.ask(&Request::Steal(vec![block(2 * count + 1)])).verdict, too_many);
    // A block between two others makes one range of three; then there is room again.
    assert_eq!(world.ask(&Request::Steal(vec![block(1)])).verdict, Verdict::Ok);
    assert_eq!(world.ask(&Request::Steal(vec![block(2 * count + 1)])).verdict, Verdict::Ok);
    let middle = ReturnRequest { ticket: 1, urgency: Urgency::Comfort, ranges: vec![block(1)] };
    assert_eq!(world.ask(&Request::Return(middle)).verdict, too_many);
    assert_eq!(world.balloon.stolen().len(), RANGES_MAX);
}
