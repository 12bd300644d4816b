//! The thread that asks DAMON what is used.
//!
//! Reading a snapshot waits for the end of an aggregation, up to two seconds, so it happens on a
//! thread of its own, which sends what it finds. Where there is no DAMON the agent works on,
//! unaware of access, and says so.

use std::os::unix::thread::JoinHandleExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memtide_policy::guest::{AccessRegion, IdleTimes};
use memtide_sysfs::damon::{
    self, Absence, Capabilities, DamonError, Feedback, Intervals, IntervalsGoal, Module, Monitor,
    MonitorConfig, PageoutConfig, PageoutStats, Paging, Region, StatPause,
};
use memtide_sysfs::{Root, cgroup};
use memtide_units::{GpaRange, Permille};

use crate::alarm::SIGNAL;
use crate::config::DamonUse;

/// Between two looks at a page; the kernel's default of 5 ms is called too short for most uses by
/// DAMON's own documentation.
const SAMPLE_US: u64 = 50_000;
/// Twenty looks are summed up, the ratio that the documentation recommends.
const AGGREGATION_US: u64 = 1_000_000;
/// The documentation's goal for tuned intervals: 4 % of all possible access events.
const GOAL: IntervalsGoal = IntervalsGoal {
    access_bp: 400,
    aggrs: 3,
    min_sample_us: 10_000,
    // Two seconds of aggregation: a thief that looks less often is a blind one.
    max_sample_us: 100_000,
};
/// Regions of a block at least: with DAMON's default of ten in all, a region spans several blocks.
const REGIONS_PER_BLOCK: u64 = 6;
/// Bounds of all regions: what a snapshot costs grows with them.
const REGIONS_LEAST: u64 = 64;
const REGIONS_MIN_MOST: u64 = 1_500;
const REGIONS_MAX: u64 = 3_000;
/// Between two snapshots, besides the waiting inside: the heat of a block is wanted when the next
/// steal is chosen, two seconds after the last.
const PAUSE: Duration = Duration::from_secs(2);
const STACK: usize = 256 << 10;

/// Snapshots that fail in a row before the thread gives up.
const FAILURES_MAX: u32 = 5;

/// What the thread has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A snapshot.
    Snapshot(Vec<AccessRegion>),
    /// What was paged out since the start.
    PagedOut(PageoutStats),
    /// It has ended, and why: what was known is getting stale.
    Ended(String),
}

/// What to watch, and what to do about it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The memory.
    pub ranges: Vec<GpaRange>,
    /// The memory blocks that it consists of.
    pub blocks: usize,
    /// How what is cold is paged out, where that may be wanted.
    pub pageout: Option<PageoutConfig>,
}

enum Order {
    Watch(Vec<GpaRange>),
    PageOut(Paging),
    Stall(u64),
    Stop,
}

/// The thread, from outside. Dropping it stops the monitor and switches `damon_stat` on again.
#[derive(Debug)]
pub struct DamonWatch {
    orders: Sender<Order>,
    findings: Receiver<Finding>,
    thread: Option<JoinHandle<()>>,
    /// Switched on again after the thread has ended and its kdamond with it.
    stat: Option<StatPause>,
    /// There while `damon_stat` is off for the agent's sake: it outlives an agent that is killed.
    mark: PathBuf,
    feedback: Option<Feedback>,
    /// What was ordered last.
    paging: Paging,
}

impl DamonWatch {
    /// Starts watching. The file `mark` remembers that `damon_stat` has to be switched on again.
    ///
    /// # Errors
    /// Why there is nothing to see, in one sentence.
    pub fn start(root: &Root, how: DamonUse, wanted: Wanted, mark: &Path) -> Result<Self, String> {
        if how == DamonUse::Off {
            return Err("switched off by the configuration (damon = \"off\")".into());
        }
        let min_age = wanted.pageout.map(|pageout| pageout.min_age);
        let (monitor, stat) = begin(root, how, mark, |found| monitor_config(wanted, found))
            .map_err(|error| error.to_string())?;
        let feedback = monitor.feedback();
        let watcher = Watcher::new(root, monitor, min_age);
        let (orders, todo) = channel();
        let (report, findings) = channel();
        let thread = std::thread::Builder::new()
            .name("memtide-damon".into())
            .stack_size(STACK)
            .spawn(move || watcher.run(&todo, &report))
            .map_err(|error| format!("its thread could not be started: {error}"))?;
        let (thread, paging) = (Some(thread), Paging::Off);
        Ok(Self { orders, findings, thread, stat, mark: mark.into(), feedback, paging })
    }

