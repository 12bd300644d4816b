//! DAMON ends, and is there again.

use std::time::Instant as StdInstant;

use memtide_sysfs::fake::FakeDamon;

use super::*;

const STATE: &str = "sys/kernel/mm/damon/admin/kdamonds/0/state";

fn status(world: &World) -> crate::status::Status {
    world.agent.status(Instant::from_millis(world.now))
}

/// Why nobody watches, once the thread has found out: that takes real time.
fn wait_for_the_end(world: &mut World) -> String {
    let start = StdInstant::now();
    loop {
        world.turn(Woken::default());
        let status = status(world);
        if let Some(why) = status.unwatched() {
            return why.into();
        }
        assert!(start.elapsed() < Duration::from_secs(30), "nobody has noticed: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_kdamond_that_somebody_stops_is_started_again() {
    let mut world = World::new();
    world.fake.add_damon(FakeDamon::V6_12);
    world.fake.put("proc/swaps", "Filename Type Size Used Priority\n/dev/vdb file 1048572 0 -2\n");
    world.restart();
    world.run(200);
    assert_eq!((status(&world).lacks, status(&world).reclaim.is_some()), (vec![], true));
    world.fake.root().write(STATE, "off").unwrap();
    let why = wait_for_the_end(&mut world);
    assert!(why.starts_with("its kdamond has ended, or was stopped (it is tried again"), "{why}");
    assert!(status(&world).reclaim.is_none(), "nobody pages out");
    let root = world.fake.root();
    world.run(9_900);
    assert!(!root.exists(STATE), "whoever stopped it has time to use it");
    world.run(200);
    assert_eq!(world.fake.get(STATE), "on\n");
    assert_eq!((status(&world).lacks, status(&world).reclaim.is_some()), (vec![], true));
}
