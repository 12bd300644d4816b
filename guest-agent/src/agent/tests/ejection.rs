//! DIMMs that are stolen whole are ejected, and come back where the host plugs them in.

use memtide_sysfs::memory;
use memtide_units::Gpa;
use memtide_wire::config::Plugging;

use crate::blocks::Hold;

use super::*;

pub(super) const NAME: &str = "PNP0C80:00";
pub(super) const OTHER: &str = "PNP0C80:01";
pub(super) const DIMM: [u64; 3] = [8, 9, 10];
const POLICY: &str = "sys/devices/system/memory/auto_online_blocks";

/// Three more blocks, of a DIMM that the host plugs in again.
pub(super) fn world(plugging: Plugging) -> World {
    let mut world = World::new();
    let memory = GpaRange::new(Gpa(8 << 27), ByteSize::from_mib(384)).unwrap();
    world.fake.add_dimm(NAME, SIZE, memory);
    world.fake.put_page_flags(0, &[1 << 10; 11 * PAGES]);
    world.fake.set_meminfo(meminfo(11 * 128, 100));
    world.plugs = vec![NAME];
    says(&world, plugging);
    world.restart();
    world
}

/// Blocks 11 and 12 are another DIMM.
pub(super) fn add_other(world: &World) {
    let memory = GpaRange::new(Gpa(11 << 27), ByteSize::from_mib(256)).unwrap();
    world.fake.add_dimm(OTHER, SIZE, memory);
    world.fake.put_page_flags(0, &[1 << 10; 13 * PAGES]);
}

pub(super) fn ejected() -> World {
    let mut world = world(Plugging::Ready);
    world.run(60_000);
    assert_eq!(states(&world), [None; 3]);
    world
}

fn says(world: &World, plugging: Plugging) {
    world.device.configure(|config| config.extension.plugging.set(plugging.code()));
}

/// `None` where there is no such block.
pub(super) fn states(world: &World) -> Vec<Option<State>> {
    DIMM.iter().map(|block| memory::state(&world.fake.root(), BlockId(*block)).ok()).collect()
}

/// Waits until a block is online. From now on the guest keeps what it has, and what is on its way back.
pub(super) fn comes_back(world: &mut World, block: u64) -> bool {
    let parts = &mut world.agent.parts;
    let returning = SIZE.size().times(parts.blocks.with(Hold::Returning).len() as u64);
    parts.wish.min = Some(parts.blocks.online() + returning);
    let limits = Limits::new(parts.blocks.present(), parts.wish).unwrap();
    parts.controller.set_limits(limits);
    (0..200).any(|_| {
        world.step(Woken::default());
        matches!(memory::state(&world.fake.root(), BlockId(block)), Ok(State::Online))
    })
}

fn asked_to_eject(world: &World) -> usize {
    world.heard.iter().filter(|request| matches!(request, Request::Eject(_))).count()
}

fn asked_to_plug(world: &World) -> usize {
    world.heard.iter().filter(|request| matches!(request, Request::Plug(_))).count()
}

/// Whether the next hello names it, as there or as ejected.
fn names_dimm_anyhow(world: &mut World) -> [bool; 3] {
    world.heard.clear();
    greet(world);
    let believed = world.believed();
    DIMM.map(|block| believed.contains(&block))
}

fn greet(world: &mut World) {
    world.device.configure(|config| {
        let next = config.extension.hello_epoch.get() + 1;
        config.extension.hello_epoch.set(next);
    });
    world.run(500);
}

