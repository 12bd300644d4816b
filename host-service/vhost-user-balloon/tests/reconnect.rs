//! A device that dies, and one that takes its place: nothing is lost and nothing answered twice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    BLOCK, Client, DEADLINE, Device, EVENT_IDX, Memory, Vm, block, hello, is_readable_within,
    wait_readable,
};
use memtide_api::device::{Decision, Event, Request};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{BLOCK_QUEUE, QUEUES, Settings};
use memtide_units::ByteSize;
use memtide_wire::block::{
    HoldReason, RefuseReason, Request as Ask, ReturnRequest, Urgency, Verdict,
};
use memtide_wire::config::Extension;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

const INFLATE: usize = 0;

/// A chain that inflates one page. Each has its own place for the number, as several wait at a time.
fn inflate(vm: &mut Vm, pfn: u32) -> u16 {
    let at = (3 << 20) + u64::from(pfn % 1024) * 4;
    vm.memory.map.write_slice(&pfn.to_le_bytes(), GuestAddress(at)).unwrap();
    vm.drivers[INFLATE].add(&vm.memory.map, &[Buffer::Readable(at, 4)])
}

fn enable(vm: &mut Vm) {
    (0..QUEUES).for_each(|index| vm.frontend.set_vring_enable(index, true).unwrap());
}

fn await_used(vm: &mut Vm, index: usize, count: usize) -> Vec<u16> {
    let start = Instant::now();
    let mut used = Vec::new();
    while used.len() < count {
        used.extend(vm.drivers[index].take_used(&vm.memory.map).iter().map(|(head, _)| *head));
        assert!(start.elapsed() < DEADLINE, "{} of {count} were answered", used.len());
        std::thread::yield_now();
    }
    used
}

#[test]
fn chains_that_nobody_answered_are_answered_by_the_next_device() {
    // QEMU knows the place where the ring stopped; Cloud Hypervisor takes what the driver has made
    // available for answered.
    for base in [3, 5] {
        let (device, socket) = Device::connected(Settings::default());
        let mut vm = Vm::start(socket, 0, &[INFLATE]);
        for pfn in 0x1000..0x1003 {
            vm.pages(INFLATE, [pfn]);
        }
        vm.frontend.set_vring_enable(INFLATE, false).unwrap();
        let heads: Vec<u16> = (0x1003..0x1005).map(|pfn| inflate(&mut vm, pfn)).collect();
        vm.kicks[INFLATE].write(1).unwrap();
        device.end();

        let (device, socket) = Device::connected(Settings::default());
        let mut vm = vm.reconnected(socket, 0);
        vm.set_up(INFLATE, base);
        enable(&mut vm);
        assert_eq!(await_used(&mut vm, INFLATE, 2), heads);
        assert_eq!(vm.memory.resident(), Memory::all_resident() - ByteSize::from_kib(4 * 5));
        let counters = device.control().status().counters;
        assert_eq!(counters.inflated, ByteSize::from_kib(4 * 2), "and those alone");
        vm.pages(INFLATE, [0x1005]);
        assert_eq!(vm.stop_rings(&[INFLATE]), [6]);
    }
}

#[test]
fn answers_that_a_dead_device_did_not_tell_of_are_told_by_the_next() {
    for features in [0, EVENT_IDX] {
        let (device, socket) = Device::connected(Settings::default());
        let mut vm = Vm::start(socket, features, &[INFLATE]);
        // It dies between the answer and the interrupt: the driver has not heard of the first.
        let answered = inflate(&mut vm, 0x1000);
        vm.kicks[INFLATE].write(1).unwrap();
        wait_readable(&vm.calls[INFLATE]);
        device.end();

        let (device, socket) = Device::connected(Settings::default());
        let mut vm = vm.reconnected(socket, features);
        vm.hand_over(INFLATE, 1);
        wait_readable(&vm.calls[INFLATE]);
        vm.calls[INFLATE].read().unwrap();
        assert_eq!(vm.drivers[INFLATE].take_used(&vm.memory.map), [(answered, 0)]);
        enable(&mut vm);
        assert!(!is_readable_within(&vm.calls[INFLATE], Duration::from_millis(200)), "once");
        // The other order, of Cloud Hypervisor: the descriptor comes before the start.
        assert_eq!(vm.stop_rings(&[INFLATE]), [1]);
        vm.frontend.set_vring_call(INFLATE, &vm.calls[INFLATE]).unwrap();
        assert!(vm.calls[INFLATE].read().is_err(), "a ring that is stopped tells nothing");
        vm.frontend.set_vring_kick(INFLATE, &vm.kicks[INFLATE]).unwrap();
        wait_readable(&vm.calls[INFLATE]);
        vm.calls[INFLATE].read().unwrap();
        // A stop is quiet.
        enable(&mut vm);
        vm.frontend.set_vring_enable(INFLATE, false).unwrap();
        vm.frontend.get_vring_base(INFLATE).unwrap();
        device.end();
        assert!(vm.calls[INFLATE].read().is_err());
    }
}

