//! The scheme that pages cold memory out, beside the one that only lets regions be read.
//!
//! Its aggressiveness tunes itself: DAMON's feedback loop doubles the bytes of a window at most while
//! the stall of the last one is below the goal, and starts over from one byte at twice the goal
//! (mm/damon/core.c, `damon_feed_loop_next_input`). Where the kernel reads the stall itself, nobody
//! has to feed it; where it takes a number from user space, [`super::Monitor::feed`] does.
//!
//! Switched off, the scheme stays where it is and matches no memory, and its goal is a number that
//! is exactly met: then the loop changes nothing, and what it has learned is there when the scheme
//! is switched on again (unless more than the goal has stalled meanwhile). A scheme that were taken
//! away would start from one byte each time, half a minute before it does anything.

use std::time::Duration;

use memtide_units::ByteSize;

use super::setup::APPLY_US;
use super::{CONTEXT, Intervals, SCHEME, put};
use crate::{Error, Result, Root};

pub(super) const PAGEOUT: &str = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/1";
const QUOTAS: &str = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/1/quotas";
const GOAL: &str = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/1/quotas/goals/0";

/// Goals are stalls per this long, and so are the bounds on time and bytes.
const WINDOW_MS: u64 = 1_000;
/// What cannot be paged out (free pages, the kernel's) is charged to the bounds at a 64th of its size,
/// where that is a setting (7.2). The series that made it one recommends a 4096th, but the kernel divides
/// a region wherever the bound is reached, and tries on: while the loop allows 400 KiB, a walk over 2 GiB
/// of free memory left 5,000 regions, more than a snapshot may have. This way it is a few hundred at most.
const FAIL_CHARGE: (u64, u64) = (1, 64);
/// The age that no region has.
const NEVER: u64 = u32::MAX as u64;

/// How cold memory is paged out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageoutConfig {
    /// Memory that has not been touched for so long is cold.
    pub min_age: Duration,
    /// Bytes that it may try in each second.
    pub bytes: ByteSize,
    /// Microseconds of each second in which some task may stall for memory, at least 1.
    pub stall_us: u64,
}

/// How the scheme learns of the stall that it causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feedback {
    /// The kernel reads PSI itself (`some_mem_psi_us`, 6.9).
    Kernel,
    /// It is told, with [`super::Monitor::feed`] (`user_input`, 6.8).
    User,
}

/// Whether cold memory is to be paged out now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paging {
    /// Yes, with so much of the kdamond's time in each second: whole milliseconds, at least one.
    On(Duration),
    /// No: what is cold stays.
    #[default]
    Off,
}

impl Paging {
    /// Whether it is to be paged out, however quickly.
    pub fn is_on(self) -> bool {
        matches!(self, Self::On(_))
    }
}

/// What the scheme has done since the monitor started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageoutStats {
    /// Bytes that it tried, free memory among them.
    pub tried: ByteSize,
    /// Bytes that it paged out.
    pub applied: ByteSize,
    /// Windows whose bound was used up.
    pub exceeded: u64,
    /// Bytes that the loop and the bounds allow in a window now, where the kernel tells (6.9).
    pub effective: Option<ByteSize>,
}

/// The scheme, from its start on.
#[derive(Clone, Debug)]
pub(super) struct Pageout {
    config: PageoutConfig,
    pub(super) feedback: Feedback,
    pub(super) paging: Paging,
    /// The least age that was committed, in aggregations.
    min_age: u64,
    /// The goal that was committed, in microseconds of each second.
    stall_us: u64,
    /// Groups whose memory it leaves alone.
    spared: Vec<String>,
}

impl Pageout {
    /// Whether this kernel has goals for schemes: one that nothing holds back is not wanted.
    pub(super) fn is_to_be_had(root: &Root) -> bool {
        root.exists(format!("{SCHEME}/quotas/goals/nr_goals"))
    }

