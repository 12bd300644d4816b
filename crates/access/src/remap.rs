//! Cells of one layout, for another.

use memtide_units::Gpa;

use crate::cell::Cell;
use crate::layout::Layout;

/// Places of one cell that are looked at, at most.
const LOOKS_MAX: u64 = 64;

/// What each cell of `to` was: what the cells of `from` that it touches were, or unwatched where there was
/// no memory.
pub(crate) fn remapped(cells: &[Cell], from: &Layout, to: &Layout) -> Vec<Cell> {
    let of = |range: memtide_units::GpaRange| {
        let step = from.cell().bytes().min(to.cell().bytes());
        // A stranger's cells may be of any size: look at so many places, evenly.
        let step = step.max(range.len().bytes() / LOOKS_MAX).max(1);
        let steps = range.len().bytes().div_ceil(step);
        let at = |n: u64| {
            let index = from.index(Gpa(range.start().0 + n * step));
            let cell = index.and_then(|index| cells.get(index)).copied();
            (cell.unwrap_or(Cell::UNWATCHED), 1)
        };
        Cell::mean((0..steps).map(at))
    };
    to.ranges().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Kind;
    use memtide_units::{ByteSize, GpaRange};

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    #[test]
    fn cells_keep_their_addresses() {
        let small = Layout::new(&[range(0, 4)], 4).unwrap();
        let large = Layout::new(&[range(0, 4), range(8, 4)], 4).unwrap();
        assert_eq!((small.cell().mib(), large.cell().mib()), (1, 2));
        let [free, stolen] = [Cell::new(Kind::Free), Cell::new(Kind::Stolen)];
        let there = remapped(&[free, free, stolen, stolen], &small, &large);
        assert_eq!(there, [free, stolen, Cell::UNWATCHED, Cell::UNWATCHED]);
        assert_eq!(remapped(&there, &large, &small), [free, free, stolen, stolen]);
    }
}
