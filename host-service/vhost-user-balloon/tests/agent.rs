//! The agent on the block queue, and a controller that decides.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{
    BLOCK, Client, DEADLINE, Device, Memory, Vm, block, hello, is_readable_within, wait_readable,
};
use memtide_api::device::{Answer, Decision, Driver, Event, GrantedBy, Outcome, Request, Role};
use memtide_balloon::{BLOCK_QUEUE, LocalRule, Settings};
use memtide_units::{ByteSize, Gpa, GpaRange};
use memtide_wire::block::{
    Heat, HoldReason, RefuseReason, Request as Ask, Response, ReturnRequest, Telemetry, Urgency,
    Verdict,
};
use memtide_wire::config::Extension;
use std::time::Duration;

fn vm_with(settings: Settings) -> (Device, Vm) {
    let (device, socket) = Device::connected(settings);
    let vm = Vm::start(socket, 0, &[0, 1, BLOCK_QUEUE]);
    (device, vm)
}

fn vm() -> (Device, Vm) {
    vm_with(Settings::default())
}

/// Says hello for whatever epoch the device wants.
fn greet(vm: &mut Vm, stolen: Vec<memtide_units::GpaRange>) -> Response {
    let extension = Extension::find(&vm.config(0, 64)).unwrap();
    vm.ask(&hello(extension.hello_epoch.get(), stolen))
}

fn generation(vm: &mut Vm) -> u32 {
    Extension::find(&vm.config(0, 64)).unwrap().generation.get()
}

fn wants(ticket: u32, number: u64) -> Ask {
    let ranges = vec![block(number)];
    Ask::Return(ReturnRequest { ticket, urgency: Urgency::Pressure, ranges })
}

#[test]
fn a_stolen_block_is_gone_before_the_answer_and_back_by_the_local_rule() {
    let (device, mut vm) = vm();
    assert_eq!(greet(&mut vm, vec![]).verdict, Verdict::Ok);
    let answer = vm.ask(&Ask::Steal(vec![block(4), block(6)]));
    assert_eq!((answer.verdict, answer.bytes), (Verdict::Ok, BLOCK.times(2)));
    assert_eq!(vm.memory.resident(), Memory::all_resident() - BLOCK.times(2));
    let answer = vm.ask(&wants(1, 4));
    assert_eq!((answer.verdict, answer.bytes), (Verdict::Ok, BLOCK));
    let status = device.control().status();
    assert_eq!((status.driver, status.stolen), (Driver::Agent, vec![block(6)]));
    assert_eq!((status.counters.stolen, status.counters.returned), (BLOCK.times(2), BLOCK));
    assert_eq!(status.resident, vm.memory.resident());
}

#[test]
fn a_return_is_held_until_the_controller_grants_it_and_the_doorbell_rings() {
    let (device, mut vm) = vm();
    let mut controller = Client::controller(&device);
    greet(&mut vm, vec![block(4)]);
    let answer = vm.ask(&wants(7, 4));
    assert_eq!(answer.verdict, Verdict::Held(HoldReason::Asking));
    assert!(answer.retry_ms > 0);
    let asked = controller.event(|event| match event {
        Event::ReturnAsked(asked) => Some(asked),
        _ => None,
    });
    assert_eq!((asked.ticket, asked.bytes, asked.reason.as_str()), (7, BLOCK, "asking"));

    let before = generation(&mut vm);
    let hold = Decision::Hold("host-budget".into());
    controller.ok(Request::Decide { ticket: 7, decision: hold });
    wait_readable(&vm.calls[BLOCK_QUEUE]);
    vm.calls[BLOCK_QUEUE].read().unwrap();
    assert!(vm.drivers[BLOCK_QUEUE].take_used(&vm.memory.map).is_empty(), "a bell, no buffer");
    assert_ne!(generation(&mut vm), before);
    assert_eq!(vm.ask(&wants(7, 4)).verdict, Verdict::Held(HoldReason::HostBudget));
    assert_eq!(controller.status().pending.unwrap().reason, "host-budget");

    controller.ok(Request::Decide { ticket: 7, decision: Decision::Grant });
    wait_readable(&vm.calls[BLOCK_QUEUE]);
    vm.calls[BLOCK_QUEUE].read().unwrap();
    assert_eq!(vm.ask(&wants(7, 4)).verdict, Verdict::Ok);
    let by = controller.event(|event| match event {
        Event::Returned { ticket: 7, by, .. } => Some(by),
        _ => None,
    });
    assert_eq!(by, GrantedBy::Controller);
    assert!(!is_readable_within(&vm.channel, Duration::ZERO), "an agent is never told by message");
    let refused = controller.refused(Request::Decide { ticket: 7, decision: Decision::Grant });
    assert_eq!(refused, "no-such-ticket");
}

