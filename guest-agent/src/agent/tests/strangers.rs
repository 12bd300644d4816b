//! What somebody else does to blocks: `udevadm trigger` under a rule that puts plugged memory online,
//! an administrator, another program.

use super::*;

fn put_online(world: &World, block: u64) {
    write_state(&world.fake.root(), BlockId(block), StateRequest::OnlineMovable).unwrap();
}

fn names(request: &Request, block: u64) -> bool {
    matches!(request, Request::Steal(ranges) if blocks(ranges).any(|named| named == block))
}

#[test]
fn somebody_elses_hand_is_noticed_and_told() {
    let mut world = World::new();
    world.run(20_000);
    let root = world.fake.root();
    write_state(&root, BlockId(7), StateRequest::OnlineMovable).unwrap();
    write_state(&root, BlockId(2), StateRequest::Offline).unwrap();
    world.grow_to(150);
    world.run(5_100);
    assert_eq!(world.agent.parts.seen.foreign, BTreeSet::from([BlockId(2)]));
    let believed = world.believed();
    assert!(!believed.contains(&2), "it is not ours to give");
    world.restart();
    assert_eq!(world.agent.parts.seen.foreign, BTreeSet::from([BlockId(2)]));
}

#[test]
fn a_hello_never_names_what_somebody_else_has_put_online() {
    let mut world = World::new();
    world.run(20_000);
    world.heard.clear();
    // As `udevadm trigger` does under a rule that puts plugged memory online.
    write_state(&world.fake.root(), BlockId(7), StateRequest::OnlineMovable).unwrap();
    world.device.configure(|config| config.extension.hello_epoch.set(2));
    world.run(200);
    let hello = world.heard.iter().find_map(|request| match request {
        Request::Hello(hello) => Some(blocks(&hello.stolen).collect::<BTreeSet<_>>()),
        _ => None,
    });
    assert_eq!(hello, Some(BTreeSet::from([3, 4, 5, 6])));
}

/// The twin of that: what was true when the report was queued need not be when it is sent.
#[test]
fn a_report_never_names_what_somebody_else_has_put_online() {
    let mut world = World::new();
    world.run(1_000);
    // The host takes its time over something else, as over the punch of an earlier report.
    world.answers = false;
    world.agent.parts.link.post(Request::Cancel { ticket: 1 });
    for _ in 0..80 {
        world.step(Woken::default());
        if !world.offline().is_empty() {
            break;
        }
    }
    assert_eq!(world.offline(), BTreeSet::from([7]));
    put_online(&world, 7);
    world.answers = true;
    world.run(1_000);
    assert!(!world.heard.iter().any(|request| names(request, 7)), "{:?}", world.heard);
    assert!(world.heard.iter().any(|request| matches!(request, Request::Taken(_))));
    world.run(20_000);
    assert_eq!(world.believed(), world.offline());
    assert_eq!(world.agent.counters.dropped_online, 0);
}

#[test]
fn a_block_that_is_put_online_while_the_host_drops_it_is_told_of_loudly() {
    let mut world = World::new();
    world.loses_steals = true;
    while !matches!(world.device.waiting(), Some(Request::Steal(_))) {
        assert!(world.now < 10_000, "nothing is stolen: {}", world.agent.note());
        world.step(Woken { by_device: true, ..Woken::default() });
    }
    put_online(&world, 7);
    world.loses_steals = false;
    world.run(500);
    assert!(world.heard.iter().any(|request| names(request, 7)));
    assert_eq!(world.agent.counters.dropped_online, 1);
    assert_eq!((world.believed(), world.offline()), (BTreeSet::new(), BTreeSet::new()));
    let status = world.agent.status(Instant::from_millis(world.now)).to_string();
    assert!(status.contains("DAMAGE     1 blocks"), "{status}");
}

/// A plain balloon is told once more what it may have been told of before, one by one.
#[test]
fn a_plain_balloon_is_not_told_once_more_of_what_somebody_else_has_put_online() {
    let mut world = World::plain();
    world.run(20_000);
    world.pages.clear();
    world.restart();
    world.turn(Woken::default());
    // The first of them is on its way.
    put_online(&world, 4);
    // The fake's host fails the test when a page of an online block goes into the balloon.
    world.run(3_000);
    assert!(!world.inflated().contains(&4));
    assert_eq!(world.inflated(), world.offline());
}

fn told(world: &World) -> Option<BTreeSet<u64>> {
    world.heard.iter().rev().find_map(|request| match request {
        Request::Hello(hello) => Some(blocks(&hello.stolen).collect()),
        _ => None,
    })
}

/// A DIMM whose blocks are stolen goes without a page to be moved, and the agent has no part in it.
#[test]
fn the_host_is_told_anew_when_it_has_unplugged_what_was_stolen() {
    let mut world = World::new();
    world.run(20_000);
    world.heard.clear();
    world.fake.remove("sys/devices/system/memory/memory7");
    world.run(5_100);
    assert_eq!(told(&world), Some(BTreeSet::from([3, 4, 5, 6])));
    let status = world.agent.status(Instant::from_millis(world.now));
    assert_eq!((status.blocks.total, status.blocks.stolen.len()), (7, 4));
}

/// A kernel that does not put plugged memory online makes a new block look like the stolen one that
/// was there before.
#[test]
fn a_dimm_that_is_replaced_between_two_looks_is_not_stolen_any_more() {
    let mut world = World::new();
    world.run(20_000);
    world.heard.clear();
    world.fake.remove("sys/devices/system/memory/memory7");
    world.fake.add_blocks(SIZE, [(7, FakeBlock::OFFLINE)]);
    world.run(5_100);
    assert_eq!(told(&world), Some(BTreeSet::from([3, 4, 5, 6])));
    assert_eq!(world.agent.parts.seen.foreign, BTreeSet::from([BlockId(7)]));
    world.restart();
    world.run(100);
    assert_eq!(told(&world), Some(BTreeSet::from([3, 4, 5, 6])));
}

/// And so it is while no agent runs, or one that is killed before it could look.
#[test]
fn a_dimm_that_is_replaced_before_the_next_agent_looks_is_not_stolen_any_more() {
    let mut world = World::new();
    world.run(20_000);
    world.fake.remove("sys/devices/system/memory/memory7");
    world.fake.add_blocks(SIZE, [(7, FakeBlock::OFFLINE)]);
    world.restart();
    world.run(100);
    assert_eq!(told(&world), Some(BTreeSet::from([3, 4, 5, 6])));
}

#[test]
fn what_is_unplugged_while_it_is_asked_back_is_not_stolen_again() {
    let mut world = World::new();
    world.run(20_000);
    world.heard.clear();
    world.fake.remove("sys/devices/system/memory/memory7");
    world.agent.bring_back(BlockId(7));
    world.run(300);
    assert!(!world.heard.iter().any(|request| names(request, 7)), "{:?}", world.heard);
    assert_eq!(told(&world), Some(BTreeSet::from([3, 4, 5, 6])));
}