    /// What has been found since the last call.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.try_iter().collect()
    }

    /// Memory has come or gone: watch these from now on.
    pub fn watch(&self, ranges: Vec<GpaRange>) {
        // An ended thread has said so.
        let _ = self.orders.send(Order::Watch(ranges));
    }

    /// How the scheme that pages out learns of the stall; `None` where there is none.
    pub fn feedback(&self) -> Option<Feedback> {
        self.feedback
    }

    /// Has cold memory paged out from now on, or no longer.
    pub fn page_out(&mut self, paging: Paging) {
        if self.paging != paging {
            self.paging = paging;
            let _ = self.orders.send(Order::PageOut(paging));
        }
    }

    /// Tells the scheme what some task stalled in the last second, where the kernel does not.
    pub fn tell_stall(&self, stall_us: u64) {
        if (self.feedback, self.paging) == (Some(Feedback::User), Paging::On) {
            let _ = self.orders.send(Order::Stall(stall_us));
        }
    }

    /// Whether `damon_stat` was switched off for this.
    pub fn has_paused_stat(&self) -> bool {
        self.stat.is_some()
    }
}

impl Drop for DamonWatch {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        let Some(thread) = self.thread.take() else { return };
        // A snapshot in progress ends with EINTR. A signal before it began is lost: then it takes
        // its two seconds.
        let _ = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), SIGNAL);
        let _ = thread.join();
        let Some(stat) = self.stat.take() else { return };
        if let Err(error) = stat.restore() {
            tracing::warn!("damon_stat stays off: {error}");
        } else if let Err(error) = std::fs::remove_file(&self.mark) {
            tracing::warn!("{} cannot be removed: {error}", self.mark.display());
        }
    }
}

fn begin(
    root: &Root,
    how: DamonUse,
    mark: &Path,
    config: impl FnOnce(Capabilities) -> MonitorConfig,
) -> Result<(Monitor, Option<StatPause>), DamonError> {
    if damon::stop_leftover(root)? {
        tracing::info!("stopped the DAMON monitor of an agent that was killed");
    }
    let mut stat = None;
    let found = match damon::probe(root) {
        Err(Absence::UsedBy(Module::Stat)) if how == DamonUse::TakeOver => {
            // The mark first: better a needless "Y" later than an "N" for ever.
            if let Err(error) = std::fs::write(mark, "Y") {
                tracing::warn!("{} cannot be written: {error}", mark.display());
            }
            stat = damon::pause_damon_stat(root)?;
            damon::probe(root)?
        }
        other => other?,
    };
    // Switched off already, by an agent that was killed.
    let stat = stat.or_else(|| mark.exists().then(|| damon::adopt_stat_pause(root)));
    let monitor = Monitor::start(root, &config(found))?;
    Ok((monitor, stat))
}

fn monitor_config(wanted: Wanted, found: Capabilities) -> MonitorConfig {
    let blocks = wanted.blocks as u64;
    MonitorConfig {
        regions: wanted.ranges,
        sample_us: SAMPLE_US,
        aggr_us: AGGREGATION_US,
        min_regions: (REGIONS_PER_BLOCK * blocks).clamp(REGIONS_LEAST, REGIONS_MIN_MOST),
        max_regions: REGIONS_MAX,
        intervals_goal: found.intervals_goal.then_some(GOAL),
        pageout: wanted.pageout,
    }
}