#[test]
fn a_held_return_is_asked_again_and_answered_once() {
    let wants = Ask::Return(ReturnRequest {
        ticket: 7,
        urgency: Urgency::Pressure,
        ranges: vec![block(4)],
    });
    let (device, socket) = Device::connected(Settings::default());
    let mut vm = Vm::start(socket, 0, &[INFLATE, BLOCK_QUEUE]);
    let controller = Client::controller(&device);
    assert_eq!(vm.ask(&hello(1, vec![block(4), block(6)])).verdict, Verdict::Ok);
    assert_eq!(vm.ask(&wants).verdict, Verdict::Held(HoldReason::Asking));
    drop(controller);
    device.end();

    let (device, socket) = Device::connected(Settings::default());
    let mut controller = Client::controller(&device);
    let mut vm = vm.reconnected(socket, 0);
    vm.set_up(INFLATE, 0);
    vm.set_up(BLOCK_QUEUE, 2);
    enable(&mut vm);
    // The agent knows nothing of it until its next question.
    assert_eq!(vm.ask(&wants).verdict, Verdict::Refused(RefuseReason::NoHello));
    let epoch = Extension::find(&vm.config(0, 64)).unwrap().hello_epoch.get();
    assert_eq!(vm.ask(&hello(epoch, vec![block(4), block(6)])).verdict, Verdict::Ok);
    assert_eq!(vm.ask(&wants).verdict, Verdict::Held(HoldReason::Asking));
    controller.event(|event| matches!(event, Event::ReturnAsked(r) if r.ticket == 7).then_some(()));
    controller.ok(Request::Decide { ticket: 7, decision: Decision::Grant });
    let granted = vm.ask(&wants);
    assert_eq!((granted.verdict, granted.bytes), (Verdict::Ok, BLOCK));
    let status = controller.status();
    assert_eq!((status.stolen, status.counters.returns_granted), (vec![block(6)], 1));
    assert_eq!(vm.stop_rings(&[BLOCK_QUEUE]), [6], "every question has one answer");
}

/// A device process that is killed when this is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(socket: &Path) -> (Program, UnixStream) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-balloon"));
    command.arg("--socket-path").arg(socket).stderr(Stdio::null());
    let program = Program(command.spawn().unwrap());
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return (program, stream),
            Err(error) => assert!(start.elapsed() < DEADLINE, "{}: {error}", socket.display()),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_process_that_is_killed_while_it_works_loses_no_chain() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm.sock");
    let (mut program, stream) = start(&socket);
    let mut vm = Vm::start(stream, 0, &[INFLATE]);
    let (mut sent, mut seen) = (Vec::new(), Vec::new());
    for round in 0..20_u32 {
        sent.extend((0..64).map(|n| inflate(&mut vm, 0x1000 + round * 64 + n)));
        vm.kicks[INFLATE].write(1).unwrap();
        // Killed when it has answered some: none at first, more with each round.
        seen.extend(await_used(&mut vm, INFLATE, round as usize % 8 * 8));
        drop(program);
        let stream;
        (program, stream) = start(&socket);
        vm = vm.reconnected(stream, 0);
        // Cloud Hypervisor's idea of the place.
        vm.set_up(INFLATE, sent.len() as u16);
        enable(&mut vm);
        seen.extend(await_used(&mut vm, INFLATE, sent.len() - seen.len()));
        assert_eq!(seen, sent, "each once, in order");
    }
    let gone = ByteSize::from_kib(4).times(sent.len() as u64);
    assert_eq!(vm.memory.resident(), Memory::all_resident() - gone);
    drop(program);
}
