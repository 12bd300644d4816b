//! A standard balloon driver: inflate, deflate, reporting, statistics, the balloon's size.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{
    Client, DEADLINE, Device, Memory, REPORTING, STATS_VQ, Vm, is_readable_within, wait_readable,
};
use memtide_api::device::{Driver, Request};
use memtide_balloon::Settings;
use memtide_balloon::fake::Buffer;
use memtide_units::ByteSize;
use std::io::Read;
use std::time::{Duration, Instant};
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;

fn vm(features: u64, queues: &[usize]) -> (Device, Vm) {
    let (device, socket) = Device::connected(Settings::default());
    let vm = Vm::start(socket, features, queues);
    (device, vm)
}

#[test]
fn inflated_pages_are_holes_when_the_driver_learns_of_it() {
    let (device, mut vm) = vm(0, &[INFLATE, DEFLATE]);
    vm.pages(INFLATE, (4096..4096 + 256).rev());
    assert_eq!(vm.memory.resident(), Memory::all_resident() - ByteSize::from_mib(1));
    let mut byte = [1];
    vm.memory.map.read_slice(&mut byte, GuestAddress(4096 << 12)).unwrap();
    assert_eq!(byte, [0], "inside it is gone");
    vm.memory.map.read_slice(&mut byte, GuestAddress((4096 << 12) - 1)).unwrap();
    assert_eq!(byte, [0xa5], "beside it is not");
    vm.pages(DEFLATE, 4096..4096 + 256);
    let counters = device.control().status().counters;
    assert_eq!(counters.inflated, ByteSize::from_mib(1));
    assert_eq!(counters.deflated, ByteSize::from_mib(1));
    assert_eq!(counters.punches, 1, "256 pages in a row are one hole");
}

#[test]
fn pages_that_are_no_memory_are_ignored_and_counted() {
    let (device, mut vm) = vm(0, &[INFLATE]);
    // The hole below 1 MiB, the end of memory, and the last page that a PFN can name.
    vm.pages(INFLATE, [0xa0, 0x4000, u32::MAX, 0x3fff]);
    assert_eq!(vm.memory.resident(), Memory::all_resident() - ByteSize::from_kib(4));
    let counters = device.control().status().counters;
    assert_eq!(counters.inflated, ByteSize::from_kib(4));
    assert!(counters.refused["outside-memory"] >= 2);
}

#[test]
fn reported_buffers_are_dropped_unread() {
    // Without statistics the reporting queue is the third.
    for (features, queue) in [(REPORTING, 2), (REPORTING | STATS_VQ, 3)] {
        let (device, mut vm) = vm(features, &[INFLATE, queue]);
        let buffers = [Buffer::Writable(8 << 20, 4 << 20), Buffer::Writable(16 << 20, 4 << 20)];
        assert_eq!(vm.submit(queue, &buffers), 0);
        assert_eq!(vm.memory.resident(), Memory::all_resident() - ByteSize::from_mib(8));
        assert_eq!(device.control().status().counters.reported, ByteSize::from_mib(8));
    }
}

