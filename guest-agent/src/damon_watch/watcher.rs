//! What the thread does: it looks, and works off what is ordered.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use memtide_policy::guest::{AccessRegion, IdleTimes, IntervalTuner};
use memtide_sysfs::damon::{self, DamonError, Intervals, Monitor, Paging, Region};
use memtide_sysfs::{Root, cgroup};
use memtide_units::{Instant as Time, Permille};

use super::page_sampling::PageSampling;
use super::{
    AGGREGATION_US, AIM, Closeness, Finding, Order, SAMPLE_US, Seen, Watched, region_count,
};
use crate::pace::{Pace, timed};

/// Between two snapshots, besides the waiting inside. At the least: the heat of a block is wanted when the
/// next steal is chosen, two seconds after the last. At the most: a working set that has been another
/// for longer is told too late.
const PACE: Pace = Pace { shortest: Duration::from_secs(2), longest: Duration::from_secs(10) };
/// Between two looks at what control groups ask to keep: that is as old at most when it is heeded.
const PROTECTION: Pace =
    Pace { shortest: Duration::from_secs(2), longest: Duration::from_secs(30) };
/// Snapshots that fail in a row before the thread gives up.
const FAILURES_MAX: u32 = 5;

/// What the thread has.
pub(super) struct Watcher {
    root: Root,
    monitor: Monitor,
    /// Where the kernel does not tune the intervals.
    tuner: Option<IntervalTuner>,
    pub(super) started: Instant,
    /// What was ordered; the monitor may not have managed yet.
    pub(super) wanted: Paging,
    /// From which age on memory is paged out.
    min_age: Option<Duration>,
    /// When cold memory was last paged out, or may have been.
    paged: Option<Instant>,
    /// When control groups are looked at again.
    pub(super) protection_due: Instant,
    /// What DAMON has not taken up.
    owed: Option<Watched>,
    idle: IdleTimes,
    pub(super) pages: PageSampling,
    looked: Instant,
}

impl Watcher {
    pub(super) fn new(root: &Root, monitor: Monitor, min_age: Option<Duration>) -> Self {
        let root = root.clone();
        let (idle, looked) = (IdleTimes::default(), Instant::now());
        let tuner = (!monitor.is_tuned()).then(|| IntervalTuner::new(AIM, Time::default()));
        Self {
            root,
            monitor,
            tuner,
            started: looked,
            wanted: Paging::Off,
            min_age,
            paged: None,
            protection_due: looked,
            owed: None,
            idle,
            pages: PageSampling::default(),
            looked,
        }
    }

    pub(super) fn run(mut self, todo: &Receiver<Order>, report: &Sender<Finding>) {
        let ended = self.work(todo, report);
        if let Err(error) = self.monitor.stop() {
            tracing::warn!("DAMON's monitor could not be stopped: {error}");
        }
        // Last: whoever reads it may start another one.
        if let Some(why) = ended {
            let _ = report.send(Finding::Ended(why));
        }
    }