    /// Writes a scheme that is switched off.
    pub(super) fn write(root: &Root, config: PageoutConfig) -> Result<Self> {
        root.write(format!("{QUOTAS}/goals/nr_goals"), "1")?;
        let feedback = feedback(root)?;
        let spared = Vec::new();
        let (paging, min_age, stall_us) = (Paging::Off, NEVER, config.stall_us);
        let this = Self { config, feedback, paging, min_age, stall_us, spared };
        root.write(format!("{PAGEOUT}/action"), "pageout")?;
        let number = |file: &str, value: u64| put(root, &format!("{PAGEOUT}/{file}"), value);
        // A window begins when the scheme is applied: an aggregation of two seconds would make all of
        // this twice as slow (6.7).
        if root.exists(format!("{PAGEOUT}/apply_interval_us")) {
            number("apply_interval_us", APPLY_US)?;
        }
        number("access_pattern/sz/min", 0)?;
        number("access_pattern/sz/max", u64::MAX)?;
        number("access_pattern/nr_accesses/min", 0)?;
        number("access_pattern/nr_accesses/max", 0)?;
        number("access_pattern/age/max", u32::MAX.into())?;
        number("quotas/ms", 1)?;
        number("quotas/bytes", config.bytes.bytes())?;
        number("quotas/reset_interval_ms", WINDOW_MS)?;
        // The longest untouched first. Size says nothing of heat, and the accesses of all that match
        // are the same.
        number("quotas/weights/sz_permil", 0)?;
        number("quotas/weights/nr_accesses_permil", 0)?;
        number("quotas/weights/age_permil", 1_000)?;
        if root.exists(format!("{QUOTAS}/fail_charge_denom")) {
            number("quotas/fail_charge_num", FAIL_CHARGE.0)?;
            number("quotas/fail_charge_denom", FAIL_CHARGE.1)?;
        }
        this.write_switch(root)?;
        Ok(this)
    }

    /// Brings the files to `paging`; false where they are so already, and nothing needs committing.
    pub(super) fn switch(
        &mut self,
        root: &Root,
        paging: Paging,
        intervals: Intervals,
        spared: &[String],
    ) -> Result<bool> {
        if self.is_so(paging, intervals, spared) {
            return Ok(false);
        }
        (self.paging, self.min_age) = (paging, self.wanted_age(paging, intervals));
        self.stall_us = self.config.stall_us;
        self.write_switch(root)?;
        self.write_filters(root, spared)?;
        Ok(true)
    }

    /// Whether this is what the kernel was told last, or near enough.
    pub(super) fn is_so(&self, paging: Paging, intervals: Intervals, spared: &[String]) -> bool {
        let is_goal_so = self.stall_us == self.config.stall_us;
        let is_as_before = is_goal_so && paging == self.paging && spared == self.spared;
        is_as_before && !is_far_off(self.min_age, self.wanted_age(paging, intervals))
    }

    /// Another goal, from the next switch on.
    pub(super) fn aim_at(&mut self, stall_us: u64) {
        self.config.stall_us = stall_us.max(1);
    }

    fn wanted_age(&self, paging: Paging, intervals: Intervals) -> u64 {
        match paging {
            Paging::On(_) => self.aggregations(intervals),
            Paging::Off => NEVER,
        }
    }

    /// Other intervals are about to be committed.
    pub(super) fn rescale(&mut self, root: &Root, intervals: Intervals) -> Result<()> {
        if self.paging.is_on() {
            self.min_age = self.aggregations(intervals);
            self.write_switch(root)?;
        }
        Ok(())
    }

    /// Has it leave groups alone. The kernel refuses a commit, whatever it is for, that names a group
    /// which is gone, so this comes before each.
    pub(super) fn write_filters(&mut self, root: &Root, spared: &[String]) -> Result<()> {
        let places = ["ops_filters", "filters"].map(|name| format!("{PAGEOUT}/{name}"));
        let has = |dir: &&String| root.exists(format!("{dir}/nr_filters"));
        if let Some(dir) = places.iter().find(has) {
            put(root, &format!("{dir}/nr_filters"), spared.len() as u64)?;
            for (n, group) in spared.iter().enumerate() {
                write_filter(root, &format!("{dir}/{n}"), group)?;
            }
        }
        self.spared = spared.to_vec();
        Ok(())
    }

