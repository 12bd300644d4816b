//! A second kdamond that looks at single pages.
//!
//! The first one divides memory into regions and looks at one page of each at a time, at another one each
//! time: that tells where the warm and the cold memory lie. It does not tell how much is touched, for a region
//! counts as a whole. So this one watches a sample of pages, always the same ones, each a region by itself, and
//! counts how many of them were touched in the last half minute: their share is the share of all memory. Of
//! n pages that are found so the count is right within the square root of n, one time in three not: of a
//! working set that is a tenth of memory some 200 are, and its size is told within 7 %; closer where touched
//! pages lie together.
//!
//! A page is looked at every [`SAMPLE`] whatever happened to it before, so that the sum is right after the first
//! half minute. Each look of the other kdamond's at one of them hides what was touched before, until it is
//! touched again (mm/damon/ops-common.c, `damon_ptep_mkold`): with three hundred regions in a guest of
//! 2 GiB that is one look in three minutes.
//!
//! It has three schemes that do nothing but count what matches them: all, what was touched in the last
//! aggregation, and what was touched in one of those before.

use std::time::Duration;

use memtide_units::{ByteSize, Gpa, GpaRange, Pfn};

use super::monitor::{is_marked, is_on, turn_off};
use super::setup::{ANY, MIN_REGIONS};
use super::{DamonError, Intervals, KDAMONDS, RegionCount, put, setup};
use crate::{Result, Root};

/// Its number.
const SECOND: u64 = 1;
const KDAMOND: &str = "sys/kernel/mm/damon/admin/kdamonds/1";
/// The most pages of a sample. Each look costs some 2,000 instructions, and a page's directory in sysfs, while
/// it is made known to the kernel, half a KiB.
const PAGES_MAX: u64 = 2048;
/// Between two looks at a page. Whoever reads the counts waits for the end of one.
const SAMPLE: Duration = Duration::from_secs(2);
/// What is counted anew each time: five looks.
const AGGREGATION: Duration = Duration::from_secs(10);

/// What the schemes are for, in their order.
const ALL: u64 = 0;
const NOW: u64 = 1;
const LATELY: u64 = 2;

/// What was counted since the sample was drawn, in bytes of sampled pages: once for each of them in each
/// aggregation. Only the growth of each means something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCount {
    /// Whatever happened to them.
    pub looked_at: ByteSize,
    /// Those that were touched within the time that was asked for.
    pub touched: ByteSize,
}

/// Which pages can be in a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Any.
    Any,
    /// The first ones of each 2 MiB, which are the first of whatever large page they are part of: to a kernel
    /// before 6.15 all others of it are never touched (mm/damon/ops-common.c, `damon_get_folio`).
    Heads,
}

impl Pages {
    /// Of so many pages one can be in a sample.
    fn stride(self) -> u64 {
        match self {
            Self::Any => 1,
            Self::Heads => 512,
        }
    }
}

/// The kdamond, while it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampler;

impl Sampler {
    /// Has it look at a sample of these ranges from now on, where a page counts that was touched within this
    /// time; at least one aggregation is.
    pub(super) fn start(
        root: &Root,
        (memory, kind): (&[GpaRange], Pages),
        within: Duration,
    ) -> std::result::Result<Self, DamonError> {
        if is_on(root, SECOND)? && !is_marked(root, SECOND)? {
            return Err(DamonError::Taken);
        }
        turn_off(root, SECOND)?;
        let pages = pages(memory, PAGES_MAX, kind.stride());
        let intervals = Intervals { sample_us: micros(SAMPLE), aggr_us: micros(AGGREGATION) };
        // No more than there are, and no fewer than half as many: then none is divided or joined.
        let max = (pages.len() as u64).max(MIN_REGIONS);
        let count = RegionCount { min: MIN_REGIONS, max };
        setup::write_context(root, KDAMOND, (intervals, count), &pages)?;
        put(root, &at("schemes/nr_schemes"), 3)?;
        // Zero where a page was touched a moment ago, and one more with each aggregation.
        let windows = micros(within) / micros(AGGREGATION);
        setup::write_stat(root, &scheme(ALL), ANY, ANY)?;
        setup::write_stat(root, &scheme(NOW), (1, ANY.1), ANY)?;
        setup::write_stat(root, &scheme(LATELY), (0, 0), (0, windows.saturating_sub(2)))?;
        setup::write_mark(root, &scheme(ALL))?;
        root.write(format!("{KDAMOND}/state"), "on")?;
        // The kernel has taken them over; thousands of directories would lie there for nothing, but do no harm.
        let _ = put(root, &at("targets/0/regions/nr_regions"), 0);
        Ok(Self)
    }

