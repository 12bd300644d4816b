//! One snapshot, boiled down: a cell per piece of memory, and how much lay idle for how long.
//!
//! DAMON sees no access to what is free, nor to most of what the kernel has for itself (it looks at
//! pages of the LRU lists; mm/damon/ops-common.c, `damon_get_folio`), so both look like cold memory. They
//! are told apart here. Within a cell, what is stolen, free or the kernel's is taken from what DAMON
//! calls idle, from all of that in proportion: it cannot lie in what was seen touched.

use std::time::Duration;

use memtide_units::{ByteSize, GpaRange, Permille};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Sum};
use crate::layout::Layout;
use crate::region::{Region, Temperature};

/// Regions of one snapshot that are looked at, at most; the agent asks DAMON for 3000.
const REGIONS_MAX: usize = 4096;
/// The tail: how much was untouched for so many seconds.
pub const TAIL_S: [u64; 3] = [30, 120, 600];
/// Of which shares of the used memory the idle time is told, in percent.
pub const PERCENTS: [u64; 5] = [1, 25, 50, 75, 99];
/// Memory is working set until it has not been touched for this long; and before somebody has watched
/// for this long, nobody knows.
pub const WORKING_SET_AGE: Duration = Duration::from_secs(TAIL_S[0]);
const WORKING_SET_MS: u64 = TAIL_S[0] * 1000;

/// What a look at the guest has found.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// When.
    pub at_ms: u64,
    /// How long DAMON has been watching.
    pub watched: Duration,
    /// Its regions.
    pub regions: &'a [Region],
    /// What the guest does not have, ascending.
    pub stolen: &'a [GpaRange],
    /// `MemFree`.
    pub free: ByteSize,
    /// Where the free memory and the kernel's own lie, where somebody has looked.
    pub mix: Option<&'a Mix>,
    /// How much was touched in the last half minute, where somebody has looked at single pages; otherwise regions
    /// count as a whole.
    pub touched: Option<ByteSize>,
}

/// For every cell of a layout the shares of its memory that are free, and that are the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mix(Vec<[u16; 2]>);

impl Mix {
    /// Shares in thousandths, cell by cell: free, the kernel's.
    pub fn new(shares: impl IntoIterator<Item = (Permille, Permille)>) -> Self {
        let share = |share: Permille| share.0.min(1000) as u16;
        Self(shares.into_iter().map(|(free, kernel)| [share(free), share(kernel)]).collect())
    }

    fn of(&self, cell: usize) -> (Permille, Permille) {
        let [free, kernel] = self.0.get(cell).copied().unwrap_or_default();
        (Permille(u32::from(free)), Permille(u32::from(kernel)))
    }
}

/// Amounts of memory at one time. `present` is the sum of `stolen`, `free`, `kernel` and `used`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// All that the guest could have.
    pub present: ByteSize,
    /// Offline.
    pub stolen: ByteSize,
    /// Free.
    pub free: ByteSize,
    /// The kernel's own, huge pages that are set aside among it, where somebody has looked.
    pub kernel: Option<ByteSize>,
    /// All else: of programs and of the page cache, and the kernel's where nobody has looked.
    pub used: ByteSize,
    /// The working set: what of it was touched in the last 30 s, once somebody has watched for so long.
    pub touched: Option<ByteSize>,
    /// How much of it was not touched for each of the times of [`TAIL_S`], or longer.
    pub untouched: [ByteSize; 3],
    /// For how long each of the shares of [`PERCENTS`] was not touched, at most, in milliseconds.
    pub idle_ms: [u64; 5],
}

/// One snapshot, boiled down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Digest {
    /// When.
    pub at_ms: u64,
    /// How long DAMON has been watching, in milliseconds. No idle time can be longer.
    pub watched_ms: u64,
    /// How much.
    pub amounts: Amounts,
    /// Where: what the cells are.
    pub layout: Layout,
    /// One for each of the layout's.
    pub cells: Vec<Cell>,
}