/// What the thread has.
struct Watcher {
    root: Root,
    monitor: Monitor,
    /// What was ordered; the monitor may not have managed yet.
    wanted: Paging,
    /// From which age on memory is paged out.
    min_age: Option<Duration>,
    /// When cold memory was last paged out, or may have been.
    paged: Option<Instant>,
    idle: IdleTimes,
    looked: Instant,
}

impl Watcher {
    fn new(root: &Root, monitor: Monitor, min_age: Option<Duration>) -> Self {
        let root = root.clone();
        let (idle, looked) = (IdleTimes::default(), Instant::now());
        Self { root, monitor, wanted: Paging::Off, min_age, paged: None, idle, looked }
    }

    fn run(mut self, todo: &Receiver<Order>, report: &Sender<Finding>) {
        let mut failures = 0;
        let mut due = Instant::now() + PAUSE;
        loop {
            match todo.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Order::Watch(ranges)) => {
                    self.spare();
                    if let Err(error) = self.monitor.set_regions(&ranges) {
                        tracing::warn!("DAMON keeps watching the old memory: {error}");
                    }
                    continue;
                }
                Ok(Order::PageOut(paging)) => {
                    self.wanted = paging;
                    self.page_out();
                    continue;
                }
                Ok(Order::Stall(stall_us)) => {
                    if let Err(error) = self.monitor.feed(stall_us) {
                        tracing::warn!("DAMON does not hear of stalls: {error}");
                    }
                    continue;
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            match self.look() {
                Ok(regions) => {
                    failures = 0;
                    let _ = report.send(Finding::Snapshot(regions));
                    self.account(report);
                }
                Err(error) => {
                    failures += 1;
                    if failures == FAILURES_MAX {
                        let _ = report.send(Finding::Ended(error.to_string()));
                        break;
                    }
                }
            }
            due = Instant::now() + PAUSE;
        }
        if let Err(error) = self.monitor.stop() {
            tracing::warn!("DAMON's monitor could not be stopped: {error}");
        }
    }

    fn look(&mut self) -> damon::Result<Vec<AccessRegion>> {
        let regions = self.monitor.snapshot()?;
        let intervals = self.monitor.intervals()?;
        let mut regions: Vec<_> = regions.iter().map(|region| access(region, intervals)).collect();
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        if self.monitor.paging() == Paging::On {
            self.paged = Some(now);
        }
        let is_recent = |min_age: &Duration| {
            self.paged.is_some_and(|at| now.saturating_duration_since(at) <= *min_age)
        };
        self.idle.correct(elapsed, self.min_age.filter(is_recent), &mut regions);
        Ok(regions)
    }

    /// Sees to what was ordered, and to intervals that the kernel has tuned since.
    fn page_out(&mut self) {
        let was_on = self.monitor.paging() == Paging::On;
        self.spare();
        match self.monitor.page_out(self.wanted) {
            Ok(()) if was_on => self.paged = Some(Instant::now()),
            Ok(()) => {}
            Err(error) => tracing::warn!("DAMON does not page out as it should: {error}"),
        }
    }

    /// What somebody has asked the kernel to keep is not paged out: DAMON's reclaim does not look at
    /// protection (mm/vmscan.c, `reclaim_pages`).
    fn spare(&mut self) {
        if (self.wanted, self.monitor.paging()) != (Paging::Off, Paging::Off) {
            let groups = match self.wanted {
                Paging::On => cgroup::protected(&self.root),
                Paging::Off => Vec::new(),
            };
            self.monitor.spare(groups);
        }
    }

    fn account(&mut self, report: &Sender<Finding>) {
        if (self.wanted, self.monitor.paging()) == (Paging::Off, Paging::Off) {
            return;
        }
        self.page_out();
        match self.monitor.pageout_stats() {
            Ok(stats) => _ = report.send(Finding::PagedOut(stats)),
            Err(error) => tracing::debug!("what was paged out is not known: {error}"),
        }
    }
}

