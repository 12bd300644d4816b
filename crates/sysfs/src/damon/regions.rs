//! Reading what DAMON saw.

use std::str::FromStr;

use memtide_units::{ByteSize, Gpa, GpaRange};

use super::SCHEME;
use crate::root::Dir;
use crate::{Error, Result, Root};

/// A range of memory whose pages DAMON takes to be used alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its addresses.
    pub range: GpaRange,
    /// In how many of an aggregation's samples it was seen used: 0 to `max_nr_accesses`. Free
    /// memory, the kernel's own and hugetlb pages are never seen used.
    pub nr_accesses: u32,
    /// For how many aggregation intervals it has been used as it is now.
    pub age: u32,
}

/// The regions of the last `update_schemes_tried_regions`, by ascending address, where DAMON watches these
/// ranges.
///
/// Each file of a region is new to the kernel, which executes some 25,000 instructions for it. So where regions end
/// is read only if it does not follow from where the next one begins: DAMON covers all of each range
/// (mm/damon/core.c, `damon_set_regions`; only what is adjacent is merged, `damon_merge_regions_of`).
pub(super) fn read(root: &Root, watched: &[GpaRange]) -> Result<Vec<Region>> {
    let dir = format!("{SCHEME}/tried_regions");
    let indices = root.numbers(&dir, "")?;
    let dir = root.dir(&dir)?;
    let mut starts = Vec::with_capacity(indices.len());
    for index in indices {
        starts.push((Gpa(number(&dir, index, "start")?), index));
    }
    starts.sort_unstable();
    let ranges = match total(&dir).and_then(|total| adjacent(&starts, watched, total)) {
        Some(ranges) => ranges,
        None => as_listed(&dir, &starts)?,
    };
    let mut regions = Vec::with_capacity(ranges.len());
    for (range, (_, index)) in ranges.into_iter().zip(starts) {
        let nr_accesses = number(&dir, index, "nr_accesses")?;
        regions.push(Region { range, nr_accesses, age: number(&dir, index, "age")? });
    }
    Ok(apart(&regions))
}

/// One file of a region's directory.
fn number<T: FromStr>(dir: &Dir, index: u64, file: &str) -> Result<T> {
    dir.value(&format!("{index}/{file}"), "a number of its size")
}

/// How much all listed regions are together, where the kernel tells (6.6 and later).
fn total(dir: &Dir) -> Option<ByteSize> {
    dir.value("total_bytes", "a number").ok().map(ByteSize::from_bytes)
}

/// What begins so, if each ends where the next begins or its range does, and that is as much as was listed.
fn adjacent(starts: &[(Gpa, u64)], watched: &[GpaRange], total: ByteSize) -> Option<Vec<GpaRange>> {
    let nexts = starts.iter().skip(1).map(|(next, _)| Some(*next)).chain([None]);
    let range = |((start, _), next): (&(Gpa, u64), Option<Gpa>)| {
        let around = watched.iter().find(|range| (range.start()..range.end()).contains(start))?;
        let end = next.map_or(around.end(), |next| next.min(around.end()));
        GpaRange::new(*start, ByteSize::from_bytes(end.0 - start.0)).ok()
    };
    let ranges: Vec<GpaRange> = starts.iter().zip(nexts).map(range).collect::<Option<_>>()?;
    (ranges.iter().map(|range| range.len()).sum::<ByteSize>() == total).then_some(ranges)
}

/// The same by what the kernel says.
fn as_listed(dir: &Dir, starts: &[(Gpa, u64)]) -> Result<Vec<GpaRange>> {
    let range = |(start, index): &(Gpa, u64)| {
        let end: u64 = number(dir, *index, "end")?;
        let len = ByteSize::from_bytes(end.saturating_sub(start.0));
        GpaRange::new(*start, len).map_err(|_| {
            let read = format!("start {} end {end}", start.0);
            Error::garbage(dir.path(&index.to_string()), "a start below its end", &read)
        })
    };
    starts.iter().map(range).collect()
}

