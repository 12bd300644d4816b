//! A guest that talks as much as it can, and a VMM that takes its time. Nobody suffers from either.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{BLOCK, Client, Device, Vm, hello, is_readable_within};
use memtide_api::device::{Event, Request as Call};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{BLOCK_QUEUE, Settings};
use memtide_units::{ByteSize, Gpa, GpaRange};
use memtide_wire::block::{RANGES_MAX, RESPONSE_LEN, Request as Ask, Verdict};
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

const INFLATE: usize = 0;

#[test]
fn a_guest_cannot_talk_its_controller_away() {
    let (device, socket) = Device::connected(Settings::default());
    let mut vm = Vm::start(socket, 0, &[INFLATE, BLOCK_QUEUE]);
    let mut controller = Client::controller(&device);
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
    // Each request makes an event of some 70 KiB, and all of them are in the ring at once.
    let far = |n| GpaRange::new(Gpa((1 << 40) + 2 * n * BLOCK.bytes()), BLOCK).unwrap();
    let request = Ask::Taken((0..RANGES_MAX as u64).map(far).collect()).encode(9);
    vm.memory.map.write_slice(&request, GuestAddress(3 << 20)).unwrap();
    for _ in 0..60 {
        let buffers = [
            Buffer::Readable(3 << 20, request.len() as u32),
            Buffer::Writable(4 << 20, RESPONSE_LEN as u32),
        ];
        vm.drivers[BLOCK_QUEUE].add(&vm.memory.map, &buffers);
    }
    vm.kicks[BLOCK_QUEUE].write(1).unwrap();
    controller.event(|event| matches!(event, Event::Taken { .. }).then_some(()));
    assert_eq!(vm.stop_rings(&[INFLATE]), [0], "the VMM is served meanwhile");
    controller.status();
}

#[test]
fn a_configuration_change_does_not_cross_a_stop_that_has_begun() {
    let (device, socket) = Device::connected(Settings::default());
    let mut vm = Vm::start(socket, 0, &[INFLATE, 1]);
    device.control().ok(Call::SetTarget { balloon: ByteSize::from_mib(1) });
    vm.frontend.set_vring_enable(INFLATE, false).unwrap();
    let settled = Duration::from_millis(1500);
    assert!(!is_readable_within(&vm.channel, settled), "QEMU would die of it");
    vm.frontend.set_vring_enable(INFLATE, true).unwrap();
    common::wait_readable(&vm.channel);
}