/// What a digest looks like before anybody has checked it.
#[derive(Serialize, Deserialize)]
struct Raw {
    at_ms: u64,
    watched_ms: u64,
    amounts: Amounts,
    layout: Layout,
    #[serde(with = "crate::file::text")]
    cells: Vec<Cell>,
}

/// A digest whose cells are not those of its layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} cells were told of, and the layout has {wanted}")]
pub struct CellsError {
    found: usize,
    wanted: usize,
}

impl TryFrom<Raw> for Digest {
    type Error = CellsError;
    fn try_from(raw: Raw) -> Result<Self, CellsError> {
        let Raw { at_ms, watched_ms, amounts, layout, cells } = raw;
        Self { at_ms, watched_ms, amounts, layout, cells }.checked()
    }
}

impl From<Digest> for Raw {
    fn from(digest: Digest) -> Self {
        let Digest { at_ms, watched_ms, amounts, layout, cells } = digest;
        Self { at_ms, watched_ms, amounts, layout, cells }
    }
}

/// What has been added up for one cell, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Heap {
    len: u64,
    touched: u64,
    idle: u64,
    stolen: u64,
    free: u64,
    kernel: u64,
    sum: Sum,
}

impl Heap {
    fn add_stolen(&mut self, bytes: u64) {
        self.stolen = self.stolen.saturating_add(bytes).min(self.len);
    }

    /// Regions do not overlap, so that no cell gets more than it is long; if they do all the same, what
    /// is over counts for nothing.
    fn add(&mut self, region: &Region, bytes: u64) {
        let bytes = bytes.min(self.len.saturating_sub(self.touched).saturating_sub(self.idle));
        if region.accessed > Permille(0) {
            self.touched += bytes;
            self.sum.rate += u128::from(region.accessed.0.min(1000)) * u128::from(bytes);
        } else {
            self.idle += bytes;
        }
        let temperature = Temperature::new(region.accessed, region.age);
        let sum = i128::from(temperature.0) * i128::from(bytes);
        self.sum.temperature = self.sum.temperature.saturating_add(sum);
    }

    fn online(&self) -> u64 {
        self.len - self.stolen
    }

    /// What of its idle memory can be free or the kernel's.
    fn idle_online(&self) -> u64 {
        self.idle.min(self.online().saturating_sub(self.touched))
    }

    /// What of its idle memory is used by somebody.
    fn idle_used(&self) -> u64 {
        self.idle_online().saturating_sub(self.free).saturating_sub(self.kernel)
    }

    fn cell(&self) -> Cell {
        let seen = self.touched + self.idle;
        let used = self.touched + self.idle_used();
        let unwatched = self.online().saturating_sub(seen + self.free + self.kernel);
        let sum = Sum {
            stolen: self.stolen,
            free: self.free,
            kernel: self.kernel,
            used,
            unwatched,
            rate: self.sum.rate,
            // Over all that was seen; of what is used the mean is the same as far as anybody knows.
            temperature: scaled(self.sum.temperature, used, seen),
        };
        Cell::new(sum.kind())
    }
}

fn scaled(value: i128, part: u64, whole: u64) -> i128 {
    if whole == 0 { 0 } else { value.saturating_mul(i128::from(part)) / i128::from(whole) }
}