    /// DAMON counts ages in aggregations, whose length the kernel may tune.
    fn aggregations(&self, intervals: Intervals) -> u64 {
        let age_us = u64::try_from(self.config.min_age.as_micros()).unwrap_or(u64::MAX);
        age_us.div_ceil(intervals.aggr_us.max(1)).clamp(1, NEVER - 1)
    }

    fn write_switch(&self, root: &Root) -> Result<()> {
        put(root, &format!("{PAGEOUT}/access_pattern/age/min"), self.min_age)?;
        if let Paging::On(time) = self.paging {
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            put(root, &format!("{QUOTAS}/ms"), ms.clamp(1, WINDOW_MS))?;
        }
        let is_self_fed = self.paging.is_on() && self.feedback == Feedback::Kernel;
        if self.feedback == Feedback::Kernel {
            let metric = if is_self_fed { "some_mem_psi_us" } else { "user_input" };
            root.write(format!("{GOAL}/target_metric"), metric)?;
        }
        put(root, &format!("{GOAL}/target_value"), self.config.stall_us)?;
        // Exactly the target changes nothing, until somebody feeds another number.
        put(root, &format!("{GOAL}/current_value"), self.config.stall_us)
    }

    /// Writes what the last window's stall was, for a loop that has to be told.
    pub(super) fn write_stall(&self, root: &Root, stall_us: u64) -> Result<()> {
        put(root, &format!("{GOAL}/current_value"), stall_us)
    }
}

/// A filter that pages of `group` do not pass. Before there was a choice (6.14), that is what a filter
/// did.
fn write_filter(root: &Root, dir: &str, group: &str) -> Result<()> {
    root.write(format!("{dir}/type"), "memcg")?;
    root.write(format!("{dir}/matching"), "Y")?;
    root.write(format!("{dir}/memcg_path"), group)?;
    let allow = format!("{dir}/allow");
    if root.exists(&allow) { root.write(allow, "N") } else { Ok(()) }
}

/// Tuned intervals move a little all the time; a commit for each would disturb the monitor.
fn is_far_off(committed: u64, wanted: u64) -> bool {
    committed.abs_diff(wanted) > wanted / 4
}

/// How this kernel's goals are fed: by the file and the keyword, not by the version.
fn feedback(root: &Root) -> Result<Feedback> {
    let metric = format!("{GOAL}/target_metric");
    if !root.exists(&metric) {
        return Ok(Feedback::User);
    }
    match root.write(&metric, "some_mem_psi_us") {
        Ok(()) => Ok(Feedback::Kernel),
        Err(Error::Refused { .. }) => root.write(&metric, "user_input").map(|()| Feedback::User),
        Err(error) => Err(error),
    }
}

/// The scheme's statistics, after the kernel was told to refresh them.
pub(super) fn stats(root: &Root) -> Result<PageoutStats> {
    let number = |file: &str| root.value::<u64>(format!("{PAGEOUT}/{file}"), "a number");
    let effective = crate::error::optional(number("quotas/effective_bytes"))?;
    Ok(PageoutStats {
        tried: ByteSize::from_bytes(number("stats/sz_tried")?),
        applied: ByteSize::from_bytes(number("stats/sz_applied")?),
        exceeded: number("stats/qt_exceeds")?,
        effective: effective.map(ByteSize::from_bytes),
    })
}

/// Whether the kernel tells how much a window may have.
pub(super) fn tells_effective(root: &Root) -> bool {
    root.exists(format!("{QUOTAS}/effective_bytes"))
}