#[test]
fn below_the_minimum_nobody_is_asked() {
    let (device, mut vm) = vm();
    let mut controller = Client::controller(&device);
    let all = Memory::all_resident();
    controller.ok(Request::SetMin { min: all - BLOCK });
    greet(&mut vm, vec![block(4), block(5)]);
    assert_eq!(vm.ask(&wants(1, 4)).verdict, Verdict::Ok, "up to the minimum");
    let answer = vm.ask(&wants(2, 5));
    assert_eq!(answer.verdict, Verdict::Held(HoldReason::Asking), "not beyond it");
    assert_eq!(answer.min, all - BLOCK);
}

#[test]
fn the_local_rule_waits_for_a_controller_that_may_come_back() {
    let settings = Settings { local_rule: LocalRule::Grant, ..Settings::default() };
    let (device, mut vm) = vm_with(settings);
    greet(&mut vm, vec![block(4)]);
    let mut watcher = device.control();
    let mut controller = Client::controller(&device);
    assert_eq!(vm.ask(&wants(1, 4)).verdict, Verdict::Held(HoldReason::Asking));
    controller.ok(Request::Decide { ticket: 1, decision: Decision::Hold("vm-limit".into()) });
    drop(controller);
    watcher.status_when(|status| status.pending.as_ref().unwrap().reason == "asking");
    assert_eq!(vm.ask(&wants(1, 4)).verdict, Verdict::Held(HoldReason::Asking));
    // The next controller finds the question in the status that it gets.
    let attach = Request::Attach { version: 1, role: Role::Controller };
    let Answer::Status(status) = watcher.ok(attach) else { panic!("a status") };
    assert_eq!(status.pending.unwrap().ticket, 1);
}

#[test]
fn what_makes_no_sense_is_refused_by_name_and_changes_nothing() {
    let (device, mut vm) = vm();
    let refused = |reason| Verdict::Refused(reason);
    assert_eq!(vm.ask(&Ask::Steal(vec![block(4)])).verdict, refused(RefuseReason::NoHello));
    let verdict = greet(&mut vm, vec![block(4), block(4)]).verdict;
    assert_eq!(verdict, refused(RefuseReason::Overlap));
    assert_eq!(greet(&mut vm, vec![block(400)]).verdict, refused(RefuseReason::OutsideMemory));
    assert_eq!(greet(&mut vm, vec![]).verdict, Verdict::Ok);
    for (ranges, reason) in [
        (vec![block(4), block(4)], RefuseReason::Overlap),
        // The first block has the hole below 1 MiB in it.
        (vec![block(0)], RefuseReason::OutsideMemory),
        (vec![block(31), block(32)], RefuseReason::OutsideMemory),
        (vec![memtide_units::GpaRange::of_pfn(memtide_units::Pfn(2048))], RefuseReason::Misaligned),
    ] {
        assert_eq!(vm.ask(&Ask::Steal(ranges)).verdict, refused(reason));
    }
    assert_eq!(vm.ask(&wants(1, 9)).verdict, refused(RefuseReason::NotStolen));
    assert_eq!(vm.ask_raw(&[1, 2, 3]).verdict, refused(RefuseReason::Malformed));
    assert_eq!(vm.memory.resident(), Memory::all_resident());
    let counters = device.control().status().counters;
    assert_eq!((counters.refused["overlap"], counters.refused["outside-memory"]), (2, 3));
}

#[test]
fn a_killed_agents_blocks_are_known_again_by_the_next_hello() {
    let (device, mut vm) = vm();
    greet(&mut vm, vec![]);
    vm.ask(&Ask::Steal(vec![block(4)]));
    // The agent is killed with block 5 offline and not reported: the rings stop without a goodbye.
    vm.stop_rings(&[0, 1, BLOCK_QUEUE]);
    let mut client = device.control();
    let status = client.status();
    assert_eq!((status.driver, status.stolen), (Driver::None, vec![block(4)]));
    vm.drivers = common::fresh_drivers(&vm.memory);
    vm.start_rings(&[0, BLOCK_QUEUE]);
    assert_eq!(
        vm.ask(&Ask::Steal(vec![])).verdict,
        Verdict::Refused(RefuseReason::NoHello),
        "a new driver introduces itself"
    );
    assert_eq!(greet(&mut vm, vec![block(4), block(5)]).verdict, Verdict::Ok);
    assert_eq!(vm.memory.resident(), Memory::all_resident() - BLOCK.times(2));
    assert_eq!(client.status().stolen.iter().map(|r| r.len()).sum::<ByteSize>(), BLOCK.times(2));
}

