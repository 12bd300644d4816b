//! A host that does not bring back what was ejected, though it has agreed to.

use memtide_wire::config::Plugging;

use super::ejection::{DIMM, NAME, OTHER, add_other, comes_back, ejected, states, world};
use super::*;

/// Whether `status` comes to say that so many blocks cannot be brought back.
fn lacks_after_a_look(world: &mut World, blocks: usize) -> bool {
    let what = format!("the {blocks} blocks");
    (0..700).any(|_| {
        world.run(50);
        world.agent.parts.lacks.iter().any(|lack| lack.what.contains(&what))
    })
}

/// The host does not keep its word for one of them.
#[test]
fn one_dimm_that_does_not_come_leaves_the_others_within_reach() {
    let mut world = world(Plugging::Ready);
    add_other(&world);
    world.fake.set_meminfo(meminfo(13 * 128, 100));
    world.restart();
    world.run(90_000);
    assert_eq!(world.agent.parts.blocks.ejected().len(), 5);
    world.plugs = vec![OTHER];
    world.agent.bring_back(BlockId(8));
    world.run(12_000);
    assert_eq!(world.agent.out_of_reach(), DIMM.map(BlockId));
    assert!(lacks_after_a_look(&mut world, 3));
    world.agent.bring_back(BlockId(12));
    assert!(comes_back(&mut world, 12), "it is within reach");
    world.plugs = vec![NAME, OTHER];
    world.agent.set_mode(Mode::Restore);
    world.run(40_000);
    assert_eq!(states(&world), [Some(State::Online); 3], "the host is asked again");
}

#[test]
fn while_the_host_owes_something_nothing_more_is_ejected() {
    let mut world = ejected();
    add_other(&world);
    world.fake.set_meminfo(meminfo(10 * 128, 100));
    world.restart();
    (0..3).for_each(|_| world.agent.ejection.trust.lose(&DIMM.map(BlockId)));
    world.run(35_000);
    assert_eq!(world.agent.parts.blocks.ejected().len(), 3);
    world.run(2_000_000);
    assert_eq!(world.agent.parts.blocks.ejected().len(), 5);
}

/// The agent does not wait for it any more, but it has done it.
#[test]
fn a_host_that_was_late_is_not_doubted_for_it() {
    let mut world = ejected();
    world.plugs = vec![];
    world.agent.bring_back(BlockId(9));
    world.run(12_000);
    assert_eq!(world.agent.out_of_reach(), DIMM.map(BlockId));
    world.fake.plug_in_dimm(NAME);
    world.run(6_000);
    assert!(world.agent.ejection.trust.doubted().is_empty());
}
