//! `/proc/vmstat`: the memory management's counters by name.

use std::ops::Range;

use crate::{Error, Result, Root};

const FILE: &str = "proc/vmstat";

/// Counters since boot, and some levels in pages. Which names exist depends on version and build,
/// so each is asked for by its own.
///
/// There are some 170, of which ten are asked for, once a second: so they stay in the text that they were read
/// in. A map by name took 200,000 instructions more, a fifth of what the agent itself executed in that second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmstat {
    text: String,
    /// Where in the text each name is, and its value.
    counters: Vec<(Range<usize>, u64)>,
}

impl Vmstat {
    /// Reads `/proc/vmstat`.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Garbage`] for a line that is not a name and a number.
    pub fn read(root: &Root) -> Result<Self> {
        let text = root.read(FILE)?;
        let counters = parse(&text)
            .map_err(|line| Error::garbage(root.path(FILE), "lines such as pgfault 1234", line))?;
        Ok(Self { text, counters })
    }

    /// The value of `name`, such as `pgmigrate_fail`, or `None` where this kernel counts no such thing.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.counters().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The sum of all counters whose names begin with `prefix`, such as `allocstall_`, which each zone
    /// has one of; `None` where there is no such counter.
    pub fn sum(&self, prefix: &str) -> Option<u64> {
        let of_it = self.counters().filter(|(name, _)| name.starts_with(prefix));
        of_it.map(|(_, value)| value).reduce(u64::saturating_add)
    }

    fn counters(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().map(|(name, value)| (&self.text[name.clone()], *value))
    }

    /// Processes that the OOM killer killed since boot.
    pub fn oom_kills(&self) -> u64 {
        self.get("oom_kill").unwrap_or(0)
    }

    /// Page faults since boot, minor and major.
    pub fn page_faults(&self) -> u64 {
        self.get("pgfault").unwrap_or(0)
    }

    /// Pages whose migration failed since boot: rises while an offline request gets nowhere.
    pub fn migrations_failed(&self) -> u64 {
        self.get("pgmigrate_fail").unwrap_or(0)
    }

    /// Pages that came back soon after they had been reclaimed: memory is short for the working set.
    pub fn refaults(&self) -> u64 {
        let kinds = ["workingset_refault_anon", "workingset_refault_file"];
        kinds.iter().filter_map(|name| self.get(name)).fold(0, u64::saturating_add)
    }

    /// Pages that hold `struct page`s, allocated at boot and later (kernels from 6.11 on): falls
    /// when a stolen block is removed.
    pub fn memmap_pages(&self) -> Option<u64> {
        Some(self.get("nr_memmap_pages")?.saturating_add(self.get("nr_memmap_boot_pages")?))
    }
}

/// Where the counters' names are, and their values; or the first line that is none.
fn parse(text: &str) -> std::result::Result<Vec<(Range<usize>, u64)>, &str> {
    let counter = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.len(), value.trim().parse().ok()?))
    };
    let mut counters = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let (len, value) = counter(line).ok_or_else(|| line.trim_end())?;
        counters.push((start..start + len, value));
        start += line.len();
    }
    Ok(counters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use proptest::prelude::*;

    #[test]
    fn counters_are_found_by_name_and_absent_ones_are_none() {
        let fake = FakeRoot::new();
        fake.put(
            FILE,
            "nr_free_pages 451053\nnr_memmap_pages 2048\nnr_memmap_boot_pages 4096\n\
            workingset_refault_anon 3\nworkingset_refault_file 4\npgmigrate_fail 379\noom_kill 0\n",
        );
        let vmstat = Vmstat::read(&fake.root()).unwrap();
        assert_eq!(vmstat.memmap_pages(), Some(6144));
        assert_eq!(vmstat.refaults(), 7);
        assert_eq!(vmstat.migrations_failed(), 379);
        assert_eq!(vmstat.get("pgscan_khugepaged"), None);
        assert_eq!((vmstat.sum("workingset_refault_"), vmstat.sum("x")), (Some(7), None));
    }

    #[test]
    fn a_kernel_that_counts_no_memmap_says_nothing_about_it() {
        let fake = FakeRoot::new();
        fake.put(FILE, "oom_kill 2\n");
        let vmstat = Vmstat::read(&fake.root()).unwrap();
        assert_eq!((vmstat.memmap_pages(), vmstat.oom_kills()), (None, 2));
    }

    #[test]
    fn absent_and_garbled_are_told_apart() {
        let fake = FakeRoot::new();
        assert!(Vmstat::read(&fake.root()).unwrap_err().is_missing());
        fake.put(FILE, "oom_kill 2\npgfault many\n");
        let error = Vmstat::read(&fake.root()).unwrap_err();
        assert!(matches!(error, Error::Garbage { read, .. } if read == "pgfault many"));
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "([a-z_]{0,9}|[ 0-9-]{0,24}|.|\n){0,24}") {
            let _ = parse(&text);
        }
    }
}
