//! How physical memory is cut into cells.

use memtide_units::{ByteSize, Gpa, GpaRange};
use serde::{Deserialize, Serialize};

/// Cells at most: two bytes each in every column of a history and in every message to a host.
pub const CELLS_MAX: usize = 512;
/// Pieces of memory with holes between them, at most: a machine has a handful.
pub const SPANS_MAX: usize = 64;
/// Least size of a cell.
const CELL_LEAST: ByteSize = ByteSize::from_mib(1);
/// Most: all of the address space in 512 of them.
const CELL_MOST: ByteSize = ByteSize::from_bytes(1 << 55);

/// Which memory there is, and the size of the cells that it is cut into. The cells of each span begin
/// at its start; its last cell may be smaller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Layout {
    spans: Vec<GpaRange>,
    cell: ByteSize,
}

/// What a layout looks like before anybody has checked it.
#[derive(Serialize, Deserialize)]
struct Raw {
    spans: Vec<GpaRange>,
    cell: ByteSize,
}

/// Why numbers are no layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No memory, or in too many pieces.
    #[error("memory lies in {0} pieces, 1 to {SPANS_MAX} were expected")]
    Spans(usize),
    /// Out of order.
    #[error("the memory at {0} overlaps what comes before it")]
    Order(Gpa),
    /// No power of two, or too small.
    #[error("cells of {0} bytes: a power of two from 1 MiB on was expected")]
    Cell(u64),
    /// Too many cells.
    #[error("more than {CELLS_MAX} cells")]
    Cells,
}

impl Layout {
    /// Memory in `ranges` (ascending), in up to `cells` cells (and at most [`CELLS_MAX`]). Neighbours are
    /// joined, and so are the nearest pieces where there are more than [`SPANS_MAX`].
    ///
    /// # Errors
    /// [`LayoutError::Spans`], [`LayoutError::Order`].
    pub fn new(ranges: &[GpaRange], cells: usize) -> Result<Self, LayoutError> {
        let mut spans: Vec<GpaRange> = Vec::new();
        for range in ranges {
            match spans.last_mut() {
                Some(last) if last.end() > range.start() => {
                    return Err(LayoutError::Order(range.start()));
                }
                Some(last) if last.end() == range.start() => *last = joined(*last, *range),
                _ => spans.push(*range),
            }
        }
        if spans.is_empty() {
            return Err(LayoutError::Spans(0));
        }
        while spans.len() > SPANS_MAX {
            join_nearest(&mut spans);
        }
        let cells = cells.clamp(spans.len(), CELLS_MAX) as u64;
        let mut cell = CELL_LEAST;
        while count(&spans, cell) > cells && cell < CELL_MOST {
            cell = cell.times(2);
        }
        Ok(Self { spans, cell })
    }

    /// A layout that somebody else has made.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn checked(spans: Vec<GpaRange>, cell: ByteSize) -> Result<Self, LayoutError> {
        if spans.is_empty() || spans.len() > SPANS_MAX {
            return Err(LayoutError::Spans(spans.len()));
        }
        if let Some(two) = spans.windows(2).find(|two| two[0].end() > two[1].start()) {
            return Err(LayoutError::Order(two[1].start()));
        }
        if !cell.bytes().is_power_of_two() || cell < CELL_LEAST || cell > CELL_MOST {
            return Err(LayoutError::Cell(cell.bytes()));
        }
        if count(&spans, cell) > CELLS_MAX as u64 {
            return Err(LayoutError::Cells);
        }
        Ok(Self { spans, cell })
    }

    /// The pieces of memory, ascending.
    pub fn spans(&self) -> &[GpaRange] {
        &self.spans
    }

    /// Bytes of a cell.
    pub const fn cell(&self) -> ByteSize {
        self.cell
    }

    /// How many cells there are: 1 to [`CELLS_MAX`].
    pub fn cells(&self) -> usize {
        count(&self.spans, self.cell) as usize
    }

    /// All memory.
    pub fn present(&self) -> ByteSize {
        self.spans.iter().map(|span| span.len()).sum()
    }

    /// Every cell's addresses, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.spans.iter().flat_map(|span| cut(*span, self.cell))
    }

    /// Which cell holds `gpa`.
    pub fn index(&self, gpa: Gpa) -> Option<usize> {
        let mut before = 0;
        for span in &self.spans {
            if gpa < span.start() {
                return None;
            }
            if gpa < span.end() {
                return Some(before + ((gpa.0 - span.start().0) / self.cell.bytes()) as usize);
            }
            before += span.len().bytes().div_ceil(self.cell.bytes()) as usize;
        }
        None
    }

    /// Calls `each` with every cell that `range` touches, and how many of its bytes lie in it.
    pub fn for_each(&self, range: GpaRange, mut each: impl FnMut(usize, u64)) {
        let mut before = 0;
        let cell = self.cell.bytes();
        for span in &self.spans {
            if let Some(part) = span.intersection(range) {
                let (from, to) = (part.start().0 - span.start().0, part.end().0 - span.start().0);
                for n in from / cell..to.div_ceil(cell) {
                    let bytes = to.min((n + 1) * cell) - from.max(n * cell);
                    each(before + n as usize, bytes);
                }
            }
            before += span.len().bytes().div_ceil(cell) as usize;
        }
    }
}

