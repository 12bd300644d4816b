use super::*;
use crate::damon::SCHEME;
use crate::damon::pageout::PAGEOUT;
use crate::damon::{
    Absence, ConfigError, DamonError, IntervalsGoal, Module, PageoutConfig, pause_module,
};
use crate::fake::{FakeDamon, FakeRoot};
use memtide_units::{ByteSize, Gpa};
use rustix::io::Errno;
use std::time::Duration;

const GOAL: IntervalsGoal =
    IntervalsGoal { access_bp: 400, aggrs: 3, min_sample_us: 20_000, max_sample_us: 10_000_000 };

const COUNT: RegionCount = RegionCount { min: 32, max: 1000 };

fn range(mib: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
}

fn region(mib: u64, len: u64, nr_accesses: u32) -> Region {
    Region { range: range(mib, len), nr_accesses, age: 3 }
}

fn config() -> MonitorConfig {
    MonitorConfig {
        regions: vec![range(1, 127), range(128, 256)],
        sample_us: 100_000,
        aggr_us: 2_000_000,
        region_count: COUNT,
        intervals_goal: None,
        pageout: None,
    }
}

fn guest(damon: FakeDamon) -> FakeRoot {
    let fake = FakeRoot::new();
    fake.add_damon(damon);
    fake
}

/// The same, and cold memory is paged out.
fn paging_out() -> MonitorConfig {
    let pageout = PageoutConfig {
        min_age: Duration::from_secs(60),
        bytes: ByteSize::from_mib(64),
        stall_us: 1_000,
    };
    MonitorConfig { pageout: Some(pageout), ..config() }
}

#[test]
fn regions_of_every_heat_are_seen() {
    let fake = guest(FakeDamon::V6_12);
    let seen = [region(1, 127, 0), region(128, 128, 20), region(256, 128, 1)];
    fake.set_damon_regions(&seen);
    let mut monitor = Monitor::start(&fake.root(), &config()).unwrap();
    assert!(monitor.is_running().unwrap());
    assert_eq!(monitor.snapshot().unwrap(), seen);
    assert_eq!(monitor.intervals().unwrap().max_nr_accesses(), 20);
    monitor.stop().unwrap();
    assert!(!fake.root().exists(STATE));
}

#[test]
fn a_stolen_block_is_watched_no_longer() {
    let fake = guest(FakeDamon::V6_12);
    fake.set_damon_regions(&[region(1, 383, 2)]);
    let mut monitor = Monitor::start(&fake.root(), &config()).unwrap();
    monitor
        .set_regions(&[range(1, 127), range(256, 128)], RegionCount { min: 48, max: 200 })
        .unwrap();
    assert_eq!(fake.get(&format!("{CONTEXT}/monitoring_attrs/nr_regions/min")), "48\n");
    let seen: Vec<GpaRange> =
        monitor.snapshot().unwrap().iter().map(|region| region.range).collect();
    assert_eq!(seen, [range(1, 127), range(256, 128)]);
    let error = monitor.set_regions(&[], COUNT).unwrap_err();
    assert!(matches!(error, DamonError::Config(ConfigError::NoRegions)));
    let error =
        monitor.set_regions(&[range(1, 127)], RegionCount { min: 1001, max: 1000 }).unwrap_err();
    let expected = ConfigError::RegionCount { min: 1001, max: 1000 };
    assert!(matches!(error, DamonError::Config(error) if error == expected));
    assert_eq!(monitor.snapshot().unwrap().len(), 2);
}

#[test]
fn damon_stat_makes_way_and_comes_back() {
    let fake = guest(FakeDamon::V7_3);
    let error = Monitor::start(&fake.root(), &config()).unwrap_err();
    assert!(matches!(error, DamonError::Absent(Absence::UsedBy(Module::Stat))), "{error}");
    let pause = pause_module(&fake.root(), Module::Stat).unwrap().unwrap();
    let monitor = Monitor::start(&fake.root(), &config()).unwrap();
    monitor.stop().unwrap();
    pause.restore().unwrap();
}

