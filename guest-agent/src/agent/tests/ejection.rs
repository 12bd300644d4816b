//! DIMMs that are stolen whole are ejected, and come back where the host plugs them in.

use memtide_sysfs::memory;
use memtide_units::Gpa;
use memtide_wire::config::Plugging;

use super::*;

const NAME: &str = "PNP0C80:00";
const DIMM: [u64; 3] = [8, 9, 10];
const POLICY: &str = "sys/devices/system/memory/auto_online_blocks";

/// Three more blocks, of a DIMM that the host plugs in again.
fn world(plugging: Plugging) -> World {
    let mut world = World::new();
    let memory = GpaRange::new(Gpa(8 << 27), ByteSize::from_mib(384)).unwrap();
    world.fake.add_dimm(NAME, SIZE, memory);
    world.fake.put_page_flags(0, &[1 << 10; 11 * PAGES]);
    world.fake.set_meminfo(meminfo(11 * 128, 100));
    world.plugs = Some(NAME);
    says(&world, plugging);
    world.restart();
    world
}

fn ejected() -> World {
    let mut world = world(Plugging::Ready);
    world.run(60_000);
    assert_eq!(states(&world), [None; 3]);
    world
}

fn says(world: &World, plugging: Plugging) {
    world.device.configure(|config| config.extension.plugging.set(plugging.code()));
}

/// `None` where there is no such block.
fn states(world: &World) -> Vec<Option<State>> {
    DIMM.iter().map(|block| memory::state(&world.fake.root(), BlockId(*block)).ok()).collect()
}

fn asked_to_eject(world: &World) -> usize {
    world.heard.iter().filter(|request| matches!(request, Request::Eject(_))).count()
}

fn asked_to_plug(world: &World) -> usize {
    world.heard.iter().filter(|request| matches!(request, Request::Plug(_))).count()
}

/// What the next hello names.
fn named(world: &mut World) -> BTreeSet<u64> {
    world.heard.clear();
    world.device.configure(|config| {
        let next = config.extension.hello_epoch.get() + 1;
        config.extension.hello_epoch.set(next);
    });
    world.run(500);
    let hello = world.heard.iter().rev().find_map(|request| match request {
        Request::Hello(hello) => Some(blocks(&hello.stolen).collect()),
        _ => None,
    });
    hello.expect("the agent introduces itself")
}

fn names_dimm(world: &mut World) -> [bool; 3] {
    let named = named(world);
    DIMM.map(|block| named.contains(&block))
}

fn lacks(world: &World) -> bool {
    world.agent.parts.lacks.iter().any(|lack| lack.what.contains("plugs in"))
}

#[test]
fn what_rests_stolen_is_ejected_once_the_host_has_agreed() {
    let mut world = world(Plugging::Ready);
    world.run(15_000);
    assert_eq!((states(&world), asked_to_eject(&world)), (vec![Some(State::Offline); 3], 0));
    world.run(45_000);
    assert_eq!((states(&world), asked_to_eject(&world)), (vec![None; 3], 1));
    let status = world.agent.status(Instant::from_millis(world.now));
    assert_eq!((status.struct_pages.freed.mib(), status.counters.removals), (6, 1));
    assert_eq!(status.blocks.total, 11);
    assert_eq!(names_dimm(&mut world), [true; 3]);
}

#[test]
fn a_host_that_does_not_plug_in_has_nothing_ejected() {
    for plugging in [Plugging::Nobody, Plugging::Known] {
        let mut world = world(plugging);
        world.run(60_000);
        assert_eq!((states(&world), asked_to_eject(&world)), (vec![Some(State::Offline); 3], 0));
    }
    let mut world = world(Plugging::Ready);
    world.ejects = Verdict::Refused(RefuseReason::NotPluggable);
    world.run(70_000);
    assert_eq!((states(&world), asked_to_eject(&world)), (vec![Some(State::Offline); 3], 1));
}

/// What the host guarantees must not need the host's service: 1280 MiB of 1408.
#[test]
fn what_is_guaranteed_stays_in_the_guest() {
    let mut world = world(Plugging::Ready);
    world.guaranteed = ByteSize::from_mib(1152);
    world.run(60_000);
    assert_eq!((states(&world), asked_to_eject(&world)), (vec![Some(State::Offline); 3], 0));
}

#[test]
fn memory_that_would_hold_its_own_struct_pages_is_not_ejected() {
    let mut world = world(Plugging::Ready);
    world.run(15_000);
    world.fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "Y\n");
    world.run(60_000);
    assert_eq!(asked_to_eject(&world), 0);
}

