//! What wakes an agent at rest, and what of that has it look at the guest.

use memtide_policy::guest::Decision;
use memtide_wire::config::ConfigSpace;

use super::*;
use crate::blocks::Hold;
use crate::worker::{Job, Look, MOVABLE_DEADLINE, Task};

const MEMINFO: &str = "proc/meminfo";
const STATE_OF_2: &str = "sys/devices/system/memory/memory2/state";

/// An agent that has said how it is and waits for the answer, in a guest at rest.
fn world() -> World {
    let mut world = World::new();
    world.run(20_000);
    send_telemetry(&mut world);
    world
}

/// Until the next telemetry is sent; all before is answered.
fn send_telemetry(world: &mut World) {
    let end = world.now + 2_000;
    while !matches!(world.device.waiting(), Some(Request::Telemetry(_))) {
        assert!(world.now < end, "telemetry comes once a second");
        world.host();
        world.now += STEP_MS;
        world.turn(Woken::default());
    }
}

fn respond(world: &World, verdict: Verdict) {
    world.device.answer(|sequence, _| answer(sequence, verdict)).unwrap();
}

/// The turn of an agent that is woken a little later. `None` where it wanted to look at the guest,
/// which it cannot.
fn wake(world: &mut World, woken: Woken) -> Option<Duration> {
    world.now += 5;
    let meminfo = world.fake.get(MEMINFO);
    world.fake.remove(MEMINFO);
    let turn = world.agent.turn(Instant::from_millis(world.now), woken);
    world.fake.put(MEMINFO, &meminfo);
    match turn {
        Ok(wait) => Some(wait),
        Err(RunError::Kernel(error)) if error.is_missing() => None,
        Err(other) => panic!("{other}"),
    }
}

const BY_DEVICE: Woken = Woken { by_trigger: false, by_device: true, still_at: None };

/// Whether the agent decides anew when the host has answered, and `also` has happened.
fn decides(verdict: Verdict, also: impl FnOnce(&mut World) -> Woken) -> bool {
    let mut world = world();
    respond(&world, verdict);
    let woken = also(&mut world);
    wake(&mut world, woken).is_none()
}

#[test]
fn an_answer_to_telemetry_alone_reads_nothing_of_the_guest_and_puts_nothing_off() {
    let mut world = world();
    let due = world.now + millis(world.agent.pause(Instant::from_millis(world.now)));
    assert_eq!(world.agent.still(), None, "an answer is awaited");
    respond(&world, Verdict::Ok);
    let wait = wake(&mut world, BY_DEVICE).expect("nothing has happened");
    assert_eq!(world.now + millis(wait), due, "what is left of the wait");
    let still = world.agent.still().expect("nothing is under way any more");
    assert_eq!(world.now + millis(still.latest), world.agent.due.report.as_millis());
    // As when it is time.
    world.now = due - 5;
    assert_eq!(wake(&mut world, Woken::default()), None);
}

/// One turn to send it, another to hear the answer, would be two a second too many.
#[test]
fn telemetry_goes_out_in_the_turn_that_makes_it() {
    let mut world = world();
    respond(&world, Verdict::Ok);
    wake(&mut world, BY_DEVICE).unwrap();
    world.now = world.agent.due.report.as_millis();
    world.turn(Woken::default());
    assert!(matches!(world.device.waiting(), Some(Request::Telemetry(_))));
}

#[test]
fn a_guest_that_lay_still_at_the_last_look_rests_on_for_as_long() {
    let mut world = World::plain();
    world.run(20_000);
    world.now = world.agent.due.report.as_millis();
    world.turn(Woken::default());
    let every = world.agent.still().expect("nothing is under way").every;
    // The look found nothing; then the host wants statistics.
    let looked = world.now + millis(every);
    world.now = looked + 10;
    assert!(world.device.take_statistics().is_some());
    let woken = Woken { still_at: Some(Instant::from_millis(looked)), ..BY_DEVICE };
    let wait = wake(&mut world, woken).expect("statistics change nothing");
    assert_eq!(world.now + millis(wait), looked + millis(every));
    assert!(world.device.take_statistics().is_some(), "the host gets them all the same");
}

#[test]
fn the_answer_alone_is_the_only_one_of_its_kind() {
    assert!(!decides(Verdict::Ok, |_| BY_DEVICE));
    assert!(!decides(Verdict::Ok, |_| Woken::default()), "without an interrupt");
}

