//! What a monitor is told before it starts.

use memtide_units::GpaRange;

use super::pageout::{self, Pageout, PageoutConfig};
use super::{Intervals, KDAMOND, SCHEME, STATE, put, sample};
use crate::{Result, Root};

pub(super) const GOAL: &str =
    "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/monitoring_attrs/intervals/intervals_goal";

/// Least minimum of regions that the kernel takes (mm/damon/core.c, `damon_set_attrs`).
pub(super) const MIN_REGIONS: u64 = 3;

/// How often the scheme that does something is applied. Whoever reads regions waits until
/// each scheme has had its turn (mm/damon/core.c, `damos_walk_complete`).
pub(super) const APPLY_US: u64 = 1_000_000;

/// The scheme's watermark interval, which means nothing while there is no watermark metric (the
/// default): so it can carry a mark by which a later process knows our kdamond from another's. Any
/// number would do that nobody else writes; the default is 0.
pub(super) const MARK: u64 = 19_770_531;

/// Towards what the kernel tunes the intervals (6.15 and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntervalsGoal {
    /// Access events to see, in 1/10000 of all possible ones. The kernel's documentation says 400.
    pub access_bp: u32,
    /// Aggregations between two steps, at least 1. The documentation says 3.
    pub aggrs: u32,
    /// Shortest sampling interval, in microseconds.
    pub min_sample_us: u64,
    /// Longest one, in microseconds.
    pub max_sample_us: u64,
}

/// Bounds of how many regions there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionCount {
    /// Fewest, at least 3. A region is never larger than the memory watched divided by this: for decisions on
    /// blocks, take four times as many as there are blocks, or more.
    pub min: u64,
    /// Most: bounds the work of each look. There are half as many as these at least, in the end.
    pub max: u64,
}

/// What to watch and how closely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorConfig {
    /// The physical memory to watch: ascending, not overlapping, at least one.
    pub regions: Vec<GpaRange>,
    /// Microseconds between two looks at a page.
    pub sample_us: u64,
    /// Microseconds over which looks are summed: at least `sample_us`.
    pub aggr_us: u64,
    /// Into how many regions memory is divided.
    pub region_count: RegionCount,
    /// Whether the kernel shall tune the intervals, and towards what.
    pub intervals_goal: Option<IntervalsGoal>,
    /// How cold memory is paged out, where that may be wanted.
    pub pageout: Option<PageoutConfig>,
}

/// A configuration that no kernel would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No memory to watch.
    #[error("DAMON has nothing to watch: give it at least one range of memory")]
    NoRegions,
    /// Ranges out of order or overlapping.
    #[error("DAMON wants ascending ranges that do not overlap, but {1} follows {0}")]
    Unsorted(GpaRange, GpaRange),
    /// An interval of zero, or an aggregation shorter than a sample.
    #[error(
        "DAMON cannot sum up looks {sample_us} us apart over {aggr_us} us: aggr_us must be at least sample_us, and that at least 1"
    )]
    Intervals {
        /// The sampling interval.
        sample_us: u64,
        /// The aggregation interval.
        aggr_us: u64,
    },
    /// Fewer than 3 regions, or a maximum below the minimum.
    #[error(
        "DAMON cannot keep {min} to {max} regions: min must be at least 3, and max at least min"
    )]
    RegionCount {
        /// The minimum.
        min: u64,
        /// The maximum.
        max: u64,
    },
    /// A goal without steps (which the kernel takes for "off") or with an empty span of intervals.
    #[error(
        "DAMON cannot tune its intervals so: aggrs must be at least 1, and max_sample_us at least min_sample_us"
    )]
    Goal,
    /// Intervals that may be tuned more often than schemes are applied: with each step the kernel begins to wait
    /// anew for their turn (mm/damon/core.c, `damos_set_next_apply_sis`), which then never comes, and whoever
    /// reads regions waits for ever.
    #[error(
        "DAMON would never come to apply its schemes: {aggrs} aggregations of {min_sample_us} us a sample must take longer than a second"
    )]
    Hasty {
        /// Aggregations between two steps.
        aggrs: u32,
        /// The shortest sampling interval.
        min_sample_us: u64,
    },
    /// A scheme for paging out that has no time or no memory, or must not cause any stall: the kernel
    /// takes the first two for "no bound", and divides by the third.
    #[error("DAMON cannot page out so: ms, bytes and stall_us must be at least 1")]
    Pageout,
}

impl MonitorConfig {
    pub(super) fn intervals(&self) -> Intervals {
        Intervals { sample_us: self.sample_us, aggr_us: self.aggr_us }
    }

