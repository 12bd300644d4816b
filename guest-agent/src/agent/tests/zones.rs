//! Memory that is plugged in while the agent runs, and goes to a kernel zone by itself.

use memtide_sysfs::memory;
use memtide_units::Gpa;
use memtide_wire::config::Plugging;

use super::*;

const NAME: &str = "PNP0C80:00";
const POLICY: &str = "sys/devices/system/memory/auto_online_blocks";
const DIMM: [u64; 3] = [8, 9, 10];

/// The kernel has four of the eight blocks: three more may all be movable.
fn world() -> World {
    let mut world = World::new();
    for block in [2, 3] {
        world.fake.add_blocks(SIZE, [(block, FakeBlock::KERNEL)]);
    }
    world.fake.put_page_flags(0, &[1 << 10; 12 * PAGES]);
    // What is to be seen is the conversions, and not what is stolen beside them.
    world.restart_with_min(7);
    world.run(6_000);
    world
}

impl World {
    /// The next agent keeps so many blocks.
    fn restart_with_min(&mut self, blocks: u64) {
        self.restart();
        self.keep(blocks);
    }

    fn keep(&mut self, blocks: u64) {
        let parts = &mut self.agent.parts;
        parts.wish.min = Some(SIZE.size().times(blocks));
        let limits = Limits::new(parts.blocks.present(), parts.wish).unwrap();
        parts.controller.set_limits(limits);
    }

    fn zones(&self, blocks: &[u64]) -> Vec<Option<Zone>> {
        blocks.iter().map(|block| self.state(*block).1).collect()
    }

    fn lacks(&self, what: &str) -> bool {
        self.agent.parts.lacks.iter().any(|lack| lack.what.contains(what))
    }

    /// How often it was written to the state of a block.
    fn tries(&self, block: u64) -> usize {
        let file = format!("memory{block}/state");
        self.fake.writes().iter().filter(|(path, _)| path.ends_with(&file)).count()
    }
}

fn plug_in(world: &World, blocks: &[u64]) {
    world.fake.add_blocks(SIZE, blocks.iter().map(|block| (*block, FakeBlock::KERNEL)));
    let total = world.online() + blocks.len() as u64;
    world.fake.set_meminfo(meminfo(total * 128, 100));
}

const MOVABLE: Option<Zone> = Some(Zone::Movable);
const KERNELS: Option<Zone> = Some(Zone::Dma32);

#[test]
fn plugged_memory_becomes_movable_and_is_stolen() {
    let mut world = world();
    world.keep(8);
    plug_in(&world, &DIMM);
    world.run(10_000);
    assert_eq!(world.zones(&DIMM), [MOVABLE; 3], "{:?}", world.agent.parts.lacks);
    assert_eq!((world.zones(&[1, 2, 3]), world.lacks("plugged in")), (vec![KERNELS; 3], false));
    world.keep(3);
    world.run(20_000);
    assert!(DIMM.iter().all(|block| world.state(*block).0 == State::Offline));
    assert!(DIMM.iter().all(|block| world.believed().contains(block)));
}

/// The look at all blocks may be half a minute away, and the kernel takes its own memory from there first.
#[test]
fn plugged_memory_is_found_by_there_being_more_of_it() {
    let mut world = world();
    world.keep(11);
    world.run(1_000);
    world.agent.due.refresh = Instant::from_millis(world.now + 30_000);
    plug_in(&world, &DIMM);
    world.run(3_000);
    assert_eq!(world.zones(&DIMM), [MOVABLE; 3]);
    let next = world.agent.due.refresh;
    world.run(2_000);
    assert_eq!(world.agent.due.refresh, next, "what the agent has done itself is no news");
}

/// The kernel's policy puts all of a DIMM in a kernel zone; made movable, it goes like any other.
#[test]
fn a_dimm_that_came_to_a_kernel_zone_is_ejected_in_the_end() {
    let mut world = world();
    let memory = GpaRange::new(Gpa(8 << 27), ByteSize::from_mib(384)).unwrap();
    world.keep(8);
    world.fake.add_dimm(NAME, SIZE, memory);
    plug_in(&world, &DIMM);
    let plugging = Plugging::Ready.code();
    world.device.configure(|config| config.extension.plugging.set(plugging));
    world.run(10_000);
    assert_eq!(world.zones(&DIMM), [MOVABLE; 3]);
    world.keep(3);
    world.run(60_000);
    let is_there = |block: &u64| memory::state(&world.fake.root(), BlockId(*block)).is_ok();
    assert!(!DIMM.iter().any(is_there), "{}", world.agent.note());
}

#[test]
fn the_kernel_keeps_its_share_of_what_is_plugged_in() {
    let mut world = World::new();
    world.fake.put_page_flags(0, &[1 << 10; 12 * PAGES]);
    world.run(200);
    world.keep(12);
    plug_in(&world, &DIMM);
    world.run(15_000);
    // Six were movable, and two not.
    assert_eq!(world.zones(&DIMM), [KERNELS, MOVABLE, MOVABLE]);
    assert!(world.lacks("for 1 blocks that were plugged in"), "{:?}", world.agent.parts.lacks);
    world.fake.add_blocks(SIZE, [(11, FakeBlock::KERNEL)]);
    world.run(15_000);
    assert_eq!(world.zones(&[8, 9, 10, 11]), [KERNELS, MOVABLE, MOVABLE, MOVABLE]);
}

