//! What the host hears is true when it hears it.

use super::*;

#[test]
fn a_hello_never_names_a_block_that_is_on_its_way_back() {
    let mut world = World::new();
    world.run(20_000);
    world.returns = Verdict::Ok;
    world.grow_to(350);
    // The grant is read; before the kernel has put anything online the host wants a new hello.
    let turn = |world: &mut World| {
        world.now += STEP_MS;
        world.turn(Woken { by_device: true, ..Woken::default() });
    };
    let granted = loop {
        turn(&mut world);
        let reply = world.device.answer(|sequence, _| answer(sequence, Verdict::Ok));
        if let Some((_, Request::Return(asked))) = reply {
            break blocks(&asked.ranges).collect::<BTreeSet<_>>();
        }
    };
    world.device.configure(|config| config.extension.hello_epoch.set(2));
    turn(&mut world);
    let hello = loop {
        match world.device.answer(|sequence, _| answer(sequence, Verdict::Ok)) {
            Some((_, Request::Hello(hello))) => break hello,
            _ => turn(&mut world),
        }
    };
    let named: BTreeSet<u64> = blocks(&hello.stolen).collect();
    assert!(named.is_disjoint(&granted), "{named:?} and {granted:?}");
}

#[test]
fn a_block_that_cannot_be_put_online_is_reported_stolen_again() {
    let mut world = World::new();
    world.run(20_000);
    world.fake.refuse_block(BlockId(3), Errno::NOMEM);
    world.grow_to(350);
    world.run(1_000);
    assert!(world.offline().contains(&3));
    assert_eq!(world.believed(), world.offline());
    world.fake.allow_block(BlockId(3));
    world.grow_to(700);
    world.run(5_000);
    assert!(!world.offline().contains(&3), "{}", world.agent.note());
    assert_eq!(world.believed(), world.offline());
}

#[test]
fn a_report_that_waits_is_not_sent_after_its_block_was_taken_back() {
    let mut world = World::new();
    world.run(20_000);
    world.answers = false;
    world.grow_to(370);
    world.run(8_500);
    // A report that a hello has overtaken: the block counts as stolen, and still waits here.
    world.agent.parts.link.report_stolen(vec![SIZE.range(BlockId(3)).unwrap()]);
    world.run(5_000);
    assert_eq!(world.state(3).0, State::Online);
    world.heard.clear();
    world.answers = true;
    world.run(1_000);
    let names_it = |request: &Request| match request {
        Request::Steal(ranges) => blocks(ranges).any(|block| block == 3),
        _ => false,
    };
    assert!(!world.heard.iter().any(names_it), "the host would drop it in use");
}

/// Whoever reads `explain` wants to know what became of what was decided, not only what was.
#[test]
fn a_block_that_does_not_go_is_explained() {
    let mut world = World::new();
    world.fake.refuse_block(BlockId(7), Errno::BUSY);
    world.restart();
    world.run(20_000);
    let said = decisions(&world, "memory7 was not stolen: ");
    assert!(!said.is_empty(), "{:?}", decisions(&world, ""));
}