#[test]
fn who_is_woken_by_nothing_that_is_known_decides() {
    let mut world = world();
    assert_eq!(wake(&mut world, Woken::default()), None);
}

/// The device answers so fast that the turn which asks has the answer, and its interrupt comes later.
#[test]
fn an_interrupt_for_what_is_known_already_is_no_news() {
    let mut world = world();
    respond(&world, Verdict::Ok);
    wake(&mut world, BY_DEVICE).unwrap();
    wake(&mut world, BY_DEVICE).expect("nothing has happened");
}

#[test]
fn a_stall_has_the_agent_decide() {
    assert!(decides(Verdict::Ok, |_| Woken { by_trigger: true, ..BY_DEVICE }));
}

#[test]
fn an_operator_has_the_agent_decide() {
    assert!(decides(Verdict::Ok, |world| {
        world.agent.set_mode(Mode::Restore);
        BY_DEVICE
    }));
}

#[test]
fn another_word_of_the_host_has_the_agent_decide() {
    let decides = |change: fn(&mut ConfigSpace)| {
        let mut world = world();
        world.device.configure(change);
        respond(&world, Verdict::Ok);
        wake(&mut world, BY_DEVICE).is_none()
    };
    assert!(decides(|config| config.balloon.num_pages.set(1 << 16)));
    // A wish for a new hello, before whose answer nothing is certain.
    assert!(decides(|config| config.extension.hello_epoch.set(9)));
}

#[test]
fn an_answer_that_is_a_refusal_has_the_agent_decide() {
    assert!(decides(Verdict::Refused(RefuseReason::NoHello), |_| BY_DEVICE));
    assert!(decides(Verdict::Refused(RefuseReason::Malformed), |_| BY_DEVICE));
}

#[test]
fn an_answer_to_anything_else_has_the_agent_decide() {
    let range = SIZE.range(BlockId(2)).unwrap();
    for request in [Request::Cancel { ticket: 77 }, Request::Taken(vec![range])] {
        let mut world = world();
        respond(&world, Verdict::Ok);
        world.agent.parts.link.post(request);
        assert_eq!(wake(&mut world, BY_DEVICE), None, "it is under way");
        world.turn(Woken::default());
        respond(&world, Verdict::Ok);
        assert_eq!(wake(&mut world, BY_DEVICE), None, "it is answered");
    }
}

#[test]
fn what_the_last_turn_heard_after_its_decision_is_not_forgotten() {
    assert!(decides(Verdict::Ok, |world| {
        world.agent.parts.link.greet_again();
        world.agent.exchange(Instant::from_millis(world.now));
        respond(world, Verdict::Ok);
        world.agent.exchange(Instant::from_millis(world.now));
        // All is well again, and what is answered now changes nothing.
        world.agent.parts.link.post(Request::Goodbye);
        world.agent.exchange(Instant::from_millis(world.now));
        respond(world, Verdict::Ok);
        BY_DEVICE
    }));
}

#[test]
fn a_device_that_is_back_has_the_agent_decide() {
    let mut world = world();
    world.now += 5_000;
    world.turn(Woken::default());
    assert!(world.agent.parts.link.is_given_up());
    respond(&world, Verdict::Ok);
    assert_eq!(wake(&mut world, BY_DEVICE), None);
}

#[test]
fn a_device_that_breaks_the_rules_has_the_agent_decide() {
    let mut world = world();
    world.device.answer_bytes(&[0xff; 8]);
    assert_eq!(wake(&mut world, BY_DEVICE), None);
}

#[test]
fn a_block_that_comes_back_has_the_agent_decide() {
    assert!(decides(Verdict::Ok, |world| {
        world.agent.bring_back(BlockId(3));
        world.settle();
        BY_DEVICE
    }));
}

#[test]
fn what_is_due_is_done_whatever_else_wakes_the_agent() {
    let at = |world: &World| Instant::from_millis(world.now + 1);
    assert!(decides(Verdict::Ok, |world| {
        world.agent.due.refresh = at(world);
        BY_DEVICE
    }));
    assert!(decides(Verdict::Ok, |world| {
        world.agent.due.report = at(world);
        BY_DEVICE
    }));
}

