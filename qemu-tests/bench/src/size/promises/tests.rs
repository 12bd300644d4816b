//! Each promise kept, not kept, and where it cannot be told.

use super::super::cost::Cost;
use super::super::report::tests::report;
use super::super::report::{FixedSize, Surge};
use super::*;
use crate::promise::tests::verdict;
use crate::setting::{Clock, Setting};

/// As with `--clock counted --swap disk`, all of it kept.
fn counted() -> Report {
    let mut report = report();
    report.setting.clock = Some(Clock::Counted { host_times_faster: 8.0 });
    report.setting.swap = Some(Swap::Disk { size_mib: 2048, in_host_memory: false });
    let steady = report.steady.as_mut().unwrap();
    (steady.slower_percent, steady.saved_percent) = (0.88, 47.0);
    steady.stalls = vec![0.0, 1.0];
    (steady.size_mib, steady.cost.agent_mib) = (1380, 4.8);
    report.sweep = vec![size(1960, 100.0), size(1400, 99.0), size(1300, 97.0)];
    report
}

fn size(size_mib: u64, pages_per_second: f64) -> FixedSize {
    FixedSize { size_mib, pages_per_second, stalls: vec![0.0], ..FixedSize::default() }
}

fn of(report: &Report, name: &str) -> &'static str {
    verdict(&judged(report), name)
}

/// The verdict after a change.
fn after(name: &str, change: impl FnOnce(&mut Report)) -> &'static str {
    let mut report = counted();
    change(&mut report);
    of(&report, name)
}

fn steady(report: &mut Report) -> &mut Steady {
    report.steady.as_mut().unwrap()
}

#[test]
fn all_are_kept_where_all_is_well() {
    let judged = judged(&counted());
    let names = judged.iter().map(|judged| judged.promise.name);
    let kept: Vec<&str> = names.filter(|name| verdict(&judged, name) == "kept").collect();
    assert_eq!(kept.len(), 8, "{judged:?}");
}

#[test]
fn nothing_is_told_of_what_was_not_measured() {
    let none = Report { setting: counted().setting, ..Report::default() };
    for judged in judged(&none) {
        let name = judged.promise.name;
        assert_eq!(of(&none, name), "cannot be told", "{name}");
        assert_eq!(judged.value, None, "{name}");
    }
    assert_eq!(after("slow_down", |report| steady(report).pairs.clear()), "cannot be told");
}

#[test]
fn a_slow_down_is_told_by_a_counted_clock_alone() {
    assert_eq!(after("slow_down", |report| steady(report).slower_percent = 1.0), "kept");
    assert_eq!(after("slow_down", |report| steady(report).slower_percent = 1.5), "not kept");
    let by_the_host = |report: &mut Report| report.setting.clock = Some(Clock::Host);
    assert_eq!(after("slow_down", by_the_host), "cannot be told");
}

#[test]
fn a_slow_down_takes_five_pairs_that_say_something() {
    let pairs = |count| after("slow_down", |report| steady(report).pairs.truncate(count));
    assert_eq!((pairs(5), pairs(4), pairs(1)), ("kept", "cannot be told", "cannot be told"));
    let idle = |report: &mut Report| steady(report).pairs[0].without = 0.0;
    assert_eq!(after("slow_down", idle), "cannot be told", "no work was done without Memtide");
    let stuck = |report: &mut Report| {
        steady(report).pairs.iter_mut().for_each(|pair| pair.with = 0.0);
        steady(report).slower_percent = f64::INFINITY;
    };
    assert_eq!(after("slow_down", stuck), "not kept", "nor with it, which is Memtide's doing");
}

#[test]
fn what_is_saved_is_promised_where_it_can_leave_the_guest() {
    let saved = |saved_percent, swap| {
        after("saved", |report| {
            steady(report).saved_percent = saved_percent;
            report.setting.swap = swap;
        })
    };
    let disk = |in_host_memory| Some(Swap::Disk { size_mib: 2048, in_host_memory });
    assert_eq!(saved(45.0, disk(false)), "kept");
    assert_eq!(saved(44.9, disk(false)), "not kept");
    assert_eq!(saved(48.0, disk(true)), "cannot be told");
    assert_eq!(saved(32.0, Some(Swap::Zram)), "not promised");
    assert_eq!(saved(46.0, Some(Swap::Zram)), "kept");
    assert_eq!(saved(48.0, None), "cannot be told");
}

#[test]
fn one_window_of_twenty_may_stall() {
    let stalls = |over: usize, all: usize| {
        let stall = |n| if n < over { 1.1 } else { 0.9 };
        after("stall", |report| steady(report).stalls = (0..all).map(stall).collect())
    };
    assert_eq!(stalls(1, 20), "kept");
    assert_eq!(stalls(2, 20), "not kept");
    assert_eq!(stalls(1, 10), "not kept");
    assert_eq!(stalls(0, 0), "cannot be told");
}