    /// What it has counted. Waits until the end of a look at all pages.
    pub(super) fn count(self, root: &Root) -> std::result::Result<PageCount, DamonError> {
        if !is_marked(root, SECOND)? {
            return Err(DamonError::Taken);
        }
        root.write(format!("{KDAMOND}/state"), "update_schemes_stats")?;
        let tried = |number| -> Result<ByteSize> {
            let bytes = root.value(format!("{}/stats/sz_tried", scheme(number)), "a number");
            bytes.map(ByteSize::from_bytes)
        };
        Ok(PageCount { looked_at: tried(ALL)?, touched: tried(NOW)? + tried(LATELY)? })
    }
}

/// Makes room for both kdamonds.
pub(super) fn make(root: &Root) -> Result<()> {
    put(root, &format!("{KDAMONDS}/nr_kdamonds"), 2)
}

fn at(file: &str) -> String {
    format!("{KDAMOND}/contexts/0/{file}")
}

fn scheme(number: u64) -> String {
    at(&format!("schemes/{number}"))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One page of each of up to `most` equal parts of memory, at another place in each: what has a period of its own
/// does not meet the sample's. The places are multiples of the golden ratio, which lie as evenly as any
/// and are the same each time. Only every `stride`th page by its address can be one.
fn pages(memory: &[GpaRange], most: u64, stride: u64) -> Vec<GpaRange> {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = Pfn::SIZE.times(stride).bytes();
    // The places of a range: its first, and how many.
    let places = |range: &GpaRange| {
        let first = range.start().0.div_ceil(step) * step;
        (first, range.end().0.saturating_sub(first) / step)
    };
    let places: Vec<(u64, u64)> = memory.iter().map(places).collect();
    let total: u64 = places.iter().map(|(_, count)| count).sum();
    // Two pages next to each other might be joined by the kernel.
    let count = most.min(if stride == 1 { total / 2 } else { total });
    let bound = |part: u64| (u128::from(total) * u128::from(part) / u128::from(count)) as u64;
    let place = |part: u64| {
        let (start, end) = (bound(part), bound(part + 1));
        let offset = u128::from(part.wrapping_mul(GOLDEN)) * u128::from(end - start);
        start + (offset >> 64) as u64
    };
    let mut chosen = Vec::new();
    let mut ranges = places.iter();
    let mut current = ranges.next();
    // How many places lie before the current range.
    let mut before = 0;
    for index in (0..count).map(place) {
        while let Some((first, here)) = current {
            if index < before + here {
                let start = Gpa(first + (index - before) * step);
                chosen.extend(GpaRange::new(start, Pfn::SIZE).ok());
                break;
            }
            before += here;
            current = ranges.next();
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    #[test]
    fn a_sample_lies_evenly_in_all_memory() {
        let memory = [range(0, 3 << 10), range(4 << 10, 1 << 10)];
        let pages = pages(&memory, PAGES_MAX, 1);
        assert_eq!(pages.len(), 2048);
        let above = pages.iter().filter(|page| page.start().0 >= 4 << 30).count();
        assert_eq!(above, 512);
        // A period of 64 pages, of which the parts (2 MiB) are a multiple: as many in each quarter of it.
        let in_first_quarter = |page: &&GpaRange| page.start().0 / 4096 % 64 < 16;
        let found = pages.iter().filter(in_first_quarter).count();
        assert!((500..525).contains(&found), "{found}");
    }

    #[test]
    fn where_only_first_pages_are_seen_these_are_the_sample() {
        let pages = pages(&[range(3, 1023)], PAGES_MAX, 512);
        assert_eq!(pages.len(), 511, "each whole 2 MiB");
        assert!(pages.iter().all(|page| page.start().0 % (2 << 20) == 0));
    }

    #[test]
    fn little_memory_is_not_looked_at_twice() {
        let memory = [range(1, 2)];
        let pages = pages(&memory, PAGES_MAX, 1);
        assert_eq!(pages.len(), 256);
        assert!(pages.iter().all(|page| memory[0].contains(*page)));
        assert_eq!(super::pages(&[], PAGES_MAX, 1), []);
    }

    proptest! {
        #[test]
        fn any_memory_has_a_sample(
            lens in prop::collection::vec((0_u64..8, 1_u64..300), 1..6),
            most in 1_u64..600,
            stride in prop::sample::select(vec![1_u64, 512]),
        ) {
            let mut at = 0;
            let mut memory = vec![];
            for (gap, len) in lens {
                memory.push(range(at + gap, len));
                at += gap + len;
            }
            let chosen = pages(&memory, most, stride);
            let total: u64 = memory.iter().map(|range| range.len().mib() * 256).sum();
            if stride == 1 {
                prop_assert_eq!(chosen.len() as u64, most.min(total / 2));
            }
            prop_assert!(chosen.iter().all(|page| page.start().0 % (4096 * stride) == 0));
            prop_assert!(chosen.windows(2).all(|pair| pair[0].end() <= pair[1].start()));
            let is_inside = |page: &GpaRange| memory.iter().any(|range| range.contains(*page));
            prop_assert!(chosen.iter().all(is_inside));
        }
    }
}
