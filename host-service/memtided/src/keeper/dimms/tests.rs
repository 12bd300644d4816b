use memtide_api::device::{AgentHello, DeviceStatus, Driver, MemoryRegion};
use memtide_units::{ByteSize, Gpa};
use std::time::Duration;

use super::*;

const SIZE: ByteSize = ByteSize::from_mib(512);

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

fn range(n: u64) -> GpaRange {
    GpaRange::new(Gpa((4 << 30) + n * SIZE.bytes()), SIZE).unwrap()
}

fn half(n: u64) -> GpaRange {
    GpaRange::new(range(n).start(), ByteSize::from_mib(256)).unwrap()
}

fn dimm(n: u64) -> Dimm {
    let id = Some(format!("dimm{n}"));
    Dimm { id, memdev: format!("mem{n}"), range: range(n), slot: 0, node: 0 }
}

/// A VM with an agent that holds these DIMMs stolen; all regions are there.
fn status(stolen: &[u64]) -> DeviceStatus {
    let region = |n| MemoryRegion { range: range(n), file_offset: ByteSize::ZERO, inode: n };
    DeviceStatus {
        vmm_connected: true,
        driver: Driver::Agent,
        hello: Some(AgentHello::default()),
        telemetry_age_ms: Some(500),
        memory: (0..3).map(region).collect(),
        stolen: stolen.iter().map(|n| range(*n)).collect(),
        ..DeviceStatus::default()
    }
}

/// Three DIMMs, all there, all stolen.
fn three() -> Dimms {
    let mut dimms = Dimms::default();
    dimms.observed(at(0), &status(&[0, 1, 2]));
    assert_eq!(dimms.seen(at(0), vec![dimm(0), dimm(1), dimm(2)]), []);
    dimms.observed(at(0), &status(&[0, 1, 2]));
    dimms
}

/// The second of the three is out.
fn one_out() -> Dimms {
    let mut dimms = three();
    assert!(dimms.ejecting(&[range(1)]));
    assert_eq!(dimms.seen(at(0), vec![dimm(0), dimm(2)]), [Change::Ejected(dimm(1))]);
    dimms
}

fn whole(first: u64, count: u64) -> GpaRange {
    GpaRange::new(range(first).start(), SIZE.times(count)).unwrap()
}

#[test]
fn nothing_is_pluggable_before_a_look_and_then_all_that_is_in_or_out() {
    let mut dimms = Dimms::new(&[dimm(1)], &[]);
    assert!(dimms.observed(at(0), &status(&[1])), "the VMM is to be looked at");
    assert!(!dimms.observed(at(1), &status(&[1])), "once");
    assert_eq!(dimms.pluggable(), None);
    dimms.seen(at(0), vec![dimm(0), dimm(2)]);
    assert_eq!(dimms.pluggable(), Some(vec![whole(0, 3)]), "neighbours are joined");
    let gone = DeviceStatus::default();
    dimms.observed(at(2), &gone);
    assert_eq!(dimms.pluggable(), None, "another VMM has other DIMMs");
    assert!(dimms.observed(at(3), &status(&[1])));
    assert_eq!(dimms.pluggable(), None);
    dimms.unreachable();
    assert!(dimms.observed(at(4), &status(&[1])), "who knows for how long it was away");
}

#[test]
fn what_does_not_fit_one_call_is_cut_and_what_is_out_is_in_it() {
    let every_second = || (0..200).step_by(2).map(dimm);
    let mut dimms = Dimms::default();
    dimms.seen(at(0), every_second().collect());
    dimms.ejecting(&[range(198)]);
    dimms.seen(at(0), every_second().filter(|dimm| dimm.range != range(198)).collect());
    let pluggable = dimms.pluggable().unwrap();
    assert_eq!(pluggable.len(), PLUGGABLE_MAX);
    assert_eq!(pluggable.last(), Some(&range(198)));
    assert!(pluggable.is_sorted());
}

