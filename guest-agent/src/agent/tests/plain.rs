//! A plain balloon: the host is told, and not asked.

use super::*;

#[test]
fn a_plain_balloon_is_told_of_each_block_and_hears_before_one_is_used_again() {
    let mut world = World::plain();
    world.run(20_000);
    assert_eq!(world.offline(), BTreeSet::from([3, 4, 5, 6, 7]));
    assert_eq!(world.inflated(), world.offline());
    assert_eq!(world.device.actual(), SIZE.size().times(5));
    assert!(world.statistics > 0);
    world.grow_to(350);
    world.run(3_000);
    assert!(world.online() > 3, "{}", world.agent.note());
    assert_eq!(world.inflated(), world.offline());
}

#[test]
fn the_target_of_a_plain_host_is_met_and_kept() {
    let mut world = World::plain();
    world.grow_to(660);
    world.run(4_000);
    assert_eq!(world.online(), 8, "nothing is to spare");
    world.device.configure(|config| config.balloon.num_pages.set(256 * 200));
    world.run(10_000);
    assert_eq!(world.inflated(), BTreeSet::from([6, 7]), "{}", world.agent.note());
    world.grow_to(750);
    world.run(3_000);
    assert_eq!(world.online(), 6, "the host wants them");
    world.device.configure(|config| config.balloon.num_pages.set(0));
    world.run(3_000);
    assert!(world.online() > 6, "{}", world.agent.note());
    assert_eq!(world.inflated(), world.offline());
}

#[test]
fn a_restarted_agent_tells_a_plain_balloon_all_that_is_offline_once_more() {
    let mut world = World::plain();
    world.run(20_000);
    let offline = world.offline();
    world.pages.clear();
    world.restart();
    world.run(2_000);
    assert_eq!((world.inflated(), world.offline()), (offline.clone(), offline));
    assert_eq!(world.device.actual(), SIZE.size().times(5));
}

#[test]
fn a_plain_balloon_is_said_goodbye_to_even_while_it_is_told_once_more() {
    let mut world = World::plain();
    world.run(20_000);
    world.restart();
    world.step(Woken::default());
    world.agent.begin_farewell();
    let is_over = (0..50).any(|_| {
        let now = Instant::from_millis(world.now);
        let is_over = world.agent.end_farewell(now);
        world.host();
        is_over
    });
    assert!(is_over);
}

#[test]
fn the_stock_driver_of_a_plain_balloon_finds_what_it_is_about_to_take() {
    let mut world = World::plain();
    world.device.configure(|config| config.balloon.num_pages.set(256 * 200));
    world.run(20_000);
    assert_eq!(world.offline(), BTreeSet::from([3, 4, 5, 6, 7]));
    world.agent.make_room_for_stock_driver();
    assert_eq!(world.offline(), BTreeSet::from([5, 6, 7]), "it will inflate 200 MiB");
}
