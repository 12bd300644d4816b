//! What DAMON says of the simulated memory: regions, how often each was found touched, how long it
//! has been like that.
//!
//! DAMON looks at one page of a region in each sample and takes it for the region
//! (mm/damon/core.c). So a region of which half of the pages are touched between two samples comes out
//! at two of five, or three, or one: the noise here is that draw, not an invention on top.

use std::collections::BTreeMap;
use std::time::Duration;

use memtide_policy::guest::{AccessRegion, Census};
use memtide_units::{BlockId, ByteSize, Gpa, GpaRange, Instant, Permille};

use crate::chance::{Chance, Stream};
use crate::kernel::{Block, Kernel, Kind, PAGE, State};

/// Samples of one aggregation, as the agent has them taken.
const SAMPLES: u64 = 5;
/// Regions of a block: the agent asks for six at least and twenty-four at most, and DAMON splits some.
const REGIONS: u64 = 8;
/// Between two snapshots: two seconds of pause and an aggregation of one (guest-agent's
/// `damon_watch.rs`).
const PERIOD: Duration = Duration::from_secs(3);
/// Accesses that differ by more start a region's age anew: DAMON's threshold is a tenth of the
/// largest difference that there is, or one.
const SAME: u64 = 1;
/// Single pages that are watched besides, and for how long until it is told how many of them were touched
/// (docs/adr/0025).
const PAGES: u64 = 2048;
const COUNTED: Duration = Duration::from_secs(30);

/// Whether somebody watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// DAMON runs.
    Damon,
    /// The kernel has no DAMON (Debian 12's), or somebody else uses it.
    Nobody,
}

/// What was seen at one time.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Memory by region, ascending.
    pub regions: Vec<AccessRegion>,
    /// What is somebody's and can be moved.
    pub used: ByteSize,
    /// How much was touched in the last half minute, by a sample of pages, once there is one.
    pub touched: Option<ByteSize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    accesses: u64,
    since: Instant,
}

/// The monitor.
#[derive(Clone, Debug)]
pub struct Monitor {
    watch: Watch,
    chance: Chance,
    pages: Chance,
    known: BTreeMap<(BlockId, u64), Known>,
    next: Instant,
    touched: Option<ByteSize>,
    count_due: Instant,
}

impl Monitor {
    /// A monitor that has seen nothing yet.
    pub fn new(seed: u64, watch: Watch) -> Self {
        let [chance, pages] = [Stream::Monitor, Stream::Pages].map(|of| Chance::of(seed, of));
        let (next, count_due) = (Instant::default(), Instant::default() + COUNTED);
        Self { watch, chance, pages, known: BTreeMap::new(), next, touched: None, count_due }
    }

    /// Whether somebody watches.
    pub fn watch(&self) -> Watch {
        self.watch
    }

    /// A snapshot, when one is due.
    pub fn snapshot(&mut self, now: Instant, kernel: &Kernel) -> Option<Seen> {
        if self.watch == Watch::Nobody || now < self.next {
            return None;
        }
        self.next = now + PERIOD;
        let online = kernel.blocks().iter().filter(|block| block.state != State::Offline);
        let regions = online.flat_map(|block| self.regions(now, kernel, block)).collect();
        if now >= self.count_due {
            self.count_due = now + COUNTED;
            self.touched = Some(self.count(kernel));
        }
        let used = Kind::LISTED.iter().map(|kind| kernel.bytes_of(*kind)).sum();
        Some(Seen { regions, used, touched: self.touched })
    }

    /// What a sample of all pages, offline ones among them, says of how much is touched.
    fn count(&mut self, kernel: &Kernel) -> ByteSize {
        let touched = (kernel.bytes_of(Kind::Hot) + kernel.bytes_of(Kind::Cache)).bytes();
        let all: u64 = kernel.blocks().iter().map(|block| PAGE.times(block.pages()).bytes()).sum();
        let hits = (0..PAGES).filter(|_| self.pages.between(0, all - 1) < touched).count() as u64;
        ByteSize::from_bytes(all / PAGES * hits)
    }

