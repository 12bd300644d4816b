//! A running monitor.

use std::time::Duration;

use memtide_units::GpaRange;

use super::pageout::{self, Feedback, Pageout, PageoutStats, Paging};
use super::sample::{PageCount, Pages, Sampler};
use super::setup::{self, MARK};
use super::{
    CONTEXT, DamonError, KDAMONDS, MonitorConfig, Region, RegionCount, Result, STATE, probe,
    regions,
};
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

/// One kdamond that watches physical memory, ours alone, and a second one that looks at single pages where
/// that is asked for. Dropping it stops them as well as it can; [`Monitor::stop`] also says whether that
/// worked. A killed process leaves them running: see [`stop_leftover`].
///
/// Whoever may write DAMON's files can take the kdamond down and set one up in its place. That one is
/// not ours: nothing is read of it or written to it, and it is not stopped.
#[derive(Debug)]
pub struct Monitor {
    root: Root,
    watched: Vec<GpaRange>,
    /// As they were when the kernel was last asked.
    intervals: Intervals,
    is_tuned: bool,
    pageout: Option<Pageout>,
    sampler: Option<Sampler>,
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
            let _ = clear(root);
        })?;
        let intervals = config.intervals();
        let is_tuned = config.intervals_goal.is_some();
        Ok(Self {
            root: root.clone(),
            watched: config.regions.clone(),
            intervals,
            is_tuned,
            pageout,
            sampler: None,
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
    /// [`super::DamonError::Taken`].
    pub fn snapshot(&mut self) -> Result<Vec<Region>> {
        self.must_be_ours()?;
        self.root.write(STATE, "update_schemes_tried_regions")?;
        Ok(regions::read(&self.root, &self.watched)?)
    }

    /// Watches `regions` from now on, in so many pieces; what is known of memory in
    /// both the old and the new ones is kept. The kernel does not follow memory that comes and goes:
    /// call it after every change.
    ///
    /// # Errors
    /// [`super::DamonError::Config`]: nothing was written, and the kernel watches the old ones still.
    /// [`super::DamonError::File`]. Several kernels (6.16 for one) drop the answer to a commit, so
    /// one that failed for lack of memory can go unnoticed: compare the next snapshot.
    /// [`super::DamonError::Taken`].
    pub fn set_regions(&mut self, regions: &[GpaRange], count: RegionCount) -> Result<()> {
        setup::check_regions(regions)?;
        setup::check_region_count(count)?;
        self.must_be_ours()?;
        // A commit takes over *all* files. Without this, tuned intervals would fall back to those
        // that tuning started from.
        self.intervals()?;
        setup::write_regions(&self.root, CONTEXT, regions)?;
        setup::write_region_count(&self.root, CONTEXT, count)?;
        if let Some(pageout) = &mut self.pageout {
            pageout.write_filters(&self.root, &self.spared)?;
        }
        self.root.write(STATE, "commit")?;
        self.watched = regions.to_vec();
        Ok(())
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
    /// [`Monitor::set_regions`] a commit may fail unnoticed. [`super::DamonError::Taken`].
    pub fn set_intervals(&mut self, intervals: Intervals) -> Result<()> {
        setup::check_intervals(intervals)?;
        self.must_be_ours()?;
        setup::write_intervals(&self.root, CONTEXT, intervals)?;
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

    /// Pages cold memory out from now on, or no longer. Call it also after [`Monitor::intervals`]: DAMON counts
    /// the age of memory in them. Costs next to nothing where nothing changes.
    ///
    /// # Errors
    /// [`super::DamonError::File`]; as for [`Monitor::set_regions`] a commit may fail unnoticed.
    /// [`super::DamonError::Taken`].
    pub fn page_out(&mut self, paging: Paging) -> Result<()> {
        let Some(before) = self.pageout.clone() else { return Ok(()) };
        self.must_be_ours()?;
        if before.is_so(paging, self.intervals, &self.spared) {
            return Ok(());
        }
        // As for regions: what was tuned would be lost.
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

    /// Some task may stall for so many microseconds of each second, at least 1, from the next
    /// [`Monitor::page_out`] on.
    pub fn set_stall_goal(&mut self, stall_us: u64) {
        if let Some(pageout) = &mut self.pageout {
            pageout.aim_at(stall_us);
        }
    }

    /// Whether cold memory is paged out now.
    pub fn paging(&self) -> Paging {
        self.pageout.as_ref().map_or(Paging::Off, |pageout| pageout.paging)
    }

    /// Tells a scheme with [`Feedback::User`] how many microseconds of the last second some task
    /// stalled for memory: once a second. Others hear it from the kernel.
    ///
    /// # Errors
    /// [`super::DamonError::File`], [`super::DamonError::Taken`].
    pub fn feed(&mut self, stall_us: u64) -> Result<()> {
        let fed = self
            .pageout
            .as_ref()
            .filter(|pageout| pageout.feedback == Feedback::User && pageout.paging.is_on());
        if let Some(pageout) = fed {
            self.must_be_ours()?;
            pageout.write_stall(&self.root, stall_us)?;
            self.root.write(STATE, "commit_schemes_quota_goals")?;
        }
        Ok(())
    }

    /// Has single pages of `memory` looked at as well, a sample of all, from now on: what was touched in the last
    /// `within`, in steps of ten seconds, counts. Takes some four thousand writes. Counts begin anew; until
    /// `within` has passed they tell of too much.
    ///
    /// # Errors
    /// [`super::DamonError::File`]: no page is looked at then. [`super::DamonError::Taken`].
    pub fn sample_pages(&mut self, memory: &[GpaRange], within: Duration) -> Result<()> {
        self.must_be_ours()?;
        self.sampler = None;
        let pages = if self.is_tuned { Pages::Any } else { Pages::Heads };
        self.sampler = Some(Sampler::start(&self.root, (memory, pages), within)?);
        Ok(())
    }

    /// What was counted of the sampled pages; `None` where there are none. Waits for up to two seconds.
    ///
    /// # Errors
    /// [`super::DamonError::File`], [`super::DamonError::Taken`].
    pub fn page_count(&self) -> Result<Option<PageCount>> {
        let Some(sampler) = self.sampler else { return Ok(None) };
        Ok(Some(sampler.count(&self.root)?))
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

    /// True while the kdamond runs and is ours: it ends by itself when memory for it is short, or when
    /// somebody else stops it.
    ///
    /// # Errors
    /// [`super::DamonError::File`].
    pub fn is_running(&self) -> Result<bool> {
        Ok(is_ours(&self.root)? && is_on(&self.root, 0)?)
    }

    /// Stops watching and takes the kdamond down, if it is ours still.
    ///
    /// # Errors
    /// [`super::DamonError::File`].
    pub fn stop(mut self) -> Result<()> {
        self.is_stopped = true;
        stop_leftover(&self.root).map(drop)
    }

    fn must_be_ours(&self) -> Result<()> {
        if is_ours(&self.root)? { Ok(()) } else { Err(DamonError::Taken) }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if !self.is_stopped {
            // Nobody is left to tell, and the next start names a kdamond that still runs.
            let _ = stop_leftover(&self.root);
        }
    }
}

/// Stops kdamonds that an earlier process of ours started and did not live to stop, and says whether
/// there were any. Everybody else's are left alone. For the start of a process: it would also stop a
/// [`Monitor`] that lives.
///
/// # Errors
/// [`super::DamonError::File`], once all were tried.
pub fn stop_leftover(root: &Root) -> Result<bool> {
    let all = optional(root.numbers(KDAMONDS, ""))?.unwrap_or_default();
    let mut ours = Vec::new();
    for kdamond in &all {
        if is_marked(root, *kdamond)? {
            ours.push(*kdamond);
        }
    }
    let stopped: Vec<_> = ours.iter().map(|kdamond| turn_off(root, *kdamond)).collect();
    stopped.into_iter().collect::<crate::Result<()>>()?;
    // What somebody has set up in our place stays, running or not.
    let mut is_clear = ours.contains(&0);
    for kdamond in all.iter().filter(|kdamond| !ours.contains(kdamond)) {
        is_clear &= !is_on(root, *kdamond)?;
    }
    if is_clear {
        clear(root)?;
    }
    Ok(!ours.is_empty())
}

/// Whether the kdamond that is set up is one of ours, of a process that lives or one that was killed.
///
/// # Errors
/// [`super::DamonError::File`].
pub fn is_ours(root: &Root) -> Result<bool> {
    Ok(is_marked(root, 0)?)
}

/// Whether the kdamond of this number carries our mark.
pub(super) fn is_marked(root: &Root, kdamond: u64) -> crate::Result<bool> {
    let file = format!("{KDAMONDS}/{kdamond}/contexts/0/schemes/0/watermarks/interval_us");
    Ok(optional(root.value::<u64>(file, "microseconds"))? == Some(MARK))
}

pub(super) fn is_on(root: &Root, kdamond: u64) -> crate::Result<bool> {
    let state = optional(root.read(format!("{KDAMONDS}/{kdamond}/state")))?;
    Ok(state.is_some_and(|state| state.trim() == "on"))
}

/// Stops it where it runs.
pub(super) fn turn_off(root: &Root, kdamond: u64) -> crate::Result<()> {
    if is_on(root, kdamond)? {
        root.write(format!("{KDAMONDS}/{kdamond}/state"), "off")?;
    }
    Ok(())
}

fn clear(root: &Root) -> crate::Result<()> {
    root.write(format!("{KDAMONDS}/nr_kdamonds"), "0")
}

#[cfg(test)]
mod tests;
