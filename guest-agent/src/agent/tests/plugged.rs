//! Memory that is plugged in while the agent runs.

use super::*;

/// Limits that were those of the start would have plugged memory stolen at once, and never returned.
#[test]
fn plugged_memory_is_the_guests_to_use() {
    let mut world = World::new();
    world.run(2_000);
    let max = |world: &World| world.agent.status(Instant::from_millis(0)).limits.max;
    assert_eq!(max(&world), SIZE.size().times(8));
    world.fake.add_blocks(SIZE, [(8, FakeBlock::MOVABLE), (9, FakeBlock::MOVABLE)]);
    world.run(7_000);
    assert_eq!(max(&world), SIZE.size().times(10));
}

/// The pin moves the device's memory out of ZONE_MOVABLE, but on a guest without one it stays where it
/// is, and where it is the kernel would try to empty the block for ever.
#[test]
fn the_block_of_the_devices_memory_is_never_stolen_whatever_is_plugged_in() {
    let mut world = World::new();
    world.agent.parts.blocks.keep([BlockId(6)]);
    world.run(20_000);
    assert_eq!(world.offline(), BTreeSet::from([2, 3, 4, 5, 7]));
    world.fake.add_blocks(SIZE, [(8, FakeBlock::MOVABLE), (9, FakeBlock::MOVABLE)]);
    world.fake.set_meminfo(meminfo(5 * 128, 100));
    world.run(20_000);
    let offline: BTreeSet<u64> =
        (0..10).filter(|block| world.state(*block).0 == State::Offline).collect();
    assert!(offline.contains(&9) && !offline.contains(&6), "{offline:?}");
    // A restarted agent's memory lies elsewhere.
    world.restart();
    world.agent.parts.blocks.keep([BlockId(1)]);
    world.agent.set_mode(Mode::Restore);
    world.run(5_000);
    world.agent.set_mode(Mode::Tune);
    world.fake.set_meminfo(meminfo(10 * 128, 100));
    world.run(60_000);
    assert_eq!(world.state(6).0, State::Offline, "{}", world.agent.note());
}
