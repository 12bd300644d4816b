use super::watcher::access;
use super::*;
use memtide_sysfs::damon::{Intervals, Region};
use memtide_sysfs::fake::{FakeDamon, FakeRoot};
use memtide_units::{ByteSize, Gpa, Permille};

fn range(mib: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
}

fn stat(fake: &FakeRoot) -> String {
    fake.get("sys/module/damon_stat/parameters/enabled")
}

/// The switch is dropped after what needs it.
fn start(
    fake: &FakeRoot,
    how: DamonUse,
    dir: &tempfile::TempDir,
) -> Result<(DamonWatch, ModuleSwitch), Unwatched> {
    let mut stat = ModuleSwitch::new(&fake.root(), dir.path().join("damon_modules"));
    let watch = DamonWatch::start(&fake.root(), how, wanted(), &mut stat)?;
    Ok((watch, stat))
}

pub(crate) fn config() -> MonitorConfig {
    let wanted = Wanted { pageout: None, ..wanted() };
    monitor_config(wanted, Capabilities::default())
}

/// Of a guest with little memory offline.
fn watched(ranges: Vec<GpaRange>, blocks: usize) -> Watched {
    Watched { ranges, memory: vec![range(0, 1)], blocks }
}

fn wanted() -> Wanted {
    let pageout = PageoutConfig {
        min_age: Duration::from_secs(60),
        bytes: ByteSize::from_mib(32),
        stall_us: 1_000,
    };
    Wanted { watched: watched(vec![range(0, 512)], 4), pageout: Some(pageout) }
}

#[test]
fn damon_stat_comes_back_by_the_hand_of_a_later_agent() {
    let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
    fake.add_damon(FakeDamon::V7_3);
    let killed = start(&fake, DamonUse::TakeOver, &dir).unwrap();
    // As after kill -9: nothing was put back, and the kdamond runs.
    std::mem::forget(killed);
    assert_eq!(stat(&fake), "N\n");
    let later = start(&fake, DamonUse::TakeOver, &dir).unwrap();
    assert!(!later.1.off().is_empty());
    drop(later);
    assert_eq!(stat(&fake), "Y\n");
    // Somebody has switched it on again meanwhile.
    std::fs::write(dir.path().join("damon_modules"), "damon_stat\n").unwrap();
    drop(start(&fake, DamonUse::TakeOver, &dir).unwrap());
    assert_eq!(stat(&fake), "Y\n");
    assert!(!dir.path().join("damon_modules").exists());
}

#[test]
fn damon_stat_makes_room_and_comes_back() {
    let fake = FakeRoot::new();
    fake.add_damon(FakeDamon::V7_3);
    let dir = tempfile::tempdir().unwrap();
    let watch = start(&fake, DamonUse::TakeOver, &dir).unwrap();
    assert!(!watch.1.off().is_empty());
    assert_eq!(stat(&fake), "N\n");
    drop(watch);
    assert_eq!(stat(&fake), "Y\n");
}

#[test]
fn whoever_is_polite_or_has_no_damon_is_told_why_there_is_nothing_to_see() {
    let fake = FakeRoot::new();
    let dir = tempfile::tempdir().unwrap();
    let start = |how| {
        let why = start(&fake, how, &dir).unwrap_err();
        (why.to_string(), why.may_pass())
    };
    let (why, may_pass) = start(DamonUse::TakeOver);
    assert!(why.contains("no DAMON") && !may_pass, "{why}");
    fake.add_damon(FakeDamon::V7_3);
    let (why, may_pass) = start(DamonUse::Polite);
    assert!(why.contains("damon_stat uses DAMON") && may_pass, "{why}");
    assert_eq!(stat(&fake), "Y\n");
    let (why, may_pass) = start(DamonUse::Off);
    assert!(why.contains("switched off") && !may_pass, "{why}");
}

#[test]
fn modules_that_page_out_are_switched_off_only_where_that_is_configured() {
    let reclaim = "sys/module/damon_reclaim/parameters/enabled";
    let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
    fake.add_damon(FakeDamon::V6_12);
    fake.put(reclaim, "Y\n");
    let why = start(&fake, DamonUse::TakeOver, &dir).unwrap_err();
    assert!(why.to_string().contains("damon_reclaim uses DAMON"), "{why}");
    assert_eq!(fake.get(reclaim), "Y\n");
    let watch = start(&fake, DamonUse::TakeOverAll, &dir).unwrap();
    assert_eq!(fake.get(reclaim), "N\n");
    drop(watch);
    assert_eq!(fake.get(reclaim), "Y\n");
}

#[test]
fn what_somebody_has_set_up_and_stopped_is_his_to_whoever_is_polite() {
    let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
    fake.add_damon(FakeDamon::V6_12);
    let count = "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds";
    fake.root().write(count, "1").unwrap();
    let why = start(&fake, DamonUse::Polite, &dir).unwrap_err();
    assert!(why.to_string().contains("1 kdamonds are set up") && why.may_pass(), "{why}");
    assert_eq!(fake.get(count).trim(), "1");
    start(&fake, DamonUse::TakeOver, &dir).unwrap();
    assert_eq!(fake.get(count).trim(), "0", "all that there was is gone");
}

