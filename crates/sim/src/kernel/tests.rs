use std::time::Duration;

use memtide_units::{BlockId, BlockSize, ByteSize, Instant};

use super::*;
use crate::TICK;

const MACHINE: Machine = Machine { pace: Pace::Hardware, release: Release::V6_12, cpus: 1 };

fn mib(n: u64) -> u64 {
    in_pages(ByteSize::from_mib(n))
}

fn kernel(blocks: u64) -> Kernel {
    let mut kernel = Kernel::boot(7, MACHINE, BlockSize::X86_SMALL, blocks);
    kernel.set_busy(0);
    (blocks / 4..blocks).for_each(|n| _ = kernel.convert(BlockId(n)));
    kernel
}

/// Ticks until `done` or a minute has passed.
fn ticks(kernel: &mut Kernel, demand: Demand, mut done: impl FnMut(&mut Kernel, Ticked) -> bool) {
    let mut now = Instant::default();
    while now.since(Instant::default()) < Duration::from_secs(60) {
        now = now + TICK;
        let ticked = kernel.tick(now, &demand);
        if done(kernel, ticked) {
            return;
        }
    }
}

#[test]
fn a_fresh_guest_has_the_memory_that_was_measured() {
    let kernel = Kernel::boot(1, MACHINE, BlockSize::X86_SMALL, 16);
    let memory = kernel.memory();
    assert_eq!(memory.total.mib(), 2048 - 122);
    assert!(memory.available < memory.free && memory.free < memory.total);
}

#[test]
fn programs_get_what_they_want_and_blocks_keep_count() {
    let mut kernel = kernel(16);
    let demand = Demand { hot: mib(300), cold: mib(200), kernel: mib(10), ..Demand::default() };
    ticks(&mut kernel, demand, |_, _| false);
    assert_eq!(kernel.bytes_of(Kind::Hot).mib(), 300);
    assert_eq!(kernel.bytes_of(Kind::Cold).mib(), 200);
    assert_eq!(kernel.psi().some_us, 0);
}

#[test]
fn a_full_block_is_emptied_in_the_measured_time_and_what_was_in_it_lives_on() {
    let mut kernel = kernel(16);
    let demand = Demand { hot: mib(1200), ..Demand::default() };
    ticks(&mut kernel, demand, |kernel, _| kernel.bytes_of(Kind::Hot).mib() == 1200);
    let full = (4..15).max_by_key(|n| kernel.blocks()[*n].to_migrate()).unwrap() as u64;
    kernel.begin_offline(Instant::default(), BlockId(full)).unwrap();
    let mut took = 0;
    ticks(&mut kernel, demand, |kernel, _| {
        took += TICK.as_millis();
        kernel.offline_end() == Some(End::Offline)
    });
    assert!((250..2_000).contains(&took), "{took} ms");
    assert_eq!(kernel.block(BlockId(full)).to_migrate(), 0);
    assert_eq!(kernel.bytes_of(Kind::Hot).mib(), 1200);
    kernel.put_online(BlockId(full), Zone::Movable);
    assert_eq!(kernel.online(), kernel.present());
}

#[test]
fn without_room_an_offline_never_ends_and_a_signal_puts_all_back() {
    let mut kernel = kernel(8);
    let demand = Demand { hot: mib(780), ..Demand::default() };
    ticks(&mut kernel, demand, |kernel, _| kernel.bytes_of(Kind::Hot).mib() == 780);
    let full = (2..7).max_by_key(|n| kernel.blocks()[*n].to_migrate()).unwrap() as u64;
    kernel.begin_offline(Instant::default(), BlockId(full)).unwrap();
    let before = kernel.psi().some_us;
    ticks(&mut kernel, demand, |kernel, _| kernel.offline_end().is_some());
    assert!(kernel.psi().some_us > before, "migration that gets nowhere is a stall");
    kernel.interrupt_offline();
    assert_eq!(kernel.block(BlockId(full)).state, State::Online);
    assert_eq!(kernel.bytes_of(Kind::Hot).mib(), 780);
}

#[test]
fn cache_gives_way_and_then_somebody_is_killed() {
    let mut kernel = kernel(8);
    let reading = Demand { cache: mib(100), streamed: mib(400), ..Demand::default() };
    ticks(&mut kernel, reading, |_, _| false);
    let memory = kernel.memory();
    assert!(memory.available.mib() > 600 && memory.free.mib() < 100, "{memory:?}");
    assert_eq!(kernel.psi().some_us, 0);
    let greedy = Demand { hot: mib(2000), ..reading };
    let mut killed = None;
    let mut trigger = false;
    ticks(&mut kernel, greedy, |_, ticked| {
        trigger |= ticked.trigger;
        killed = ticked.killed;
        killed.is_some()
    });
    assert!(killed.is_some() && trigger);
    assert_eq!(kernel.bytes_of(Kind::Hot), ByteSize::ZERO);
}

#[test]
fn the_kernels_own_memory_never_comes_from_movable_blocks() {
    let mut kernel = kernel(16);
    let demand = Demand { kernel: mib(2000), ..Demand::default() };
    let mut killed = None;
    ticks(&mut kernel, demand, |_, ticked| {
        killed = ticked.killed;
        killed.is_some()
    });
    let killed = killed.unwrap();
    assert_eq!(killed.wanted, Kind::Kernel);
    assert!(killed.movable_free.mib() > 1000);
    let movable = kernel.blocks().iter().filter(|block| block.zone == Zone::Movable);
    assert_eq!(movable.map(|block| block.of(Kind::Kernel)).sum::<u64>(), 0);
}