#[test]
fn what_an_operator_unplugs_is_forgotten_and_never_plugged_in() {
    let mut dimms = three();
    assert_eq!(dimms.seen(at(0), vec![dimm(0), dimm(2)]), []);
    assert_eq!(dimms.pluggable(), Some(vec![whole(0, 3)]), "its guest may have ejected it");
    dimms.wanted(&[range(1)]);
    assert_eq!(dimms.due(at(1)), []);
    assert_eq!(dimms.seen(at(10), vec![dimm(0), dimm(2)]), [], "its agent may tell still");
    dimms.observed(at(31), &status(&[0, 2]));
    assert_eq!(dimms.pluggable(), Some(vec![range(0), range(2)]));
    assert_eq!(dimms.seen(at(40), vec![dimm(0), dimm(2)]), [Change::Unplugged(dimm(1))]);
    for second in 0..120 {
        dimms.observed(at(second), &status(&[]));
        assert_eq!(dimms.due(at(second)), []);
    }
    assert_eq!(dimms.to_keep(), []);
}

#[test]
fn a_word_that_comes_after_the_look_counts() {
    let mut dimms = three();
    dimms.seen(at(0), vec![dimm(0), dimm(2)]);
    assert!(dimms.ejecting(&[range(1)]));
    assert_eq!(dimms.seen(at(0), vec![dimm(0), dimm(2)]), [Change::Ejected(dimm(1))]);
}

#[test]
fn a_dimm_is_marked_when_all_of_it_is_named_and_kept_at_once() {
    let mut dimms = three();
    assert!(!dimms.ejecting(&[half(1), range(7)]));
    assert_eq!(dimms.to_keep(), []);
    assert!(dimms.ejecting(&[whole(1, 2)]));
    assert_eq!(dimms.to_keep(), [dimm(1), dimm(2)]);
    assert!(!dimms.ejecting(&[range(1)]), "nothing new");
}

#[test]
fn a_mark_goes_when_the_dimm_is_there_and_not_all_stolen_for_long() {
    let mut dimms = three();
    let all = || vec![dimm(0), dimm(1), dimm(2)];
    dimms.ejecting(&[range(1)]);
    dimms.seen(at(100), all());
    assert_eq!(dimms.to_keep(), [dimm(1)], "stolen: it may go at any time");
    dimms.observed(at(101), &status(&[0]));
    dimms.seen(at(102), all());
    dimms.observed(at(103), &status(&[0, 1]));
    dimms.seen(at(104), all());
    dimms.observed(at(105), &status(&[0]));
    dimms.seen(at(106), all());
    dimms.seen(at(125), all());
    assert_eq!(dimms.to_keep(), [dimm(1)], "its guest may have let go of it before the VMM");
    dimms.ejecting(&[range(1)]);
    dimms.observed(at(126), &status(&[0]));
    dimms.seen(at(126), all());
    dimms.seen(at(145), all());
    assert_eq!(dimms.to_keep(), [dimm(1)], "it told so again");
    dimms.seen(at(146), all());
    assert_eq!(dimms.to_keep(), []);
}

#[test]
fn a_look_is_wanted_when_an_announced_dimm_leaves_the_memory() {
    let mut dimms = three();
    dimms.ejecting(&[range(1)]);
    assert!(!dimms.observed(at(1), &status(&[0, 1, 2])));
    let mut without = status(&[0, 1, 2]);
    without.memory.remove(1);
    assert!(dimms.observed(at(2), &without));
    dimms.seen(at(0), vec![dimm(0), dimm(2)]);
    assert!(!dimms.observed(at(3), &without), "it is known");
}

#[test]
fn what_is_wanted_is_plugged_in_at_once_and_once() {
    let mut dimms = one_out();
    dimms.wanted(&[half(1)]);
    assert_eq!(dimms.due(at(1)), [dimm(1)]);
    dimms.wanted(&[half(1)]);
    assert_eq!(dimms.due(at(1)), [], "it is under way");
    let change = dimms.plugged(at(2), "mem1", PlugOutcome::Done);
    assert_eq!(change, Some(Change::Plugged(dimm(1), Why::Wanted)));
    assert_eq!(dimms.seen(at(0), vec![dimm(0), dimm(1), dimm(2)]), []);
    dimms.wanted(&[whole(0, 3)]);
    assert_eq!(dimms.due(at(3)), [], "all is in");
    assert_eq!(dimms.to_keep(), []);
}

