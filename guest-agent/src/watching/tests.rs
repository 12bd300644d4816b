use super::*;
use memtide_policy::guest::LimitsWish;
use memtide_sysfs::damon::{Monitor, MonitorConfig, RegionCount};
use memtide_sysfs::fake::{FakeBlock, FakeDamon, FakeRoot};
use memtide_units::BlockSize;

use crate::remove::Removers;
use crate::runtime::RuntimeDir;

const STAT: &str = "sys/module/damon_stat/parameters/enabled";
const STATE: &str = "sys/kernel/mm/damon/admin/kdamonds/0/state";
const SCHEME: &str = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/0";

fn at(s: u64) -> Instant {
    Instant::from_millis(s * 1_000)
}

/// A guest with swap.
struct Guest {
    fake: FakeRoot,
    blocks: Blocks,
    limits: Limits,
    dir: tempfile::TempDir,
}

impl Guest {
    fn new(damon: FakeDamon) -> Self {
        let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
        fake.add_blocks(BlockSize::X86_SMALL, (1..9).map(|n| (n, FakeBlock::MOVABLE)));
        fake.add_damon(damon);
        fake.put(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/vdb partition 1048572 0 -2\n",
        );
        let seen = RuntimeDir::open(dir.path()).unwrap().seen(&fake.root()).unwrap();
        let removers = Removers::new(&fake.root(), "/nowhere".into());
        let blocks = Blocks::read(&fake.root(), &seen, &removers).unwrap();
        let limits = Limits::new(blocks.present(), LimitsWish::default()).unwrap();
        Self { fake, blocks, limits, dir }
    }

    fn watching(&self) -> Watching {
        Watching::new(Means {
            root: self.fake.root(),
            damon: DamonUse::TakeOver,
            swap: SwapUse::Existing,
            cold_after: Some(Duration::from_secs(60)),
            modules_mark: self.dir.path().join("damon_modules"),
            zram_mark: self.dir.path().join("zram"),
        })
    }

    fn see_to(&self, watching: &mut Watching, s: u64) -> bool {
        watching.see_to(at(s), &self.blocks, &self.limits)
    }

    /// Another program's kdamond.
    fn somebody_watches(&self) {
        let config = MonitorConfig {
            regions: self.blocks.ranges(&self.blocks.all()),
            sample_us: 5_000,
            aggr_us: 100_000,
            region_count: RegionCount { min: 10, max: 1_000 },
            intervals_goal: None,
            pageout: None,
        };
        std::mem::forget(Monitor::start(&self.fake.root(), &config).unwrap());
        self.fake.put(&format!("{SCHEME}/watermarks/interval_us"), "0\n");
    }
}

fn lack(watching: &Watching) -> &str {
    watching.lacks().first().map_or("", |lack| lack.what.as_str())
}

#[test]
fn damon_that_has_ended_is_started_again_with_all_that_it_did() {
    let guest = Guest::new(FakeDamon::V6_12);
    let mut watching = guest.watching();
    assert!(guest.see_to(&mut watching, 0));
    assert!(watching.pager().is_some() && watching.lacks().is_empty());
    watching.ended(at(5), "its kdamond has ended");
    assert!(watching.damon().is_none() && watching.reclaiming().is_none());
    let said = "access monitoring (DAMON): its kdamond has ended (it is tried again,";
    assert!(lack(&watching).starts_with(said), "{}", lack(&watching));
    assert!(!guest.see_to(&mut watching, 14));
    assert!(guest.see_to(&mut watching, 15));
    assert!(watching.pager().is_some() && watching.lacks().is_empty());
    assert_eq!(guest.fake.get(STATE), "on\n");
}

#[test]
fn what_is_somebody_elses_is_waited_for_and_not_touched() {
    let guest = Guest::new(FakeDamon::V6_12);
    let mut watching = guest.watching();
    guest.somebody_watches();
    let before = guest.fake.writes().len();
    for s in [0, 10, 30] {
        assert!(!guest.see_to(&mut watching, s));
        assert!(lack(&watching).contains("kdamond 0 is running already"), "{}", lack(&watching));
    }
    assert_eq!(guest.fake.writes().len(), before);
    guest.fake.root().write(STATE, "off").unwrap();
    assert!(!guest.see_to(&mut watching, 69));
    assert!(guest.see_to(&mut watching, 70));
    watching.ended(at(80), "its kdamond was taken down, or set up anew, by somebody else");
    guest.somebody_watches();
    assert!(!guest.see_to(&mut watching, 80 + 80));
    drop(watching);
    assert_eq!(guest.fake.get(STATE), "on\n");
}

