//! A history on graph paper: rows of memory, columns of equal time.

use memtide_units::{ByteSize, GpaRange};

use crate::cell::{Cell, Shade};
use crate::history::{Column, History, Spread};
use crate::layout::Layout;

/// One row: the memory that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its addresses.
    pub range: GpaRange,
    /// Between it and the row before lies no memory.
    pub is_behind_hole: bool,
}

/// A part of a history, drawn to a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows, ascending.
    pub rows: Vec<Row>,
    /// The time that it covers, in milliseconds.
    pub span_ms: u64,
    /// All memory.
    pub present: ByteSize,
    /// The working set in each column, where it was known.
    pub working_sets: Vec<Option<Spread>>,
    columns: usize,
    /// Row by row.
    cells: Vec<Cell>,
}

/// How large a grid shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows at most; a few more where memory has holes.
    pub rows: usize,
    /// Columns, just so many.
    pub columns: usize,
}

impl Grid {
    /// The last `window_ms` of a history, or all of it; nothing where there is none.
    pub fn of(history: &History, size: Size, window_ms: Option<u64>) -> Option<Self> {
        let last = history.last()?;
        let to = last.at_ms;
        let first = history.columns().next()?.from_ms;
        let from = window_ms.map_or(first, |window| first.max(to.saturating_sub(window)));
        let (from, size) = (from.min(to.saturating_sub(1)), size.bounded());
        let (rows, cells_of) = rows(&last.layout, size.rows);
        let mut grid = Self {
            span_ms: to - from,
            present: last.layout.present(),
            working_sets: Vec::with_capacity(size.columns),
            columns: size.columns,
            cells: vec![Cell::UNWATCHED; rows.len() * size.columns],
            rows,
        };
        for n in 0..size.columns {
            let at = |n: usize| from + share(to - from, n, size.columns);
            let seen = overlapping(history, at(n), at(n + 1).max(at(n) + 1));
            grid.working_sets.push(working_set(&seen));
            for (row, cells) in cells_of.iter().enumerate() {
                let parts = seen.iter().flat_map(|(column, weight)| {
                    column.cells[cells.clone()].iter().map(|cell| (*cell, *weight))
                });
                grid.cells[row * size.columns + n] = Cell::mean(parts);
            }
        }
        Some(grid)
    }

    /// How many columns of time there are.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The shades of one row, oldest first.
    pub fn shades(&self, row: usize) -> impl Iterator<Item = Shade> + '_ {
        let cells = &self.cells[row * self.columns..][..self.columns];
        cells.iter().map(|cell| cell.shade())
    }
}

impl Size {
    fn bounded(self) -> Self {
        Self { rows: self.rows.clamp(1, 4096), columns: self.columns.clamp(1, 4096) }
    }
}

fn share(span: u64, part: usize, whole: usize) -> u64 {
    let share = u128::from(span) * part as u128 / whole as u128;
    u64::try_from(share).unwrap_or(span)
}

/// The columns that lie in a time, each with how much of it does.
fn overlapping(history: &History, from: u64, to: u64) -> Vec<(&Column, u64)> {
    let part = |column: &Column| to.min(column.to_ms).saturating_sub(from.max(column.from_ms));
    history.columns().map(|column| (column, part(column))).filter(|(_, part)| *part > 0).collect()
}

fn working_set(seen: &[(&Column, u64)]) -> Option<Spread> {
    let known: Vec<_> =
        seen.iter().filter_map(|(column, weight)| Some((column.working_set?, *weight))).collect();
    let weight: u128 = known.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let sum: u128 =
        known.iter().map(|(set, weight)| u128::from(set.mean.bytes()) * u128::from(*weight)).sum();
    let mean = sum.checked_div(weight)?;
    Some(Spread {
        min: known.iter().map(|(set, _)| set.min).min()?,
        mean: ByteSize::from_bytes(u64::try_from(mean).unwrap_or(u64::MAX)),
        max: known.iter().map(|(set, _)| set.max).max()?,
    })
}

/// Cells joined to rows, by powers of two so that rows begin where blocks do, and within a span.
fn rows(layout: &Layout, most: usize) -> (Vec<Row>, Vec<std::ops::Range<usize>>) {
    let cells: Vec<GpaRange> = layout.ranges().collect();
    let spans = spans(layout, &cells);
    let count = |group: usize| spans.iter().map(|span| span.len().div_ceil(group)).sum::<usize>();
    let mut group = 1;
    while count(group) > most && group < cells.len() {
        group *= 2;
    }
    let (mut rows, mut ranges) = (Vec::new(), Vec::new());
    for span in &spans {
        for start in span.clone().step_by(group) {
            let range = start..span.end.min(start + group);
            let len = cells[range.clone()].iter().map(|cell| cell.len()).sum();
            let memory = GpaRange::new(cells[start].start(), len);
            let is_behind_hole = start == span.start && start > 0;
            rows.extend(memory.map(|range| Row { range, is_behind_hole }));
            ranges.push(range);
        }
    }
    (rows, ranges)
}

