//! A device that does not answer, or cannot be stopped.

use super::*;

#[test]
fn a_silent_device_is_passed_by_after_ten_seconds_and_hears_of_it_when_it_wakes() {
    let mut world = World::new();
    world.run(20_000);
    world.answers = false;
    world.grow_to(370);
    world.run(8_500);
    assert_eq!(world.online(), 3, "ten seconds have not passed");
    world.run(5_000);
    assert!(world.online() > 3, "the guest's life comes first");
    world.answers = true;
    world.run(10_000);
    assert!(world.heard.iter().any(|request| matches!(request, Request::Taken(_))));
    assert_eq!(world.believed(), world.offline());
}

/// Whoever comes after it must not read the configuration, whatever becomes of this agent.
#[test]
fn what_the_next_agent_must_know_of_a_silent_device_is_on_file_while_it_is_silent() {
    let mut world = World::new();
    world.run(20_000);
    let is_silent = |world: &World| world.agent.parts.runtime.is_silent();
    assert!(!is_silent(&world));
    world.answers = false;
    world.run(7_000);
    assert!(is_silent(&world), "an agent that is killed now can say nothing any more");
    world.answers = true;
    world.run(2_000);
    assert!(!is_silent(&world), "it was only slow");
    world.answers = false;
    world.agent.parts.link.greet_again();
    world.grow_to(370);
    world.run(12_000);
    assert!(world.online() > 3, "it was stopped for that");
    assert!(is_silent(&world), "and nobody knows whether it lives");
}

#[test]
fn a_block_whose_report_nobody_has_answered_stays_offline() {
    let mut world = World::new();
    world.loses_steals = true;
    world.run(8_000);
    assert_eq!(world.offline(), BTreeSet::from([7]), "the report of it is in flight");
    world.grow_to(880);
    world.run(12_000);
    assert_eq!(world.offline(), BTreeSet::from([7]));
}

#[test]
fn while_the_device_cannot_be_stopped_nothing_is_taken_back_unasked() {
    let mut world = World::new();
    world.run(20_000);
    world.answers = false;
    world.agent.parts.link.greet_again();
    world.run(100);
    world.device.hang();
    world.grow_to(370);
    // Each attempt at stopping it takes its real two seconds.
    world.run(10_200);
    assert_eq!(world.online(), 3, "a hello that names all stolen blocks may still be carried out");
}
