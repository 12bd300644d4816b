//! A running monitor.

use memtide_units::GpaRange;

use super::pageout::{self, Feedback, Pageout, PageoutStats, Paging};
use super::setup::{self, MARK};
use super::{CONTEXT, KDAMONDS, MonitorConfig, Region, Result, SCHEME, STATE, probe, regions};
use crate::Root;
use crate::error::optional;

/// The intervals in which DAMON looks and sums up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Microseconds between two looks at a page.
    pub sample_us: u64,
    /// Microseconds over which looks are summed.
    pub aggr_us: u64,
}

impl Intervals {
    /// The largest `nr_accesses` of a region: the samples of one aggregation, at least 1
    /// (include/linux/damon.h, `damon_max_nr_accesses`).
    pub fn max_nr_accesses(self) -> u32 {
        let samples = self.aggr_us.checked_div(self.sample_us).unwrap_or(1).max(1);
        u32::try_from(samples).unwrap_or(u32::MAX)
    }
}

/// One kdamond that watches physical memory, ours alone. Dropping it stops the kdamond as well as
/// it can; [`Monitor::stop`] also says whether that worked. A killed process leaves the kdamond
/// running: see [`stop_leftover`].
#[derive(Debug)]
pub struct Monitor {
    root: Root,
    intervals: Intervals,
    is_tuned: bool,
    max_regions: u64,
    pageout: Option<Pageout>,
    /// Groups whose memory is never paged out.
    spared: Vec<String>,
    is_stopped: bool,
}

impl Monitor {
    /// Starts watching. Nothing is paged out until [`Monitor::page_out`] says so.
    ///
    /// # Errors
    /// [`super::DamonError::Config`], before anything is written; [`super::DamonError::Absent`] as
    /// [`probe`]; [`super::DamonError::File`], [`crate::Error::Missing`] among it where an intervals
    /// goal was asked for and the kernel has none. Nothing is left running.
    pub fn start(root: &Root, config: &MonitorConfig) -> Result<Self> {
        config.check()?;
        probe(root)?;
        let pageout = setup::start(root, config).inspect_err(|_| {
            // Best effort: the first error is the one that says what is wrong.
            let _ = take_down(root);
        })?;
        let intervals = config.intervals();
        let is_tuned = config.intervals_goal.is_some();
        Ok(Self {
            root: root.clone(),
            intervals,
            is_tuned,
            max_regions: config.max_regions,
            pageout,
            spared: Vec::new(),
            is_stopped: false,
        })
    }

    /// What was seen, by ascending address. Blocks until the next aggregation ends (0.7 to 1.8 s
    /// were seen with one of 2 s), and the kernel's wait heeds no signal: call it from a thread that
    /// may wait. Meanwhile other writes to DAMON's files may be answered EBUSY.
    ///
    /// # Errors
    /// [`super::DamonError::File`]: EINVAL or ECANCELED where the kdamond was stopped by somebody else.
    pub fn snapshot(&mut self) -> Result<Vec<Region>> {
        self.root.write(STATE, "update_schemes_tried_regions")?;
        Ok(regions::read(&self.root)?)
    }

    /// Watches `regions` from now on, in `min_regions` pieces at least; what is known of memory in
    /// both the old and the new ones is kept. The kernel does not follow memory that comes and goes:
    /// call it after every change.
    ///
    /// # Errors
    /// [`super::DamonError::Config`]: nothing was written, and the kernel watches the old ones still.
    /// [`super::DamonError::File`]. Several kernels (6.16 for one) drop the answer to a commit, so
    /// one that failed for lack of memory can go unnoticed: compare the next snapshot.
    pub fn set_regions(&mut self, regions: &[GpaRange], min_regions: u64) -> Result<()> {
        setup::check_regions(regions)?;
        setup::check_region_count(min_regions, self.max_regions)?;
        // A commit takes over *all* files. Without this, tuned intervals would fall back to those
        // that tuning started from.
        self.intervals()?;
        setup::write_regions(&self.root, regions)?;
        setup::write_region_count(&self.root, min_regions, self.max_regions)?;
        if let Some(pageout) = &mut self.pageout {
            pageout.write_filters(&self.root, &self.spared)?;
        }
        Ok(self.root.write(STATE, "commit")?)
    }

    /// The intervals as they are now: those of the configuration, or what the kernel tuned them to
    /// (waits for about a sample then).
    ///
    /// # Errors
    /// [`super::DamonError::File`].
    pub fn intervals(&mut self) -> Result<Intervals> {
        if self.is_tuned {
            self.root.write(STATE, "update_tuned_intervals")?;
            let dir = format!("{CONTEXT}/monitoring_attrs/intervals");
            let number = |file: &str| self.root.value(format!("{dir}/{file}"), "microseconds");
            let (sample_us, aggr_us) = (number("sample_us")?, number("aggr_us")?);
            self.intervals = Intervals { sample_us, aggr_us };
        }
        Ok(self.intervals)
    }

    /// Whether the kernel tunes the intervals.
    pub fn is_tuned(&self) -> bool {
        self.is_tuned
    }