#[test]
fn new_regions_do_not_undo_what_the_kernel_tuned() {
    let fake = guest(FakeDamon::V7_3);
    let _pause = pause_module(&fake.root(), Module::Stat).unwrap();
    let tuned = Intervals { sample_us: 370_000, aggr_us: 7_400_000 };
    fake.set_tuned_intervals(tuned);
    let config = MonitorConfig { intervals_goal: Some(GOAL), ..config() };
    let mut monitor = Monitor::start(&fake.root(), &config).unwrap();
    monitor.set_regions(&[range(1, 127)], COUNT).unwrap();
    let file = format!("{CONTEXT}/monitoring_attrs/intervals/sample_us");
    assert_eq!(fake.get(&file), "370000\n");
    assert_eq!(monitor.intervals().unwrap(), tuned);
    monitor.stop().unwrap();
}

#[test]
fn intervals_are_changed_while_it_runs_and_cold_stays_as_old() {
    let fake = guest(FakeDamon::V6_12);
    let config = paging_out();
    let mut monitor = Monitor::start(&fake.root(), &config).unwrap();
    assert!(!monitor.is_tuned());
    let faster = Intervals { sample_us: 90_000, aggr_us: 1_800_000 };
    let age = format!("{PAGEOUT}/access_pattern/age/min");
    monitor.set_intervals(faster).unwrap();
    assert_eq!(fake.get(&age), format!("{}\n", u32::MAX), "it is off");
    monitor.page_out(Paging::On(Duration::from_millis(15))).unwrap();
    assert_eq!(fake.get(&age), "34\n");
    let slower = Intervals { sample_us: 100_000, aggr_us: 2_000_000 };
    monitor.set_intervals(slower).unwrap();
    assert_eq!(fake.get(&age), "30\n");
    assert_eq!(monitor.intervals().unwrap(), slower);
    let written = fake.get(&format!("{CONTEXT}/monitoring_attrs/intervals/aggr_us"));
    assert_eq!(written, "2000000\n");
    assert_eq!(fake.writes().last(), Some(&(STATE.to_string(), "commit".to_string())));
    let odd = Intervals { sample_us: 0, aggr_us: 1 };
    assert!(matches!(monitor.set_intervals(odd), Err(DamonError::Config(_))));
}

#[test]
fn a_goal_that_the_kernel_cannot_follow_leaves_nothing_running() {
    let fake = guest(FakeDamon::V6_12);
    let config = MonitorConfig { intervals_goal: Some(GOAL), ..config() };
    let error = Monitor::start(&fake.root(), &config).unwrap_err();
    assert!(matches!(error, DamonError::File(error) if error.is_missing()));
    assert!(!fake.root().exists(STATE));
}

#[test]
fn a_refused_start_is_reported_and_cleaned_up() {
    let fake = guest(FakeDamon::V6_12);
    fake.refuse(STATE, Errno::NOMEM);
    let error = Monitor::start(&fake.root(), &config()).unwrap_err();
    assert!(matches!(error, DamonError::File(error) if error.errno() == Some(Errno::NOMEM)));
    assert!(!fake.root().exists(STATE));
}

#[test]
fn a_monitor_that_somebody_else_stopped_says_so() {
    let fake = guest(FakeDamon::V6_12);
    let mut monitor = Monitor::start(&fake.root(), &config()).unwrap();
    fake.root().write(STATE, "off").unwrap();
    assert!(!monitor.is_running().unwrap());
    let error = monitor.snapshot().unwrap_err();
    assert!(matches!(error, DamonError::File(error) if error.errno() == Some(Errno::INVAL)));
}

#[test]
fn a_kdamond_that_somebody_set_up_in_our_place_is_left_alone() {
    let fake = guest(FakeDamon::V6_12);
    let config = paging_out();
    let mut monitor = Monitor::start(&fake.root(), &config).unwrap();
    // Another tool's, with schemes of its own under the same names.
    fake.root().write(STATE, "off").unwrap();
    std::mem::forget(Monitor::start(&fake.root(), &config).unwrap());
    fake.put(&format!("{SCHEME}/watermarks/interval_us"), "0\n");
    let before = fake.writes().len();
    assert!(!monitor.is_running().unwrap());
    let on = Paging::On(Duration::from_millis(15));
    let refused = [
        monitor.snapshot().map(drop),
        monitor.set_regions(&[range(1, 127)], COUNT),
        monitor.set_intervals(Intervals { sample_us: 90_000, aggr_us: 1_800_000 }),
        monitor.page_out(on),
    ];
    for result in refused {
        assert!(matches!(result, Err(DamonError::Taken)), "{result:?}");
    }
    monitor.stop().unwrap();
    assert_eq!(fake.get(STATE), "on\n");
    assert_eq!(fake.writes().len(), before, "nothing was written to it");
}

