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

/// Twenty seconds of a scheme that pages out, once nobody has touched what is kept for a minute.
fn page_out(kernel: &mut Kernel, demand: Demand) {
    ticks(kernel, demand, |_, _| false);
    let mut left = 400;
    ticks(kernel, demand, |kernel, _| {
        kernel.page_out(mib(1));
        left -= 1;
        left == 0
    });
}

#[test]
fn what_is_kept_goes_to_swap_and_compressed_takes_a_quarter() {
    let demand = Demand { hot: mib(300), cold: mib(200), ..Demand::default() };
    for (space, stored) in [(SwapSpace::Disk, 0), (SwapSpace::Zram, 50)] {
        let mut kernel = kernel(16);
        kernel.swap_on(space);
        page_out(&mut kernel, demand);
        let of = |kind| kernel.bytes_of(kind).mib();
        assert_eq!([Kind::Hot, Kind::Stored].map(of), [300, stored], "{space:?}");
        assert!(
            of(Kind::Cold) < 2 && kernel.swapped_out().mib() > 197,
            "it is touched now and then"
        );
        assert!(!kernel.lacks(&demand));
        assert!(kernel.swap().unwrap().paged_out.mib() >= 199);
        // Who wants it no more leaves nothing behind.
        let done = Demand { hot: mib(300), ..Demand::default() };
        ticks(&mut kernel, done, |_, _| true);
        assert_eq!(kernel.swapped_out() + kernel.bytes_of(Kind::Stored), ByteSize::ZERO);
    }
}

#[test]
fn what_wakes_up_is_read_from_swap_and_waited_for() {
    let mut kernel = kernel(16);
    kernel.swap_on(SwapSpace::Disk);
    page_out(&mut kernel, Demand { cold: mib(300), ..Demand::default() });
    let (before, stalled) = (kernel.squeeze(), kernel.psi().some_us);
    let awake = Demand { hot: mib(300), ..Demand::default() };
    let mut took = 0;
    ticks(&mut kernel, awake, |kernel, _| {
        took += TICK.as_millis();
        !kernel.lacks(&awake)
    });
    assert!((900..1_500).contains(&took), "{took} ms for 300 MiB at 300 MiB in a second");
    let read = kernel.squeeze().swapped_in - before.swapped_in;
    assert!(read > mib(290) && kernel.psi().some_us - stalled > 900_000);
    assert_eq!(kernel.bytes_of(Kind::Cold), ByteSize::ZERO, "it is the same memory");
}

#[test]
fn a_kernel_that_is_short_swaps_before_it_kills() {
    let demand = Demand { hot: mib(500), cold: mib(600), ..Demand::default() };
    let mut kernel = kernel(8);
    kernel.swap_on(SwapSpace::Disk);
    let mut killed = None;
    ticks(&mut kernel, demand, |_, ticked| {
        killed = ticked.killed;
        killed.is_some()
    });
    assert_eq!((killed, kernel.lacks(&demand)), (None, false));
    assert!(kernel.swapped_out().mib() > 200);
}