#[test]
fn a_kernel_without_damon_is_asked_once() {
    let guest = Guest::new(FakeDamon::V6_12_WITHOUT_PADDR);
    let mut watching = guest.watching();
    assert!(!guest.see_to(&mut watching, 0));
    assert!(lack(&watching).ends_with("(CONFIG_DAMON_PADDR)"), "{}", lack(&watching));
    let before = guest.fake.writes().len();
    assert!(!guest.see_to(&mut watching, 9_999));
    assert_eq!(guest.fake.writes().len(), before);
}

#[test]
fn damon_stat_is_taken_from_at_the_start_alone() {
    let guest = Guest::new(FakeDamon::V7_3);
    let mut watching = guest.watching();
    assert!(guest.see_to(&mut watching, 0));
    watching.ended(at(1), "its kdamond has ended");
    assert_eq!(guest.fake.get(STAT), "N\n", "ten seconds are not worth a start of it");
    // Somebody wants it back.
    guest.fake.put(STAT, "Y\n");
    assert!(!guest.see_to(&mut watching, 11));
    assert!(lack(&watching).contains("damon_stat uses DAMON"), "{}", lack(&watching));
    assert_eq!(guest.fake.get(STAT), "Y\n");
    guest.fake.put(STAT, "N\n");
    assert!(guest.see_to(&mut watching, 31));
    drop(watching);
    assert_eq!(guest.fake.get(STAT), "Y\n");
    assert!(!guest.dir.path().join("damon_modules").exists());
}

#[test]
fn damon_stat_is_not_kept_off_by_an_attempt_that_fails() {
    let guest = Guest::new(FakeDamon::V7_3);
    guest.fake.refuse(STATE, rustix::io::Errno::NOMEM);
    let mut watching = guest.watching();
    assert!(!guest.see_to(&mut watching, 0));
    assert_eq!(guest.fake.get(STAT), "Y\n");
    guest.fake.allow(STATE);
    assert!(guest.see_to(&mut watching, 10));
    assert_eq!(guest.fake.get(STAT), "N\n");
}

/// What `damon_stat` was switched to.
fn switched(guest: &Guest) -> Vec<String> {
    guest.fake.writes().into_iter().filter(|(file, _)| file == STAT).map(|(_, to)| to).collect()
}

#[test]
fn damon_stat_is_left_alone_after_three_attempts_that_failed() {
    let guest = Guest::new(FakeDamon::V7_3);
    guest.fake.refuse(STATE, rustix::io::Errno::NOMEM);
    let mut watching = guest.watching();
    for s in [0, 10, 30, 70, 150, 310, 610, 910] {
        assert!(!guest.see_to(&mut watching, s));
        assert_eq!(guest.fake.get(STAT).trim(), "Y");
    }
    assert_eq!(switched(&guest), ["N", "Y"].repeat(3));
    let said = lack(&watching);
    assert!(said.contains("damon_stat was switched off for it 3 times"), "{said}");
    assert!(said.contains("state"), "and why it failed: {said}");
    // Somebody switches it off, and what was in the way has gone.
    guest.fake.allow(STATE);
    guest.fake.put(STAT, "N\n");
    assert!(guest.see_to(&mut watching, 1_210));
    assert!(watching.lacks().is_empty(), "{:?}", watching.lacks());
    drop(watching);
    assert_eq!(guest.fake.get(STAT), "N\n", "it was not the agent who switched it off");
    assert!(!guest.dir.path().join("damon_modules").exists());
}

#[test]
fn pauses_double_up_to_five_minutes_and_a_good_time_makes_it_forget() {
    let mut attempts = Attempts::default();
    let mut now = 7;
    assert!(attempts.is_due(at(now)), "the first one at once");
    for pause in [10, 20, 40, 80, 160, 300, 300] {
        attempts.failed(at(now));
        assert!(!attempts.is_due(at(now + pause - 1)), "{pause}");
        now += pause;
        assert!(attempts.is_due(at(now)), "{pause}");
    }
    attempts.succeeded(at(now));
    assert!(!attempts.is_due(at(now + 9_999)));
    attempts.ended(at(now + 299));
    assert!(!attempts.is_due(at(now + 598)), "it did not last");
    attempts.succeeded(at(now + 600));
    attempts.ended(at(now + 900));
    assert!(attempts.is_due(at(now + 910)));
    attempts.give_up();
    assert!(!attempts.is_due(at(now + 9_999)));
}