impl TryFrom<Raw> for Layout {
    type Error = LayoutError;
    fn try_from(raw: Raw) -> Result<Self, LayoutError> {
        Self::checked(raw.spans, raw.cell)
    }
}

impl From<Layout> for Raw {
    fn from(layout: Layout) -> Self {
        Self { spans: layout.spans, cell: layout.cell }
    }
}

fn count(spans: &[GpaRange], cell: ByteSize) -> u64 {
    spans.iter().map(|span| span.len().bytes().div_ceil(cell.bytes())).fold(0, u64::saturating_add)
}

fn cut(span: GpaRange, cell: ByteSize) -> impl Iterator<Item = GpaRange> {
    let offsets =
        (0..span.len().bytes()).step_by(usize::try_from(cell.bytes()).unwrap_or(usize::MAX));
    offsets.filter_map(move |offset| {
        let start = Gpa(span.start().0 + offset);
        GpaRange::new(start, cell.min(ByteSize::from_bytes(span.end().0 - start.0))).ok()
    })
}

fn joined(low: GpaRange, high: GpaRange) -> GpaRange {
    let len = ByteSize::from_bytes(high.end().0 - low.start().0);
    GpaRange::new(low.start(), len).unwrap_or(low)
}

fn join_nearest(spans: &mut Vec<GpaRange>) {
    let gap = |n: &usize| spans[n + 1].start().0 - spans[*n].end().0;
    if let Some(nearest) = (0..spans.len() - 1).min_by_key(gap) {
        let high = spans.remove(nearest + 1);
        spans[nearest] = joined(spans[nearest], high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    #[test]
    fn cells_are_as_small_as_their_number_allows() {
        let layout = Layout::new(&[range(0, 3072), range(4096, 1024)], CELLS_MAX).unwrap();
        assert_eq!((layout.cell().mib(), layout.cells()), (8, 512));
        assert_eq!(layout.index(Gpa(3071 << 20)), Some(383));
        assert_eq!(layout.index(Gpa(3072 << 20)), None);
        assert_eq!(layout.index(Gpa(4096 << 20)), Some(384));
        assert_eq!(layout.ranges().nth(384), Some(range(4096, 8)));
        assert_eq!(layout.present().mib(), 4096);
        let small = Layout::new(&[range(0, 256)], CELLS_MAX).unwrap();
        assert_eq!((small.cell().mib(), small.cells()), (1, 256));
    }

    #[test]
    fn a_range_is_shared_out_to_the_cells_that_it_touches() {
        let layout = Layout::new(&[range(0, 16), range(32, 17)], 4).unwrap();
        assert_eq!((layout.cell().mib(), layout.cells()), (16, 3));
        let mut seen = vec![];
        layout.for_each(range(8, 41), |cell, bytes| seen.push((cell, bytes >> 20)));
        assert_eq!(seen, [(0, 8), (1, 16), (2, 1)]);
    }

    #[test]
    fn memory_in_very_many_pieces_is_joined_where_the_holes_are_small() {
        let many: Vec<_> = (0..100).map(|n| range(n * 200 + n * n, 100)).collect();
        let layout = Layout::new(&many, CELLS_MAX).unwrap();
        assert_eq!(layout.spans().len(), SPANS_MAX);
        assert_eq!(layout.spans()[0].start(), Gpa(0));
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        let two = vec![range(0, 2), range(1, 2)];
        assert_eq!(Layout::new(&two, 9), Err(LayoutError::Order(Gpa(1 << 20))));
        let mib = ByteSize::from_mib;
        assert_eq!(Layout::checked(two, mib(1)), Err(LayoutError::Order(Gpa(1 << 20))));
        assert_eq!(Layout::checked(vec![], mib(1)), Err(LayoutError::Spans(0)));
        assert_eq!(Layout::checked(vec![range(0, 1)], mib(3)), Err(LayoutError::Cell(3 << 20)));
        assert_eq!(Layout::checked(vec![range(0, 1024)], mib(1)), Err(LayoutError::Cells));
        assert!(serde_json::from_str::<Layout>(r#"{"spans":[],"cell":1}"#).is_err());
    }

    proptest! {
        #[test]
        fn cells_cover_all_memory_once(gaps in prop::collection::vec((0_u64..1 << 40, 1_u64..1 << 45), 1..80), cells in 0_usize..2_000) {
            let mut end = 0_u64;
            let ranges: Vec<_> = gaps.iter().map(|(gap, len)| {
                let range = GpaRange::new(Gpa(end + gap), ByteSize::from_bytes(*len)).unwrap();
                end = range.end().0;
                range
            }).collect();
            let layout = Layout::new(&ranges, cells).unwrap();
            prop_assert!(layout.cells() <= CELLS_MAX);
            prop_assert_eq!(layout.ranges().count(), layout.cells());
            prop_assert_eq!(layout.ranges().map(|range| range.len()).sum::<ByteSize>(), layout.present());
            for (n, cell) in layout.ranges().enumerate() {
                prop_assert_eq!(layout.index(cell.start()), Some(n));
                prop_assert_eq!(layout.index(Gpa(cell.end().0 - 1)), Some(n));
            }
            prop_assert_eq!(Layout::checked(layout.spans().to_vec(), layout.cell()), Ok(layout.clone()));
            let text = serde_json::to_string(&layout).unwrap();
            prop_assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), layout);
        }
    }
}