#[test]
fn only_our_own_leftover_is_stopped() {
    let fake = guest(FakeDamon::V6_12);
    assert!(!stop_leftover(&fake.root()).unwrap());
    std::mem::forget(Monitor::start(&fake.root(), &config()).unwrap());
    let error = Monitor::start(&fake.root(), &config()).unwrap_err();
    assert!(matches!(error, DamonError::Absent(Absence::Running(0))));
    assert!(is_ours(&fake.root()).unwrap());
    assert!(stop_leftover(&fake.root()).unwrap());
    let _other = Monitor::start(&fake.root(), &config()).unwrap();
    fake.put(&format!("{SCHEME}/watermarks/interval_us"), "5000000\n");
    assert!(!is_ours(&fake.root()).unwrap());
    assert!(!stop_leftover(&fake.root()).unwrap());
    assert_eq!(fake.get(STATE), "on\n");
}

#[test]
fn dropping_a_monitor_stops_the_kdamond() {
    let fake = guest(FakeDamon::V6_12);
    drop(Monitor::start(&fake.root(), &config()).unwrap());
    assert!(!fake.root().exists(STATE));
}

#[test]
fn the_largest_count_is_the_number_of_samples() {
    let largest = |sample_us, aggr_us| Intervals { sample_us, aggr_us }.max_nr_accesses();
    assert_eq!(largest(100_000, 2_000_000), 20);
    assert_eq!(largest(5_000, 4_999), 1);
    assert_eq!(largest(0, 1), 1);
    assert_eq!(largest(1, u64::MAX), u32::MAX);
}

#[test]
fn a_sample_of_pages_is_looked_at_by_a_second_kdamond() {
    let fake = guest(FakeDamon::V7_3);
    let _pause = pause_module(&fake.root(), Module::Stat).unwrap();
    let config = MonitorConfig { intervals_goal: Some(GOAL), ..config() };
    let mut monitor = Monitor::start(&fake.root(), &config).unwrap();
    assert_eq!(monitor.page_count().unwrap(), None, "nobody has asked for it");
    let memory = [range(0, 1), range(64, 1)];
    monitor.sample_pages(&memory, Duration::from_secs(30)).unwrap();
    let second = format!("{KDAMONDS}/1");
    let file = |file: &str| fake.get(&format!("{second}/contexts/0/{file}"));
    let attribute = |name: &str| file(&format!("monitoring_attrs/{name}"));
    assert_eq!(
        [attribute("intervals/sample_us"), attribute("intervals/aggr_us")],
        ["2000000\n", "10000000\n"].map(String::from)
    );
    assert_eq!(attribute("nr_regions/max"), "256\n", "half of all pages, and none is divided");
    let written = |name: &str| {
        let path = format!("{second}/contexts/0/targets/0/regions/{name}");
        fake.writes().into_iter().filter(move |(file, _)| *file == path).map(|(_, text)| text)
    };
    assert_eq!(written("nr_regions").collect::<Vec<_>>(), ["256", "0"], "and forgotten");
    let edge = |name| written(name).next().unwrap().parse::<u64>().unwrap();
    assert_eq!(edge("0/end"), edge("0/start") + 4096);
    let pattern = |scheme: u8, what: &str| {
        let edge = |edge| file(&format!("schemes/{scheme}/access_pattern/{what}/{edge}"));
        (edge("min").trim().to_owned(), edge("max").trim().to_owned())
    };
    let many = u32::MAX.to_string();
    assert_eq!(pattern(0, "nr_accesses"), ("0".into(), many.clone()));
    assert_eq!(pattern(1, "nr_accesses"), ("1".into(), many));
    assert_eq!(pattern(2, "nr_accesses"), ("0".into(), "0".into()));
    assert_eq!(pattern(2, "age"), ("0".into(), "1".into()), "of three aggregations two are past");
    for (scheme, bytes) in [(0, "16384"), (1, "4096"), (2, "8192")] {
        fake.put(&format!("{second}/contexts/0/schemes/{scheme}/stats/sz_tried"), bytes);
    }
    let [looked_at, touched] = [16384, 12288].map(ByteSize::from_bytes);
    assert_eq!(monitor.page_count().unwrap(), Some(PageCount { looked_at, touched }));
    monitor.sample_pages(&memory[..1], Duration::from_secs(30)).unwrap();
    assert_eq!(attribute("nr_regions/max"), "128\n");
    assert!(monitor.is_running().unwrap());
    monitor.stop().unwrap();
    assert!(!fake.root().exists(&second));
}

