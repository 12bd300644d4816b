//! Memory that the guest ejects stays stolen, and comes back only where somebody plugs it in.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use memtide_balloon::fake::FakeHost;
use memtide_balloon::{Balloon, Event, LocalRule, Moment, Rings, Settings};
use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::{Hello, RefuseReason, Request, ReturnRequest, Urgency, Verdict};
use memtide_wire::config::{CONFIG_LEN, Extension, Plugging};

const BLOCK: ByteSize = ByteSize::from_mib(128);
/// What the VM has from its start, in blocks; the DIMM lies behind a hole.
const BOOT: u64 = 8;
const DIMM: u64 = 32;
const DIMM_BLOCKS: u64 = 4;

fn blocks(first: u64, count: u64) -> GpaRange {
    GpaRange::new(Gpa(first * BLOCK.bytes()), BLOCK.times(count)).unwrap()
}

fn dimm() -> GpaRange {
    blocks(DIMM, DIMM_BLOCKS)
}

struct World {
    balloon: Balloon,
    host: FakeHost,
    there: Vec<GpaRange>,
}

impl World {
    /// The DIMM is there, its agent has stolen it, and a controller plugs it in again.
    fn new() -> Self {
        let settings = Settings { local_rule: LocalRule::Hold, ..Settings::default() };
        let mut balloon = Balloon::new(settings, Instant::from_millis(0));
        balloon.set_rings(Rings::WithBlock);
        let mut world = Self { balloon, host: FakeHost::default(), there: vec![] };
        world.set_memory([blocks(0, BOOT), dimm()]);
        world.balloon.controller_attached();
        world.balloon.set_pluggable([dimm()].into_iter().collect());
        assert_eq!(world.hello(vec![]), Verdict::Ok);
        assert_eq!(world.ask(&Request::Steal(vec![dimm()])), Verdict::Ok);
        world.balloon.take_events();
        world
    }

    /// The guest has ejected it.
    fn without_dimm() -> Self {
        let mut world = Self::new();
        assert_eq!(world.ask(&Request::Eject(vec![dimm()])), Verdict::Ok);
        world.set_memory([blocks(0, BOOT)]);
        world.balloon.take_events();
        world
    }

    fn set_memory<const N: usize>(&mut self, ranges: [GpaRange; N]) {
        self.there = ranges.to_vec();
        self.balloon.set_memory(ranges, ByteSize::from_kib(4));
    }

    fn ask(&mut self, request: &Request) -> Verdict {
        let mut moment = Moment { now: Instant::from_millis(0), host: &mut self.host };
        self.balloon.answer(&request.encode(1), &mut moment).verdict
    }

    /// Names what is not there as ejected.
    fn hello(&mut self, stolen: Vec<GpaRange>) -> Verdict {
        let (stolen, ejected) = stolen.into_iter().partition(|range| self.there.contains(range));
        self.ask(&Request::Hello(Hello {
            epoch: self.balloon.hello_epoch(),
            block_size: BlockSize::new(BLOCK).unwrap(),
            present: BLOCK.times(BOOT + DIMM_BLOCKS),
            online: BLOCK.times(BOOT),
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen,
            ejected,
        }))
    }

    fn wants(&mut self, range: GpaRange) -> Verdict {
        let (ticket, urgency) = (1, Urgency::Pressure);
        self.ask(&Request::Return(ReturnRequest { ticket, urgency, ranges: vec![range] }))
    }

    fn plugging(&self) -> Plugging {
        let mut bytes = [0; CONFIG_LEN];
        self.balloon.read_config(0, &mut bytes);
        Plugging::from_code(Extension::find(&bytes).unwrap().plugging.get())
    }
}

fn refused(reason: RefuseReason) -> Verdict {
    Verdict::Refused(reason)
}

#[test]
fn what_is_stolen_and_can_be_plugged_in_may_be_ejected_and_nothing_else() {
    let mut world = World::new();
    assert_eq!(world.plugging(), Plugging::Ready);
    let elsewhere = world.ask(&Request::Eject(vec![blocks(4, 1)]));
    assert_eq!(elsewhere, refused(RefuseReason::NotPluggable));
    assert_eq!(world.ask(&Request::Eject(vec![])), refused(RefuseReason::Malformed));
    assert_eq!(world.ask(&Request::Eject(vec![dimm()])), Verdict::Ok);
    assert_eq!(world.balloon.take_events().last(), Some(&Event::Ejecting { ranges: vec![dimm()] }));
    assert_eq!(world.ask(&Request::Taken(vec![blocks(DIMM, 1)])), Verdict::Ok);
    assert_eq!(world.ask(&Request::Eject(vec![dimm()])), refused(RefuseReason::NotStolen));
}