    /// Says what is wrong with it, before the kernel answers with a mere EINVAL.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        check_regions(&self.regions)?;
        check_intervals(self.intervals())?;
        check_region_count(self.region_count)?;
        let is_unbounded =
            |pageout: PageoutConfig| pageout.bytes.is_zero() || pageout.stall_us == 0;
        if self.pageout.is_some_and(is_unbounded) {
            return Err(ConfigError::Pageout);
        }
        match self.intervals_goal {
            Some(goal) if goal.aggrs == 0 || goal.max_sample_us < goal.min_sample_us => {
                Err(ConfigError::Goal)
            }
            Some(goal) => self.check_schemes_have_turns(goal),
            None => Ok(()),
        }
    }

    /// The number of samples of an aggregation stays what it is at first.
    fn check_schemes_have_turns(
        &self,
        IntervalsGoal { aggrs, min_sample_us, .. }: IntervalsGoal,
    ) -> std::result::Result<(), ConfigError> {
        let samples = u64::from(self.intervals().max_nr_accesses());
        let step_us = min_sample_us.saturating_mul(samples).saturating_mul(aggrs.into());
        if self.pageout.is_some() && step_us <= APPLY_US {
            return Err(ConfigError::Hasty { aggrs, min_sample_us });
        }
        Ok(())
    }
}

/// At least a microsecond, and summed up over at least one look.
pub(super) fn check_intervals(intervals: Intervals) -> std::result::Result<(), ConfigError> {
    let Intervals { sample_us, aggr_us } = intervals;
    if sample_us == 0 || aggr_us < sample_us {
        return Err(ConfigError::Intervals { sample_us, aggr_us });
    }
    Ok(())
}

/// At least three, and a maximum that is no less.
pub(super) fn check_region_count(count: RegionCount) -> std::result::Result<(), ConfigError> {
    let RegionCount { min, max } = count;
    if min < MIN_REGIONS || max < min {
        return Err(ConfigError::RegionCount { min, max });
    }
    Ok(())
}

/// At least one range, ascending, without overlap.
pub(super) fn check_regions(regions: &[GpaRange]) -> std::result::Result<(), ConfigError> {
    if regions.is_empty() {
        return Err(ConfigError::NoRegions);
    }
    let unsorted = regions.windows(2).find(|pair| pair[1].start() < pair[0].end());
    unsorted.map_or(Ok(()), |pair| Err(ConfigError::Unsorted(pair[0], pair[1])))
}

/// Writes everything, and starts the kdamond last. Each `nr_` file makes the directories that the
/// writes after it go to.
pub(super) fn start(root: &Root, config: &MonitorConfig) -> Result<Option<Pageout>> {
    // A number that is written again makes fresh directories, with nothing left of whoever used
    // them before.
    sample::make(root)?;
    write_context(root, KDAMOND, (config.intervals(), config.region_count), &config.regions)?;
    if let Some(goal) = config.intervals_goal {
        write_goal(root, goal)?;
    }
    let pageout = write_schemes(root, config)?;
    root.write(STATE, "on")?;
    Ok(pageout)
}

/// Has a kdamond, by its directory, watch these regions of physical memory, so often and in so many pieces.
pub(super) fn write_context(
    root: &Root,
    kdamond: &str,
    (intervals, count): (Intervals, RegionCount),
    regions: &[GpaRange],
) -> Result<()> {
    let context = format!("{kdamond}/contexts/0");
    put(root, &format!("{kdamond}/contexts/nr_contexts"), 1)?;
    root.write(format!("{context}/operations"), "paddr")?;
    write_intervals(root, &context, intervals)?;
    write_region_count(root, &context, count)?;
    put(root, &format!("{context}/targets/nr_targets"), 1)?;
    write_regions(root, &context, regions)
}

fn write_goal(root: &Root, goal: IntervalsGoal) -> Result<()> {
    let number = |file: &str, value: u64| put(root, &format!("{GOAL}/{file}"), value);
    number("access_bp", goal.access_bp.into())?;
    number("min_sample_us", goal.min_sample_us)?;
    number("max_sample_us", goal.max_sample_us)?;
    number("aggrs", goal.aggrs.into())
}

pub(super) fn write_intervals(root: &Root, context: &str, intervals: Intervals) -> Result<()> {
    let dir = format!("{context}/monitoring_attrs/intervals");
    put(root, &format!("{dir}/sample_us"), intervals.sample_us)?;
    put(root, &format!("{dir}/aggr_us"), intervals.aggr_us)
}

