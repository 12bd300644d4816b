//! Guest memory as the model knows it: which addresses there are, and in what pieces they can go.

use memtide_units::{ByteSize, Gpa, GpaRange, Pfn};

use crate::range_set::RangeSet;

/// A part of guest memory with one kind of backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPart {
    /// Its guest-physical addresses.
    pub range: GpaRange,
    /// The smallest piece that the host can drop of it: its page size there, a power of two. What is
    /// below 4 KiB, the balloon's own unit, counts as 4 KiB.
    pub unit: ByteSize,
    /// Where in its file `range` starts: the host's pages begin at multiples of `unit` in the file,
    /// wherever they appear to the guest.
    pub file_offset: ByteSize,
}

impl MemoryPart {
    /// A part whose file begins at guest-physical address 0.
    pub fn new(range: GpaRange, unit: ByteSize) -> Self {
        Self { range, unit, file_offset: ByteSize::from_bytes(range.start().0) }
    }

    fn unit_bytes(&self) -> u64 {
        let unit = self.unit.bytes().max(Pfn::SIZE.bytes());
        unit.checked_next_power_of_two().unwrap_or(1 << 63)
    }

    /// Bytes from the start of its host page to `at`.
    fn offset_in_page(&self, at: Gpa) -> u64 {
        let into = at.0.wrapping_sub(self.range.start().0);
        into.wrapping_add(self.file_offset.bytes()) & (self.unit_bytes() - 1)
    }

    /// True where the host can drop each balloon page by itself.
    pub(crate) fn is_fine(&self) -> bool {
        self.unit_bytes() == Pfn::SIZE.bytes()
    }

    /// True where no balloon page lies in two host pages.
    pub(crate) fn holds_whole_frames(&self) -> bool {
        self.offset_in_page(Gpa(0)).is_multiple_of(Pfn::SIZE.bytes())
    }

    /// The host page that `at` lies in, unless that reaches out of this part.
    pub(crate) fn page_at(&self, at: Gpa) -> Option<GpaRange> {
        let start = at.0.checked_sub(self.offset_in_page(at))?;
        let page = GpaRange::new(Gpa(start), ByteSize::from_bytes(self.unit_bytes())).ok()?;
        self.range.contains(page).then_some(page)
    }

    /// The host pages that lie wholly in `piece`, which lies in this part.
    pub(crate) fn whole_pages(&self, piece: GpaRange) -> Option<GpaRange> {
        let unit = self.unit_bytes();
        let short = (unit - self.offset_in_page(piece.start())) & (unit - 1);
        let start = piece.start().0.checked_add(short)?;
        let end = piece.end().0.checked_sub(self.offset_in_page(piece.end()))?;
        let len = ByteSize::from_bytes(end.checked_sub(start)?);
        GpaRange::new(Gpa(start), len).ok().filter(|whole| piece.contains(*whole))
    }
}

/// All of guest memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    all: RangeSet,
    /// In address order, without overlaps.
    parts: Vec<MemoryPart>,
}

impl Layout {
    /// Of two parts that overlap the later one counts; a host does not state such.
    pub(crate) fn new(parts: impl IntoIterator<Item = MemoryPart>) -> Self {
        let mut parts: Vec<MemoryPart> = parts.into_iter().collect();
        parts.sort_by_key(|part| part.range.start());
        parts.dedup_by(|later, earlier| later.range.intersection(earlier.range).is_some());
        Self { all: parts.iter().map(|part| part.range).collect(), parts }
    }

    pub(crate) fn total(&self) -> ByteSize {
        self.all.total()
    }

    /// All guest memory, joined, in address order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.all.iter()
    }

    /// The largest unit: what is smaller is not sure to go. 4 KiB where there is no memory.
    pub(crate) fn largest_unit(&self) -> ByteSize {
        let units = self.parts.iter().map(|part| ByteSize::from_bytes(part.unit_bytes()));
        units.max().unwrap_or(Pfn::SIZE)
    }

    /// What of `range` is guest memory, cut where the backing changes.
    pub(crate) fn pieces(&self, range: GpaRange) -> impl Iterator<Item = (GpaRange, &MemoryPart)> {
        let first = self.parts.partition_point(|part| part.range.end() <= range.start());
        let touched = self.parts[first..].iter().take_while(move |p| p.range.start() < range.end());
        touched.filter_map(move |part| Some((part.range.intersection(range)?, part)))
    }

    /// What of `range` the host can drop: whole pages of its own, in as few ranges as they make.
    pub(crate) fn droppable(&self, range: GpaRange) -> Vec<GpaRange> {
        let mut whole = Vec::new();
        for (piece, part) in self.pieces(range) {
            part.whole_pages(piece).into_iter().for_each(|next| append(&mut whole, next));
        }
        whole
    }
}

/// Adds a range to those that are to go, as a part of the last one where it can be.
pub(crate) fn append(ranges: &mut Vec<GpaRange>, next: GpaRange) {
    match ranges.last_mut().and_then(|last| last.joined_with(next).map(|both| (last, both))) {
        Some((last, both)) => *last = both,
        None => ranges.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kib(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start << 10), ByteSize::from_kib(len)).unwrap()
    }

    fn part(range: GpaRange, unit: u64, offset: u64) -> MemoryPart {
        let (unit, file_offset) = (ByteSize::from_kib(unit), ByteSize::from_kib(offset));
        MemoryPart { range, unit, file_offset }
    }

    #[test]
    fn host_pages_are_counted_from_the_start_of_the_file() {
        // 16 KiB pages; the part begins 4 KiB into one.
        let shifted = part(kib(100, 60), 16, 4);
        assert_eq!(shifted.page_at(Gpa(112 << 10)), Some(kib(112, 16)));
        assert_eq!(shifted.page_at(Gpa(127 << 10)), Some(kib(112, 16)));
        assert_eq!(shifted.page_at(Gpa(100 << 10)), None, "it begins before the part");
        assert_eq!(shifted.whole_pages(kib(100, 60)), Some(kib(112, 48)));
        assert_eq!(shifted.whole_pages(kib(113, 20)), None);
    }

    #[test]
    fn each_part_goes_in_its_own_pieces() {
        let layout = Layout::new([part(kib(0, 64), 4, 0), part(kib(64, 64), 32, 64)]);
        assert_eq!(layout.largest_unit(), ByteSize::from_kib(32));
        assert_eq!(layout.droppable(kib(40, 50)), [kib(40, 24)]);
        assert_eq!(layout.droppable(kib(40, 60)), [kib(40, 56)], "joined where they touch");
        assert_eq!(layout.droppable(kib(41, 2)), []);
        assert_eq!(layout.ranges().collect::<Vec<_>>(), [kib(0, 128)]);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trap() {
        let last = GpaRange::new(Gpa(u64::MAX - 8191), ByteSize::from_bytes(8191)).unwrap();
        let huge = MemoryPart::new(last, ByteSize::from_bytes(1 << 30));
        assert_eq!((huge.page_at(last.start()), huge.whole_pages(last)), (None, None));
        let odd = MemoryPart { unit: ByteSize::MAX, ..huge };
        assert_eq!(odd.page_at(Gpa(u64::MAX - 1)), None);
    }
}