fn share(value: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(value) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

impl Digest {
    /// One that somebody else has made.
    ///
    /// # Errors
    /// [`CellsError`] where there is not one cell for each of the layout's.
    pub fn checked(self) -> Result<Self, CellsError> {
        let (found, wanted) = (self.cells.len(), self.layout.cells());
        if found == wanted { Ok(self) } else { Err(CellsError { found, wanted }) }
    }

    /// Boils a snapshot down to the cells of `layout`. Of more than 4096 regions the rest is not seen.
    pub fn of(layout: Layout, seen: &Snapshot<'_>) -> Self {
        let regions = &seen.regions[..seen.regions.len().min(REGIONS_MAX)];
        let mut heaps = heaps(&layout, regions, seen.stolen);
        share_out(&mut heaps, seen);
        let idle = idle_times(&layout, seen.touched, regions, &heaps);
        let is_known = seen.watched >= WORKING_SET_AGE;
        Self {
            at_ms: seen.at_ms,
            watched_ms: millis(seen.watched),
            amounts: amounts(&layout, &heaps, seen, &idle, is_known),
            cells: heaps.iter().map(Heap::cell).collect(),
            layout,
        }
    }
}

fn heaps(layout: &Layout, regions: &[Region], stolen: &[GpaRange]) -> Vec<Heap> {
    let heap = |range: GpaRange| Heap { len: range.len().bytes(), ..Heap::default() };
    let mut heaps: Vec<Heap> = layout.ranges().map(heap).collect();
    for range in stolen {
        layout.for_each(*range, |cell, bytes| heaps[cell].add_stolen(bytes));
    }
    for region in regions {
        layout.for_each(region.range, |cell, bytes| heaps[cell].add(region, bytes));
    }
    heaps
}

/// Says of every cell how much of it is free and the kernel's. All that is free is known to the byte;
/// where it lies is known where somebody has looked, and anywhere in idle memory otherwise.
fn share_out(heaps: &mut [Heap], seen: &Snapshot<'_>) {
    let weight = |(n, heap): (usize, &Heap)| match seen.mix {
        Some(mix) => mix.of(n).0.of(ByteSize::from_bytes(heap.online())).bytes(),
        None => heap.idle_online(),
    };
    let weights: Vec<u64> = heaps.iter().enumerate().map(weight).collect();
    let total: u64 = weights.iter().fold(0, |sum, weight| sum.saturating_add(*weight));
    for (n, heap) in heaps.iter_mut().enumerate() {
        heap.free = share(seen.free.bytes(), weights[n], total).min(heap.idle_online());
        if let Some(mix) = seen.mix {
            let kernel = mix.of(n).1.of(ByteSize::from_bytes(heap.online())).bytes();
            heap.kernel = kernel.min(heap.idle_online() - heap.free);
        }
    }
}

/// Used bytes by how long they were idle, ascending; what is touched comes first, with no time. Where it is known
/// how much was touched in the last half minute, so much of what was idle for the shortest time was,
/// wherever it lies, and the rest was not.
fn idle_times(
    layout: &Layout,
    touched: Option<ByteSize>,
    regions: &[Region],
    heaps: &[Heap],
) -> Vec<(u64, u64)> {
    let time = |region: &Region| {
        let mut used = 0_u64;
        layout.for_each(region.range, |cell, part| {
            let heap = &heaps[cell];
            used = used.saturating_add(match region.accessed {
                Permille(0) => share(part, heap.idle_used(), heap.idle),
                _ => part,
            });
        });
        (millis(region.idle()), used)
    };
    let mut times: Vec<(u64, u64)> = regions.iter().map(time).collect();
    times.sort_unstable();
    match touched {
        Some(touched) => by_pages(&times, touched.bytes()),
        None => times,
    }
}

/// The same times, ascending as before, where the first `touched` bytes are working set and no others.
fn by_pages(times: &[(u64, u64)], mut touched: u64) -> Vec<(u64, u64)> {
    let mut told = Vec::with_capacity(2 * times.len());
    for &(ms, used) in times {
        let in_set = used.min(touched);
        touched -= in_set;
        told.push((ms.min(WORKING_SET_MS - 1), in_set));
        told.push((ms.max(WORKING_SET_MS), used - in_set));
    }
    told.retain(|(_, used)| *used > 0);
    told
}

fn amounts(
    layout: &Layout,
    heaps: &[Heap],
    seen: &Snapshot<'_>,
    idle: &[(u64, u64)],
    is_known: bool,
) -> Amounts {
    let sum = |part: fn(&Heap) -> u64| ByteSize::from_bytes(heaps.iter().map(part).sum());
    let present = layout.present();
    let stolen = sum(|heap| heap.stolen);
    let free = seen.free.min(present - stolen);
    let kernel = seen.mix.is_some().then(|| sum(|heap| heap.kernel).min(present - stolen - free));
    let used = present - stolen - free - kernel.unwrap_or_default();
    let longer = |ms: u64| {
        let bytes = idle.iter().filter(|(time, _)| *time >= ms).map(|(_, bytes)| bytes).sum();
        ByteSize::from_bytes(bytes).min(used)
    };
    let known: u64 = idle.iter().map(|(_, bytes)| bytes).sum();
    let touched = ByteSize::from_bytes(known) - longer(WORKING_SET_MS);
    Amounts {
        present,
        stolen,
        free,
        kernel,
        used,
        touched: is_known.then_some(touched.min(used)),
        untouched: TAIL_S.map(|seconds| longer(seconds * 1000)),
        idle_ms: PERCENTS.map(|percent| percentile(idle, percent)),
    }
}

/// The value that `percent` of all weight does not pass, of values in ascending order; 0 of none.
pub(crate) fn percentile(values: &[(u64, u64)], percent: u64) -> u64 {
    let total: u128 = values.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let mut passed = 0;
    for (value, weight) in values.iter().filter(|(_, weight)| *weight > 0) {
        passed += u128::from(*weight);
        if passed * 100 >= total * u128::from(percent) {
            return *value;
        }
    }
    values.last().map_or(0, |(value, _)| *value)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Shade;
    use crate::layout::CELLS_MAX;
    use memtide_units::Gpa;
    use proptest::prelude::*;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    fn region(mib: u64, len: u64, accessed: u32, age_s: u64) -> Region {
        Region {
            range: range(mib, len),
            accessed: Permille(accessed),
            age: Duration::from_secs(age_s),
        }
    }

    fn snapshot<'a>(regions: &'a [Region], stolen: &'a [GpaRange], free_mib: u64) -> Snapshot<'a> {
        Snapshot {
            at_ms: 900_000,
            watched: Duration::from_secs(900),
            regions,
            stolen,
            free: ByteSize::from_mib(free_mib),
            mix: None,
            touched: None,
        }
    }

    fn layout() -> Layout {
        Layout::new(&[range(0, 400)], CELLS_MAX).unwrap()
    }

    fn mib(size: ByteSize) -> u64 {
        size.mib()
    }

    /// 100 MiB hot, 200 MiB idle for a quarter of an hour of which half is free, 100 MiB stolen.
    #[test]
    fn free_memory_is_no_cold_memory() {
        let regions = [region(0, 100, 800, 60), region(100, 200, 0, 900), region(300, 100, 0, 900)];
        let stolen = [range(300, 100)];
        let digest = Digest::of(layout(), &snapshot(&regions, &stolen, 100));
        let seen = digest.amounts;
        assert_eq!((mib(seen.stolen), mib(seen.free), mib(seen.used)), (100, 100, 200));
        assert_eq!(seen.touched.map(mib), Some(100));
        assert_eq!(seen.untouched.map(mib), [100, 100, 100]);
        assert_eq!(seen.idle_ms, [0, 0, 0, 900_000, 900_000]);
        assert_eq!(digest.cells[0].shade(), Shade::Level(9));
        assert_eq!(digest.cells[399].shade(), Shade::Stolen);
    }

    #[test]
    fn a_census_says_where_the_free_and_the_kernels_memory_lies() {
        let regions = [region(0, 200, 0, 45), region(200, 200, 0, 700)];
        let shares = (0..400).map(|n| match n {
            0..100 => (Permille(0), Permille(1000)),
            300.. => (Permille(900), Permille(0)),
            _ => (Permille(0), Permille(0)),
        });
        let mix = Mix::new(shares);
        let seen = Snapshot { mix: Some(&mix), ..snapshot(&regions, &[], 100) };
        let digest = Digest::of(layout(), &seen);
        let shades = [50, 150, 250, 350].map(|n: usize| digest.cells[n].shade());
        assert_eq!(shades, [Shade::Kernel, Shade::Level(4), Shade::Level(0), Shade::Free]);
        let seen = digest.amounts;
        assert_eq!((seen.kernel.map(mib), mib(seen.used)), (Some(100), 200));
        assert_eq!(seen.untouched.map(mib), [200, 100, 100]);
        assert_eq!(seen.touched.map(mib), Some(0));
    }

    /// One page in use has a megabyte around it called touched.
    #[test]
    fn the_working_set_is_what_single_pages_say() {
        let regions = [region(0, 100, 800, 60), region(100, 100, 0, 10), region(200, 200, 0, 900)];
        let told = |pages: Option<u64>, free_mib| {
            let touched = pages.map(ByteSize::from_mib);
            let seen = Snapshot { touched, ..snapshot(&regions, &[], free_mib) };
            let Amounts { touched, untouched, .. } = Digest::of(layout(), &seen).amounts;
            (touched.map(mib), untouched.map(mib))
        };
        assert_eq!(told(None, 0), (Some(200), [200; 3]));
        assert_eq!(told(Some(105), 0), (Some(105), [295, 200, 200]));
        assert_eq!(told(Some(60), 0), (Some(60), [340, 200, 200]), "not all of what is hot is");
        assert_eq!(told(Some(250), 0), (Some(250), [150; 3]), "some of what looks idle is touched");
        // Half of what is idle is free.
        assert_eq!(told(Some(105), 150), (Some(105), [145, 100, 100]));
        assert_eq!(told(Some(390), 150), (Some(250), [0; 3]), "no more than there is");
    }

    #[test]
    fn nobody_knows_the_working_set_before_it_was_watched_for_long_enough() {
        let regions = [region(0, 400, 0, 10)];
        let watched = Duration::from_secs(10);
        let early = Digest::of(layout(), &Snapshot { watched, ..snapshot(&regions, &[], 0) });
        assert_eq!(early.amounts.touched, None);
        let none = Digest::of(layout(), &snapshot(&[], &[], 50));
        assert_eq!(none.cells[7].shade(), Shade::Unwatched);
    }

    #[test]
    fn percentiles_count_by_weight() {
        let values = [(1, 10), (5, 0), (7, 80), (9, 10)];
        let found = [0, 10, 11, 50, 90, 91, 100].map(|percent| percentile(&values, percent));
        assert_eq!(found, [1, 1, 7, 7, 7, 9, 9]);
        assert_eq!(percentile(&[], 50), 0);
    }

    proptest! {
        #[test]
        fn amounts_add_up_whatever_is_claimed(
            regions in prop::collection::vec((0_u64..1000, 1_u64..600, 0_u32..1200, any::<u32>()), 0..40),
            stolen in 0_u64..500, free in 0_u64..2000, looked: bool,
        ) {
            let regions: Vec<_> = regions.iter().map(|&(s, l, a, t)| region(s, l, a, t.into())).collect();
            let stolen: Vec<_> = (stolen > 0).then(|| range(400 - stolen.min(400), stolen)).into_iter().collect();
            let mix = Mix::new((0..400).map(|n| (Permille(n * 3), Permille(n * 5 % 900))));
            let touched = looked.then_some(ByteSize::from_mib(free % 700));
            let seen = Snapshot { mix: looked.then_some(&mix), touched, ..snapshot(&regions, &stolen, free) };
            let Digest { amounts, cells, .. } = Digest::of(layout(), &seen);
            prop_assert_eq!(cells.len(), 400);
            let parts = amounts.stolen + amounts.free + amounts.kernel.unwrap_or_default() + amounts.used;
            prop_assert_eq!(parts, amounts.present);
            prop_assert!(amounts.touched.is_none_or(|touched| touched <= amounts.used));
            prop_assert!(amounts.untouched.is_sorted_by(|a, b| a >= b) && amounts.untouched[0] <= amounts.used);
            prop_assert!(amounts.idle_ms.is_sorted());
        }
    }
}