/// Which cells lie in each span.
fn spans(layout: &Layout, cells: &[GpaRange]) -> Vec<std::ops::Range<usize>> {
    let of = |span: &GpaRange| {
        let start = cells.partition_point(|cell| cell.start() < span.start());
        start..cells.partition_point(|cell| cell.start() < span.end())
    };
    layout.spans().iter().map(of).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::digest::{Digest, Mix, Snapshot};
    use crate::history::Limits;
    use crate::region::Region;
    use memtide_units::{Gpa, Permille};
    use std::time::Duration;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    /// A guest of 4 GiB with a hole, for 20 minutes: 256 MiB hot all the time, 512 MiB touched in the
    /// middle, and from the top down one block of 256 MiB stolen every two minutes.
    pub(crate) fn example() -> History {
        let mut history = History::new(Limits::AGENT);
        let memory = [range(0, 3072), range(4096, 1024)];
        for at in (2..=1_200_u64).step_by(2) {
            let stolen = (at / 120).min(9) * 256;
            let gone: Vec<GpaRange> = [
                (stolen > 1024).then(|| range(3072 - (stolen - 1024), stolen - 1024)),
                (stolen > 0).then(|| range(5120 - stolen.min(1024), stolen.min(1024))),
            ]
            .into_iter()
            .flatten()
            .collect();
            let layout = history.layout(&memory).unwrap();
            let region = |range, accessed, age_s| Region {
                range,
                accessed: Permille(accessed),
                age: Duration::from_secs(age_s),
            };
            let phase = match at {
                0..400 => region(range(512, 512), 0, at),
                400..600 => region(range(512, 512), 250, at - 400),
                _ => region(range(512, 512), 0, at - 600),
            };
            let regions = [
                region(range(0, 256), 0, at),
                region(range(256, 256), 900, at),
                phase,
                region(range(1024, 2048), 0, at),
                region(range(4096, 1024), 0, at),
            ];
            let mix = Mix::new(layout.ranges().map(|cell| match cell.start().0 >> 20 {
                0..128 => (Permille(100), Permille(900)),
                1280.. => (Permille(990), Permille(0)),
                _ => (Permille(0), Permille(0)),
            }));
            let seen = Snapshot {
                at_ms: at * 1000,
                watched: Duration::from_secs(at),
                regions: &regions,
                stolen: &gone,
                free: ByteSize::from_mib(2800 - stolen),
                mix: Some(&mix),
                touched: None,
            };
            history.observe(Digest::of(layout, &seen));
        }
        history
    }

    #[test]
    fn rows_are_memory_and_columns_time() {
        let grid = Grid::of(&example(), Size { rows: 32, columns: 60 }, None).unwrap();
        assert_eq!((grid.rows.len(), grid.columns()), (32, 60));
        assert_eq!(grid.rows[4].range, range(512, 128));
        let holes: Vec<usize> = (0..32).filter(|row| grid.rows[*row].is_behind_hole).collect();
        assert_eq!(holes, [24]);
        let row = |n: usize| -> Vec<Shade> { grid.shades(n).collect() };
        assert!(row(2).iter().all(|shade| *shade == Shade::Level(9)), "hot all the time");
        assert_eq!((row(0)[30], row(12)[30]), (Shade::Kernel, Shade::Free));
        assert_eq!((row(5)[25], row(5)[59]), (Shade::Level(8), Shade::Level(1)));
        assert_eq!((row(31)[2], row(31)[59]), (Shade::Free, Shade::Stolen));
    }

    #[test]
    fn a_window_shows_the_last_of_it() {
        let size = Size { rows: 8, columns: 10 };
        let grid = Grid::of(&example(), size, Some(100_000)).unwrap();
        assert_eq!(grid.span_ms, 100_000);
        assert!(grid.shades(0).all(|shade| shade != Shade::Unwatched));
        let set = grid.working_sets[9].unwrap();
        assert_eq!(set.mean.mib(), 256);
        assert_eq!(Grid::of(&History::new(Limits::HOST), size, None), None);
    }
}