#[test]
fn an_asked_for_hello_is_wanted_before_anything_else() {
    let (device, mut vm) = vm();
    greet(&mut vm, vec![block(4)]);
    let before = Extension::find(&vm.config(0, 64)).unwrap().hello_epoch.get();
    device.control().ok(Request::AskHello);
    wait_readable(&vm.calls[BLOCK_QUEUE]);
    vm.calls[BLOCK_QUEUE].read().unwrap();
    assert_eq!(vm.ask(&wants(1, 4)).verdict, Verdict::Refused(RefuseReason::NoHello));
    let late = vm.ask(&hello(before, vec![])).verdict;
    assert_eq!(late, Verdict::Refused(RefuseReason::NoHello));
    assert_eq!(greet(&mut vm, vec![block(4)]).verdict, Verdict::Ok);
}

#[test]
fn a_new_target_reaches_the_agent_by_the_doorbell() {
    let (device, mut vm) = vm();
    greet(&mut vm, vec![]);
    let before = generation(&mut vm);
    device.control().ok(Request::SetTarget { balloon: BLOCK.times(3) });
    wait_readable(&vm.calls[BLOCK_QUEUE]);
    assert_ne!(generation(&mut vm), before);
    assert_eq!(vm.config(0, 4), (3 * 512_u32).to_le_bytes());
}

#[test]
fn cancelled_taken_and_goodbye_are_told() {
    let (device, mut vm) = vm();
    let mut controller = Client::controller(&device);
    greet(&mut vm, vec![block(4), block(5)]);
    vm.ask(&wants(1, 4));
    assert_eq!(vm.ask(&Ask::Cancel { ticket: 1 }).verdict, Verdict::Ok);
    vm.ask(&wants(2, 4));
    assert_eq!(vm.ask(&Ask::Taken(vec![block(4)])).verdict, Verdict::Ok);
    vm.ask(&Ask::Goodbye);
    let cancelled = |event| match event {
        Event::ReturnCancelled { ticket } => Some(ticket),
        _ => None,
    };
    assert_eq!(controller.event(cancelled), 1);
    assert_eq!(controller.event(cancelled), 2, "the block that was waited for is taken");
    let taken = controller.event(|event| match event {
        Event::Taken { stolen, .. } => Some(stolen),
        _ => None,
    });
    assert_eq!(taken, BLOCK);
    let status = controller.status();
    assert_eq!((status.driver, status.counters.taken), (Driver::None, BLOCK));
}

#[test]
fn telemetry_is_kept_and_told_at_most_once_a_second() {
    let (device, mut vm) = vm();
    let mut controller = Client::controller(&device);
    greet(&mut vm, vec![]);
    let start = std::time::Instant::now();
    for free in 1..=20 {
        let free = ByteSize::from_mib(free);
        vm.ask(&Ask::Telemetry(Telemetry { free, note: "steady".into(), ..Telemetry::default() }));
    }
    let kept = controller.status().telemetry.unwrap();
    assert_eq!((kept.free, kept.note.as_str()), (ByteSize::from_mib(20), "steady"));
    vm.ask(&Ask::Goodbye);
    let mut told = 0;
    controller.event(|event| match event {
        Event::Telemetry(_) => {
            told += 1;
            None
        }
        Event::DriverChanged { driver: Driver::None } => Some(()),
        _ => None,
    });
    assert!((1..=1 + start.elapsed().as_secs()).contains(&told), "told {told} times");
}