#[test]
fn a_return_that_is_held_is_not_left_alone() {
    let mut world = World::new();
    world.run(20_000);
    world.returns = Verdict::Held(HoldReason::HostBudget);
    world.grow_to(350);
    world.run(500);
    send_telemetry(&mut world);
    respond(&world, Verdict::Ok);
    assert!(world.agent.returns.ticket().is_some());
    assert_eq!(wake(&mut world, BY_DEVICE), None);
}

/// A batch of two blocks: one has just been stolen, and the other takes its time.
fn within_a_batch() -> World {
    // So much is in use that nothing is stolen otherwise.
    let mut world = World::with_used(700);
    world.run(20_000);
    assert_eq!(world.offline(), BTreeSet::new());
    send_telemetry(&mut world);
    respond(&world, Verdict::Ok);
    wake(&mut world, BY_DEVICE).unwrap();
    world.fake.stall(STATE_OF_2);
    let (keep, deadline) = (ByteSize::ZERO, MOVABLE_DEADLINE);
    let task = Task::Steal { keep, deadline, look: Look::AtRoom };
    world.agent.parts.hands.steal([3, 2].map(|n| Job { block: BlockId(n), task }));
    // Not while that thread looks at the guest itself.
    let started = std::time::Instant::now();
    while !world.fake.writes().iter().any(|(path, _)| path == STATE_OF_2) {
        assert!(started.elapsed() < Duration::from_secs(10), "the second block's turn comes");
        std::thread::yield_now();
    }
    assert_eq!(world.state(3).0, State::Offline);
    world
}

/// Whether a turn looks at the guest. Unlike in [`wake`] its files are there all the time, for the
/// thread that changes blocks.
fn looks(world: &mut World, woken: Woken) -> bool {
    let before = world.agent.reading.meminfo;
    world.fake.set_meminfo(Meminfo { cached: before.cached + ByteSize::from_mib(1), ..before });
    world.now += 5;
    world.turn(woken);
    world.agent.reading.meminfo != before
}

#[test]
fn a_batch_goes_on_without_a_look_at_the_guest() {
    let mut world = within_a_batch();
    assert!(!looks(&mut world, Woken::default()), "one more block is stolen");
    let report = Request::Steal(vec![SIZE.range(BlockId(3)).unwrap()]);
    assert_eq!(world.device.waiting(), Some(report), "the host hears of it at once");
    respond(&world, Verdict::Ok);
    assert!(!looks(&mut world, BY_DEVICE), "and has dropped it");
    world.now += 100;
    assert!(looks(&mut world, Woken::default()), "but the time comes to decide");
    world.fake.allow(STATE_OF_2);
}

#[test]
fn what_speaks_against_a_batch_has_the_agent_decide() {
    let against: [fn(&mut World) -> Woken; 4] = [
        |_| Woken { by_trigger: true, ..BY_DEVICE },
        |world| {
            respond(world, Verdict::Refused(RefuseReason::Malformed));
            BY_DEVICE
        },
        |world| {
            world.agent.set_mode(Mode::Restore);
            Woken::default()
        },
        |world| {
            world.fake.allow(STATE_OF_2);
            world.settle();
            Woken::default()
        },
    ];
    for happens in against {
        let mut world = within_a_batch();
        looks(&mut world, Woken::default());
        let woken = happens(&mut world);
        assert!(looks(&mut world, woken));
        world.fake.allow(STATE_OF_2);
    }
}

/// Turns the agent, at one moment, until so many blocks are offline.
fn turn_until_offline(world: &mut World, count: usize) {
    let started = std::time::Instant::now();
    while world.offline().len() < count || world.agent.parts.hands.is_at_work() {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", world.offline());
        std::thread::yield_now();
        world.turn(Woken::default());
    }
}

#[test]
fn no_more_blocks_go_than_the_host_keeps_up_with() {
    let mut world = within_a_batch();
    // There is room for whatever may be in them.
    world.grow_to(0);
    let (keep, deadline) = (ByteSize::ZERO, MOVABLE_DEADLINE);
    let task = Task::Steal { keep, deadline, look: Look::AtRoom };
    world.agent.parts.hands.steal([7, 6, 5, 4].map(|n| Job { block: BlockId(n), task }));
    world.fake.allow(STATE_OF_2);
    // Two are being dropped, and two are ready.
    turn_until_offline(&mut world, 4);
    assert_eq!(world.offline(), BTreeSet::from([2, 3, 6, 7]));
    assert!(world.agent.parts.hands.is_stealing(), "two more are wanted");
    for dropped in [5, 6] {
        respond(&world, Verdict::Ok);
        turn_until_offline(&mut world, dropped);
    }
    assert!(!world.agent.parts.hands.is_busy());
}