    /// Looks and sums up so often from now on. What was counted, and for how long it has been so, is
    /// kept: the kernel converts it (mm/damon/core.c, `damon_update_monitoring_results`). Not for a
    /// monitor whose intervals the kernel tunes: they go on from there, and are not to be had back.
    ///
    /// # Errors
    /// [`super::DamonError::Config`]: nothing was written. [`super::DamonError::File`]; as for
    /// [`Monitor::set_regions`] a commit may fail unnoticed.
    pub fn set_intervals(&mut self, intervals: Intervals) -> Result<()> {
        setup::check_intervals(intervals)?;
        setup::write_intervals(&self.root, intervals)?;
        if let Some(pageout) = &mut self.pageout {
            pageout.rescale(&self.root, intervals)?;
            pageout.write_filters(&self.root, &self.spared)?;
        }
        self.root.write(STATE, "commit")?;
        self.intervals = intervals;
        Ok(())
    }

    /// How the scheme that pages out learns of the stall that it causes; `None` where there is no
    /// such scheme: none was asked for, or this kernel has no goals for schemes.
    pub fn feedback(&self) -> Option<Feedback> {
        self.pageout.as_ref().map(|pageout| pageout.feedback)
    }

    /// Pages cold memory out from now on, or no longer. Call it also after the intervals may have
    /// been tuned: DAMON counts the age of memory in them. Costs nothing where nothing changes.
    ///
    /// # Errors
    /// [`super::DamonError::File`]; as for [`Monitor::set_regions`] a commit may fail unnoticed.
    pub fn page_out(&mut self, paging: Paging) -> Result<()> {
        let Some(before) = self.pageout.clone() else { return Ok(()) };
        let intervals = self.intervals()?;
        let done = self.switch(paging, intervals);
        if done.is_err() {
            // What was not committed is tried again by the next call.
            self.pageout = Some(before);
        }
        done
    }

    fn switch(&mut self, paging: Paging, intervals: Intervals) -> Result<()> {
        let Some(pageout) = &mut self.pageout else { return Ok(()) };
        if pageout.switch(&self.root, paging, intervals, &self.spared)? {
            self.root.write(STATE, "commit")?;
        }
        Ok(())
    }

    /// Memory of these control groups is not paged out, from the next commit on. Call it before
    /// [`Monitor::page_out`] and [`Monitor::set_regions`]: a commit fails that names a group which is
    /// gone.
    pub fn spare(&mut self, groups: Vec<String>) {
        self.spared = groups;
    }

    /// Whether cold memory is paged out now.
    pub fn paging(&self) -> Paging {
        self.pageout.as_ref().map_or(Paging::Off, |pageout| pageout.paging)
    }

    /// Tells a scheme with [`Feedback::User`] how many microseconds of the last second some task
    /// stalled for memory: once a second. Others hear it from the kernel.
    ///
    /// # Errors
    /// [`super::DamonError::File`].
    pub fn feed(&mut self, stall_us: u64) -> Result<()> {
        let fed = self
            .pageout
            .as_ref()
            .filter(|pageout| pageout.feedback == Feedback::User && pageout.paging.is_on());
        if let Some(pageout) = fed {
            pageout.write_stall(&self.root, stall_us)?;
            self.root.write(STATE, "commit_schemes_quota_goals")?;
        }
        Ok(())
    }

    /// What was paged out since the start. Waits for about a sample.
    ///
    /// # Errors
    /// [`super::DamonError::File`].
    pub fn pageout_stats(&self) -> Result<PageoutStats> {
        if self.pageout.is_none() {
            return Ok(PageoutStats::default());
        }
        self.root.write(STATE, "update_schemes_stats")?;
        if pageout::tells_effective(&self.root) {
            self.root.write(STATE, "update_schemes_effective_quotas")?;
        }
        Ok(pageout::stats(&self.root)?)
    }

    /// True while the kdamond runs: it ends by itself when memory for it is short, or when somebody
    /// else stops it.
    ///
    /// # Errors
    /// [`super::DamonError::File`].
    pub fn is_running(&self) -> Result<bool> {
        Ok(is_on(&self.root)?)
    }

    /// Stops watching and takes the kdamond down.
    ///
    /// # Errors
    /// [`super::DamonError::File`].
    pub fn stop(mut self) -> Result<()> {
        self.is_stopped = true;
        Ok(take_down(&self.root)?)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if !self.is_stopped {
            // Nobody is left to tell, and the next start names a kdamond that still runs.
            let _ = take_down(&self.root);
        }
    }
}

/// Stops a kdamond that an earlier process of ours started and did not live to stop, and says
/// whether there was one. Everybody else's is left alone. For the start of a process: it would also
/// stop a [`Monitor`] that lives.
///
/// # Errors
/// [`super::DamonError::File`].
pub fn stop_leftover(root: &Root) -> Result<bool> {
    if !is_ours(root)? {
        return Ok(false);
    }
    take_down(root)?;
    Ok(true)
}

