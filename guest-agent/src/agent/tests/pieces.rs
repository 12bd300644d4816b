//! What cannot go offline goes in pieces, and comes back.

use super::*;
use crate::pieces::tests::{SURPLUS, add_huge_pages};
use crate::worker::{Done, Job, KERNEL_DEADLINE, Look, Task};

/// No block can be emptied.
fn world() -> World {
    let mut world = World::new();
    add_huge_pages(&world.fake);
    (2..8).for_each(|block| world.fake.refuse_block(BlockId(block), Errno::BUSY));
    world.restart();
    world
}

fn taken() -> World {
    let mut world = world();
    world.run(60_000);
    assert_eq!((host(&world), in_pieces(&world)), (256, vec![0, 1]));
    world
}

fn pieces(world: &World) -> &Pieces {
    world.agent.parts.pieces.as_ref().unwrap()
}

fn in_pieces(world: &World) -> Vec<u64> {
    let status = world.agent.status(Instant::from_millis(world.now));
    status.blocks.in_pieces.iter().map(|block| block.0).collect()
}

/// MiB that the host believes to be stolen, each counted as often as it was named.
fn host(world: &World) -> u64 {
    let sum = |ranges: &[GpaRange]| ranges.iter().map(|range| range.len().mib()).sum::<u64>();
    let mut stolen = 0;
    for request in &world.heard {
        match request {
            Request::Hello(hello) => stolen = sum(&hello.stolen),
            Request::Steal(ranges) if world.steals == Verdict::Ok => stolen += sum(ranges),
            Request::Return(asked) if world.returns == Verdict::Ok => stolen -= sum(&asked.ranges),
            Request::Taken(ranges) => stolen -= sum(ranges),
            _ => {}
        }
    }
    stolen
}

#[test]
fn what_cannot_go_offline_goes_in_pieces_and_is_asked_back() {
    let mut world = taken();
    assert_eq!(world.offline(), BTreeSet::new(), "no block is offline");
    let status = world.agent.status(Instant::from_millis(world.now));
    // 28 of 32 KiB for each 2 MiB.
    let (freed, remain) = (status.struct_pages.freed, status.struct_pages.remain);
    assert_eq!((freed, remain), (ByteSize::from_kib(128 * 28), ByteSize::from_kib(128 * 4)));
    assert_eq!((status.memory.online.mib(), status.blocks.stolen.len()), (768, 2));
    world.agent.set_mode(Mode::Restore);
    world.run(5_000);
    assert!(world.heard.iter().any(|request| matches!(request, Request::Return(_))));
    assert_eq!((host(&world), in_pieces(&world)), (0, vec![]));
    assert!(pieces(&world).left().is_empty() && world.agent.has_nothing_stolen());
}

#[test]
fn whole_blocks_go_first() {
    let mut world = World::new();
    add_huge_pages(&world.fake);
    world.restart();
    world.run(20_000);
    // 384 MiB is the minimum, and five blocks are less than what is movable.
    assert_eq!((world.offline().len(), in_pieces(&world)), (5, vec![]));
}

#[test]
fn the_successor_of_a_killed_agent_names_the_pieces_again() {
    let mut world = taken();
    world.restart();
    world.run(200);
    let hello = world.heard.iter().find_map(|request| match request {
        Request::Hello(hello) => Some(hello),
        _ => None,
    });
    let hello = hello.expect("it introduces itself");
    assert_eq!((host(&world), hello.online.mib()), (256, 768));
    assert_eq!(in_pieces(&world), [0, 1]);
}

#[test]
fn pieces_that_the_host_does_not_take_are_given_back() {
    let mut world = world();
    world.steals = Verdict::Refused(RefuseReason::ReclaimFailed);
    world.run(10_000);
    assert!(world.heard.iter().any(|request| matches!(request, Request::Steal(_))));
    assert!(pieces(&world).left().is_empty());
    assert!(in_pieces(&world).is_empty());
}

#[test]
fn pieces_are_taken_back_when_nobody_decides() {
    let mut world = taken();
    world.returns = Verdict::Held(HoldReason::Asking);
    world.fake.set_meminfo(meminfo(1024, 1000));
    world.run(12_000);
    assert_eq!((host(&world), in_pieces(&world)), (0, vec![]));
    assert!(world.heard.iter().any(|request| matches!(request, Request::Taken(_))));
}

/// The device from now on is another one, whose configuration says so of pieces.
fn replace_device(world: &World, piece: ByteSize) {
    world.device.configure(|config| {
        config.extension.piece.set(u32::try_from(piece.bytes()).unwrap());
        let next = config.extension.hello_epoch.get() + 1;
        config.extension.hello_epoch.set(next);
    });
}

/// How often the status says that none are taken, and why.
fn lacks(world: &World, why: &str) -> usize {
    let status = world.agent.status(Instant::from_millis(world.now));
    let pieces = |lack: &&crate::status::Lack| lack.what.contains("cannot go offline");
    let lacks: Vec<_> = status.lacks.iter().filter(pieces).collect();
    assert!(lacks.iter().all(|lack| lack.what.contains(why)), "{lacks:?}");
    lacks.len()
}