/// What the next hello names.
fn named(world: &mut World) -> BTreeSet<u64> {
    world.heard.clear();
    greet(world);
    let hello = world.heard.iter().rev().find_map(|request| match request {
        Request::Hello(hello) => {
            assert!(blocks(&hello.stolen).all(|block| block < 8), "what is out is named apart");
            Some(blocks(&hello.stolen).chain(blocks(&hello.ejected)).collect())
        }
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
    let lies_still = (0..40).any(|_| {
        world.step(Woken::default());
        world.agent.still().is_some()
    });
    assert!(!lies_still, "it would come to it in half an hour");
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
    assert_eq!(world.policies, ["offline"].map(|policy| policy.to_owned() + "\n"));
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
    world.agrees = Verdict::Refused(RefuseReason::NotPluggable);
    let started = std::time::Instant::now();
    world.agent.set_mode(Mode::Restore);
    world.run(5_000);
    assert!(started.elapsed() < Duration::from_secs(9), "the deadline is ten");
    assert_eq!(asked_to_plug(&world), 1);
    assert_eq!(states(&world), [None; 3]);
    assert_eq!((names_dimm(&mut world), lacks(&world)), ([true; 3], true));
    world.agrees = Verdict::Ok;
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
    let file = world.runtime.path().join("ejected");
    assert!(!file.exists(), "should its operator unplug it now, it is not the agent's");
}

/// It has agreed, and is late: what comes then stays offline all the same.
#[test]
fn a_host_that_is_late_finds_that_nothing_goes_online_by_itself() {
    let mut world = ejected();
    world.plugs = vec![];
    world.agent.bring_back(BlockId(9));
    world.run(5_000);
    let others = world.agent.parts.blocks.with(Hold::Stolen);
    assert!(!others.is_empty());
    world.agent.bring_back(others[0]);
    assert!(comes_back(&mut world, others[0].0), "nobody waits for it but who wants it");
    world.run(6_000);
    let believed = world.believed();
    assert!(
        DIMM.iter().all(|block| believed.contains(block)),
        "nothing of it is back: {believed:?}"
    );
    assert_eq!(world.fake.get(POLICY), "offline\n");
    world.fake.plug_in_dimm(NAME);
    world.run(100);
    assert_eq!(states(&world), [Some(State::Offline); 3]);
    assert_eq!(names_dimm_anyhow(&mut world), [true; 3]);
    world.run(31_000);
    assert_eq!(world.fake.get(POLICY), "online\n");
}

#[test]
fn the_policy_is_not_held_for_ever() {
    let mut world = ejected();
    world.plugs = vec![];
    world.agent.bring_back(BlockId(9));
    world.run(11_000);
    assert_eq!(world.fake.get(POLICY), "offline\n");
    world.run(61_000);
    assert_eq!(world.fake.get(POLICY), "online\n");
}

/// kill -9 between the question and the memory.
#[test]
fn the_successor_of_an_agent_that_had_asked_reckons_with_what_comes() {
    let mut world = ejected();
    world.plugs = vec![];
    world.agent.bring_back(BlockId(9));
    world.run(500);
    // As a kill leaves it: what would put it back does not run.
    let mark = world.runtime.path().join("auto_online");
    let before = std::fs::read(&mark).unwrap();
    let spare = tempfile::tempdir().unwrap();
    let placeholder = agent(&world.fake, &FakeDevice::new(), &spare, world.now);
    drop(std::mem::replace(&mut world.agent, placeholder));
    std::fs::write(&mark, before).unwrap();
    world.fake.put(POLICY, "offline\n");
    world.restart();
    world.run(200);
    world.fake.plug_in_dimm(NAME);
    world.run(100);
    assert_eq!(states(&world), [Some(State::Offline); 3]);
    world.run(40_000);
    assert_eq!(world.fake.get(POLICY), "online\n");
}

#[test]
fn blocks_that_the_kernel_is_not_done_with_are_left_alone() {
    let mut world = ejected();
    world.plugs = vec![];
    world.agent.bring_back(BlockId(9));
    world.run(500);
    world.fake.plug_in_dimm_unlinked(NAME);
    world.run(500);
    assert_eq!(states(&world), [Some(State::Offline); 3]);
    world.fake.link_dimm(NAME);
    assert!(comes_back(&mut world, 9));
    let (on, off) = (Some(State::Online), Some(State::Offline));
    assert_eq!(states(&world), [off, on, off]);
}

/// Whichever of the two the kernel is at first.
#[test]
fn what_is_granted_while_it_is_being_ejected_comes_back() {
    let mut world = world(Plugging::Ready);
    while asked_to_eject(&world) == 0 {
        world.run(50);
        assert!(world.now < 90_000, "{:?}", world.heard);
    }
    world.agent.bring_back(BlockId(9));
    assert!(comes_back(&mut world, 9), "{:?}", states(&world));
    assert!(world.agent.host_plugs(), "the host has done nothing wrong");
    let asks = world.heard.iter().any(|request| matches!(request, Request::Return(_)));
    assert!(!asks, "it was granted");
}

#[test]
fn what_is_asked_for_meanwhile_is_not_ejected() {
    let mut world = world(Plugging::Ready);
    while world.device.waiting().is_none_or(|request| !matches!(request, Request::Eject(_))) {
        world.turn(Woken::default());
        world.settle();
        if !matches!(world.device.waiting(), Some(Request::Eject(_))) {
            world.host();
        }
        world.now += STEP_MS;
        assert!(world.now < 90_000);
    }
    world.agent.set_mode(Mode::Restore);
    world.run(10_000);
    assert_eq!((states(&world), world.agent.counters.removals), (vec![Some(State::Online); 3], 0));
}

/// One that cannot be ejected, and one that can.
#[test]
fn one_dimm_does_not_stand_in_the_way_of_another() {
    let mut world = world(Plugging::Ready);
    add_other(&world);
    world.fake.set_meminfo(meminfo(13 * 128, 100));
    world.fake.refuse(&format!("sys/bus/acpi/devices/{NAME}/eject"), Errno::IO);
    world.restart();
    world.run(90_000);
    assert_eq!(states(&world), [Some(State::Offline); 3]);
    let other = [11, 12].map(|block| memory::state(&world.fake.root(), BlockId(block)).is_err());
    assert_eq!((other, asked_to_eject(&world)), ([true; 2], 2), "each was tried once");
    // Each is waited for by itself.
    world.fake.allow(&format!("sys/bus/acpi/devices/{NAME}/eject"));
    world.run(700_000);
    assert_eq!(states(&world), [None; 3]);
    world.plugs = vec![OTHER];
    world.agent.bring_back(BlockId(8));
    world.agent.bring_back(BlockId(11));
    assert!(comes_back(&mut world, 11));
    assert_eq!(states(&world), [None; 3]);
}

#[test]
fn what_would_hold_its_own_struct_pages_is_not_asked_for_and_not_ours() {
    let mut world = ejected();
    world.fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "Y\n");
    world.agent.set_mode(Mode::Restore);
    world.run(5_000);
    assert_eq!((asked_to_plug(&world), states(&world)), (0, vec![None; 3]));
    world.fake.put(POLICY, "offline\n");
    world.fake.plug_in_dimm(NAME);
    world.run(100);
    assert_eq!(names_dimm_anyhow(&mut world), [false; 3]);
    world.run(31_000);
    assert!(DIMM.iter().all(|block| world.agent.parts.seen.foreign.contains(&BlockId(*block))));
}

/// An agent that is stopped between the question and the memory leaves the same to the next one.
#[test]
fn an_agent_that_ends_meanwhile_leaves_the_policy_to_the_next_one() {
    let mut world = ejected();
    world.plugs = vec![];
    world.agent.bring_back(BlockId(9));
    world.run(500);
    world.agent.begin_farewell();
    world.restart();
    assert_eq!(world.fake.get(POLICY), "offline\n");
    world.fake.plug_in_dimm_unlinked(NAME);
    assert_eq!(names_dimm(&mut world), [true; 3], "the kernel is not done with it");
    world.fake.link_dimm(NAME);
    world.run(40_000);
    assert_eq!(world.fake.get(POLICY), "online\n");
    let believed = world.believed();
    assert!(DIMM.iter().all(|block| believed.contains(block)), "{believed:?}");
    assert!(world.agent.parts.seen.foreign.is_empty());
}

/// Its controller has gone with what it knew, and so has the agent that had ejected it.
#[test]
fn what_no_device_knows_of_keeps_nothing_else_from_being_stolen() {
    let mut world = ejected();
    world.agent.set_mode(Mode::Restore);
    says(&world, Plugging::Nobody);
    world.run(20_000);
    assert_eq!((world.online(), states(&world)), (8, vec![None; 3]));
    world.restart();
    world.run(60_000);
    assert!(world.online() < 8, "{}", world.agent.note());
}