#[test]
fn what_may_be_out_is_asked_for_before_a_look_has_shown_it() {
    let mut dimms = three();
    dimms.ejecting(&[range(1)]);
    dimms.observed(at(1), &status(&[0]));
    dimms.wanted(&[range(1)]);
    assert_eq!(dimms.due(at(1)), [dimm(1)]);
    dimms.seen(at(1), vec![dimm(0), dimm(1), dimm(2)]);
    assert_eq!(dimms.plugged(at(1), "mem1", PlugOutcome::WasThere), None);
    assert_eq!(dimms.due(at(1)), []);
    assert_eq!(dimms.due(at(2)), [dimm(1)], "it goes a moment later");
    let changes = dimms.seen(at(2), vec![dimm(0), dimm(2)]);
    assert_eq!(changes, [Change::Ejected(dimm(1))]);
    assert!(dimms.plugged(at(2), "mem1", PlugOutcome::Done).is_some());
}

#[test]
fn what_is_there_after_all_is_no_longer_asked_for() {
    let mut dimms = three();
    dimms.ejecting(&[range(1)]);
    dimms.wanted(&[range(1)]);
    let mut orders = 0;
    for second in 1..200 {
        dimms.observed(at(second), &status(&[0]));
        for _ in dimms.due(at(second)) {
            orders += 1;
            dimms.seen(at(second), vec![dimm(0), dimm(1), dimm(2)]);
            dimms.plugged(at(second), "mem1", PlugOutcome::WasThere);
        }
    }
    assert_eq!((orders, dimms.to_keep()), (6, vec![]), "after 1, 2, 4, 8, 16 seconds more");
}

#[test]
fn a_restarted_memtided_knows_what_is_out() {
    let out = one_out();
    let mut dimms = Dimms::new(&out.to_keep(), &out.stolen());
    dimms.observed(at(0), &status(&[0, 1, 2]));
    dimms.wanted(&[range(1)]);
    assert_eq!(dimms.due(at(0)), [dimm(1)], "before the first look as well");
}

/// It ended between the guest's word and its file.
#[test]
fn what_went_while_memtided_did_not_hear_it_is_known_by_what_its_guest_calls_stolen() {
    let before = three();
    assert_eq!(before.stolen(), [dimm(0), dimm(1), dimm(2)]);
    let restarted = |then: &[u64]| {
        let mut dimms = Dimms::new(&[], &before.stolen());
        dimms.observed(at(0), &status(&[0, 1, 2]));
        let mut changes = Vec::new();
        for second in (0..=130).step_by(10) {
            changes.extend(dimms.seen(at(second), vec![dimm(0), dimm(2)]));
            let is_told = second >= 60;
            dimms.observed(at(second), &status(if is_told { then } else { &[0, 1, 2] }));
        }
        (dimms, changes)
    };
    let (mut dimms, changes) = restarted(&[0, 1, 2]);
    assert_eq!((changes, dimms.to_keep()), (vec![Change::Ejected(dimm(1))], vec![dimm(1)]));
    dimms.wanted(&[range(1)]);
    assert_eq!(dimms.due(at(131)), [dimm(1)]);
    let (dimms, changes) = restarted(&[0, 2]);
    assert_eq!(changes, [Change::Unplugged(dimm(1))], "an operator did it");
    assert_eq!((dimms.to_keep(), dimms.stolen()), (vec![], vec![dimm(0), dimm(2)]));
}