/// Whether the kdamond that is set up is one of ours, of a process that lives or one that was killed.
///
/// # Errors
/// [`super::DamonError::File`].
pub fn is_ours(root: &Root) -> Result<bool> {
    let file = format!("{SCHEME}/watermarks/interval_us");
    Ok(optional(root.value::<u64>(file, "microseconds"))? == Some(MARK))
}

fn is_on(root: &Root) -> crate::Result<bool> {
    Ok(optional(root.read(STATE))?.is_some_and(|state| state.trim() == "on"))
}

fn take_down(root: &Root) -> crate::Result<()> {
    if is_on(root)? {
        root.write(STATE, "off")?;
    }
    root.write(format!("{KDAMONDS}/nr_kdamonds"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damon::pageout::PAGEOUT;
    use crate::damon::{
        Absence, ConfigError, DamonError, IntervalsGoal, Module, PageoutConfig, pause_damon_stat,
    };
    use crate::fake::{FakeDamon, FakeRoot};
    use memtide_units::{ByteSize, Gpa};
    use rustix::io::Errno;
    use std::time::Duration;

    const GOAL: IntervalsGoal =
        IntervalsGoal { access_bp: 400, aggrs: 3, min_sample_us: 5_000, max_sample_us: 10_000_000 };

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
            min_regions: 32,
            max_regions: 1000,
            intervals_goal: None,
            pageout: None,
        }
    }

    fn guest(damon: FakeDamon) -> FakeRoot {
        let fake = FakeRoot::new();
        fake.add_damon(damon);
        fake
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
        monitor.set_regions(&[range(1, 127), range(256, 128)], 48).unwrap();
        assert_eq!(fake.get(&format!("{CONTEXT}/monitoring_attrs/nr_regions/min")), "48\n");
        let seen: Vec<GpaRange> =
            monitor.snapshot().unwrap().iter().map(|region| region.range).collect();
        assert_eq!(seen, [range(1, 127), range(256, 128)]);
        let error = monitor.set_regions(&[], 48).unwrap_err();
        assert!(matches!(error, DamonError::Config(ConfigError::NoRegions)));
        let error = monitor.set_regions(&[range(1, 127)], 1001).unwrap_err();
        let expected = ConfigError::RegionCount { min: 1001, max: 1000 };
        assert!(matches!(error, DamonError::Config(error) if error == expected));
        assert_eq!(monitor.snapshot().unwrap().len(), 2);
    }

    #[test]
    fn damon_stat_makes_way_and_comes_back() {
        let fake = guest(FakeDamon::V7_3);
        let error = Monitor::start(&fake.root(), &config()).unwrap_err();
        assert!(matches!(error, DamonError::Absent(Absence::UsedBy(Module::Stat))), "{error}");
        let pause = pause_damon_stat(&fake.root()).unwrap().unwrap();
        let monitor = Monitor::start(&fake.root(), &config()).unwrap();
        monitor.stop().unwrap();
        pause.restore().unwrap();
    }

    #[test]
    fn new_regions_do_not_undo_what_the_kernel_tuned() {
        let fake = guest(FakeDamon::V7_3);
        let _pause = pause_damon_stat(&fake.root()).unwrap();
        let tuned = Intervals { sample_us: 370_000, aggr_us: 7_400_000 };
        fake.set_tuned_intervals(tuned);
        let config = MonitorConfig { intervals_goal: Some(GOAL), ..config() };
        let mut monitor = Monitor::start(&fake.root(), &config).unwrap();
        monitor.set_regions(&[range(1, 127)], 32).unwrap();
        let file = format!("{CONTEXT}/monitoring_attrs/intervals/sample_us");
        assert_eq!(fake.get(&file), "370000\n");
        assert_eq!(monitor.intervals().unwrap(), tuned);
        monitor.stop().unwrap();
    }

    #[test]
    fn intervals_are_changed_while_it_runs_and_cold_stays_as_old() {
        let fake = guest(FakeDamon::V6_12);
        let pageout = PageoutConfig {
            min_age: Duration::from_secs(60),
            bytes: ByteSize::from_mib(64),
            stall_us: 1_000,
        };
        let config = MonitorConfig { pageout: Some(pageout), ..config() };
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
    fn only_our_own_leftover_is_stopped() {
        let fake = guest(FakeDamon::V6_12);
        assert!(!stop_leftover(&fake.root()).unwrap());
        std::mem::forget(Monitor::start(&fake.root(), &config()).unwrap());
        let error = Monitor::start(&fake.root(), &config()).unwrap_err();
        assert!(matches!(error, DamonError::Absent(Absence::Running(0))));
        assert!(is_ours(&fake.root()).unwrap());
        assert!(stop_leftover(&fake.root()).unwrap());
        let other = Monitor::start(&fake.root(), &config()).unwrap();
        fake.put(&format!("{SCHEME}/watermarks/interval_us"), "5000000\n");
        assert!(!is_ours(&fake.root()).unwrap());
        assert!(!stop_leftover(&fake.root()).unwrap());
        assert!(other.is_running().unwrap());
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
}