#[test]
fn orders_are_carried_out_once_each() {
    let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
    fake.add_damon(FakeDamon::V6_8);
    let (mut watch, _stat) = start(&fake, DamonUse::Polite, &dir).unwrap();
    assert_eq!(watch.feedback(), Some(Feedback::User));
    watch.tell_stall(3);
    watch.page_out(Paging::On(Duration::from_millis(15)));
    watch.page_out(Paging::On(Duration::from_millis(15)));
    watch.tell_stall(7);
    watch.page_out(Paging::Off);
    // It works off what was ordered before it ends.
    drop(watch);
    let scheme = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/1";
    let written = |file: &str| {
        let path = format!("{scheme}/{file}");
        let writes = fake.writes().into_iter().filter(|(written, _)| *written == path);
        writes.map(|(_, text)| text).collect::<Vec<_>>()
    };
    let never = u32::MAX.to_string();
    assert_eq!(written("access_pattern/age/min"), [never.as_str(), "60", &never]);
    let stalls = written("quotas/goals/0/current_value");
    assert_eq!(stalls, ["1000", "1000", "7", "1000"]);
}

#[test]
fn what_control_groups_ask_to_keep_is_read_now_and_then_and_after_a_refusal() {
    let (fake, (report, _findings)) = (FakeRoot::new(), channel());
    fake.add_damon(FakeDamon::V7_3);
    fake.root().write("sys/module/damon_stat/parameters/enabled", "N").unwrap();
    let config = monitor_config(wanted(), damon::probe(&fake.root()).unwrap());
    let monitor = Monitor::start(&fake.root(), &config).unwrap();
    let mut watcher = Watcher::new(&fake.root(), monitor, None);
    let keep = |group: &str| {
        fake.put("sys/fs/cgroup/cgroup.controllers", "memory\n");
        fake.put(&format!("sys/fs/cgroup/{group}/memory.min"), "4096\n");
    };
    let forget = |group: &str| fake.put(&format!("sys/fs/cgroup/{group}/memory.min"), "0\n");
    let spared = || {
        let writes = fake.writes().into_iter().filter(|(path, _)| path.ends_with("memcg_path"));
        writes.map(|(_, group)| group.trim().to_owned()).collect::<Vec<_>>()
    };
    keep("a");
    watcher.wanted = Paging::On(Duration::from_millis(15));
    watcher.account(&report);
    forget("a");
    keep("b");
    watcher.account(&report);
    assert_eq!(spared(), ["/a"], "less than two seconds later");
    watcher.protection_due = std::time::Instant::now();
    watcher.account(&report);
    assert_eq!(spared(), ["/a", "/b"]);
    // The group is gone, and there is something to commit.
    forget("b");
    keep("c");
    let state = "sys/kernel/mm/damon/admin/kdamonds/0/state";
    fake.set_tuned_intervals(Intervals { sample_us: 200_000, aggr_us: 2_000_000 });
    watcher.look().unwrap();
    fake.refuse(state, rustix::io::Errno::INVAL);
    watcher.account(&report);
    fake.allow(state);
    watcher.account(&report);
    assert_eq!(spared(), ["/a", "/b", "/c"]);
}

#[test]
fn the_same_memory_is_ordered_once() {
    let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
    fake.add_damon(FakeDamon::V6_12);
    let (mut watch, _stat) = start(&fake, DamonUse::Polite, &dir).unwrap();
    assert_eq!(watch.tuner(), Tuner::Agent);
    watch.watch(watched(vec![range(0, 512)], 4));
    watch.watch(watched(vec![range(0, 384)], 4));
    watch.watch(watched(vec![range(0, 384)], 4));
    watch.watch(watched(vec![range(0, 4096), range(8192, 8192)], 96));
    drop(watch);
    let written = |file: &str| {
        let is_first = |path: &str| path.contains("kdamonds/0") && path.ends_with(file);
        let writes = fake.writes().into_iter().filter(|(path, _)| is_first(path));
        writes.map(|(_, text)| text).collect::<Vec<_>>()
    };
    assert_eq!(written("regions/nr_regions"), ["1", "1", "2"]);
    assert_eq!(written("nr_regions/min"), ["64", "64", "576"], "finer where there is more");
}

#[test]
fn who_tunes_is_found_by_what_the_kernel_has() {
    let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
    fake.add_damon(FakeDamon::V7_3);
    let watch = start(&fake, DamonUse::TakeOver, &dir).unwrap();
    assert_eq!(watch.0.tuner(), Tuner::Kernel);
    let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
    fake.add_damon(FakeDamon::V6_12);
    fake.set_damon_regions(&[Region { range: range(0, 512), nr_accesses: 0, age: 9 }]);
    let monitor = Monitor::start(&fake.root(), &config()).unwrap();
    let mut watcher = Watcher::new(&fake.root(), monitor, None);
    let seen = watcher.look().unwrap().closeness;
    assert_eq!((seen.sample.as_millis(), seen.regions), (200, 1));
    // As long ago as three aggregations.
    watcher.started -= Duration::from_secs(4);
    watcher.look().unwrap();
    let seen = watcher.look().unwrap().closeness;
    assert_eq!(seen.sample.as_millis(), 400, "nothing is touched: look less often");
    assert_eq!(seen.aggregation.as_secs(), 2);
    drop((watch, dir));
}