#[test]
fn a_second_kdamond_of_somebody_elses_is_left_alone() {
    let fake = guest(FakeDamon::V6_12);
    let mut monitor = Monitor::start(&fake.root(), &config()).unwrap();
    let state = format!("{KDAMONDS}/1/state");
    let mark = format!("{KDAMONDS}/1/contexts/0/schemes/0/watermarks/interval_us");
    monitor.sample_pages(&[range(0, 4)], Duration::from_secs(30)).unwrap();
    fake.put(&mark, "0\n");
    assert!(matches!(monitor.page_count(), Err(DamonError::Taken)));
    let error = monitor.sample_pages(&[range(0, 8)], Duration::from_secs(30)).unwrap_err();
    assert!(matches!(error, DamonError::Taken));
    monitor.stop().unwrap();
    assert_eq!((fake.get(STATE), fake.get(&state)), ("off\n".into(), "on\n".into()));
}

/// Whoever has taken the first one away has stopped the second one for nobody.
#[test]
fn a_second_kdamond_is_stopped_though_the_first_is_somebody_elses() {
    let fake = guest(FakeDamon::V6_12);
    let mut monitor = Monitor::start(&fake.root(), &config()).unwrap();
    monitor.sample_pages(&[range(0, 4)], Duration::from_secs(30)).unwrap();
    fake.put(&format!("{SCHEME}/watermarks/interval_us"), "0\n");
    assert!(matches!(monitor.snapshot(), Err(DamonError::Taken)));
    monitor.stop().unwrap();
    let second = fake.get(&format!("{KDAMONDS}/1/state"));
    assert_eq!((fake.get(STATE), second), ("on\n".into(), "off\n".into()));
}

#[test]
fn a_second_kdamond_that_somebody_stopped_can_be_started_again() {
    let fake = guest(FakeDamon::V6_12);
    let mut monitor = Monitor::start(&fake.root(), &config()).unwrap();
    monitor.sample_pages(&[range(0, 4)], Duration::from_secs(30)).unwrap();
    let state = format!("{KDAMONDS}/1/state");
    fake.root().write(&state, "off").unwrap();
    assert!(monitor.page_count().is_err());
    monitor.sample_pages(&[range(0, 4)], Duration::from_secs(30)).unwrap();
    assert_eq!(fake.get(&state), "on\n");
}

#[test]
fn a_killed_process_leaves_neither_kdamond() {
    let fake = guest(FakeDamon::V6_12);
    let mut monitor = Monitor::start(&fake.root(), &config()).unwrap();
    monitor.sample_pages(&[range(0, 4)], Duration::from_secs(30)).unwrap();
    std::mem::forget(monitor);
    assert!(stop_leftover(&fake.root()).unwrap());
    assert_eq!(fake.get(&format!("{KDAMONDS}/nr_kdamonds")), "0\n");
}

#[test]
fn schemes_whose_turn_would_never_come_are_refused() {
    let fake = guest(FakeDamon::V7_3);
    let _pause = pause_module(&fake.root(), Module::Stat).unwrap();
    let hasty = |min_sample_us, config| {
        let goal = IntervalsGoal { min_sample_us, ..GOAL };
        let config = MonitorConfig { intervals_goal: Some(goal), ..config };
        let error = Monitor::start(&fake.root(), &config).map(drop).err();
        matches!(error, Some(DamonError::Config(ConfigError::Hasty { .. })))
    };
    // Three aggregations of twenty samples.
    assert!(hasty(16_666, paging_out()) && hasty(10_000, paging_out()));
    assert!(!hasty(16_667, paging_out()) && !hasty(5_000, config()));
}