    /// Works off orders and looks, until it is told to stop, or answers with why there is nothing to
    /// see any more.
    fn work(&mut self, todo: &Receiver<Order>, report: &Sender<Finding>) -> Option<String> {
        let mut failures = 0;
        let mut due = Instant::now() + PACE.shortest;
        loop {
            match todo.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Order::Watch(watched)) => {
                    self.watch(watched);
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
                Ok(Order::Goal(stall_us)) => {
                    self.monitor.set_stall_goal(stall_us);
                    self.page_out();
                    continue;
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.watch_what_is_owed();
            let (told, cost) = timed(|| self.look_and_tell(report));
            match told {
                Ok(()) => failures = 0,
                Err(error) => {
                    // A kdamond that is gone does not come back by itself.
                    let is_gone = !self.monitor.is_running().unwrap_or(true);
                    failures += 1;
                    if is_gone || failures == FAILURES_MAX {
                        return Some(why_ended(&error, is_gone));
                    }
                }
            }
            due = Instant::now() + PACE.pause(cost);
        }
    }

    /// Memory that nobody watches would count as cold, so whatever DAMON did not take up now it is told again: a
    /// control group may have gone since it was read, or somebody else be at DAMON's files.
    pub(super) fn watch(&mut self, watched: Watched) {
        self.pages.want(&watched.memory);
        if let Err(error) = self.set_regions(&watched) {
            tracing::warn!("DAMON keeps watching the old memory, and is told again: {error}");
            self.owed = Some(watched);
        } else {
            self.owed = None;
        }
    }

    pub(super) fn watch_what_is_owed(&mut self) {
        let Some(watched) = self.owed.take() else { return };
        match self.set_regions(&watched) {
            Ok(()) => tracing::info!("DAMON watches the memory that there is now"),
            Err(error) => {
                tracing::debug!("DAMON keeps watching the old memory: {error}");
                self.owed = Some(watched);
            }
        }
    }

    fn set_regions(&mut self, watched: &Watched) -> damon::Result<()> {
        self.spare();
        self.monitor.set_regions(&watched.ranges, region_count(watched.blocks))
    }

    /// All of it costs, and has its share of the processor.
    fn look_and_tell(&mut self, report: &Sender<Finding>) -> damon::Result<()> {
        let seen = self.look()?;
        let _ = report.send(Finding::Snapshot(seen));
        self.account(report);
        Ok(())
    }

    pub(super) fn look(&mut self) -> damon::Result<Seen> {
        let regions = self.monitor.snapshot()?;
        let intervals = self.monitor.intervals()?;
        let mut regions: Vec<_> = regions.iter().map(|region| access(region, intervals)).collect();
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        if self.monitor.paging().is_on() {
            self.paged = Some(now);
        }
        let is_recent = |min_age: &Duration| {
            self.paged.is_some_and(|at| now.saturating_duration_since(at) <= *min_age)
        };
        self.idle.correct(elapsed, self.min_age.filter(is_recent), &mut regions);
        let (sample, aggregation) = times(intervals);
        self.tune((sample, aggregation), &regions);
        let closeness = Closeness { sample, aggregation, regions: regions.len() };
        let started = self.started;
        self.pages.draw_if_due(|| since(started), &mut self.monitor);
        let touched = self.pages.touched(|| since(started), &self.monitor);
        Ok(Seen { regions, touched, closeness })
    }

    /// Time since the start.
    fn clock(&self) -> Time {
        since(self.started)
    }

    /// Sees to how often DAMON looks, where the kernel does not.
    fn tune(&mut self, now: (Duration, Duration), regions: &[AccessRegion]) {
        let at = self.clock();
        let Some(tuner) = &mut self.tuner else { return };
        let Some(sample) = tuner.step(at, now, regions) else { return };
        let sample_us = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX);
        let aggr_us = sample_us.saturating_mul(AGGREGATION_US / SAMPLE_US);
        self.spare();
        if let Err(error) = self.monitor.set_intervals(Intervals { sample_us, aggr_us }) {
            tracing::warn!("DAMON looks as often as before: {error}");
        }
    }

    /// Sees to what was ordered, and to intervals that the kernel has tuned since.
    fn page_out(&mut self) {
        self.spare();
        if let Err(error) = self.page_out_as_before() {
            tracing::warn!("DAMON does not page out as it should: {error}");
        }
    }

    /// The same, by what is known of control groups. One that is gone has the kernel refuse what names it.
    fn page_out_as_before(&mut self) -> damon::Result<()> {
        let was_on = self.monitor.paging().is_on();
        self.monitor.page_out(self.wanted)?;
        if was_on {
            self.paged = Some(Instant::now());
        }
        Ok(())
    }

    /// What somebody has asked the kernel to keep is not paged out: DAMON's reclaim does not look at
    /// protection (mm/vmscan.c, `reclaim_pages`).
    fn spare(&mut self) {
        if (self.wanted, self.monitor.paging()) != (Paging::Off, Paging::Off) {
            let (groups, cost) = timed(|| match self.wanted {
                Paging::On(_) => cgroup::protected(&self.root),
                Paging::Off => Vec::new(),
            });
            self.protection_due = Instant::now() + PROTECTION.pause(cost);
            self.monitor.spare(groups);
        }
    }

    pub(super) fn account(&mut self, report: &Sender<Finding>) {
        if (self.wanted, self.monitor.paging()) == (Paging::Off, Paging::Off) {
            return;
        }
        if Instant::now() >= self.protection_due || self.page_out_as_before().is_err() {
            self.page_out();
        }
        match self.monitor.pageout_stats() {
            Ok(stats) => _ = report.send(Finding::PagedOut(stats)),
            Err(error) => tracing::debug!("what was paged out is not known: {error}"),
        }
    }
}

fn why_ended(error: &DamonError, is_gone: bool) -> String {
    match error {
        DamonError::File(_) if is_gone => "its kdamond has ended, or was stopped".into(),
        other => other.to_string(),
    }
}

fn since(start: Instant) -> Time {
    Time::from_millis(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
}

fn times(intervals: Intervals) -> (Duration, Duration) {
    (Duration::from_micros(intervals.sample_us), Duration::from_micros(intervals.aggr_us))
}

pub(super) fn access(region: &Region, intervals: Intervals) -> AccessRegion {
    let most = u64::from(intervals.max_nr_accesses());
    let accessed = (u64::from(region.nr_accesses) * 1000 / most).min(1000);
    AccessRegion {
        range: region.range,
        accessed: Permille(accessed as u32),
        age: Duration::from_micros(intervals.aggr_us.saturating_mul(region.age.into())),
    }
}