/// A guest that follows its host's target and has all that it wants.
fn following() -> World {
    let mut world = World::new();
    let settings = *world.agent.parts.controller.settings();
    let followed = Settings { scale_by: ScaleBy::Target, ..settings };
    world.agent.parts.controller = Controller::new(followed);
    world.run(5_000);
    world
}

fn state_of(block: u64) -> String {
    format!("sys/devices/system/memory/memory{block}/state")
}

fn want_in_the_balloon(world: &mut World, mib: u32) {
    // The configuration is looked at once no answer is awaited.
    world.host();
    world.device.configure(|config| config.balloon.num_pages.set(256 * mib));
    world.turn(BY_DEVICE);
}

#[test]
fn blocks_that_the_host_no_longer_asks_for_are_not_taken() {
    let mut world = following();
    let is_tried =
        |world: &World, block| world.fake.writes().iter().any(|(path, _)| *path == state_of(block));
    world.fake.stall(&state_of(7));
    want_in_the_balloon(&mut world, 512);
    while !is_tried(&world, 7) {
        std::thread::yield_now();
    }
    want_in_the_balloon(&mut world, 128);
    world.fake.allow(&state_of(7));
    world.run(2_000);
    assert_eq!((world.offline(), is_tried(&world, 6)), (BTreeSet::from([7]), false));
}

#[test]
fn what_the_host_wants_does_not_wait_for_a_look_at_all_blocks() {
    let mut world = following();
    let somebody_takes = |world: &World, block| {
        write_state(&world.fake.root(), BlockId(block), StateRequest::Offline).unwrap();
    };
    let hold = |world: &World, block| world.agent.parts.blocks.hold(BlockId(block));
    somebody_takes(&world, 2);
    world.agent.due.refresh = Instant::from_millis(world.now);
    world.fake.stall(&state_of(7));
    want_in_the_balloon(&mut world, 128);
    assert_eq!(
        (hold(&world, 2), world.agent.parts.hands.is_stealing()),
        (Some(Hold::Online), true)
    );
    world.fake.allow(&state_of(7));
    world.run(1_000);
    assert_eq!(hold(&world, 2), Some(Hold::Foreign), "it is found out right after");
    // A host that wants something else all the time does not keep the agent from it for ever.
    somebody_takes(&world, 3);
    for wanted in [0, 128].into_iter().cycle().take(10) {
        want_in_the_balloon(&mut world, wanted);
        world.now += 4_000;
    }
    assert_eq!(hold(&world, 3), Some(Hold::Foreign));
}

#[test]
fn the_journal_is_not_woken_up_between_a_wish_and_the_first_block() {
    let mut world = following();
    assert_eq!(world.agent.unsaid, None);
    world.fake.stall(&state_of(7));
    want_in_the_balloon(&mut world, 512);
    let is_to_steal = |world: &World| matches!(world.agent.unsaid, Some(Decision::Steal { .. }));
    assert!(is_to_steal(&world) && world.agent.note().contains("steal"));
    world.turn(Woken::default());
    assert!(is_to_steal(&world), "that turn decides nothing");
    // The log gets it with the next decision.
    world.now += 100;
    world.turn(Woken::default());
    assert!(!is_to_steal(&world));
    world.fake.allow(&state_of(7));
}

#[test]
fn the_log_tells_what_was_tried_before_what_came_of_it() {
    let mut world = following();
    world.fake.refuse_block(BlockId(7), Errno::BUSY);
    world.fake.stall(&state_of(6));
    want_in_the_balloon(&mut world, 512);
    assert!(world.agent.unsaid.is_some());
    world.settle();
    world.agent.take_ended_jobs(Instant::from_millis(world.now));
    assert_eq!(world.agent.unsaid, None);
    world.fake.allow(&state_of(6));
}

#[test]
fn the_log_gets_what_is_left_when_the_agent_ends() {
    let mut world = following();
    world.fake.stall(&state_of(7));
    want_in_the_balloon(&mut world, 512);
    assert!(world.agent.unsaid.is_some());
    world.agent.begin_farewell();
    assert_eq!(world.agent.unsaid, None);
    world.fake.allow(&state_of(7));
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}
