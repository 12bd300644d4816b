//! Guest memory of every kind, and memory that comes and goes while the device works.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::os::fd::OwnedFd;

use common::{BLOCK, Device, MEMORY, Memory, Vm, block, hello};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{BLOCK_QUEUE, Settings};
use memtide_units::ByteSize;
use memtide_wire::block::{RefuseReason, Request as Ask, Verdict};
use rustix::fs::MemfdFlags;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const INFLATE: usize = 0;

fn vm_over(memory: Memory) -> (Device, Vm) {
    let (device, socket) = Device::connected(Settings::default());
    (device, Vm::start_over(socket, memory, 0, &[INFLATE, BLOCK_QUEUE]))
}

/// Gives pages and a block up, and looks at the file.
fn works_over(file: OwnedFd) {
    let (_device, mut vm) = vm_over(Memory::filled(file));
    let before = vm.memory.resident();
    vm.pages(INFLATE, 0x1000..0x1100);
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
    assert_eq!(vm.ask(&Ask::Steal(vec![block(10)])).bytes, BLOCK);
    // A disk writes down where its holes are, and counts that as the file's.
    let (wanted, gone) = (ByteSize::from_mib(1) + BLOCK, before - vm.memory.resident());
    assert!(gone <= wanted && wanted - gone <= ByteSize::from_kib(64), "{gone} of {wanted}");
    let mut byte = [1];
    vm.memory.map.read_slice(&mut byte, GuestAddress(block(10).start().0)).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn a_file_of_tmpfs_or_of_a_disk_does_as_a_memfd() {
    for directory in ["/dev/shm", env!("CARGO_TARGET_TMPDIR")] {
        works_over(tempfile::tempfile_in(directory).unwrap().into());
    }
}

#[test]
fn a_memfd_that_may_be_huge_pages_does_as_any() {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, MEMORY.bytes()).unwrap();
    let memory = Memory::laid_out(file, vec![(0, MEMORY.bytes(), 0)]);
    let start = memory.map.get_host_address(GuestAddress(0)).unwrap();
    let len = MEMORY.bytes() as usize;
    let advice = rustix::mm::Advice::LinuxHugepage;
    // SAFETY: advice about a mapping of this test's own, whose content it leaves alone.
    let advised = unsafe { rustix::mm::madvise(start.cast(), len, advice) };
    advised.unwrap();
    memory.fill();
    let (_device, mut vm) = vm_over(memory);
    let before = vm.memory.resident();
    vm.pages(INFLATE, 0x1000..0x1200);
    assert_eq!(before - vm.memory.resident(), ByteSize::from_mib(2));
}

#[test]
fn a_request_in_a_hole_brings_nothing_back() {
    let (_device, mut vm) = vm_over(Memory::new());
    vm.pages(INFLATE, 0x1000..0x1100);
    let before = vm.memory.resident();
    // What a hole reads as is zeros, which name page 0.
    vm.submit(INFLATE, &[Buffer::Readable(0x1000 << 12, 64 << 10)]);
    assert_eq!(vm.memory.resident(), before - ByteSize::from_kib(4));
}

#[test]
fn a_region_without_a_file_is_refused_and_nothing_changes() {
    let (device, mut vm) = vm_over(Memory::new());
    let mut anonymous = vm.memory.regions().pop().unwrap();
    (anonymous.guest_phys_addr, anonymous.userspace_addr) = (1 << 32, 0x6000_0000_0000);
    anonymous.mmap_handle = -1;
    assert!(vm.frontend.add_mem_region(&anonymous).is_err());
    assert_eq!(device.control().status().memory.len(), 2);
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
}

/// QEMU logs that its new table was refused and goes on with it.
#[test]
fn a_table_that_is_refused_leaves_no_old_one_behind() {
    let (device, mut vm) = vm_over(Memory::new());
    let good = vm.memory.regions();
    let mut bad = good.clone();
    bad[1].memory_size += MEMORY.bytes();
    assert!(vm.frontend.set_mem_table(&bad).is_err());
    assert_eq!(device.control().status().memory, []);
    let bytes = 0x1000_u32.to_le_bytes();
    vm.memory.map.write_slice(&bytes, GuestAddress(3 << 20)).unwrap();
    let head = vm.drivers[INFLATE].add(&vm.memory.map, &[Buffer::Readable(3 << 20, 4)]);
    vm.kicks[INFLATE].write(1).unwrap();
    device.control().status();
    assert_eq!(vm.memory.resident(), Memory::all_resident(), "nothing is dropped by an old table");
    vm.frontend.set_mem_table(&good).unwrap();
    vm.await_used(INFLATE, head);
    assert_eq!(vm.memory.resident(), Memory::all_resident() - ByteSize::from_kib(4));
}

#[test]
fn memory_comes_and_goes_while_rings_run() {
    let (device, mut vm) = vm_over(Memory::new());
    let more = rustix::fs::memfd_create("more", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&more, MEMORY.bytes()).unwrap();
    rustix::io::pwrite(&more, &[7; 8192], 0).unwrap();
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: 1 << 32,
        memory_size: MEMORY.bytes(),
        userspace_addr: 0x6000_0000_0000,
        mmap_offset: 0,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&more),
    };
    let first = (1_u64 << 32) / BLOCK.bytes();
    assert_eq!(vm.ask(&hello(1, vec![])).verdict, Verdict::Ok);
    let steal = Ask::Steal(vec![block(first)]);
    let outside = Verdict::Refused(RefuseReason::OutsideMemory);
    let held = || rustix::fs::fstat(&more).unwrap().st_blocks;
    for _ in 0..3 {
        assert_eq!(vm.ask(&steal).verdict, outside, "it is not there yet");
        vm.pages(INFLATE, [0x10_0000]);
        assert_ne!(held(), 0);
        vm.frontend.add_mem_region(&region).unwrap();
        // Requests can lie in it as well.
        vm.pages(INFLATE, [0x10_0000]);
        assert_eq!(vm.ask(&steal).verdict, Verdict::Ok);
        assert_eq!(held(), 0);
        // A chain that is in the ring when its memory goes names nothing any more.
        vm.frontend.set_vring_enable(INFLATE, false).unwrap();
        rustix::io::pwrite(&more, &[7; 8192], 0).unwrap();
        let bytes = 0x10_0000_u32.to_le_bytes();
        vm.memory.map.write_slice(&bytes, GuestAddress(3 << 20)).unwrap();
        vm.drivers[INFLATE].add(&vm.memory.map, &[Buffer::Readable(3 << 20, 4)]);
        vm.kicks[INFLATE].write(1).unwrap();
        vm.frontend.remove_mem_region(&region).unwrap();
        vm.frontend.set_vring_enable(INFLATE, true).unwrap();
        common::wait_readable(&vm.calls[INFLATE]);
        vm.calls[INFLATE].read().unwrap();
        assert_eq!(vm.drivers[INFLATE].take_used(&vm.memory.map).len(), 1);
        assert_ne!(held(), 0, "a page of a region that had gone was dropped");
    }
    assert_eq!(device.control().status().memory.len(), 2);
}