    /// What a sample of a block's pages says of how many of them would have to be moved: the agent
    /// looks at a thousand of them now and then (guest-agent's `access/census.rs`), so it knows
    /// eighths. Pages that do not move look to it like any others.
    pub fn census(&self, kernel: &Kernel, block: &Block) -> Option<Census> {
        let eighth = block.pages() / 8;
        let to_migrate = block.to_migrate().div_ceil(eighth.max(1)) * eighth;
        let to_migrate = PAGE.times(to_migrate).min(kernel.unit().size());
        (self.watch == Watch::Damon).then_some(Census { to_migrate, unmovable_pages: 0 })
    }

    /// The agent was restarted, and DAMON with it: ages start from nothing.
    pub fn restart(&mut self, now: Instant) {
        self.known.clear();
        self.next = now + PERIOD;
        (self.touched, self.count_due) = (None, now + COUNTED);
    }

    fn regions(&mut self, now: Instant, kernel: &Kernel, block: &Block) -> Vec<AccessRegion> {
        let touched = block.of(Kind::Hot) + block.of(Kind::Cache);
        let pages = block.pages() / REGIONS;
        let start = kernel.unit().range(block.id).map_or(0, |range| range.start().0);
        (0..REGIONS)
            .filter_map(|n| {
                // What is touched lies together, from the block's beginning.
                let hot = touched.saturating_sub(n * pages).min(pages);
                let accesses = self.look(hot, pages);
                let age = self.age(now, (block.id, n), accesses);
                let at = Gpa(start + n * pages * PAGE.bytes());
                let range = GpaRange::new(at, PAGE.times(pages)).ok()?;
                let accessed = Permille(u32::try_from(accesses * 1000 / SAMPLES).unwrap_or(1000));
                Some(AccessRegion { range, accessed, age })
            })
            .collect()
    }

    /// How many of the samples hit a page that is touched.
    fn look(&mut self, hot: u64, pages: u64) -> u64 {
        if hot == 0 {
            return 0;
        }
        (0..SAMPLES).filter(|_| self.chance.between(0, pages - 1) < hot).count() as u64
    }

    fn age(&mut self, now: Instant, region: (BlockId, u64), accesses: u64) -> Duration {
        let known = self.known.entry(region).or_insert(Known { accesses, since: now });
        if known.accesses.abs_diff(accesses) > SAME || (known.accesses == 0) != (accesses == 0) {
            known.since = now;
        }
        known.accesses = accesses;
        now.since(known.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TICK;
    use crate::kernel::{Demand, Machine, Pace, Release, in_pages};
    use memtide_policy::guest::HeatMap;
    use memtide_units::{BlockSize, ByteSize};

    #[test]
    fn the_working_set_is_told_within_a_tenth_by_the_sample_of_pages() {
        let machine = Machine { pace: Pace::Hardware, release: Release::V7_3, cpus: 1 };
        let mut kernel = Kernel::boot(3, machine, BlockSize::X86_SMALL, 16);
        let demand = Demand { hot: in_pages(ByteSize::from_mib(400)), ..Demand::default() };
        let (mut now, mut monitor) = (Instant::default(), Monitor::new(3, Watch::Damon));
        let mut heat = HeatMap::new(BlockSize::X86_SMALL);
        for _ in 0..2_400 {
            now = now + TICK;
            kernel.tick(now, &demand);
            if let Some(seen) = monitor.snapshot(now, &kernel) {
                heat.observe(&seen.regions);
                heat.set_used(seen.used, seen.touched);
            }
        }
        let (found, truth) = (heat.working_set().unwrap().mib(), kernel.bytes_of(Kind::Hot).mib());
        assert!(found.abs_diff(truth) * 10 <= truth, "{found} of {truth} MiB");
    }
}