#[test]
fn what_is_ejected_is_stolen_still_and_counts_as_the_guests_memory() {
    let mut world = World::without_dimm();
    world.balloon.ask_hello();
    assert_eq!(world.hello(vec![dimm()]), Verdict::Ok);
    assert_eq!(world.balloon.stolen().total(), dimm().len());
    // It holds its boot memory, which is one block less than it is guaranteed.
    world.balloon.set_min(BLOCK.times(BOOT + 1));
    assert_eq!(world.wants(blocks(DIMM, 1)), Verdict::Ok, "nobody need be asked");
    let Verdict::Held(_) = world.wants(blocks(DIMM + 1, 1)) else { panic!("that would be more") };
    // A steal that could not be told before it was ejected drops nothing: there is nothing.
    world.host = FakeHost::default();
    assert_eq!(world.ask(&Request::Steal(vec![blocks(DIMM, 1)])), Verdict::Ok);
    assert_eq!((world.balloon.stolen().total(), world.host.dropped.len()), (dimm().len(), 0));
}

#[test]
fn it_is_plugged_in_for_what_is_granted() {
    let mut world = World::without_dimm();
    world.balloon.set_min(BLOCK.times(BOOT + 1));
    let plug = Request::Plug(vec![dimm()]);
    assert_eq!(world.ask(&plug), refused(RefuseReason::Malformed), "nothing of it is granted");
    assert_eq!(world.wants(blocks(DIMM, 1)), Verdict::Ok);
    assert_eq!(world.ask(&plug), Verdict::Ok);
    let wanted = Event::PlugWanted { ranges: vec![dimm()] };
    assert_eq!(world.balloon.take_events().last(), Some(&wanted));
    assert_eq!(world.ask(&Request::Plug(vec![blocks(4, 1)])), refused(RefuseReason::NotPluggable));
}

#[test]
fn without_a_controller_nothing_is_ejected_and_what_is_out_is_not_forgotten() {
    let mut world = World::without_dimm();
    world.balloon.take_look_again();
    world.balloon.controller_left(Instant::from_millis(1));
    assert_eq!((world.plugging(), world.balloon.take_look_again()), (Plugging::Known, true));
    let dropped = world.ask(&Request::Eject(vec![dimm()]));
    assert_eq!(dropped, refused(RefuseReason::NotPluggable));
    world.balloon.ask_hello();
    assert_eq!(world.hello(vec![dimm()]), Verdict::Ok);
    world.balloon.controller_attached();
    assert_eq!(world.plugging(), Plugging::Ready);
    // Nobody plugs it in any more: it is outside of memory.
    world.balloon.set_pluggable([].into_iter().collect());
    let named = world.hello(vec![dimm()]);
    assert_eq!((world.plugging(), named), (Plugging::Nobody, refused(RefuseReason::OutsideMemory)));
}

/// A device's process that is started anew knows nothing of what is out.
#[test]
fn who_can_plug_in_has_the_agent_introduce_itself_anew() {
    let mut world = World::without_dimm();
    world.balloon.vmm_left();
    world.balloon.set_rings(Rings::WithBlock);
    world.set_memory([blocks(0, BOOT)]);
    assert_eq!(world.plugging(), Plugging::Nobody);
    assert_eq!(world.hello(vec![dimm()]), refused(RefuseReason::OutsideMemory));
    assert_eq!(world.hello(vec![]), Verdict::Ok);
    let epoch = world.balloon.hello_epoch();
    world.balloon.set_pluggable([dimm()].into_iter().collect());
    assert_ne!(world.balloon.hello_epoch(), epoch);
    assert_eq!(world.hello(vec![dimm()]), Verdict::Ok);
    let epoch = world.balloon.hello_epoch();
    world.balloon.set_pluggable([dimm(), blocks(40, 4)].into_iter().collect());
    assert_eq!(world.balloon.hello_epoch(), epoch, "it knew that it may name such");
}

/// The VMM may plug it in at any moment, and its guest may use it then: also while the hello is on its way.
#[test]
fn what_is_named_as_ejected_is_never_dropped() {
    let mut world = World::without_dimm();
    world.balloon.ask_hello();
    let hello = Request::Hello(Hello {
        epoch: world.balloon.hello_epoch(),
        block_size: BlockSize::new(BLOCK).unwrap(),
        present: BLOCK.times(BOOT + DIMM_BLOCKS),
        online: BLOCK.times(BOOT),
        min: ByteSize::ZERO,
        max: ByteSize::MAX,
        stolen: vec![blocks(6, 2)],
        ejected: vec![dimm()],
    });
    world.set_memory([blocks(0, BOOT), dimm()]);
    world.host = FakeHost::default();
    assert_eq!(world.ask(&hello), Verdict::Ok);
    assert_eq!(world.balloon.stolen().total(), BLOCK.times(DIMM_BLOCKS + 2));
    assert!(!world.host.dropped.is_empty());
    assert!(world.host.dropped.iter().all(|range| range.intersection(dimm()).is_none()));
}
