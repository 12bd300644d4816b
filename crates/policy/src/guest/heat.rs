//! How much of each block was touched lately, from DAMON's regions.

use alloc::collections::BTreeMap;
use core::time::Duration;

use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange, Permille};

/// A region counts as working set until it has not been touched for this long.
const WORKING_SET_AGE: Duration = Duration::from_secs(30);
/// Least heat of a warm block: 1 % of its bytes touched in every sample, or all of them in one of
/// a hundred.
const WARM: Permille = Permille(10);
/// Least heat of a hot block.
const HOT: Permille = Permille(150);
/// A snapshot may name at most this many regions; DAMON's own default maximum.
const REGIONS_MAX: usize = 4096;

/// What one snapshot says about one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessRegion {
    /// Where.
    pub range: GpaRange,
    /// In how many of the samples of one aggregation it was found touched, as a share of them all.
    pub accessed: Permille,
    /// How long it has been like this.
    pub age: Duration,
}

/// How warm a block is. Ordered: what is stolen first is the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heat {
    /// Next to nothing in it is touched.
    Cold,
    /// Some of it is touched.
    Warm,
    /// Much of it is touched.
    Hot,
    /// Somebody has begun to watch, and has not looked yet: that is known within seconds, and nothing is
    /// stolen until then. For all that is known it is hot.
    Awaited,
}

/// Heat of every block, with a memory: it rises at once and halves with every second snapshot, so
/// that a block that is touched now and then does not look cold in between.
#[derive(Clone, Debug)]
pub struct HeatMap {
    block: BlockSize,
    blocks: BTreeMap<BlockId, u64>,
    working_set: Option<ByteSize>,
    /// Whether a first snapshot is about to come.
    is_awaited: bool,
}

impl HeatMap {
    /// Knows nothing yet.
    pub const fn new(block: BlockSize) -> Self {
        Self { block, blocks: BTreeMap::new(), working_set: None, is_awaited: false }
    }

    /// Somebody has begun to watch: a snapshot comes, or [`HeatMap::forget`].
    pub fn expect(&mut self) {
        self.is_awaited = true;
    }

    /// Takes one snapshot. Blocks that it does not name keep cooling down. Regions past the first
    /// 4096 are ignored.
    pub fn observe(&mut self, regions: &[AccessRegion]) {
        self.is_awaited = false;
        let regions = &regions[..regions.len().min(REGIONS_MAX)];
        let mut fresh = BTreeMap::new();
        for region in regions {
            self.spread(region, &mut fresh);
        }
        for heat in self.blocks.values_mut() {
            *heat -= *heat * 3 / 10;
        }
        for (block, heat) in fresh {
            let kept = self.blocks.entry(block).or_default();
            *kept = heat.max(*kept);
        }
        let in_set =
            |region: &&AccessRegion| region.accessed > Permille(0) || region.age < WORKING_SET_AGE;
        let set = regions.iter().filter(in_set).map(|region| region.range.len()).sum();
        self.working_set = Some(set);
    }

    /// Adds the touched bytes of one region, weighted by how often, to each block it lies in.
    fn spread(&self, region: &AccessRegion, touched: &mut BTreeMap<BlockId, u64>) {
        let last = self.block.block_of(memtide_units::Gpa(region.range.end().0 - 1));
        for id in self.block.block_of(region.range.start()).0..=last.0 {
            let overlap =
                self.block.range(BlockId(id)).and_then(|block| block.intersection(region.range));
            if let Some(overlap) = overlap {
                *touched.entry(BlockId(id)).or_default() +=
                    region.accessed.of(overlap.len()).bytes();
            }
        }
    }

    /// The heat of `block`, or `None` where no snapshot has named it and none is about to.
    pub fn heat(&self, block: BlockId) -> Option<Heat> {
        if self.is_awaited {
            return Some(Heat::Awaited);
        }
        let touched = ByteSize::from_bytes(*self.blocks.get(&block)?);
        Some(match touched {
            t if t >= HOT.of(self.block.size()) => Heat::Hot,
            t if t >= WARM.of(self.block.size()) => Heat::Warm,
            _ => Heat::Cold,
        })
    }

    /// Says what of the memory of the last snapshot is used by somebody, and how much of that was touched
    /// in the last half minute, as soon as that is known. DAMON alone cannot tell: it calls free memory,
    /// and what the kernel has for itself, touched a moment ago as soon as it begins to watch, or divides
    /// its regions otherwise; and what has just been freed is no working set any more.
    pub fn set_used(&mut self, used: ByteSize, touched: Option<ByteSize>) {
        self.working_set = self.working_set.map(|seen| seen.min(touched.unwrap_or(used)));
    }

