//! The scheme that looks at single pages of what was touched lately.
//!
//! A region in which one page of twenty is in use is seen touched now and then, whenever that page is the
//! one that DAMON samples; as a whole it would count as touched half a minute later still. So in regions that
//! are not seen touched now, and were a short while before, this scheme looks at every page: one that was
//! touched since it was looked at last is counted, and marked as not touched (mm/damon/ops-common.c,
//! `damos_folio_filter_match`, `DAMOS_FILTER_TYPE_YOUNG`). The action is `stat`, which does nothing else.

use std::time::Duration;

use memtide_units::ByteSize;

use super::setup::APPLY_US;
use super::{CONTEXT, Intervals, SCHEME};
use crate::{Error, Result, Root};

/// Time of the kdamond that may be taken of each window, 1 % of a processor, by what a byte has cost so far.
const QUOTA_MS: u64 = 100;
/// A walk ends where a bound is reached, and the next window's goes on there: what is found is a sample, and two
/// looks at a page are a window apart or more where there is as much to look at as the bounds allow.
const WINDOW_MS: u64 = 10_000;
/// Part of what is watched that is tried in each window, and bounds of that: a byte that has cost little so
/// far, being free, must not let one walk take seconds. All that was touched lately must be looked at
/// within a few windows, for the first look at a page finds it touched whenever that was.
const TRIED_PART: u64 = 8;
const TRIED_LEAST: ByteSize = ByteSize::from_mib(64);
const TRIED_MOST: ByteSize = ByteSize::from_gib(1);

/// What the scheme has looked at since the monitor started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatelyCount {
    /// Memory, whatever is in it.
    pub tried: ByteSize,
    /// What of it was touched between two looks.
    pub touched: ByteSize,
}

/// The scheme.
#[derive(Clone, Debug)]
pub(super) struct Lately {
    scheme: String,
    within: Duration,
}

impl Lately {
    /// Whether a scheme of this kernel's can filter by page and says what has passed (6.15: the count came
    /// with 6.14, filters that let pass what matches and nothing else a release later).
    pub(super) fn is_to_be_had(root: &Root) -> bool {
        let has = |file: &str| root.exists(format!("{SCHEME}/{file}"));
        has("stats/sz_ops_filter_passed") && has("ops_filters/nr_filters")
    }

    /// Writes it as the scheme of this number, for memory that was seen touched for the last time no longer
    /// ago than `within`.
    pub(super) fn write(
        root: &Root,
        number: u64,
        (within, watched): (Duration, ByteSize),
        intervals: Intervals,
    ) -> Result<Option<Self>> {
        let this = Self { scheme: format!("{CONTEXT}/schemes/{number}"), within };
        root.write(this.at("action"), "stat")?;
        root.write(this.at("ops_filters/nr_filters"), "1")?;
        match root.write(this.at("ops_filters/0/type"), "young") {
            Ok(()) => {}
            // It matches no memory and does no harm.
            Err(Error::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        root.write(this.at("ops_filters/0/matching"), "Y")?;
        root.write(this.at("ops_filters/0/allow"), "Y")?;
        let put = |file: &str, value: u64| root.write(this.at(file), &value.to_string());
        put("apply_interval_us", APPLY_US)?;
        put("quotas/ms", QUOTA_MS)?;
        put("quotas/bytes", tried_at_most(watched).bytes())?;
        put("quotas/reset_interval_ms", WINDOW_MS)?;
        put("access_pattern/sz/min", 0)?;
        put("access_pattern/sz/max", u64::MAX)?;
        put("access_pattern/nr_accesses/min", 0)?;
        put("access_pattern/nr_accesses/max", 0)?;
        put("access_pattern/age/min", 0)?;
        this.rescale(root, intervals)?;
        Ok(Some(this))
    }

    /// DAMON counts ages in aggregations. To be committed.
    pub(super) fn rescale(&self, root: &Root, intervals: Intervals) -> Result<()> {
        let within_us = u64::try_from(self.within.as_micros()).unwrap_or(u64::MAX);
        let most = (within_us / intervals.aggr_us.max(1)).min(u32::MAX.into());
        root.write(self.at("access_pattern/age/max"), &most.to_string())
    }

    /// What it has counted, after the kernel was told to refresh that.
    pub(super) fn count(&self, root: &Root) -> Result<LatelyCount> {
        let bytes = |file: &str| root.value(self.at(file), "a number").map(ByteSize::from_bytes);
        let (tried, touched) = (bytes("stats/sz_tried")?, bytes("stats/sz_ops_filter_passed")?);
        Ok(LatelyCount { tried, touched })
    }

    fn at(&self, file: &str) -> String {
        format!("{}/{file}", self.scheme)
    }
}

fn tried_at_most(watched: ByteSize) -> ByteSize {
    let part = ByteSize::from_bytes(watched.bytes() / TRIED_PART);
    part.clamp(TRIED_LEAST, TRIED_MOST)
}