/// Makes the directories of so many schemes, fresh.
pub(super) fn make(root: &Root, count: u64) -> Result<()> {
    put(root, &format!("{CONTEXT}/schemes/nr_schemes"), count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damon::{Monitor, MonitorConfig, RegionCount};
    use crate::fake::{FakeDamon, FakeRoot};
    use memtide_units::{Gpa, GpaRange};

    const STATE: &str = super::super::STATE;
    const CONFIG: PageoutConfig = PageoutConfig {
        min_age: Duration::from_secs(60),
        bytes: ByteSize::from_mib(64),
        stall_us: 1_000,
    };

    const COUNT: RegionCount = RegionCount { min: 10, max: 100 };

    const ON: Paging = Paging::On(Duration::from_millis(15));

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    fn monitor(damon: FakeDamon) -> (FakeRoot, Monitor) {
        let fake = FakeRoot::new();
        fake.add_damon(damon);
        std::mem::forget(
            crate::damon::pause_module(&fake.root(), crate::damon::Module::Stat).unwrap(),
        );
        let config = MonitorConfig {
            regions: vec![range(0, 128)],
            sample_us: 50_000,
            aggr_us: 1_000_000,
            region_count: COUNT,
            intervals_goal: None,
            pageout: Some(CONFIG),
        };
        let monitor = Monitor::start(&fake.root(), &config).unwrap();
        (fake, monitor)
    }

    fn file(fake: &FakeRoot, file: &str) -> String {
        fake.get(&format!("{PAGEOUT}/{file}")).trim().into()
    }

    fn goal(fake: &FakeRoot) -> [String; 2] {
        ["target_metric", "current_value"].map(|name| file(fake, &format!("quotas/goals/0/{name}")))
    }

    fn commits(fake: &FakeRoot) -> usize {
        let is_commit = |(file, text): &&(String, String)| file == STATE && text == "commit";
        fake.writes().iter().filter(is_commit).count()
    }

    #[test]
    fn another_goal_is_committed_once_with_what_was_learned() {
        let (fake, mut monitor) = monitor(FakeDamon::V6_12);
        monitor.page_out(ON).unwrap();
        let before = commits(&fake);
        monitor.set_stall_goal(5_000);
        for _ in 0..2 {
            monitor.page_out(ON).unwrap();
        }
        assert_eq!(file(&fake, "quotas/goals/0/target_value"), "5000");
        assert_eq!(goal(&fake), ["some_mem_psi_us", "5000"]);
        assert_eq!(commits(&fake), before + 1);
        monitor.page_out(Paging::Off).unwrap();
        assert_eq!(goal(&fake), ["user_input", "5000"]);
    }

    #[test]
    fn it_pages_out_nothing_until_it_is_told_to() {
        let (fake, mut monitor) = monitor(FakeDamon::V6_12);
        assert_eq!((monitor.feedback(), monitor.paging()), (Some(Feedback::Kernel), Paging::Off));
        assert_eq!(file(&fake, "action"), "pageout");
        assert_eq!(file(&fake, "apply_interval_us"), "1000000");
        assert_eq!(file(&fake, "access_pattern/age/min"), u32::MAX.to_string());
        assert_eq!(goal(&fake), ["user_input", "1000"], "met exactly: the loop stands still");
        monitor.page_out(ON).unwrap();
        assert_eq!(file(&fake, "access_pattern/age/min"), "60");
        assert_eq!(goal(&fake)[0], "some_mem_psi_us");
        monitor.page_out(ON).unwrap();
        assert_eq!(commits(&fake), 1, "nothing has changed");
        monitor.page_out(Paging::Off).unwrap();
        assert_eq!(file(&fake, "access_pattern/age/min"), u32::MAX.to_string());
        assert_eq!((goal(&fake)[0].as_str(), commits(&fake)), ("user_input", 2));
        assert_eq!(file(&fake, "quotas/ms"), "15");
    }

    #[test]
    fn how_much_time_it_takes_may_change() {
        let (fake, mut monitor) = monitor(FakeDamon::V6_12);
        for (ms, written, commit) in
            [(250, "250", 1), (250, "250", 1), (0, "1", 2), (9_000, "1000", 3)]
        {
            monitor.page_out(Paging::On(Duration::from_millis(ms))).unwrap();
            assert_eq!((file(&fake, "quotas/ms").as_str(), commits(&fake)), (written, commit));
        }
    }

    #[test]
    fn what_cannot_go_is_hardly_charged_where_the_kernel_lets_it() {
        let (fake, _monitor) = monitor(FakeDamon::V7_3);
        assert_eq!(file(&fake, "quotas/fail_charge_num"), "1");
        assert_eq!(file(&fake, "quotas/fail_charge_denom"), "64");
    }

    #[test]
    fn protected_groups_are_left_alone_and_each_commit_names_those_of_now() {
        for (damon, dir) in [(FakeDamon::V6_12, "filters"), (FakeDamon::V7_3, "ops_filters")] {
            let (fake, mut monitor) = monitor(damon);
            let count = |fake: &FakeRoot| file(fake, &format!("{dir}/nr_filters"));
            monitor.spare(vec!["/vip.slice".into(), "/db".into()]);
            monitor.page_out(ON).unwrap();
            assert_eq!(file(&fake, &format!("{dir}/1/memcg_path")), "/db");
            assert_eq!(file(&fake, &format!("{dir}/0/type")), "memcg");
            assert_eq!(file(&fake, &format!("{dir}/0/matching")), "Y");
            monitor.spare(vec!["/vip.slice".into()]);
            monitor.set_regions(&[range(0, 64)], COUNT).unwrap();
            assert_eq!((count(&fake).as_str(), commits(&fake)), ("1", 2));
            monitor.page_out(ON).unwrap();
            assert_eq!(commits(&fake), 2, "that was committed with the regions");
            monitor.spare(vec![]);
            monitor.page_out(ON).unwrap();
            assert_eq!((count(&fake).as_str(), commits(&fake)), ("0", 3));
        }
    }

    #[test]
    fn a_kernel_without_a_metric_is_told_the_stall() {
        let (fake, mut monitor) = monitor(FakeDamon::V6_8);
        assert_eq!(monitor.feedback(), Some(Feedback::User));
        monitor.feed(7).unwrap();
        assert_eq!(file(&fake, "quotas/goals/0/current_value"), "1000", "it is off");
        monitor.page_out(ON).unwrap();
        monitor.feed(7).unwrap();
        assert_eq!(file(&fake, "quotas/goals/0/current_value"), "7");
        let told = (STATE.to_string(), "commit_schemes_quota_goals".to_string());
        assert_eq!(fake.writes().last(), Some(&told));
    }

    #[test]
    fn without_goals_there_is_no_such_scheme_and_watching_goes_on() {
        let (fake, mut monitor) = monitor(FakeDamon::V6_6);
        assert_eq!(monitor.feedback(), None);
        monitor.page_out(ON).unwrap();
        assert_eq!((monitor.paging(), commits(&fake)), (Paging::Off, 0));
        assert!(!fake.root().exists(PAGEOUT));
        assert_eq!(monitor.pageout_stats().unwrap(), PageoutStats::default());
        monitor.snapshot().unwrap();
    }

    #[test]
    fn the_least_age_follows_tuned_intervals() {
        let (fake, mut monitor) = monitor(FakeDamon::V6_12);
        monitor.page_out(ON).unwrap();
        assert_eq!(file(&fake, "access_pattern/age/min"), "60");
        let aged = |aggr_us| Intervals { sample_us: 10_000, aggr_us };
        let root = fake.root();
        let mut pageout = Pageout {
            config: CONFIG,
            stall_us: CONFIG.stall_us,
            feedback: Feedback::Kernel,
            paging: ON,
            min_age: 60,
            spared: vec![],
        };
        assert!(!pageout.switch(&root, ON, aged(1_100_000), &[]).unwrap(), "hardly changed");
        assert!(pageout.switch(&root, ON, aged(200_000), &[]).unwrap());
        assert_eq!(file(&fake, "access_pattern/age/min"), "300");
    }

    #[test]
    fn a_commit_that_failed_is_tried_again() {
        let (fake, mut monitor) = monitor(FakeDamon::V6_12);
        fake.refuse(STATE, rustix::io::Errno::BUSY);
        monitor.page_out(ON).unwrap_err();
        assert_eq!(monitor.paging(), Paging::Off);
        fake.allow(STATE);
        monitor.page_out(ON).unwrap();
        assert_eq!((monitor.paging(), commits(&fake)), (ON, 2));
    }

    #[test]
    fn what_it_did_is_read() {
        let (fake, monitor) = monitor(FakeDamon::V6_12);
        for (name, value) in [("stats/sz_tried", "8192"), ("stats/sz_applied", "4096")] {
            fake.put(&format!("{PAGEOUT}/{name}"), value);
        }
        let stats = monitor.pageout_stats().unwrap();
        assert_eq!((stats.tried.kib(), stats.applied.kib(), stats.exceeded), (8, 4, 0));
        assert_eq!(stats.effective, Some(ByteSize::ZERO));
    }
}