/// A restarted agent neither begins anew with what its predecessor let be, nor forgets to say it.
#[test]
fn what_came_while_no_agent_ran_is_made_movable_and_what_stays_is_told_of_again() {
    let mut world = World::new();
    world.fake.put_page_flags(0, &[1 << 10; 12 * PAGES]);
    world.run(200);
    plug_in(&world, &DIMM);
    for _ in 0..2 {
        world.restart_with_min(11);
        world.run(15_000);
        assert_eq!(world.zones(&DIMM), [KERNELS, MOVABLE, MOVABLE]);
        assert!(world.lacks("for 1 blocks that were plugged in"));
        assert_eq!(world.zones(&[1]), [KERNELS], "it was there at boot");
    }
}

#[test]
fn a_block_that_cannot_be_emptied_is_tried_a_few_times_and_told_of() {
    let mut world = world();
    world.keep(11);
    world.fake.refuse_block(BlockId(9), Errno::BUSY);
    plug_in(&world, &DIMM);
    world.run(10_000);
    assert_eq!(world.zones(&DIMM), [MOVABLE, KERNELS, MOVABLE]);
    assert!(!world.lacks("plugged in"), "there is hope");
    world.run(600_000);
    assert_eq!((world.tries(9), world.lacks("1 cannot be emptied")), (6, true));
    world.run(1_200_000);
    assert_eq!(world.tries(9), 6);
    // Other memory at its place is another matter.
    world.fake.allow_block(BlockId(9));
    world.fake.remove("sys/devices/system/memory/memory9");
    plug_in(&world, &[9]);
    world.run(10_000);
    assert_eq!((world.zones(&DIMM), world.lacks("plugged in")), (vec![MOVABLE; 3], false));
}

#[test]
fn nothing_is_converted_while_a_return_is_asked_for() {
    let mut world = world();
    world.keep(3);
    world.run(20_000);
    world.returns = Verdict::Held(HoldReason::HostBudget);
    world.grow_to(world.online() * 128 - 34);
    world.run(500);
    assert!(world.agent.returns.ticket().is_some());
    world.fake.add_blocks(SIZE, DIMM.map(|block| (block, FakeBlock::KERNEL)));
    world.run(7_000);
    assert!(world.agent.returns.ticket().is_some());
    assert_eq!(world.zones(&DIMM), [KERNELS; 3]);
    // Nor where there would be room.
    world.agent.convert_next(Instant::from_millis(world.now + 60_000));
    assert!(!world.agent.parts.hands.is_busy());
    world.returns = Verdict::Ok;
    world.keep(11);
    world.run(3_000);
    world.fake.set_meminfo(meminfo(11 * 128, 100));
    world.run(45_000);
    assert_eq!(world.zones(&DIMM), [MOVABLE; 3], "{}", world.agent.note());
}

#[test]
fn what_is_offline_or_holds_its_own_struct_pages_is_left_alone() {
    let mut world = world();
    world.keep(11);
    world.fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "Y\n");
    world.fake.add_blocks(SIZE, [(8, FakeBlock::OFFLINE), (9, FakeBlock::KERNEL)]);
    world.fake.put_into_dimm(BlockId(9), NAME);
    world.run(30_000);
    assert_eq!((world.tries(8), world.tries(9)), (0, 0));
    assert!(world.lacks("1 blocks without struct pages of their own"));
    // Somebody else puts it online, where the kernel wants it.
    write_state(&world.fake.root(), BlockId(8), StateRequest::Online).unwrap();
    world.run(10_000);
    assert_eq!(world.zones(&[8]), [MOVABLE]);
}

#[test]
fn where_conversion_is_off_plugged_memory_stays_and_the_status_says_so() {
    let mut world = world();
    world.agent.parts.conversion = Conversion::Leave;
    world.keep(11);
    plug_in(&world, &DIMM);
    world.run(15_000);
    assert_eq!((world.zones(&DIMM), world.tries(9)), (vec![KERNELS; 3], 0));
    let status = world.agent.status(Instant::from_millis(world.now)).to_string();
    assert!(status.contains("3 blocks that were plugged in"), "{status}");
    world.fake.remove("sys/devices/system/memory/memory9");
    world.run(6_000);
    assert!(world.lacks("2 blocks that were plugged in"));
}

#[test]
fn a_guest_whose_kernel_memory_is_unplugged_is_told() {
    let mut world = World::new();
    world.keep(8);
    world.run(200);
    assert!(!world.lacks("kernel can use"));
    world.fake.remove("sys/devices/system/memory/memory1");
    world.run(6_000);
    assert!(world.lacks("6 blocks are movable, and 1 are not"), "{:?}", world.agent.parts.lacks);
    plug_in(&world, &[1]);
    world.run(6_000);
    assert!(!world.lacks("kernel can use"));
    assert_eq!(world.zones(&[1]), [KERNELS], "the kernel needs it");
}

/// It must not be reported, for the host would drop what comes back without asking.
#[test]
fn a_conversion_is_no_steal() {
    let mut world = world();
    world.keep(11);
    world.heard.clear();
    let stolen = world.agent.counters.stolen;
    plug_in(&world, &DIMM);
    world.run(15_000);
    let is_of_it = |ranges: &[GpaRange]| blocks(ranges).any(|block| DIMM.contains(&block));
    let is_report = |request: &&Request| match request {
        Request::Steal(ranges) => is_of_it(ranges),
        Request::Return(asked) => is_of_it(&asked.ranges),
        _ => false,
    };
    assert_eq!(world.heard.iter().find(is_report), None);
    assert_eq!((world.agent.counters.stolen, world.zones(&DIMM)), (stolen, vec![MOVABLE; 3]));
    assert_eq!(world.fake.get(POLICY), "online\n");
}