pub(super) fn write_region_count(root: &Root, context: &str, count: RegionCount) -> Result<()> {
    let dir = format!("{context}/monitoring_attrs/nr_regions");
    put(root, &format!("{dir}/min"), count.min)?;
    put(root, &format!("{dir}/max"), count.max)
}

pub(super) fn write_regions(root: &Root, context: &str, regions: &[GpaRange]) -> Result<()> {
    let dir = format!("{context}/targets/0/regions");
    put(root, &format!("{dir}/nr_regions"), regions.len() as u64)?;
    for (index, range) in regions.iter().enumerate() {
        put(root, &format!("{dir}/{index}/start"), range.start().0)?;
        put(root, &format!("{dir}/{index}/end"), range.end().0)?;
    }
    Ok(())
}

/// The scheme that is read comes first: what another one does to a region in the same walk is not seen by
/// it. What this kernel's schemes have is seen once there is one.
fn write_schemes(root: &Root, config: &MonitorConfig) -> Result<Option<Pageout>> {
    pageout::make(root, 1)?;
    let paged = config.pageout.filter(|_| Pageout::is_to_be_had(root));
    pageout::make(root, 1 + u64::from(paged.is_some()))?;
    let pageout = paged.map(|paged| Pageout::write(root, paged)).transpose()?;
    write_stat(root, SCHEME, ANY, ANY)?;
    write_mark(root, SCHEME)?;
    Ok(pageout)
}

/// Whatever a region's accesses, or its age: both are unsigned ints in the kernel.
pub(super) const ANY: (u64, u64) = (0, u32::MAX as u64);

/// A scheme, by its directory, that does nothing with what was seen touched so often and has been for so many
/// aggregations. A fresh one matches nothing: the bounds are zero, and closed.
pub(super) fn write_stat(
    root: &Root,
    scheme: &str,
    accesses: (u64, u64),
    age: (u64, u64),
) -> Result<()> {
    root.write(format!("{scheme}/action"), "stat")?;
    // Sizes are unsigned longs in the kernel.
    for (what, (least, most)) in [("sz", (0, u64::MAX)), ("nr_accesses", accesses), ("age", age)] {
        put(root, &format!("{scheme}/access_pattern/{what}/min"), least)?;
        put(root, &format!("{scheme}/access_pattern/{what}/max"), most)?;
    }
    Ok(())
}

/// By which the kdamond of this scheme, its first one, is known to be ours.
pub(super) fn write_mark(root: &Root, scheme: &str) -> Result<()> {
    put(root, &format!("{scheme}/watermarks/interval_us"), MARK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::{ByteSize, Gpa};
    use std::time::Duration;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    fn config() -> MonitorConfig {
        MonitorConfig {
            regions: vec![range(1, 100), range(128, 128)],
            sample_us: 100_000,
            aggr_us: 2_000_000,
            region_count: RegionCount { min: 32, max: 1000 },
            intervals_goal: None,
            pageout: None,
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_without_a_word_is_named() {
        assert_eq!(config().check(), Ok(()));
        let none = MonitorConfig { regions: vec![], ..config() };
        assert_eq!(none.check(), Err(ConfigError::NoRegions));
        let overlap = [range(1, 100), range(100, 5)];
        let overlapping = MonitorConfig { regions: overlap.to_vec(), ..config() };
        assert_eq!(overlapping.check(), Err(ConfigError::Unsorted(overlap[0], overlap[1])));
        let short = MonitorConfig { aggr_us: 99_999, ..config() };
        assert!(matches!(short.check(), Err(ConfigError::Intervals { .. })));
        let region_count = RegionCount { min: 2, max: 1000 };
        let few = MonitorConfig { region_count, ..config() };
        assert!(matches!(few.check(), Err(ConfigError::RegionCount { min: 2, .. })));
        let goal = IntervalsGoal { access_bp: 400, aggrs: 0, min_sample_us: 1, max_sample_us: 2 };
        let stuck = MonitorConfig { intervals_goal: Some(goal), ..config() };
        assert_eq!(stuck.check(), Err(ConfigError::Goal));
        let pageout = PageoutConfig {
            min_age: Duration::from_secs(60),
            bytes: ByteSize::from_mib(32),
            stall_us: 1_000,
        };
        let busy = MonitorConfig { pageout: Some(pageout), ..stuck };
        assert_eq!(busy.check(), Err(ConfigError::Goal), "not that it is too hasty");
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert_eq!(check_regions(&[range(0, 128), range(128, 128)]), Ok(()));
    }
}