/// Its agent was stopped and has left blocks stolen, or the VM is paused.
#[test]
fn what_is_unplugged_while_no_agent_could_tell_is_not_plugged_in() {
    let mut stopped = status(&[0, 1, 2]);
    (stopped.driver, stopped.hello, stopped.telemetry_age_ms) = (Driver::Stock, None, None);
    let mut paused = status(&[0, 1, 2]);
    paused.telemetry_age_ms = Some(60_000);
    for (without, is_unplugged) in [(stopped, true), (paused, false)] {
        let mut dimms = three();
        let mut changes = Vec::new();
        for second in (0..=600).step_by(10) {
            dimms.observed(at(second), &without);
            changes.extend(dimms.seen(at(second), vec![dimm(0), dimm(2)]));
            assert_eq!(dimms.due(at(second)), []);
        }
        let told = if is_unplugged { vec![Change::Unplugged(dimm(1))] } else { vec![] };
        assert_eq!(changes, told);
        // The paused one goes on, and its agent finds out.
        dimms.observed(at(601), &status(&[0, 2]));
        dimms.seen(at(610), vec![dimm(0), dimm(2)]);
        assert_eq!((dimms.to_keep(), dimms.stolen()), (vec![], vec![dimm(0), dimm(2)]));
    }
}

#[test]
fn what_somebody_has_plugged_in_again_is_waited_for_anew_the_next_time() {
    let mut dimms = Dimms::new(&[], &[dimm(1)]);
    for second in (0..=130).step_by(10) {
        dimms.observed(at(second), &status(&[1]));
        dimms.seen(at(second), vec![]);
    }
    assert_eq!(dimms.to_keep(), [dimm(1)]);
    dimms.seen(at(140), vec![dimm(1)]);
    dimms.seen(at(150), vec![]);
    dimms.seen(at(160), vec![]);
    assert_eq!(dimms.to_keep(), [], "its agent may tell still");
}

#[test]
fn a_device_that_is_not_heard_proves_nothing_about_what_is_missing() {
    let mut dimms = Dimms::new(&[], &[dimm(1)]);
    for second in (0..1_000).step_by(10) {
        assert_eq!(dimms.seen(at(second), vec![]), []);
    }
    dimms.observed(at(1_000), &status(&[]));
    assert_eq!(dimms.seen(at(1_000), vec![]), [Change::Unplugged(dimm(1))]);
}

#[test]
fn a_dimm_that_is_ejected_while_it_is_plugged_in_is_remembered() {
    let mut dimms = one_out();
    dimms.wanted(&[range(1)]);
    dimms.due(at(1));
    dimms.ejecting(&[range(1)]);
    dimms.plugged(at(2), "mem1", PlugOutcome::Done);
    assert_eq!(dimms.to_keep(), [dimm(1)]);
    dimms.seen(at(0), vec![dimm(0), dimm(2)]);
    dimms.wanted(&[range(1)]);
    assert_eq!(dimms.due(at(3)), [dimm(1)]);
}

#[test]
fn a_failure_is_tried_again_later_each_time_and_told_once() {
    let mut dimms = one_out();
    dimms.observed(at(1), &status(&[0, 2]));
    dimms.wanted(&[range(1)]);
    let (mut now, mut pause) = (Instant::from_millis(1_000), Duration::from_secs(1));
    for attempt in 0..8 {
        assert_eq!(dimms.due(now), [dimm(1)], "attempt {attempt}");
        let change = dimms.plugged(now, "mem1", PlugOutcome::Failed("busy".into()));
        assert_eq!(change.is_some(), attempt == 0);
        dimms.wanted(&[range(1)]);
        assert_eq!(dimms.due(now + (pause - Duration::from_millis(1))), []);
        now = now + pause;
        pause = (pause * 2).min(Duration::from_secs(30));
    }
    dimms.due(now);
    let change = dimms.plugged(now, "mem1", PlugOutcome::Failed("no slot".into()));
    assert!(matches!(change, Some(Change::Failed(..))), "another reason");

    // The guest does without: all of it is stolen again.
    dimms.observed(now, &status(&[1]));
    assert_eq!(dimms.due(now + Duration::from_secs(100)), []);
}