#[test]
fn the_share_of_the_sample_that_was_touched_is_that_of_all_memory() {
    let fake = FakeRoot::new();
    fake.add_damon(FakeDamon::V6_12);
    fake.set_damon_regions(&[Region { range: range(0, 4), nr_accesses: 0, age: 9 }]);
    let monitor = Monitor::start(&fake.root(), &config()).unwrap();
    let mut watcher = Watcher::new(&fake.root(), monitor, None);
    watcher.pages.want(&[range(0, 8)]);
    let count = |looked_at: u64, touched: u64| {
        let schemes = "sys/kernel/mm/damon/admin/kdamonds/1/contexts/0/schemes";
        for (scheme, pages) in [(0, looked_at), (1, touched)] {
            fake.put(&format!("{schemes}/{scheme}/stats/sz_tried"), &(pages << 12).to_string());
        }
    };
    assert_eq!(watcher.look().unwrap().touched, None, "it has just been drawn");
    count(100, 100);
    assert_eq!(watcher.look().unwrap().touched, None, "for too short a time");
    watcher.started -= Duration::from_secs(31);
    count(200, 125);
    assert_eq!(watcher.look().unwrap().touched, Some(ByteSize::from_mib(2)));
    // The counts change no sooner than that; then somebody else writes to DAMON's files. The last count holds,
    // and so does the snapshot.
    watcher.started -= Duration::from_secs(9);
    let second = "sys/kernel/mm/damon/admin/kdamonds/1/state";
    fake.refuse(second, rustix::io::Errno::BUSY);
    let seen = watcher.look().unwrap();
    assert_eq!((seen.touched, seen.regions.len()), (Some(ByteSize::from_mib(2)), 1));
    // Somebody has stopped it for good: after a while another sample is drawn.
    fake.allow(second);
    fake.root().write(second, "off").unwrap();
    for _ in 0..4 {
        watcher.look().unwrap();
    }
    assert_eq!(fake.get(second), "off\n");
    watcher.started -= Duration::from_secs(120);
    assert_eq!(watcher.look().unwrap().touched, None, "it begins anew");
    assert_eq!(fake.get(second), "on\n");
}

/// Or a block that has come back would count as cold for good.
#[test]
fn memory_that_damon_did_not_take_up_is_told_again() {
    let fake = FakeRoot::new();
    fake.add_damon(FakeDamon::V6_12);
    let monitor = Monitor::start(&fake.root(), &config()).unwrap();
    let mut watcher = Watcher::new(&fake.root(), monitor, None);
    let commits = || fake.writes().iter().filter(|(_, text)| text == "commit").count();
    let state = "sys/kernel/mm/damon/admin/kdamonds/0/state";
    fake.refuse(state, rustix::io::Errno::BUSY);
    watcher.watch(watched(vec![range(0, 1024)], 8));
    watcher.watch_what_is_owed();
    fake.allow(state);
    let refused = commits();
    watcher.watch_what_is_owed();
    watcher.watch_what_is_owed();
    assert_eq!(commits(), refused + 1, "until it is done");
    let end = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/targets/0/regions/0/end";
    assert_eq!(fake.get(end).trim(), (1024_u64 << 20).to_string());
    // What is wanted since makes up for what was owed.
    fake.refuse(state, rustix::io::Errno::BUSY);
    watcher.watch(watched(vec![range(0, 2048)], 16));
    fake.allow(state);
    watcher.watch(watched(vec![range(0, 512)], 4));
    watcher.watch_what_is_owed();
    assert_eq!(fake.get(end).trim(), (512_u64 << 20).to_string());
}

#[test]
fn access_is_a_share_and_age_a_time() {
    let intervals = Intervals { sample_us: 100_000, aggr_us: 2_000_000 };
    let region = Region { range: range(0, 1), nr_accesses: 5, age: 3 };
    let seen = access(&region, intervals);
    assert_eq!((seen.accessed, seen.age), (Permille(250), Duration::from_secs(6)));
    let odd = Region { nr_accesses: 99, ..region };
    assert_eq!(access(&odd, intervals).accessed, Permille(1000));
}

#[test]
fn there_are_enough_regions_for_decisions_on_blocks() {
    let of = |blocks| {
        let wanted = Wanted { watched: watched(vec![range(0, 128)], blocks), pageout: None };
        let RegionCount { min, max } = monitor_config(wanted, Capabilities::default()).region_count;
        (min, max)
    };
    let counts = [of(1), of(8), of(16), of(100), of(4_000)];
    assert_eq!(counts, [(64, 128), (64, 192), (96, 384), (600, 2_400), (1_500, 3_000)]);
}