    /// Bytes that were touched in the last half minute, by the last snapshot. For the first half
    /// minute of watching that is all that is used, or all that there is where nobody has said
    /// ([`HeatMap::set_used`]): nobody knows better, and the headroom caps it.
    pub const fn working_set(&self) -> Option<ByteSize> {
        self.working_set
    }

    /// Forgets everything: the monitor has ended, and old heat is worse than none.
    pub fn forget(&mut self) {
        self.blocks.clear();
        self.working_set = None;
        self.is_awaited = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::Gpa;
    use proptest::prelude::*;

    fn region(start_mib: u64, len_mib: u64, accessed: u32, age_s: u64) -> AccessRegion {
        let range = GpaRange::new(Gpa(start_mib << 20), ByteSize::from_mib(len_mib)).unwrap();
        AccessRegion { range, accessed: Permille(accessed), age: Duration::from_secs(age_s) }
    }

    #[test]
    fn a_region_heats_the_blocks_it_lies_in() {
        let mut map = HeatMap::new(BlockSize::X86_SMALL);
        map.observe(&[region(0, 128, 0, 90), region(128, 160, 1000, 90), region(288, 96, 0, 90)]);
        let heats: Vec<_> = (0..4).map(|n| map.heat(BlockId(n))).collect();
        assert_eq!(heats, [Some(Heat::Cold), Some(Heat::Hot), Some(Heat::Hot), None]);
        assert_eq!(map.working_set(), Some(ByteSize::from_mib(160)));
    }

    #[test]
    fn heat_rises_at_once_and_cools_slowly() {
        let mut map = HeatMap::new(BlockSize::X86_SMALL);
        map.observe(&[region(0, 128, 1000, 60)]);
        let mut seen = vec![];
        for _ in 0..16 {
            map.observe(&[region(0, 128, 0, 60)]);
            seen.push(map.heat(BlockId(0)).unwrap());
        }
        assert_eq!(seen[..5], [Heat::Hot; 5]);
        assert_eq!(seen[5..12], [Heat::Warm; 7]);
        assert_eq!(seen[12..], [Heat::Cold; 4]);
    }

    #[test]
    fn what_was_touched_half_a_minute_ago_is_still_working_set() {
        let mut map = HeatMap::new(BlockSize::X86_SMALL);
        map.observe(&[region(0, 100, 0, 29), region(100, 50, 0, 31), region(150, 10, 1, 900)]);
        assert_eq!(map.working_set(), Some(ByteSize::from_mib(110)));
        map.forget();
        assert_eq!((map.working_set(), map.heat(BlockId(0))), (None, None));
    }

    #[test]
    fn a_monitor_that_has_just_begun_says_nothing_of_any_block_before_its_first_snapshot() {
        let mut map = HeatMap::new(BlockSize::X86_SMALL);
        map.expect();
        assert_eq!(map.heat(BlockId(0)), Some(Heat::Awaited));
        map.observe(&[region(0, 128, 0, 90)]);
        assert_eq!((map.heat(BlockId(0)), map.heat(BlockId(1))), (Some(Heat::Cold), None));
        map.expect();
        map.forget();
        assert_eq!(map.heat(BlockId(0)), None, "it has ended, and nobody looks");
    }

    /// 400 MiB have just begun to be watched: 100 of them are free, and of what is used 50 turn out
    /// to be touched.
    #[test]
    fn young_free_memory_is_no_working_set() {
        let mut map = HeatMap::new(BlockSize::X86_SMALL);
        let mib = ByteSize::from_mib;
        map.set_used(mib(300), None);
        assert_eq!(map.working_set(), None, "nothing was seen");
        map.observe(&[region(0, 400, 0, 5)]);
        map.set_used(mib(300), None);
        assert_eq!(map.working_set(), Some(mib(300)));
        map.observe(&[region(0, 40, 900, 5), region(40, 360, 0, 20)]);
        map.set_used(mib(300), Some(mib(50)));
        assert_eq!(map.working_set(), Some(mib(50)));
        map.observe(&[region(0, 40, 900, 5), region(40, 360, 0, 90)]);
        map.set_used(mib(300), Some(mib(50)));
        assert_eq!(map.working_set(), Some(mib(40)), "never more than was seen");
    }

    proptest! {
        #[test]
        fn any_regions_are_taken(starts in prop::collection::vec((0_u64..1 << 20, 1_u64..4_000, 0_u32..2_000, 0_u64..100), 0..50)) {
            let mut map = HeatMap::new(BlockSize::X86_SMALL);
            let regions: Vec<_> = starts.iter().map(|&(s, l, a, t)| region(s, l, a, t)).collect();
            map.observe(&regions);
            prop_assert!(map.working_set().is_some());
        }
    }
}