const OLDER: &str = "upgrade vhost-user-balloon";

fn has_no_pieces(world: &World) -> bool {
    pieces(world).left().is_empty() && pieces(world).count() == 0 && in_pieces(world).is_empty()
}

#[test]
fn a_device_that_is_older_than_pieces_is_not_told_of_any() {
    let mut world = world();
    replace_device(&world, ByteSize::ZERO);
    world.steals = Verdict::Refused(RefuseReason::Misaligned);
    world.restart();
    world.run(60_000);
    assert!(!world.heard.iter().any(|request| matches!(request, Request::Steal(_))));
    assert_eq!(lacks(&world, OLDER), 1);
    // Whole blocks go all the same.
    world.steals = Verdict::Ok;
    (2..8).for_each(|block| world.fake.allow_block(BlockId(block)));
    world.run(120_000);
    assert_eq!((world.offline().len(), in_pieces(&world)), (5, vec![]));
}

#[test]
fn a_device_may_be_replaced_by_an_older_one_and_by_a_newer_one_again() {
    let mut world = taken();
    replace_device(&world, ByteSize::ZERO);
    world.heard.clear();
    world.run(2_000);
    assert_eq!(host(&world), 0, "no hello named any");
    assert!(has_no_pieces(&world));
    assert_eq!((lacks(&world, OLDER), world.agent.counters.device_losses), (1, 0));
    let said = decisions(&world, "in pieces");
    let end = "what stands for 2 blocks goes back to this guest";
    assert!(said.last().is_some_and(|text| text.ends_with(end)), "{said:?}");
    replace_device(&world, ByteSize::from_mib(2));
    world.run(120_000);
    assert_eq!((host(&world), in_pieces(&world)), (256, vec![0, 1]));
    assert_eq!(lacks(&world, OLDER), 0);
}

/// The books of a plain balloon are kept in whole blocks: for pieces it would be told of the blocks
/// that they begin in, which are in use.
#[test]
fn a_device_may_be_replaced_by_a_plain_balloon() {
    let mut world = taken();
    world.device.become_plain();
    world.device.break_down();
    world.run(5_000);
    assert!(has_no_pieces(&world));
    assert_eq!((lacks(&world, "plain balloon"), world.inflated()), (1, BTreeSet::new()));
    assert_eq!(world.agent.counters.device_losses, 1, "it does not go on like this");
    assert_eq!(decisions(&world, "2 blocks goes back").len(), 1);
    (2..8).for_each(|block| world.fake.allow_block(BlockId(block)));
    world.run(120_000);
    assert_eq!(world.inflated(), BTreeSet::from([3, 4, 5, 6, 7]));
}

#[test]
fn pieces_that_were_being_taken_when_the_device_was_replaced_are_not_reported() {
    let mut world = world();
    world.run(200);
    replace_device(&world, ByteSize::ZERO);
    world.run(1_000);
    world.heard.clear();
    pieces(&world).take(BlockId(0), SIZE, ByteSize::ZERO, &|| true).unwrap();
    let look = Look::ForPieces;
    let task = Task::Steal { keep: ByteSize::ZERO, deadline: KERNEL_DEADLINE, look };
    let done = Done { job: Job { block: BlockId(0), task }, result: Ok(()), cost: Duration::ZERO };
    world.agent.on_done(Instant::from_millis(world.now), done);
    world.run(1_000);
    assert!(has_no_pieces(&world));
    assert!(!world.heard.iter().any(|request| matches!(request, Request::Steal(_))));
}

#[test]
fn an_administrator_who_gets_what_the_agent_holds_is_told() {
    let mut world = taken();
    let lack = |world: &World| {
        let status = world.agent.status(Instant::from_millis(world.now));
        let says = |lack: &&crate::status::Lack| lack.what.contains("nr_hugepages asks for");
        status.lacks.iter().find(says).map(|lack| lack.what.clone())
    };
    world.run(6_000);
    assert_eq!(lack(&world), None);
    world.fake.put(SURPLUS, "28\n");
    world.run(6_000);
    assert!(lack(&world).is_some_and(|what| what.starts_with("100 huge pages")));
    world.agent.set_mode(Mode::Restore);
    world.run(12_000);
    assert!(has_no_pieces(&world));
    assert_eq!(lack(&world), None);
}

#[test]
fn where_the_host_has_larger_pages_nothing_goes_in_pieces() {
    let mut world = world();
    let gib = ByteSize::from_gib(1);
    world.device.configure(|config| config.extension.set_reclaim_unit(gib));
    world.restart();
    world.run(60_000);
    assert!(has_no_pieces(&world));
    assert_eq!(lacks(&world, "the host has pages of 1 GiB"), 1);
}