/// The same without overlaps: each ends where the next begins. Where another scheme's quota ends within a
/// region, the kernel divides the region after it was listed, and lists what is left of it once more
/// (mm/damon/core.c, `damos_apply_scheme` within `damos_apply_target`).
fn apart(regions: &[Region]) -> Vec<Region> {
    let next = regions.iter().skip(1).map(|next| Some(next.range.start())).chain([None]);
    let cut = |(region, next): (&Region, Option<Gpa>)| {
        let (start, end) = (region.range.start(), region.range.end());
        let end = next.map_or(end, |next| end.min(next));
        let len = ByteSize::from_bytes(end.0 - start.0);
        GpaRange::new(start, len).ok().map(|range| Region { range, ..*region })
    };
    regions.iter().zip(next).filter_map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;

    fn tried(fake: &FakeRoot, index: u32, values: [&str; 4]) {
        for (file, value) in ["start", "end", "nr_accesses", "age"].iter().zip(values) {
            fake.put(&format!("{SCHEME}/tried_regions/{index}/{file}"), value);
        }
    }

    #[test]
    fn regions_come_by_address() {
        let fake = FakeRoot::new();
        tried(&fake, 0, ["8192\n", "12288\n", "20\n", "3\n"]);
        tried(&fake, 10, ["0\n", "4096\n", "0\n", "71\n"]);
        tried(&fake, 2, ["4096\n", "8192\n", "1\n", "0\n"]);
        fake.put(&format!("{SCHEME}/tried_regions/total_bytes"), "12288\n");
        let regions = read(&fake.root(), &[]).unwrap();
        let starts: Vec<u64> = regions.iter().map(|region| region.range.start().0).collect();
        assert_eq!(starts, [0, 4096, 8192]);
        assert_eq!((regions[0].nr_accesses, regions[0].age), (0, 71));
    }

    /// As Linux 7.3 lists them while a quota of 8 KiB is spent on regions that cost it nearly nothing.
    #[test]
    fn regions_that_were_divided_while_they_were_listed_do_not_overlap() {
        let fake = FakeRoot::new();
        let listed = [("0", "40960"), ("8192", "40960"), ("16384", "40960"), ("40960", "45056")];
        for (index, (start, end)) in (0..).zip(listed) {
            tried(&fake, index, [start, end, "0", "70"]);
        }
        tried(&fake, 9, ["40960", "49152", "3", "0"]);
        let seen: Vec<_> = read(&fake.root(), &[]).unwrap();
        let ends: Vec<_> = seen.iter().map(|r| (r.range.start().0, r.range.end().0)).collect();
        assert_eq!(ends, [(0, 8192), (8192, 16384), (16384, 40960), (40960, 49152)]);
        assert_eq!(seen[3].nr_accesses, 3);
    }

    /// A hole between two ranges, which no region reaches into.
    #[test]
    fn where_regions_end_follows_from_where_others_begin() {
        let page = |first: u64, count: u64| {
            GpaRange::new(Gpa(first << 12), ByteSize::from_bytes(count << 12)).unwrap()
        };
        let watched = [page(0, 4), page(8, 2)];
        let fake = FakeRoot::new();
        // Whoever reads the ends finds that they are none.
        tried(&fake, 0, ["0", "?", "0", "1"]);
        tried(&fake, 1, ["4096", "?", "0", "2"]);
        tried(&fake, 2, ["32768", "?", "0", "3"]);
        let total = format!("{SCHEME}/tried_regions/total_bytes");
        fake.put(&total, "24576\n");
        let ranges = |watched: &[GpaRange]| {
            let seen = read(&fake.root(), watched)?;
            Ok::<_, Error>(seen.iter().map(|region| region.range).collect::<Vec<_>>())
        };
        assert_eq!(ranges(&watched).unwrap(), [page(0, 1), page(1, 3), page(8, 2)]);
        assert!(ranges(&[page(0, 4)]).is_err(), "memory that is not known to be watched");
        fake.put(&total, "20480\n");
        assert!(ranges(&watched).is_err(), "less was listed than that");
        for (index, end) in [(0, "4096"), (1, "8192"), (2, "40960")] {
            fake.put(&format!("{SCHEME}/tried_regions/{index}/end"), end);
        }
        assert_eq!(ranges(&watched).unwrap(), [page(0, 1), page(1, 1), page(8, 2)]);
    }

    #[test]
    fn strange_regions_are_errors() {
        let fake = FakeRoot::new();
        assert!(read(&fake.root(), &[]).unwrap_err().is_missing());
        for values in [["2", "1", "0", "0"], ["x", "1", "0", "0"], ["0", "1", "4294967296", "0"]] {
            tried(&fake, 0, values);
            assert!(matches!(read(&fake.root(), &[]), Err(Error::Garbage { .. })), "{values:?}");
        }
    }
}