#[test]
fn one_block_comes_back_with_its_dimm_and_the_others_stay_stolen() {
    let mut world = ejected();
    world.grow_to(300);
    let is_back = |world: &World| states(world)[0] == Some(State::Online);
    let mut most = 0;
    for _ in 0..400 {
        if is_back(&world) {
            break;
        }
        most += 10;
        // The nearest are below: those come first.
        world.grow_to(300 + most);
        world.run(50);
    }
    assert_eq!(states(&world)[0], Some(State::Online), "{:?}", world.heard);
    assert_eq!(asked_to_plug(&world), 1);
    world.run(100);
    assert_eq!(world.fake.get(POLICY), "online\n", "as it was");
    assert!(states(&world).contains(&Some(State::Offline)), "{:?}", states(&world));
    let is_online: Vec<bool> =
        states(&world).iter().map(|state| *state == Some(State::Online)).collect();
    let named = names_dimm(&mut world);
    assert!(is_online.iter().zip(named).all(|(online, named)| *online != named), "{is_online:?}");
    assert!(world.agent.parts.seen.foreign.is_empty());
}

#[test]
fn everything_comes_back_when_it_is_asked_back() {
    let mut world = ejected();
    world.agent.set_mode(Mode::Restore);
    world.run(20_000);
    assert_eq!(states(&world), [Some(State::Online); 3]);
    assert!(world.agent.has_nothing_stolen());
    assert_eq!(asked_to_plug(&world), 1, "once for all of it");
}

#[test]
fn while_nobody_plugs_in_it_is_neither_asked_for_nor_forgotten() {
    let mut world = ejected();
    says(&world, Plugging::Known);
    world.agent.set_mode(Mode::Restore);
    world.run(20_000);
    assert_eq!((world.online(), states(&world)), (8, vec![None; 3]), "the others are back");
    assert!(lacks(&world));
    assert_eq!((names_dimm(&mut world), asked_to_plug(&world)), ([true; 3], 0));
    says(&world, Plugging::Ready);
    world.run(20_000);
    assert_eq!((states(&world), lacks(&world)), (vec![Some(State::Online); 3], false));
}

#[test]
fn a_refusal_is_not_waited_for_and_it_is_stolen_still() {
    let mut world = ejected();
    world.plugs = None;
    let started = std::time::Instant::now();
    world.agent.set_mode(Mode::Restore);
    world.run(5_000);
    assert!(started.elapsed() < Duration::from_secs(9), "the deadline is ten");
    assert_eq!(asked_to_plug(&world), 1);
    assert_eq!(states(&world), [None; 3]);
    assert_eq!(world.fake.get(POLICY), "online\n");
    assert_eq!((names_dimm(&mut world), lacks(&world)), ([true; 3], true));
    world.plugs = Some(NAME);
    world.run(20_000);
    assert_eq!(states(&world), [Some(State::Online); 3], "it is asked again");
}

/// A device that was started anew knows nothing of what is out until its controller says so.
#[test]
fn a_device_that_does_not_know_of_it_is_not_told() {
    let mut world = ejected();
    says(&world, Plugging::Nobody);
    assert_eq!(names_dimm(&mut world), [false; 3]);
    says(&world, Plugging::Ready);
    assert_eq!(names_dimm(&mut world), [true; 3]);
}

/// Its controller knows of other memory alone.
#[test]
fn what_the_host_knows_nothing_of_is_given_up() {
    let mut world = ejected();
    world.hellos = Verdict::Refused(RefuseReason::OutsideMemory);
    named(&mut world);
    world.hellos = Verdict::Ok;
    world.run(2_000);
    assert_eq!(names_dimm(&mut world), [false; 3]);
    assert!(world.agent.parts.blocks.removed().is_empty());
    // It may be plugged in all the same, and is memory like any other then.
    world.grow_to(300);
    world.fake.plug_in_dimm(NAME);
    world.run(30_000);
    assert_eq!(states(&world), [Some(State::Online); 3]);
}

#[test]
fn the_successor_of_a_killed_agent_knows_what_was_ejected() {
    let mut world = ejected();
    world.restart();
    world.run(100);
    assert_eq!(names_dimm(&mut world), [true; 3]);
    // Nobody knows of the grant that the dead one had: the host plugs in what nobody holds.
    world.grow_to(300);
    world.fake.plug_in_dimm(NAME);
    world.run(30_000);
    let taken = world.heard.iter().any(|request| matches!(request, Request::Taken(_)));
    assert_eq!((states(&world), taken), (vec![Some(State::Online); 3], true));
}