#[test]
fn a_guest_settles_little_above_the_smallest_that_is_unhurt() {
    let settled = |size_mib| after("settled_size", |report| steady(report).size_mib = size_mib);
    assert_eq!(settled(1610), "kept");
    assert_eq!(settled(1611), "not kept");
    assert_eq!(settled(900), "kept");
}

#[test]
fn a_sweep_that_does_not_tell_the_smallest_tells_what_is_too_much_alone() {
    let settled = |sizes: &[(u64, f64)], found| {
        after("settled_size", |report| {
            report.sweep = sizes.iter().map(|(mib, pages)| size(*mib, *pages)).collect();
            steady(report).size_mib = found;
        })
    };
    let nothing_hurts = [(1960, 100.0), (1400, 100.0)];
    assert_eq!(settled(&nothing_hurts, 1400), "cannot be told");
    assert_eq!(settled(&nothing_hurts, 1900), "not kept");
    let far_apart = [(1960, 100.0), (1400, 90.0)];
    assert_eq!(settled(&far_apart, 1900), "cannot be told");
    assert_eq!(settled(&[], 1400), "cannot be told");
    let all_hurts = |report: &mut Report| report.sweep[0].stalls = vec![9.0];
    assert_eq!(after("settled_size", all_hurts), "cannot be told");
    let by_the_host = |report: &mut Report| report.setting.clock = Some(Clock::Host);
    assert_eq!(after("settled_size", by_the_host), "cannot be told");
}

#[test]
fn a_surge_ends_nobody_and_is_little_slower() {
    let surge = |name, change: fn(&mut Surge)| {
        after(name, |report| change(report.surge.get_mut("memtide").unwrap()))
    };
    let time = |each: &[Option<f64>]| surges(&each.iter().map(|s| (400, *s)).collect::<Vec<_>>());
    assert_eq!(surge("surge_harm", |surge| surge.oom_kills = 1), "not kept");
    assert_eq!(surge("surge_harm", |surge| surge.failures = 1), "not kept");
    assert_eq!(surge("surge_harm", |surge| surge.each.clear()), "cannot be told");
    // In the guest never shrunk it takes 1.0.
    assert_eq!(time(&[Some(1.3), Some(9.0), Some(1.0)]), "kept");
    assert_eq!(time(&[Some(1.4), Some(1.4), Some(1.0)]), "not kept");
    assert_eq!(time(&[Some(1.0), None, None]), "not kept");
    let base_failed = |report: &mut Report| {
        report.surge.get_mut("none").unwrap().each.iter_mut().for_each(|one| one.seconds = None);
    };
    assert_eq!(after("surge_time", base_failed), "cannot be told");
}

/// The verdict on the time of such surges of Memtide's: what could be had before, and what it took.
fn surges(each: &[(u64, Option<f64>)]) -> &'static str {
    after("surge_time", |report| {
        let mut surge = Surge::default();
        each.iter().for_each(|(available_mib, seconds)| surge.note(*available_mib, *seconds));
        report.surge.insert("memtide".into(), surge);
    })
}

#[test]
fn a_surge_tells_only_where_something_had_to_come_back() {
    // 512 MiB are wanted, and take 1.0 in the guest never shrunk.
    let (quick, slow) = (Some(1.0), Some(2.0));
    assert_eq!(surges(&[(786, quick), (512, quick)]), "cannot be told");
    assert_eq!(surges(&[(786, None), (885, slow)]), "cannot be told");
    assert_eq!(surges(&[(786, quick), (885, quick), (511, slow)]), "not kept");
    assert_eq!(surges(&[(786, slow), (885, slow), (511, quick)]), "kept");
    assert_eq!(surges(&[]), "cannot be told");
}

#[test]
fn an_agent_at_rest_takes_next_to_nothing() {
    let rest = |name, agent_percent, agent_mib| {
        let cost = Cost { agent_percent, damon_percent: 0.3, agent_mib, ..Cost::default() };
        after(name, |report| report.rest = Some(cost))
    };
    assert_eq!(rest("rest_processor", 0.7, 4.7), "kept");
    assert_eq!(rest("rest_processor", 0.8, 4.7), "not kept");
    assert_eq!(rest("rest_processor", 0.0, 0.0), "cannot be told", "there is no agent");
    let host = |report: &mut Report| {
        report.setting = Setting { clock: Some(Clock::Host), ..Setting::default() };
    };
    assert_eq!(after("rest_processor", host), "cannot be told");
    assert_eq!(after("agent_memory", host), "kept");
    assert_eq!(rest("agent_memory", 0.7, 12.0), "kept");
    assert_eq!(rest("agent_memory", 0.7, 12.1), "not kept");
    let at_work = |report: &mut Report| steady(report).cost.agent_mib = 13.0;
    assert_eq!(after("agent_memory", at_work), "not kept");
    let gone = |report: &mut Report| {
        (steady(report).cost.agent_mib, report.rest) = (0.0, None);
    };
    assert_eq!(after("agent_memory", gone), "cannot be told");
}
