//! A bounded picture of the past: what was new stays fine, what is old becomes coarse.

use std::collections::VecDeque;

use memtide_units::{ByteSize, GpaRange};
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::digest::Digest;
use crate::layout::{CELLS_MAX, Layout, LayoutError};
use crate::remap::Remap;

/// A column takes in snapshots until it has seen so much time, in milliseconds.
const COLUMN_MS: u64 = 5_000;
/// Without a snapshot for longer than this, nobody knows what was in between.
const GAP_MS: u64 = 60_000;
/// What is older is forgotten.
const AGE_MAX_MS: u64 = 24 * 3_600_000;
/// Where there is no room, the two neighbours are joined that are the shortest for their age; and this
/// is added to the age, so that the last two minutes stay as fine as they can.
const FINE_MS: u64 = 120_000;

/// How much a history may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Cells of a layout, at most [`CELLS_MAX`].
    pub cells: usize,
    /// Columns; at least 2.
    pub columns: usize,
}

impl Limits {
    /// In the guest: 512 cells of two bytes in 240 columns are 240 KiB. After a day a column is as long as
    /// a twentieth of its age, or 5 s.
    pub const AGENT: Self = Self { cells: CELLS_MAX, columns: 240 };
    /// On the host, for each VM: 120 KiB.
    pub const HOST: Self = Self { cells: CELLS_MAX, columns: 120 };
}

/// Sizes of a working set over some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: ByteSize,
    /// The mean.
    pub mean: ByteSize,
    /// The most.
    pub max: ByteSize,
}

impl Spread {
    fn of(size: ByteSize) -> Self {
        Self { min: size, mean: size, max: size }
    }

    fn with(self, other: Self, weight: u64, others: u64) -> Self {
        let sum = u128::from(self.mean.bytes()) * u128::from(weight)
            + u128::from(other.mean.bytes()) * u128::from(others);
        let mean = sum / u128::from(weight.saturating_add(others).max(1));
        Self {
            min: self.min.min(other.min),
            mean: ByteSize::from_bytes(u64::try_from(mean).unwrap_or(u64::MAX)),
            max: self.max.max(other.max),
        }
    }
}

/// What memory was like over some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Since when, exclusive.
    pub from_ms: u64,
    /// Until when.
    pub to_ms: u64,
    /// Snapshots that were taken.
    pub snapshots: u64,
    /// The working set, where it was known.
    pub working_set: Option<Spread>,
    /// One for each of the layout's.
    #[serde(with = "crate::file::text")]
    pub cells: Vec<Cell>,
}

impl Column {
    fn of(digest: &Digest, from_ms: u64) -> Self {
        Self {
            from_ms,
            to_ms: digest.at_ms,
            snapshots: 1,
            working_set: digest.amounts.touched.map(Spread::of),
            cells: digest.cells.clone(),
        }
    }

    /// How long it is, at least 1 ms.
    pub fn span_ms(&self) -> u64 {
        (self.to_ms - self.from_ms).max(1)
    }

    /// Takes the next column in.
    fn join(&mut self, next: &Self) {
        let (weight, others) = (self.span_ms(), next.span_ms());
        self.working_set = match (self.working_set, next.working_set) {
            (Some(mine), Some(other)) => Some(mine.with(other, weight, others)),
            (mine, other) => mine.or(other),
        };
        for (cell, other) in self.cells.iter_mut().zip(&next.cells) {
            *cell = Cell::mean([(*cell, weight), (*other, others)]);
        }
        self.to_ms = next.to_ms;
        self.snapshots = self.snapshots.saturating_add(next.snapshots);
    }
}

/// The history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub(crate) limits: Limits,
    pub(crate) columns: VecDeque<Column>,
    /// The last snapshot: what the columns' cells are, and how much there was of what.
    pub(crate) last: Option<Digest>,
}

