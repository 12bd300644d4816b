//! Where the free memory and the kernel's own lies: `/proc/kpageflags`, a little at a time.
//!
//! How much is free is known to the byte from meminfo. Where it lies needs a look at every page, and that
//! is 2 MiB of reading per GiB of guest: so each look reads a few pages of a few cells, and after some
//! looks all cells were seen.

use memtide_access::{Layout, Mix};
use memtide_sysfs::Root;
use memtide_sysfs::kpageflags::{PageCensus, PageFlags};
use memtide_units::{ByteSize, Gpa, GpaRange, Permille};

/// Pages of one cell that are read in one look: 8 KiB of flags, for which Linux 7.3 executes 190,000
/// instructions.
const PAGES: u64 = 1024;
/// Cells of one look; and while some have not been seen at all.
const CELLS: usize = 8;
const CELLS_AT_FIRST: usize = 32;

/// Shares of one cell, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    free: u32,
    kernel: u32,
}

/// What has been seen so far.
#[derive(Debug)]
pub(super) struct Census {
    flags: Option<PageFlags>,
    page: ByteSize,
    layout: Option<Layout>,
    cells: Vec<Option<Seen>>,
    next: usize,
    /// Times that all cells have been looked at.
    round: u64,
}

impl Census {
    /// Nothing yet; where the kernel does not tell, never anything.
    pub(super) fn new(root: &Root) -> Self {
        Self {
            flags: PageFlags::open(root).ok(),
            page: ByteSize::from_bytes(rustix::param::page_size() as u64),
            layout: None,
            cells: Vec::new(),
            next: 0,
            round: 0,
        }
    }

    /// The shares of every cell, once all were looked at.
    pub(super) fn mix(&self, layout: &Layout) -> Option<Mix> {
        if self.layout.as_ref() != Some(layout) {
            return None;
        }
        let share = |seen: &Option<Seen>| {
            seen.map(|Seen { free, kernel }| (Permille(free), Permille(kernel)))
        };
        let shares: Option<Vec<_>> = self.cells.iter().map(share).collect();
        shares.map(Mix::new)
    }

    /// How much of `range` is not free, once all of its cells were looked at.
    pub(super) fn used_in(&self, range: GpaRange) -> Option<ByteSize> {
        let (mut seen, mut used) = (ByteSize::ZERO, ByteSize::ZERO);
        self.layout.as_ref()?.for_each(range, |n, bytes| {
            if let Some(Seen { free, .. }) = self.cells.get(n).copied().flatten() {
                let part = ByteSize::from_bytes(bytes);
                seen += part;
                used += part - Permille(free).of(part);
            }
        });
        (seen == range.len()).then_some(used)
    }

    /// Whether all cells were looked at.
    pub(super) fn is_whole(&self) -> bool {
        self.round > 0 || self.flags.is_none()
    }

    /// Looks at the next few cells.
    pub(super) fn look(&mut self, layout: &Layout) {
        if self.layout.as_ref() != Some(layout) {
            self.layout = Some(layout.clone());
            self.cells = vec![None; layout.cells()];
            (self.next, self.round) = (0, 0);
        }
        let Some(flags) = &self.flags else { return };
        let count = if self.round == 0 { CELLS_AT_FIRST } else { CELLS };
        for (n, cell) in layout.ranges().enumerate().skip(self.next).take(count) {
            let Ok(seen) = flags.census(part(cell, self.page, self.round)) else {
                self.flags = None;
                return;
            };
            self.cells[n] = Some(mixed(self.cells[n], shares(&seen)));
            self.next = n + 1;
        }
        if self.next >= self.cells.len() {
            (self.next, self.round) = (0, self.round + 1);
        }
    }
}

/// Some pages of a cell, others in each round: steps of the golden ratio fill it evenly.
fn part(cell: GpaRange, page: ByteSize, round: u64) -> GpaRange {
    let len = page.times(PAGES).min(cell.len());
    let places = (cell.len() - len).bytes() / page.bytes() + 1;
    let golden = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let place = (u128::from(golden) * u128::from(places)) >> 64;
    let offset = page.times(u64::try_from(place).unwrap_or(0));
    GpaRange::new(Gpa(cell.start().0 + offset.bytes()), len).unwrap_or(cell)
}

/// Shares of what is there: absent pages are of offline blocks and holes.
fn shares(seen: &PageCensus) -> Seen {
    let there = seen.total - seen.nopage;
    let share =
        |pages: u64| u32::try_from((pages * 1000).checked_div(there).unwrap_or(0)).unwrap_or(1000);
    // All that is not on the LRU lists DAMON does not see, whoever has it.
    let kernel = there - seen.free - seen.lru;
    Seen { free: share(seen.free), kernel: share(kernel) }
}

/// A look at a part tells of the whole by and by.
fn mixed(before: Option<Seen>, now: Seen) -> Seen {
    let Some(before) = before else { return now };
    let mean = |before: u32, now: u32| (before + now).div_ceil(2);
    Seen { free: mean(before.free, now.free), kernel: mean(before.kernel, now.kernel) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;
    use proptest::prelude::*;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    #[test]
    fn after_some_looks_every_cell_was_seen() {
        const BUDDY: u64 = 1 << 10;
        const LRU: u64 = 1 << 5;
        const SLAB: u64 = 1 << 7;
        let fake = FakeRoot::new();
        let per_mib = (1 << 20) / rustix::param::page_size();
        let mut flags = vec![SLAB; 16 * per_mib];
        flags.extend(vec![BUDDY; 32 * per_mib]);
        flags.extend(vec![LRU; 16 * per_mib]);
        fake.put_page_flags(0, &flags);
        let layout = Layout::new(&[range(0, 64)], 64).unwrap();
        let mut census = Census::new(&fake.root());
        census.look(&layout);
        assert_eq!(census.mix(&layout), None, "half of it is not known");
        assert_eq!(
            (census.used_in(range(8, 8)), census.used_in(range(56, 8))),
            (Some(ByteSize::from_mib(8)), None)
        );
        census.look(&layout);
        let share = |n| match n {
            0..16 => (Permille(0), Permille(1000)),
            16..48 => (Permille(1000), Permille(0)),
            _ => (Permille(0), Permille(0)),
        };
        assert_eq!(census.mix(&layout), Some(Mix::new((0..64).map(share))));
        let used = |mib, len| census.used_in(range(mib, len)).map(ByteSize::mib);
        assert_eq!([used(0, 16), used(16, 32), used(40, 16)], [Some(16), Some(0), Some(8)]);
        assert_eq!(used(60, 8), None, "half of it is not there");
        let other = Layout::new(&[range(0, 128)], 64).unwrap();
        assert_eq!(census.mix(&other), None);
    }

    #[test]
    fn a_kernel_that_does_not_tell_is_asked_no_more() {
        let layout = Layout::new(&[range(0, 64)], 64).unwrap();
        let mut census = Census::new(&FakeRoot::new().root());
        census.look(&layout);
        assert_eq!(census.mix(&layout), None);
    }

    proptest! {
        #[test]
        fn a_part_is_in_its_cell(start in 0_u64..1 << 40, pages in 1_u64..1 << 20, round: u64) {
            let page = ByteSize::from_kib(4);
            let cell = GpaRange::new(Gpa(start << 12), page.times(pages)).unwrap();
            let part = part(cell, page, round);
            prop_assert!(cell.contains(part) && part.len() <= page.times(PAGES));
        }
    }
}
