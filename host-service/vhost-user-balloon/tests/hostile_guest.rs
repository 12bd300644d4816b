//! Rings and descriptors that make no sense. The VMM's connection survives all of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Device, Memory, REPORTING, Vm, addresses, block, hello};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{BLOCK_QUEUE, Settings};
use memtide_units::ByteSize;
use memtide_wire::block::{Request as Ask, Verdict};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

const INFLATE: usize = 0;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

fn vm() -> (Device, Vm) {
    let (device, socket) = Device::connected(Settings::default());
    let vm = Vm::start(socket, REPORTING, &[INFLATE, 2, BLOCK_QUEUE]);
    (device, vm)
}

/// The whole works still: pages go, and the block queue answers.
fn works(vm: &mut Vm) {
    let before = vm.memory.resident();
    vm.pages(INFLATE, [0x2000]);
    let after = vm.memory.resident();
    assert_eq!(before - after, ByteSize::from_kib(4));
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
}

#[test]
fn a_ring_outside_memory_is_ignored_until_it_is_set_up_anew() {
    let (device, mut vm) = vm();
    let good = addresses(&vm.drivers[INFLATE]);
    let mut bad = good;
    bad.avail_ring_addr = 0xdead_0000;
    vm.frontend.set_vring_addr(INFLATE, &bad).unwrap();
    vm.kicks[INFLATE].write(1).unwrap();
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok, "other rings work on");
    assert!(device.control().status().counters.refused["bad-ring"] >= 1);
    vm.frontend.set_vring_addr(INFLATE, &good).unwrap();
    works(&mut vm);
}

#[test]
fn an_index_that_claims_too_much_stops_this_ring_alone() {
    let (device, mut vm) = vm();
    vm.drivers[INFLATE].set_available_index(&vm.memory.map, 5000);
    vm.kicks[INFLATE].write(1).unwrap();
    device.control().status_when(|status| status.counters.refused.contains_key("bad-ring"));
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
    // The driver resets the device, and it is a device again.
    assert_eq!(vm.stop_rings(&[INFLATE]), [0]);
    vm.stop_rings(&[2, BLOCK_QUEUE]);
    vm.drivers = common::fresh_drivers(&vm.memory);
    vm.start_rings(&[INFLATE, 2, BLOCK_QUEUE]);
    works(&mut vm);
}

#[test]
fn chains_without_an_end_are_answered_with_nothing() {
    let (device, mut vm) = vm();
    let memory_before = vm.memory.resident();
    for (index, fields) in [
        // Two descriptors in a circle, one that leaves the table, a table in no memory, a table
        // of half a descriptor.
        (0, (0x20_0000, 4, NEXT, 0)),
        (1, (0x20_0000, 4, NEXT, 999)),
        (2, (0xdead_0000, 32, INDIRECT, 0)),
        (3, (0x20_0000, 8, INDIRECT, 0)),
    ] {
        vm.drivers[INFLATE].put_descriptor(&vm.memory.map, index, fields);
        vm.drivers[INFLATE].offer(&vm.memory.map, index);
    }
    vm.kicks[INFLATE].write(1).unwrap();
    let wanted = |status: &memtide_api::device::DeviceStatus| {
        status.counters.refused.get("bad-chain") == Some(&4)
    };
    device.control().status_when(wanted);
    let used = vm.drivers[INFLATE].take_used(&vm.memory.map);
    assert_eq!(used, [(0, 0), (1, 0), (2, 0), (3, 0)]);
    assert_eq!(vm.memory.resident(), memory_before);
}

