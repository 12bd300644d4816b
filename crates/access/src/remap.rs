//! Cells of one layout, for another.

use memtide_units::{Gpa, GpaRange};

use crate::cell::Cell;
use crate::layout::Layout;

/// Places of one cell that are looked at, at most.
const LOOKS_MAX: u64 = 16;

/// Which cells of an old layout each cell of a new one is made of: found once, used for every column.
pub(crate) struct Remap(Vec<Vec<Option<usize>>>);

impl Remap {
    /// From one layout to another. Where there was no memory nobody watched.
    pub(crate) fn new(from: &Layout, to: &Layout) -> Self {
        let sources = |range: GpaRange| {
            let step = from.cell().bytes().min(to.cell().bytes());
            // A stranger's cells may be of any size: look at so many places, evenly.
            let step = step.max(range.len().bytes().div_ceil(LOOKS_MAX)).max(1);
            let starts =
                (0..range.len().bytes().div_ceil(step)).map(|n| range.start().0 + n * step);
            starts.map(|start| from.index(Gpa(start))).collect()
        };
        Self(to.ranges().map(sources).collect())
    }

    /// What each cell of the new layout was.
    pub(crate) fn cells(&self, old: &[Cell]) -> Vec<Cell> {
        let cell = |index: &Option<usize>| {
            let cell = index.and_then(|index| old.get(index)).copied();
            (cell.unwrap_or(Cell::UNWATCHED), 1)
        };
        self.0.iter().map(|sources| Cell::mean(sources.iter().map(cell))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Kind;
    use memtide_units::ByteSize;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    #[test]
    fn cells_keep_their_addresses() {
        let small = Layout::new(&[range(0, 4)], 4).unwrap();
        let large = Layout::new(&[range(0, 4), range(8, 4)], 4).unwrap();
        assert_eq!((small.cell().mib(), large.cell().mib()), (1, 2));
        let [free, stolen] = [Cell::new(Kind::Free), Cell::new(Kind::Stolen)];
        let there = Remap::new(&small, &large).cells(&[free, free, stolen, stolen]);
        assert_eq!(there, [free, stolen, Cell::UNWATCHED, Cell::UNWATCHED]);
        let back = Remap::new(&large, &small).cells(&there);
        assert_eq!(back, [free, free, stolen, stolen]);
    }

    #[test]
    fn a_strangers_layouts_cost_a_bounded_look() {
        let all = GpaRange::new(Gpa(0), ByteSize::from_bytes(u64::MAX)).unwrap();
        let huge = Layout::checked(vec![all], ByteSize::from_bytes(1 << 55)).unwrap();
        let small = Layout::new(&[range(0, 512)], 512).unwrap();
        let map = Remap::new(&small, &huge);
        assert!(map.0.iter().all(|sources| sources.len() <= 16));
        assert_eq!(map.cells(&[Cell::new(Kind::Free); 512]).len(), 512);
    }
}