impl History {
    /// Knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        let cells = limits.cells.clamp(1, CELLS_MAX);
        let limits = Limits { cells, columns: limits.columns.max(2) };
        Self { limits, columns: VecDeque::new(), last: None }
    }

    /// How memory in `ranges` (ascending) is to be cut for this history.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn layout(&self, ranges: &[GpaRange]) -> Result<Layout, LayoutError> {
        Layout::new(ranges, self.limits.cells)
    }

    /// Takes a snapshot. Where memory has come or gone, the past is cut anew. A snapshot from before the
    /// last one is of another life of the guest, and all before it is forgotten.
    pub fn observe(&mut self, digest: Digest) {
        if let Some(last) = self.last.take() {
            if digest.at_ms < last.at_ms {
                self.columns.clear();
            } else if digest.layout != last.layout {
                let map = Remap::new(&last.layout, &digest.layout);
                for column in &mut self.columns {
                    column.cells = map.cells(&column.cells);
                }
            }
        }
        let before = self.columns.back().map_or(0, |column| column.to_ms);
        // Of the first one nobody knows how long it has been like that.
        let is_seamless = before > 0 && digest.at_ms - before <= GAP_MS;
        let from = if is_seamless { before } else { digest.at_ms.saturating_sub(COLUMN_MS) };
        self.take(Column::of(&digest, from.max(before)), is_seamless);
        self.forget_the_old(digest.at_ms);
        self.last = Some(digest);
    }

    fn take(&mut self, column: Column, is_seamless: bool) {
        match self.columns.back_mut() {
            Some(open) if is_seamless && open.span_ms() < COLUMN_MS => open.join(&column),
            _ => self.columns.push_back(column),
        }
    }

    fn forget_the_old(&mut self, now_ms: u64) {
        let is_old = |column: &Column| now_ms.saturating_sub(column.to_ms) > AGE_MAX_MS;
        while self.columns.front().is_some_and(is_old) {
            self.columns.pop_front();
        }
        while self.columns.len() > self.limits.columns {
            let costs = self.columns.iter().zip(self.columns.iter().skip(1));
            // Thousandths of its age that a joined column would be long.
            let cost = |(old, new): (&Column, &Column)| {
                let age = u128::from(now_ms.saturating_sub(new.to_ms).saturating_add(FINE_MS));
                u128::from(new.to_ms - old.from_ms) * 1_000_000 / age
            };
            let least = costs.map(cost).enumerate().min_by_key(|(_, cost)| *cost);
            let Some((n, _)) = least else { return };
            if let Some(new) = self.columns.remove(n + 1) {
                self.columns[n].join(&new);
            }
        }
    }

    /// Oldest first.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = &Column> + DoubleEndedIterator + '_ {
        self.columns.iter()
    }

    /// The last snapshot.
    pub fn last(&self) -> Option<&Digest> {
        self.last.as_ref()
    }

    /// What of it is kept in memory, in bytes, the parts that do not grow left aside.
    pub fn footprint(&self) -> usize {
        self.columns.iter().map(|column| size_of_val(column) + column.cells.len() * 2).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cell::{Kind, Shade};
    use crate::digest::Snapshot;
    use crate::region::Region;
    use memtide_units::{Gpa, Permille};
    use proptest::prelude::*;
    use std::time::Duration;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    /// `hot` MiB at the bottom are touched, the rest has been idle since the beginning.
    pub(crate) fn digest(history: &History, at_s: u64, (present, hot): (u64, u64)) -> Digest {
        let layout = history.layout(&[range(0, present)]).unwrap();
        let watched = Duration::from_secs(at_s);
        let region = |range, accessed, age| Region { range, accessed: Permille(accessed), age };
        let regions = [
            region(range(0, hot), 600, Duration::from_secs(9)),
            region(range(hot, present - hot), 0, watched),
        ];
        let seen = Snapshot {
            at_ms: at_s * 1000,
            watched,
            regions: &regions,
            stolen: &[],
            free: ByteSize::ZERO,
            mix: None,
            touched: None,
        };
        Digest::of(layout, &seen)
    }

    fn watched(limits: Limits, seconds: u64) -> History {
        let mut history = History::new(limits);
        for at in (2..=seconds).step_by(2) {
            history.observe(digest(&history, at, (64, 16)));
        }
        history
    }

    #[test]
    fn a_history_that_is_full_keeps_to_its_memory() {
        let mut history = History::new(Limits::AGENT);
        for at in (5..2_000).step_by(5) {
            history.observe(digest(&history, at, (1 << 20, 64)));
        }
        assert_eq!((history.columns.len(), history.columns[0].cells.len()), (240, 512));
        assert!(history.footprint() < 264 << 10, "{}", history.footprint());
    }

    #[test]
    fn a_day_fits_and_what_is_new_is_the_finest() {
        let history = watched(Limits::AGENT, 86_400);
        assert!(history.columns.len() <= 240);
        let spans: Vec<u64> = history.columns().map(|column| column.span_ms() / 1000).collect();
        let newest = spans[spans.len() - 10..].iter().max().unwrap();
        assert!(*newest <= 12, "{spans:?}");
        let now = 86_400_000;
        for column in history.columns() {
            let age = now - column.to_ms;
            assert!(column.span_ms() <= age / 8 + 12_000, "{} at {age}", column.span_ms());
        }
        let first = history.columns().next().unwrap();
        assert!(first.from_ms <= 8_000_000, "{}", first.from_ms);
        let counted: u64 = history.columns().map(|column| column.snapshots).sum();
        assert_eq!(counted, 43_200, "none is lost by joining");
    }

    #[test]
    fn columns_are_seamless_and_a_pause_is_a_gap() {
        let mut history = watched(Limits::HOST, 60);
        history.observe(digest(&history, 1_000, (64, 16)));
        let seams: Vec<bool> = history
            .columns()
            .zip(history.columns().skip(1))
            .map(|(a, b)| a.to_ms == b.from_ms)
            .collect();
        assert!(seams[..seams.len() - 1].iter().all(|seam| *seam));
        assert!(!seams[seams.len() - 1]);
    }

    #[test]
    fn a_working_set_keeps_its_extremes_when_it_becomes_coarse() {
        let mut history = History::new(Limits { cells: 64, columns: 2 });
        for (n, hot) in [10, 200, 30, 40, 50].into_iter().enumerate() {
            history.observe(digest(&history, 40 + 10 * n as u64, (256, hot)));
        }
        let spreads: Vec<Spread> = history.columns().filter_map(|c| c.working_set).collect();
        let mib = |size: ByteSize| size.mib();
        assert_eq!(spreads.iter().map(|spread| mib(spread.max)).max(), Some(200));
        assert_eq!(spreads.iter().map(|spread| mib(spread.min)).min(), Some(10));
        assert_eq!(history.columns.len(), 2);
    }

    #[test]
    fn memory_that_comes_later_was_not_watched_before() {
        let mut history = watched(Limits::AGENT, 40);
        history.observe(digest(&history, 42, (128, 16)));
        let last = history.last().unwrap().layout.cells();
        assert!(history.columns().all(|column| column.cells.len() == last));
        let first = history.columns().next().unwrap();
        assert_eq!(first.cells[100].kind(), Kind::Unwatched);
        assert_eq!(first.cells[0].shade(), Shade::Level(9));
    }

    #[test]
    fn another_life_begins_anew() {
        let mut history = watched(Limits::AGENT, 100);
        history.observe(digest(&history, 30, (64, 16)));
        assert_eq!(history.columns.len(), 1);
    }

    proptest! {
        #[test]
        fn any_times_are_taken_and_bounded(times in prop::collection::vec((0_u64..200_000, 1_u64..300), 1..200), columns in 0_usize..20) {
            let mut history = History::new(Limits { cells: 32, columns });
            for (at, hot) in times {
                history.observe(digest(&history, at, (512, hot)));
                prop_assert!(history.columns.len() <= history.limits.columns);
                let ordered = history.columns().zip(history.columns().skip(1)).all(|(a, b)| a.to_ms <= b.from_ms);
                prop_assert!(ordered);
                prop_assert!(history.columns().all(|column| column.from_ms <= column.to_ms));
                prop_assert_eq!(history.columns().last().unwrap().to_ms, at * 1000);
            }
        }
    }
}
