//! Guest memory that is not there any more: a file that was truncated, a huge page that the host
//! cannot give again. The device says so and lives on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Device, Memory, Vm, addresses, block, hello};
use memtide_api::device::DeviceStatus;
use memtide_balloon::fake::Buffer;
use memtide_balloon::{BLOCK_QUEUE, Settings};
use memtide_wire::block::{Request as Ask, Verdict};
use rustix::fs::{FallocateFlags, MemfdFlags};
use vhost::VhostBackend;
use vm_memory::{Bytes, GuestAddress};

const INFLATE: usize = 0;

/// Requests that lie here are lost with the upper half of memory; the rings lie in the lower.
const FAR: u64 = 40 << 20;

fn vm() -> (Device, Vm) {
    let (device, socket) = Device::connected(Settings::default());
    let vm = Vm::start(socket, 0, &[INFLATE, BLOCK_QUEUE]);
    (device, vm)
}

fn truncate(vm: &Vm, len: u64) {
    rustix::fs::ftruncate(&vm.memory.fd, len).unwrap();
}

fn bad_rings(status: &DeviceStatus) -> u64 {
    status.counters.refused.get("bad-ring").copied().unwrap_or(0)
}

fn first_byte_of_page(vm: &Vm, pfn: u64) -> u8 {
    let mut byte = [0];
    rustix::io::pread(&vm.memory.fd, &mut byte, pfn << 12).unwrap();
    byte[0]
}

#[test]
fn a_request_in_memory_that_is_gone_drops_nothing() {
    let (device, mut vm) = vm();
    truncate(&vm, 32 << 20);
    // It cannot be read: that is no page number, zero least of all. The driver gets it back.
    vm.submit(INFLATE, &[Buffer::Readable(FAR, 4)]);
    let status = device.control().status();
    assert_eq!((status.counters.refused["outside-memory"], bad_rings(&status)), (1, 0));
    assert_eq!(first_byte_of_page(&vm, 0), 0xa5, "page 0 was not asked for");
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok, "another ring works on");
    assert_eq!(vm.ask(&Ask::Steal(vec![block(4)])).verdict, Verdict::Ok);
    // The file grows again: what was lost is read as it is now.
    truncate(&vm, common::MEMORY.bytes());
    vm.memory.map.write_slice(&0x1000_u32.to_le_bytes(), GuestAddress(FAR)).unwrap();
    vm.submit(INFLATE, &[Buffer::Readable(FAR, 4)]);
    assert_eq!((first_byte_of_page(&vm, 0x1000), first_byte_of_page(&vm, 0)), (0, 0xa5));
}

#[test]
fn a_request_whose_table_is_gone_drops_nothing() {
    let (device, mut vm) = vm();
    truncate(&vm, 32 << 20);
    // An indirect table reads as zeros through the mapping. What it names is not believed.
    let indirect = 4;
    vm.drivers[INFLATE].put_descriptor(&vm.memory.map, 0, (FAR, 16, indirect, 0));
    vm.drivers[INFLATE].offer(&vm.memory.map, 0);
    vm.kicks[INFLATE].write(1).unwrap();
    device.control().status_when(|status| bad_rings(status) == 1);
    assert_eq!(first_byte_of_page(&vm, 0), 0xa5);
    // The ring is set up anew.
    truncate(&vm, common::MEMORY.bytes());
    vm.frontend.set_vring_addr(INFLATE, &addresses(&vm.drivers[INFLATE])).unwrap();
    vm.drivers[INFLATE].take_used(&vm.memory.map);
    vm.pages(INFLATE, [0x1000]);
    assert_eq!(first_byte_of_page(&vm, 0x1000), 0);
}

#[test]
fn an_answer_that_has_no_memory_to_go_to_stops_its_ring() {
    let (device, mut vm) = vm();
    vm.ask(&hello(1, vec![]));
    let telemetry = Ask::Steal(vec![block(4)]).encode(7);
    vm.memory.map.write_slice(&telemetry, GuestAddress(3 << 20)).unwrap();
    truncate(&vm, 32 << 20);
    let buffers = [Buffer::Readable(3 << 20, telemetry.len() as u32), Buffer::Writable(FAR, 32)];
    vm.drivers[BLOCK_QUEUE].add(&vm.memory.map, &buffers);
    vm.kicks[BLOCK_QUEUE].write(1).unwrap();
    device.control().status_when(|status| bad_rings(status) == 1);
    assert_eq!(vm.stop_rings(&[BLOCK_QUEUE]).len(), 1, "and is stopped like any other");
}

#[test]
fn rings_that_are_gone_are_ignored_and_new_memory_is_served() {
    let (device, mut vm) = vm();
    truncate(&vm, 1 << 20);
    for round in 1..4 {
        vm.kicks[INFLATE].write(1).unwrap();
        device.control().status_when(|status| bad_rings(status) >= round);
        vm.frontend.set_vring_kick(INFLATE, &vm.kicks[INFLATE]).unwrap();
    }
    assert_eq!(vm.config(16, 4), *b"MTDE");
    assert_eq!(vm.stop_rings(&[INFLATE, BLOCK_QUEUE]).len(), 2);
    vm.memory = Memory::new();
    vm.drivers = common::fresh_drivers(&vm.memory);
    vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
    vm.start_rings(&[INFLATE, BLOCK_QUEUE]);
    vm.pages(INFLATE, [0x2000]);
    assert_eq!(first_byte_of_page(&vm, 0x2000), 0);
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
}

/// Holds every huge page that the host has to spare, so that none can be faulted in.
fn exhausted_pool() -> std::os::fd::OwnedFd {
    const HUGE: u64 = 2 << 20;
    let hoard = rustix::fs::memfd_create("hoard", MemfdFlags::HUGETLB).unwrap();
    let mut len = 0;
    while rustix::fs::fallocate(&hoard, FallocateFlags::empty(), len, HUGE).is_ok() {
        len += HUGE;
    }
    hoard
}

#[test]
fn huge_pages_that_cannot_come_back_stop_their_rings_alone() {
    let _hoard = exhausted_pool();
    let fd = rustix::fs::memfd_create("guest", MemfdFlags::HUGETLB).unwrap();
    rustix::fs::ftruncate(&fd, common::MEMORY.bytes()).unwrap();
    let (device, socket) = Device::connected(Settings::default());
    let good = Memory::new();
    let drivers = common::fresh_drivers(&good);
    let mut vm = Vm::negotiated_over(socket, 0, (good, drivers));
    // Rings in pages that nobody has: the VMM does not touch them either.
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: common::MEMORY.bytes(),
        userspace_addr: common::USER_BASE,
        mmap_offset: 0,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&fd),
    };
    vm.frontend.set_mem_table(&[region]).unwrap();
    vm.start_rings(&[INFLATE, BLOCK_QUEUE]);
    device.control().status_when(|status| bad_rings(status) >= 2);
    assert_eq!(vm.stop_rings(&[INFLATE, BLOCK_QUEUE]), [0, 0]);
    vm.frontend.set_mem_table(&vm.memory.regions()).unwrap();
    vm.start_rings(&[INFLATE, BLOCK_QUEUE]);
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
}
