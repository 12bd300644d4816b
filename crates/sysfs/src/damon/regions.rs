//! Reading what DAMON saw.

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

/// The regions of the last `update_schemes_tried_regions`, by ascending address.
pub(super) fn read(root: &Root) -> Result<Vec<Region>> {
    let dir = format!("{SCHEME}/tried_regions");
    let indices = root.numbers(&dir, "")?;
    let dir = root.dir(&dir)?;
    let mut regions = Vec::with_capacity(indices.len());
    for index in indices {
        regions.push(read_one(&dir, index)?);
    }
    regions.sort_by_key(|region: &Region| region.range.start());
    Ok(apart(&regions))
}

fn read_one(dir: &Dir, index: u64) -> Result<Region> {
    let number = |file: &str| dir.value::<u64>(&format!("{index}/{file}"), "a number");
    let small = |file: &str| dir.value::<u32>(&format!("{index}/{file}"), "a number of 32 bits");
    let (start, end) = (number("start")?, number("end")?);
    let len = ByteSize::from_bytes(end.saturating_sub(start));
    let range = GpaRange::new(Gpa(start), len).map_err(|_| {
        let read = format!("start {start} end {end}");
        Error::garbage(dir.path(&index.to_string()), "a start below its end", &read)
    })?;
    Ok(Region { range, nr_accesses: small("nr_accesses")?, age: small("age")? })
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
        let regions = read(&fake.root()).unwrap();
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
        let seen: Vec<_> = read(&fake.root()).unwrap();
        let ends: Vec<_> = seen.iter().map(|r| (r.range.start().0, r.range.end().0)).collect();
        assert_eq!(ends, [(0, 8192), (8192, 16384), (16384, 40960), (40960, 49152)]);
        assert_eq!(seen[3].nr_accesses, 3);
    }

    #[test]
    fn strange_regions_are_errors() {
        let fake = FakeRoot::new();
        assert!(read(&fake.root()).unwrap_err().is_missing());
        for values in [["2", "1", "0", "0"], ["x", "1", "0", "0"], ["0", "1", "4294967296", "0"]] {
            tried(&fake, 0, values);
            assert!(matches!(read(&fake.root()), Err(Error::Garbage { .. })), "{values:?}");
        }
    }
}