#[test]
fn a_backend_that_is_gone_takes_the_dimm_with_it() {
    let mut dimms = one_out();
    dimms.wanted(&[range(1)]);
    dimms.due(at(1));
    let change = dimms.plugged(at(1), "mem1", PlugOutcome::NoBackend("gone".into()));
    assert_eq!(change, Some(Change::NoBackend(dimm(1), "gone".into())));
    assert_eq!((dimms.to_keep(), dimms.plugged(at(1), "mem1", PlugOutcome::Done)), (vec![], None));
}

#[test]
fn what_no_agent_holds_is_plugged_in_after_fifteen_seconds() {
    let mut dimms = one_out();
    let mut part = status(&[0]);
    part.stolen.push(half(1));
    dimms.observed(at(10), &part);
    dimms.observed(at(24), &part);
    assert_eq!(dimms.due(at(24)), []);
    assert_eq!(dimms.due(at(25)), [dimm(1)]);
    let change = dimms.plugged(at(25), "mem1", PlugOutcome::Done);
    assert_eq!(change, Some(Change::Plugged(dimm(1), Why::Alone)));
}

#[test]
fn the_time_alone_begins_anew_when_somebody_held_it_or_left() {
    let mut dimms = one_out();
    dimms.observed(at(0), &status(&[0]));
    dimms.observed(at(14), &status(&[0, 1]));
    dimms.observed(at(15), &status(&[0]));
    assert_eq!(dimms.due(at(20)), []);
    let silent = DeviceStatus { hello: None, ..status(&[0]) };
    dimms.observed(at(29), &silent);
    assert_eq!(dimms.due(at(100)), [], "an agent that has not said hello may hold it");
    dimms.observed(at(100), &status(&[0]));
    assert_eq!(dimms.due(at(114)), []);
    assert_eq!(dimms.due(at(115)), [dimm(1)]);
}

#[test]
fn without_an_agent_the_map_is_old_and_a_minute_is_waited() {
    let mut dimms = one_out();
    for driver in [Driver::None, Driver::Stock, Driver::None] {
        dimms.observed(at(5), &DeviceStatus { driver, ..status(&[0, 1, 2]) });
    }
    assert_eq!(dimms.due(at(64)), []);
    assert_eq!(dimms.due(at(65)), [dimm(1)]);
}

#[test]
fn nothing_is_plugged_in_where_nobody_can_be_reached() {
    let mut dimms = one_out();
    dimms.observed(at(0), &status(&[]));
    dimms.wanted(&[range(1)]);
    dimms.unreachable();
    assert_eq!(dimms.due(at(500)), []);
    let no_vmm = DeviceStatus { vmm_connected: false, ..status(&[]) };
    for second in 500..600 {
        dimms.observed(at(second), &no_vmm);
        assert_eq!(dimms.due(at(second)), []);
    }
    dimms.observed(at(600), &status(&[]));
    assert_eq!(dimms.due(at(614)), [], "its time begins now");
    assert_eq!(dimms.due(at(615)), [dimm(1)]);
}

#[test]
fn a_wish_waits_for_a_vmm_that_is_away() {
    let mut dimms = one_out();
    dimms.wanted(&[range(1)]);
    dimms.observed(at(1), &DeviceStatus { vmm_connected: false, ..status(&[]) });
    assert_eq!(dimms.due(at(100)), []);
    dimms.observed(at(101), &status(&[]));
    assert_eq!(dimms.due(at(101)), [dimm(1)]);
}

#[test]
fn what_is_there_again_is_in_and_what_is_replaced_is_forgotten() {
    let mut dimms = one_out();
    assert_eq!(dimms.seen(at(0), vec![dimm(0), dimm(1), dimm(2)]), [Change::Back(dimm(1))]);
    let mut dimms = one_out();
    let other = Dimm { memdev: "other".into(), ..dimm(1) };
    let changes = dimms.seen(at(0), vec![dimm(0), other, dimm(2)]);
    assert_eq!(changes, [Change::Replaced(dimm(1))]);
    dimms.observed(at(0), &status(&[]));
    assert_eq!(dimms.due(at(100)), []);
    assert_eq!(dimms.pluggable(), Some(vec![whole(0, 3)]));
}