fn access(region: &Region, intervals: Intervals) -> AccessRegion {
    let most = u64::from(intervals.max_nr_accesses());
    let accessed = (u64::from(region.nr_accesses) * 1000 / most).min(1000);
    AccessRegion {
        range: region.range,
        accessed: Permille(accessed as u32),
        age: Duration::from_micros(intervals.aggr_us.saturating_mul(region.age.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeDamon, FakeRoot};
    use memtide_units::{ByteSize, Gpa};

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    fn stat(fake: &FakeRoot) -> String {
        fake.get("sys/module/damon_stat/parameters/enabled")
    }

    fn start(
        fake: &FakeRoot,
        how: DamonUse,
        dir: &tempfile::TempDir,
    ) -> Result<DamonWatch, String> {
        let pageout = PageoutConfig {
            min_age: Duration::from_secs(60),
            ms: 15,
            bytes: ByteSize::from_mib(32),
            stall_us: 1_000,
        };
        let wanted = Wanted { ranges: vec![range(0, 512)], blocks: 4, pageout: Some(pageout) };
        DamonWatch::start(&fake.root(), how, wanted, &dir.path().join("damon_stat"))
    }

    #[test]
    fn damon_stat_comes_back_by_the_hand_of_a_later_agent() {
        crate::alarm::install_handler().unwrap();
        let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
        fake.add_damon(FakeDamon::V7_3);
        let killed = start(&fake, DamonUse::TakeOver, &dir).unwrap();
        // As after kill -9: nothing was put back, and the kdamond runs.
        std::mem::forget(killed);
        assert_eq!(stat(&fake), "N\n");
        let later = start(&fake, DamonUse::TakeOver, &dir).unwrap();
        assert!(later.has_paused_stat());
        drop(later);
        assert_eq!(stat(&fake), "Y\n");
        // Somebody has switched it on again meanwhile.
        std::fs::write(dir.path().join("damon_stat"), "Y").unwrap();
        drop(start(&fake, DamonUse::TakeOver, &dir).unwrap());
        assert_eq!(stat(&fake), "Y\n");
        assert!(!dir.path().join("damon_stat").exists());
    }

    #[test]
    fn damon_stat_makes_room_and_comes_back() {
        crate::alarm::install_handler().unwrap();
        let fake = FakeRoot::new();
        fake.add_damon(FakeDamon::V7_3);
        let dir = tempfile::tempdir().unwrap();
        let watch = start(&fake, DamonUse::TakeOver, &dir).unwrap();
        assert!(watch.has_paused_stat());
        assert_eq!(stat(&fake), "N\n");
        drop(watch);
        assert_eq!(stat(&fake), "Y\n");
    }

    #[test]
    fn whoever_is_polite_or_has_no_damon_is_told_why_there_is_nothing_to_see() {
        let fake = FakeRoot::new();
        let dir = tempfile::tempdir().unwrap();
        let start = |how| start(&fake, how, &dir).unwrap_err();
        assert!(start(DamonUse::TakeOver).contains("no DAMON"));
        fake.add_damon(FakeDamon::V7_3);
        assert!(start(DamonUse::Polite).contains("damon_stat uses DAMON"));
        assert_eq!(stat(&fake), "Y\n");
        assert!(start(DamonUse::Off).contains("switched off"));
    }

    #[test]
    fn orders_are_carried_out_once_each() {
        crate::alarm::install_handler().unwrap();
        let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
        fake.add_damon(FakeDamon::V6_8);
        let mut watch = start(&fake, DamonUse::Polite, &dir).unwrap();
        assert_eq!(watch.feedback(), Some(Feedback::User));
        watch.tell_stall(3);
        watch.page_out(Paging::On);
        watch.page_out(Paging::On);
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
            let wanted = Wanted { ranges: vec![range(0, 128)], blocks, pageout: None };
            monitor_config(wanted, Capabilities::default()).min_regions
        };
        assert_eq!([of(8), of(16), of(100), of(4_000)], [64, 96, 600, 1_500]);
    }
}
