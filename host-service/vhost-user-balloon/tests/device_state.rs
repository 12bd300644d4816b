//! The device's state on its way through a VMM: migration and snapshot.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use common::{Client, Device, Vm, block, hello, is_readable_within, wait_readable};
use memtide_api::device::Request;
use memtide_balloon::{BLOCK_QUEUE, STATE_MAX, Settings};
use memtide_units::ByteSize;
use memtide_wire::block::{RefuseReason, Request as Ask, Verdict};
use memtide_wire::config::Extension;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostTransferStateDirection as Way, VhostTransferStatePhase};

const STOPPED: VhostTransferStatePhase = VhostTransferStatePhase::STOPPED;

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().unwrap()
}

fn save(vm: &Vm) -> Vec<u8> {
    let (ours, theirs) = pipe();
    assert!(vm.frontend.set_device_state_fd(Way::SAVE, STOPPED, theirs).unwrap().is_none());
    let mut state = Vec::new();
    File::from(ours).read_to_end(&mut state).unwrap();
    vm.frontend.check_device_state().unwrap();
    state
}

/// Begins a load and hands `bytes` over; the VMM's end of the channel.
fn load(vm: &Vm, bytes: &[u8]) -> File {
    let (theirs, ours) = pipe();
    assert!(vm.frontend.set_device_state_fd(Way::LOAD, STOPPED, theirs).unwrap().is_none());
    let mut channel = File::from(ours);
    channel.write_all(bytes).unwrap();
    channel
}

fn stopped() -> (Device, Vm) {
    let (device, socket) = Device::connected(Settings::default());
    (device, Vm::negotiated(socket, 0))
}

/// A device in use, then stopped; its guest, and its state.
fn source() -> (Device, Vm, Vec<u8>) {
    let (device, socket) = Device::connected(Settings::default());
    let mut vm = Vm::start(socket, 0, &[0, BLOCK_QUEUE]);
    let mut client = device.control();
    client.ok(Request::SetTarget { balloon: ByteSize::from_mib(3) });
    client.ok(Request::SetMin { min: ByteSize::from_mib(24) });
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    vm.frontend.set_config(4, flags, &256_u32.to_le_bytes()).unwrap();
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
    assert_eq!(vm.ask(&Ask::Steal(vec![block(4), block(6)])).verdict, Verdict::Ok);
    vm.stop_rings(&[0, BLOCK_QUEUE]);
    let state = save(&vm);
    (device, vm, state)
}

#[test]
fn a_guest_goes_on_with_another_device() {
    let (device, vm, state) = source();
    device.end();
    let (device, socket) = Device::connected(Settings::default());
    let mut vm = vm.reconnected(socket, 0);
    drop(load(&vm, &state));
    vm.frontend.check_device_state().unwrap();
    let status = device.control().status();
    let from_state = (ByteSize::from_mib(3), ByteSize::ZERO);
    assert_eq!((status.target, status.min), from_state, "what is guaranteed is this host's word");
    assert_eq!((status.actual, status.stolen), (ByteSize::from_mib(1), vec![block(4), block(6)]));
    // The guest's rings go on where they were, and its agent hears that it should look.
    vm.set_up(0, 0);
    vm.set_up(BLOCK_QUEUE, 2);
    // The block queue is the last that is enabled, and the device has its turn before that.
    for index in 0..6 {
        vm.frontend.set_vring_enable(index, true).unwrap();
        device.control().ok(Request::Status);
    }
    wait_readable(&vm.calls[BLOCK_QUEUE]);
    vm.calls[BLOCK_QUEUE].read().unwrap();
    assert_eq!(device.control().status().actual, ByteSize::from_mib(1), "no driver began anew");
    let again = vm.ask(&Ask::Steal(vec![block(8)]));
    assert_eq!(again.verdict, Verdict::Refused(RefuseReason::NoHello));
    let epoch = Extension::find(&vm.config(0, 64)).unwrap().hello_epoch.get();
    let map = vec![block(4), block(6)];
    assert_eq!(vm.ask(&hello(epoch, map.clone())).verdict, Verdict::Ok);
    assert_eq!(device.control().status().stolen, map);
}

#[test]
fn the_source_goes_on_where_the_migration_fails() {
    let (_device, mut vm, state) = source();
    assert_eq!(save(&vm), state, "saving changes nothing");
    vm.set_up(0, 0);
    vm.set_up(BLOCK_QUEUE, 2);
    (0..6).for_each(|index| vm.frontend.set_vring_enable(index, true).unwrap());
    assert_eq!(vm.ask(&hello(1, vec![block(4), block(6)])).verdict, Verdict::Ok);
}

#[test]
fn a_state_that_makes_no_sense_is_refused_and_nothing_else_is() {
    let (device, vm) = stopped();
    let (_other, _vm, good) = source();
    let long = vec![0; STATE_MAX + 1];
    for bytes in [&[][..], b"nonsense", &good[..good.len() - 1], &[&good[..], b"x"].concat(), &long]
    {
        drop(load(&vm, bytes));
        assert!(vm.frontend.check_device_state().is_err(), "{} bytes", bytes.len());
    }
    assert!(vm.frontend.check_device_state().is_err(), "none was begun");
    assert_eq!(device.control().status().stolen, []);
    drop(load(&vm, &good));
    vm.frontend.check_device_state().unwrap();
    assert_eq!(device.control().status().stolen.len(), 2);
}

#[test]
fn a_device_that_runs_gives_and_takes_no_state() {
    let (_device, socket) = Device::connected(Settings::default());
    let mut vm = Vm::start(socket, 0, &[0]);
    let (_ours, theirs) = pipe();
    assert!(vm.frontend.set_device_state_fd(Way::SAVE, STOPPED, theirs).is_err());
    vm.pages(0, [0x1000]);
}

#[test]
fn a_slow_channel_keeps_nobody_waiting_but_its_vmm() {
    let (device, socket) = Device::connected(Settings::default());
    let watched = socket.try_clone().unwrap();
    let vm = Vm::negotiated(socket, 0);
    let mut channel = load(&vm, b"MTDS");
    let started = Instant::now();
    let asking = std::thread::spawn(move || vm.frontend.check_device_state().is_ok());
    // The question is there, unanswered, and the device serves others.
    let mut client = Client::controller(&device);
    while started.elapsed() < Duration::from_millis(300) {
        client.ok(Request::Status);
    }
    assert!(!is_readable_within(&watched, Duration::ZERO));
    channel.write_all(b"more").unwrap();
    drop(channel);
    assert!(!asking.join().unwrap(), "cut states are refused");

    // One that never ends is given up.
    let (device, vm) = stopped();
    let channel = load(&vm, b"MTDS");
    let started = Instant::now();
    assert!(vm.frontend.check_device_state().is_err());
    let took = started.elapsed();
    assert!((9..15).contains(&took.as_secs()), "{took:?}");
    drop(channel);
    device.control().ok(Request::Status);
}

#[test]
fn a_state_that_nobody_reads_is_given_up() {
    let (device, vm) = stopped();
    let (ours, theirs) = pipe();
    // The pipe is full before the device writes to it.
    rustix::fs::fcntl_setfl(&theirs, rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&theirs, &[0; 4096]).is_ok() {}
    vm.frontend.set_device_state_fd(Way::SAVE, STOPPED, theirs).unwrap();
    device.control().ok(Request::Status);
    drop(ours);
    assert!(vm.frontend.check_device_state().is_err(), "the reader has left");
}