/// Puts one statistic of a kind into the buffer at 8 MiB.
fn write_statistic(vm: &Vm, tag: u16, value: u64) -> Buffer {
    let bytes = [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    vm.memory.map.write_slice(&bytes, GuestAddress(8 << 20)).unwrap();
    Buffer::Readable(8 << 20, bytes.len() as u32)
}

#[test]
fn statistics_are_asked_for_while_somebody_reads_them() {
    let settings =
        Settings { stats_interval: Some(Duration::from_millis(50)), ..Settings::default() };
    let (device, socket) = Device::connected(settings);
    let mut vm = Vm::start(socket, STATS_VQ, &[INFLATE, 2]);
    let buffer = write_statistic(&vm, 4, 1000);
    vm.drivers[2].add(&vm.memory.map, &[buffer]);
    vm.kicks[2].write(1).unwrap();
    assert!(!is_readable_within(&vm.calls[2], Duration::from_millis(200)), "nobody reads them");
    let mut client = device.control();
    assert_eq!(client.status_when(|s| !s.stats.is_empty()).stats["free_memory"], 1000);
    for value in [2000, 3000] {
        wait_readable(&vm.calls[2]);
        vm.calls[2].read().unwrap();
        assert_eq!(vm.drivers[2].take_used(&vm.memory.map).len(), 1);
        let buffer = write_statistic(&vm, 4, value);
        vm.drivers[2].add(&vm.memory.map, &[buffer]);
        vm.kicks[2].write(1).unwrap();
        client.status_when(|s| s.stats["free_memory"] == value);
    }
}

#[test]
fn a_parked_statistics_buffer_is_found_again_after_a_stop() {
    let (device, mut vm) = vm(STATS_VQ, &[INFLATE, 2]);
    let buffer = write_statistic(&vm, 99, 7);
    let head = vm.drivers[2].add(&vm.memory.map, &[buffer]);
    vm.kicks[2].write(1).unwrap();
    let mut client = device.control();
    assert_eq!(client.status_when(|s| !s.stats.is_empty()).stats["tag-99"], 7);
    wait_readable(&vm.calls[2]);
    vm.calls[2].read().unwrap();
    assert_eq!(vm.drivers[2].take_used(&vm.memory.map), [(head, 0)], "the first is asked back");
    let head = vm.drivers[2].add(&vm.memory.map, &[buffer]);
    vm.kicks[2].write(1).unwrap();
    // The VMM pauses its guest: the ring stands at the buffer, as if it had not been taken.
    client.status_when(|s| s.stats.get("tag-99") == Some(&7));
    assert_eq!(vm.stop_rings(&[INFLATE, 2]), [0, 1]);
    vm.set_up(INFLATE, 0);
    vm.set_up(2, 1);
    (0..6).for_each(|index| vm.frontend.set_vring_enable(index, true).unwrap());
    client.status_when(|s| s.stats.get("tag-99") == Some(&7));
    wait_readable(&vm.calls[2]);
    assert_eq!(vm.drivers[2].take_used(&vm.memory.map), [(head, 0)]);
}

#[test]
fn the_balloons_size_is_told_by_message_once_the_device_has_settled() {
    let before = Instant::now();
    let (device, mut vm) = vm(0, &[INFLATE, DEFLATE]);
    let mut client = Client::controller(&device);
    assert_eq!(client.status().driver, Driver::Stock);
    for mib in [1, 2, 16] {
        client.ok(Request::SetTarget { balloon: ByteSize::from_mib(mib) });
    }
    assert_eq!(vm.config(0, 4), (16_u32 << 8).to_le_bytes());
    vm.channel.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut message = [0; 12];
    vm.channel.read_exact(&mut message).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(200), "{:?}", before.elapsed());
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Three changes, one message; and none to a device that does not run.
    assert!(!is_readable_within(&vm.channel, Duration::from_millis(300)));
    vm.stop_rings(&[INFLATE, DEFLATE]);
    client.ok(Request::SetTarget { balloon: ByteSize::from_mib(17) });
    assert!(!is_readable_within(&vm.channel, Duration::from_millis(500)));
    client.status_when(|status| status.driver == Driver::None);
}

/// Bytes that wait in the channel.
fn waiting(vm: &Vm) -> u64 {
    rustix::io::ioctl_fionread(&vm.channel).unwrap()
}

#[test]
fn a_message_is_finished_once_its_beginning_was_read() {
    let (device, mut vm) = vm(0, &[INFLATE, DEFLATE]);
    device.control().ok(Request::SetTarget { balloon: ByteSize::from_mib(1) });
    wait_readable(&vm.channel);
    // A VMM that does not get to it may be about to stop: it has one byte to read, for as long as
    // it takes, also while its guest reads and writes the configuration.
    vm.config(0, 4);
    assert!(!is_readable_within(&vm.calls[INFLATE], Duration::from_millis(300)));
    assert_eq!(waiting(&vm), 1);
    let mut message = [0; 12];
    vm.channel.set_read_timeout(Some(DEADLINE)).unwrap();
    vm.channel.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_message_that_a_stop_overtakes_says_nothing() {
    let (device, mut vm) = vm(0, &[INFLATE, DEFLATE]);
    let mut client = device.control();
    client.ok(Request::SetTarget { balloon: ByteSize::from_mib(1) });
    wait_readable(&vm.channel);
    vm.stop_rings(&[INFLATE, DEFLATE]);
    let mut message = [0; 12];
    vm.channel.set_read_timeout(Some(DEADLINE)).unwrap();
    vm.channel.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "a request that nobody knows");
    assert!(!is_readable_within(&vm.channel, Duration::from_millis(500)));
    // It may be the same driver that goes on. It hears of it in its time, and of what comes then.
    go_on(&mut vm);
    vm.channel.read_exact(&mut message).unwrap();
    assert_eq!(message[0..4], [2, 0, 0, 0]);
    client.ok(Request::SetTarget { balloon: ByteSize::from_mib(2) });
    vm.channel.read_exact(&mut message).unwrap();
    assert_eq!(message[0..4], [2, 0, 0, 0]);
}

