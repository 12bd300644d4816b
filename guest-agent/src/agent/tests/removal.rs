//! What is stolen whole is removed, and comes back.

use memtide_sysfs::{dax, memory};
use memtide_units::Gpa;

use super::*;

const UNIT: [u64; 3] = [8, 9, 10];

/// Three more blocks, of a device that `kmem` has lent.
fn world() -> World {
    let mut world = World::new();
    let memory = GpaRange::new(Gpa(8 << 27), ByteSize::from_mib(384)).unwrap();
    world.fake.add_dax("dax0.0", SIZE, memory);
    world.fake.set_meminfo(meminfo(11 * 128, 100));
    world.restart();
    world
}

fn removed() -> World {
    let mut world = world();
    world.run(30_000);
    assert_eq!(states(&world), [None; 3]);
    world
}

/// `None` where there is no such block.
fn states(world: &World) -> Vec<Option<State>> {
    UNIT.iter().map(|block| memory::state(&world.fake.root(), BlockId(*block)).ok()).collect()
}

fn hello(world: &World) -> BTreeSet<u64> {
    let hello = world.heard.iter().rev().find_map(|request| match request {
        Request::Hello(hello) => Some(blocks(&hello.stolen).collect()),
        _ => None,
    });
    hello.expect("the agent introduces itself")
}

fn greet_again(world: &mut World) -> BTreeSet<u64> {
    world.heard.clear();
    world.device.configure(|config| {
        let next = config.extension.hello_epoch.get() + 1;
        config.extension.hello_epoch.set(next);
    });
    world.run(500);
    hello(world)
}

#[test]
fn what_is_stolen_whole_is_removed_once_the_host_has_heard_of_all_of_it() {
    let mut world = world();
    world.steals = Verdict::Refused(RefuseReason::ReclaimFailed);
    world.run(10_000);
    assert!(!states(&world).contains(&None), "the host has not taken it");
    world.steals = Verdict::Ok;
    world.run(40_000);
    assert_eq!(states(&world), [None; 3]);
    assert!(UNIT.iter().all(|block| world.believed().contains(block)));
    let status = world.agent.status(Instant::from_millis(world.now));
    assert_eq!(status.struct_pages.freed.mib(), 6);
    assert_eq!(status.struct_pages.remain.mib(), 2 * world.offline().len() as u64);
    assert_eq!((status.counters.removals, status.blocks.total), (1, 11));
    assert!(UNIT.iter().all(|block| greet_again(&mut world).contains(block)));
}

#[test]
fn one_block_comes_back_with_its_device_and_the_others_stay_stolen() {
    let mut world = removed();
    world.agent.bring_back(BlockId(9));
    let is_back = |world: &World| states(world)[1] == Some(State::Online);
    let started = std::time::Instant::now();
    while !is_back(&world) && started.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    // An idle guest would have it stolen again at once.
    world.fake.refuse_block(BlockId(9), Errno::BUSY);
    let (on, off) = (Some(State::Online), Some(State::Offline));
    assert_eq!(states(&world), [off, on, off]);
    assert_eq!(world.fake.get("sys/devices/system/memory/auto_online_blocks"), "online\n");
    let named = greet_again(&mut world);
    assert_eq!(UNIT.map(|block| named.contains(&block)), [true, false, true]);
    assert!(world.agent.parts.seen.foreign.is_empty());
}

#[test]
fn everything_comes_back_when_it_is_asked_back() {
    let mut world = removed();
    world.agent.set_mode(Mode::Restore);
    world.run(20_000);
    assert_eq!(states(&world), [Some(State::Online); 3]);
    assert_eq!((world.online(), world.agent.has_nothing_stolen()), (8, true));
    assert!(world.agent.parts.seen.removed.is_empty());
}

#[test]
fn a_device_that_does_not_come_back_is_stolen_still() {
    let mut world = removed();
    world.fake.refuse("sys/bus/dax/drivers/kmem/bind", Errno::NOMEM);
    world.agent.bring_back(BlockId(9));
    world.run(150);
    assert_eq!(states(&world), [None; 3]);
    assert!(UNIT.iter().all(|block| greet_again(&mut world).contains(block)));
}

/// kill -9 before the driver is unbound, and after.
#[test]
fn the_successor_of_a_killed_agent_knows_what_was_being_removed() {
    let mut world = removed();
    world.restart();
    world.run(100);
    assert!(UNIT.iter().all(|block| hello(&world).contains(block)), "{:?}", world.heard);
    world.fake.put("sys/devices/system/memory/auto_online_blocks", "offline\n");
    dax::bind(&world.fake.root(), "dax0.0").unwrap();
    world.restart();
    world.run(100);
    assert!(UNIT.iter().all(|block| hello(&world).contains(block)), "{:?}", world.heard);
    world.run(10_000);
    assert_eq!(states(&world), [None; 3], "it goes on where the other one was");
}

#[test]
fn what_somebody_else_plugs_in_is_not_stolen_any_more() {
    let mut world = removed();
    world.grow_to(300);
    dax::bind(&world.fake.root(), "dax0.0").unwrap();
    world.run(5_100);
    let believed = world.believed();
    assert!(UNIT.iter().all(|block| !believed.contains(block)), "{believed:?}");
}