/// What a guest says of its memory reaches programs on the host checked, or not at all.
#[test]
fn what_was_touched_is_told_unless_it_contradicts_itself() {
    let (device, mut vm) = vm();
    let mut controller = Client::controller(&device);
    greet(&mut vm, vec![]);
    let span = GpaRange::new(Gpa(0), ByteSize::from_mib(4)).unwrap();
    let good = Heat {
        at_ms: 5,
        cell: ByteSize::from_mib(1),
        spans: vec![span],
        cells: vec![[0, 200], [255, 0], [180, 9], [252, 0]],
        ..Heat::default()
    };
    let mut told = |heat: &Heat| {
        let (free, heat) = (ByteSize::from_mib(9), Some(Box::new(heat.clone())));
        vm.ask(&Ask::Telemetry(Telemetry { free, heat, ..Telemetry::default() }));
        let kept = controller.status().telemetry.unwrap();
        assert_eq!(kept.free, free, "the rest is told all the same");
        kept.heat
    };
    let kept = told(&good).unwrap();
    assert_eq!((kept.at_ms, kept.layout.present().mib(), kept.cells.len()), (5, 4, 4));
    for bad in [
        Heat { cells: vec![[0, 0]; 3], ..good.clone() },
        Heat { cell: ByteSize::from_mib(3), ..good.clone() },
        Heat { spans: vec![span, span], ..good.clone() },
        Heat { spans: vec![], cells: vec![], ..good.clone() },
    ] {
        assert_eq!(told(&bad), None, "{bad:?}");
    }
}

#[test]
fn without_a_controller_a_person_sets_the_rule_and_decides_what_it_holds() {
    use memtide_api::device::{Decider, LocalRule};
    let (device, mut vm) = vm();
    greet(&mut vm, vec![block(4), block(5), block(6)]);
    let mut person = device.control();
    // The guest shall do without two blocks: it gets one of its three back, and no more.
    person.ok(Request::SetTarget { balloon: BLOCK + BLOCK });
    person.ok(Request::SetLocalRule { rule: LocalRule::Target });
    assert_eq!(vm.ask(&wants(1, 4)).verdict, Verdict::Ok);
    assert_eq!(vm.ask(&wants(2, 5)).verdict, Verdict::Held(HoldReason::VmLimit));
    let status = person.status();
    assert_eq!((status.decider, status.local_rule), (Decider::LocalRule, LocalRule::Target));
    assert_eq!(status.pending.unwrap().reason, "vm-limit");
    let ring = |vm: &Vm| {
        wait_readable(&vm.calls[BLOCK_QUEUE]);
        vm.calls[BLOCK_QUEUE].read().unwrap();
    };
    person.ok(Request::Decide { ticket: 2, decision: Decision::Grant });
    ring(&vm);
    assert_eq!(vm.ask(&wants(2, 5)).verdict, Verdict::Ok, "a person may be more generous");
    assert_eq!(person.status().decider, Decider::LocalRule, "and leaves nobody to wait for");
    assert_eq!(vm.ask(&wants(3, 6)).verdict, Verdict::Held(HoldReason::VmLimit));
    person.ok(Request::SetLocalRule { rule: LocalRule::Grant });
    ring(&vm);
    assert_eq!(vm.ask(&wants(3, 6)).verdict, Verdict::Ok);
}

#[test]
fn one_controller_at_a_time_and_only_it_steers() {
    let (device, _vm) = vm();
    let mut controller = Client::controller(&device);
    let mut other = device.control();
    let attach = |role| Request::Attach { version: 1, role };
    assert_eq!(other.refused(attach(Role::Controller)), "controller-present");
    assert_eq!(
        other.refused(Request::Attach { version: 9, role: Role::Observer }),
        "version-mismatch"
    );
    other.ok(attach(Role::Observer));
    assert_eq!(other.refused(Request::SetMin { min: BLOCK }), "not-controller");
    let decide = Request::Decide { ticket: 1, decision: Decision::Grant };
    assert_eq!(other.refused(decide), "not-controller");
    let rule = Request::SetLocalRule { rule: memtide_api::device::LocalRule::Hold };
    assert_eq!(other.refused(rule), "not-controller");
    let bad = Request::Decide { ticket: 1, decision: Decision::Hold("bad weather".into()) };
    assert_eq!(controller.refused(bad), "bad-request");
    drop(controller);
    // The device learns that it is gone in its next round, or the one after that.
    let start = std::time::Instant::now();
    while let Outcome::Error(_) = other.call(attach(Role::Controller)) {
        assert!(start.elapsed() < DEADLINE);
    }
    other.ok(Request::SetMin { min: BLOCK });
    other.send_raw(b"gibberish\n");
    assert!(format!("{:?}", other.line()).contains("bad-request"));
    assert_eq!(other.status().min, BLOCK, "the connection goes on");
}