/// A VMM that has paused its guest lets it go on, with the rings as they were.
fn go_on(vm: &mut Vm) {
    vm.set_up(INFLATE, 0);
    vm.set_up(DEFLATE, 0);
    (0..6).for_each(|index| vm.frontend.set_vring_enable(index, true).unwrap());
}

#[test]
fn a_driver_that_was_paused_before_it_was_told_hears_of_it_when_it_goes_on() {
    let (device, mut vm) = vm(0, &[INFLATE, DEFLATE]);
    device.control().ok(Request::SetTarget { balloon: ByteSize::from_mib(1) });
    vm.stop_rings(&[INFLATE, DEFLATE]);
    assert!(!is_readable_within(&vm.channel, Duration::from_millis(500)), "QEMU would die of it");
    let before = Instant::now();
    go_on(&mut vm);
    let mut message = [0; 12];
    vm.channel.set_read_timeout(Some(DEADLINE)).unwrap();
    vm.channel.read_exact(&mut message).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(200), "{:?}", before.elapsed());
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // Its rings' memory goes and comes: no message of the VMM stops anything.
    device.control().ok(Request::SetTarget { balloon: ByteSize::from_mib(2) });
    let high = vm.memory.regions().pop().unwrap();
    vm.frontend.remove_mem_region(&high).unwrap();
    vm.frontend.add_mem_region(&high).unwrap();
    vm.channel.read_exact(&mut message).unwrap();
    assert_eq!(message[0..4], [2, 0, 0, 0]);
}

#[test]
fn the_drivers_own_size_is_taken_and_told() {
    let (device, mut vm) = vm(0, &[INFLATE, DEFLATE]);
    let mut client = Client::controller(&device);
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    // QEMU writes the whole space for one changed field, with whatever it last read elsewhere.
    let mut space = vm.config(0, 64);
    space[0..4].copy_from_slice(&9_u32.to_le_bytes());
    space[4..8].copy_from_slice(&256_u32.to_le_bytes());
    vm.frontend.set_config(0, flags, &space).unwrap();
    let told = client.event(|event| match event {
        memtide_api::device::Event::Balloon { actual } => Some(actual),
        _ => None,
    });
    assert_eq!(told, ByteSize::from_mib(1));
    let status = client.status();
    assert_eq!((status.actual, status.target), (ByteSize::from_mib(1), ByteSize::ZERO));
}

#[test]
fn a_guest_that_reboots_has_no_balloon_and_one_that_was_paused_has() {
    let (device, mut vm) = vm(0, &[INFLATE, DEFLATE]);
    let mut client = device.control();
    vm.pages(INFLATE, [0x1000]);
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    vm.frontend.set_config(4, flags, &1_u32.to_le_bytes()).unwrap();
    // The VMM stops its rings and lets them go on.
    let places = vm.stop_rings(&[INFLATE, DEFLATE]);
    assert_eq!(places, [1, 0]);
    vm.set_up(INFLATE, 1);
    vm.set_up(DEFLATE, 0);
    (0..6).for_each(|index| vm.frontend.set_vring_enable(index, true).unwrap());
    assert_eq!(client.status_when(|s| s.driver == Driver::Stock).actual, ByteSize::from_kib(4));
    // A driver that has rings of its own, and says nothing of a balloon.
    vm.stop_rings(&[INFLATE, DEFLATE]);
    vm.drivers = common::fresh_drivers(&vm.memory);
    vm.start_rings(&[INFLATE, DEFLATE]);
    assert_eq!(client.status_when(|s| s.driver == Driver::Stock).actual, ByteSize::ZERO);
}

#[test]
fn configuration_is_answered_in_full_at_any_offset_and_size() {
    let (_device, mut vm) = vm(0, &[INFLATE]);
    let whole = vm.config(0, 64);
    assert_eq!(&whole[16..20], b"MTDE");
    for (offset, len) in [(0, 1), (3, 7), (60, 8), (63, 1), (64, 4), (200, 56), (250, 6)] {
        let got = vm.config(offset, len);
        let byte = |at: u32| whole.get(at as usize).copied().unwrap_or(0);
        assert_eq!(got, (offset..offset + len).map(byte).collect::<Vec<_>>());
    }
}