#[test]
fn buffers_that_are_no_memory_are_answered_with_nothing() {
    let (device, mut vm) = vm();
    let far = 1 << 50;
    let used = vm.submit(INFLATE, &[Buffer::Readable(far, u32::MAX / 2)]);
    assert_eq!(used, 0);
    assert_eq!(vm.submit(INFLATE, &[Buffer::Readable(u64::MAX - 3, 8)]), 0);
    assert_eq!(vm.submit(INFLATE, &[Buffer::Readable(far, 4096)]), 0);
    assert_eq!(vm.submit(2, &[Buffer::Writable(far, 4096), Buffer::Writable(u64::MAX, 9)]), 0);
    assert_eq!(vm.submit(BLOCK_QUEUE, &[Buffer::Readable(far, 16), Buffer::Writable(far, 32)]), 0);
    assert_eq!(vm.memory.resident(), Memory::all_resident());
    works(&mut vm);
    let refused = device.control().status().counters.refused;
    assert!(refused["outside-memory"] >= 3 && refused["too-long"] == 1, "{refused:?}");
}

#[test]
fn a_request_without_room_for_its_answer_is_not_carried_out() {
    let (device, mut vm) = vm();
    vm.ask(&hello(1, vec![]));
    let steal = Ask::Steal(vec![block(4)]).encode(9);
    let at = 3 << 20;
    vm_memory::Bytes::write_slice(&vm.memory.map, &steal, vm_memory::GuestAddress(at)).unwrap();
    let buffers = [Buffer::Readable(at, steal.len() as u32), Buffer::Writable(4 << 20, 31)];
    assert_eq!(vm.submit(BLOCK_QUEUE, &buffers), 0);
    assert_eq!(vm.memory.resident(), Memory::all_resident());
    let status = device.control().status();
    assert_eq!((status.stolen, status.counters.refused["no-room"]), (vec![], 1));
}

#[test]
fn a_guest_that_is_refused_all_day_does_not_fill_the_log() {
    let (device, mut vm) = vm();
    for _ in 0..500 {
        vm.ask(&Ask::Steal(vec![block(4)]));
    }
    assert_eq!(device.control().status().counters.refused["no-hello"], 500);
}

#[test]
fn memory_that_comes_and_goes_takes_its_rings_along() {
    let (device, mut vm) = vm();
    let high = vm.memory.regions().pop().unwrap();
    // QEMU removes and adds a region whose size it changes, with the rings running.
    vm.frontend.remove_mem_region(&high).unwrap();
    vm.kicks[INFLATE].write(1).unwrap();
    assert_eq!(device.control().status().memory.len(), 1);
    vm.frontend.add_mem_region(&high).unwrap();
    works(&mut vm);
}

#[test]
fn a_ring_keeps_its_place_when_its_descriptors_are_replaced() {
    let (_device, mut vm) = vm();
    works(&mut vm);
    vm.frontend.set_vring_kick(INFLATE, &vm.kicks[INFLATE]).unwrap();
    vm.frontend.set_vring_addr(INFLATE, &addresses(&vm.drivers[INFLATE])).unwrap();
    vm.pages(INFLATE, [0x2001]);
    assert_eq!(vm.stop_rings(&[INFLATE]), [2]);
}

#[test]
fn an_interrupt_waits_for_its_descriptor() {
    let (_device, mut vm) = vm();
    assert_eq!(vm.stop_rings(&[INFLATE])[0], 0);
    // A request waits in the ring, and the ring runs before the VMM has named where to call.
    let head = vm.drivers[INFLATE].add(&vm.memory.map, &[Buffer::Readable(2 << 20, 4)]);
    vm.frontend.set_vring_addr(INFLATE, &addresses(&vm.drivers[INFLATE])).unwrap();
    vm.frontend.set_vring_kick(INFLATE, &vm.kicks[INFLATE]).unwrap();
    vm.frontend.set_vring_enable(INFLATE, true).unwrap();
    vm.frontend.set_vring_enable(BLOCK_QUEUE, true).unwrap();
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok, "the other ring has had its turn");
    vm.frontend.set_vring_call(INFLATE, &vm.calls[INFLATE]).unwrap();
    common::wait_readable(&vm.calls[INFLATE]);
    assert_eq!(vm.drivers[INFLATE].take_used(&vm.memory.map), [(head, 0)]);
}
