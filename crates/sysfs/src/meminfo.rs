//! `/proc/meminfo`: how much memory there is and what it holds.

use memtide_units::ByteSize;

use crate::{Error, Result, Root};

const FILE: &str = "proc/meminfo";

/// The lines of `/proc/meminfo` that matter here (Documentation/filesystems/proc.rst, "meminfo").
/// A line that the kernel does not print, such as swap without `CONFIG_SWAP`, counts as zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meminfo {
    /// Memory that the kernel manages: falls by a block's size with each block taken offline.
    pub total: ByteSize,
    /// Unused.
    pub free: ByteSize,
    /// The kernel's estimate of what new work could have without swapping.
    pub available: ByteSize,
    /// Block device buffers.
    pub buffers: ByteSize,
    /// Page cache, shared memory included, swap cache excluded.
    pub cached: ByteSize,
    /// Anonymous memory mapped into processes.
    pub anon_pages: ByteSize,
    /// tmpfs and shared anonymous memory: in `cached`, though only swap can take it.
    pub shmem: ByteSize,
    /// Slab that shrinks under pressure.
    pub slab_reclaimable: ByteSize,
    /// Swap space.
    pub swap_total: ByteSize,
    /// Swap space that is unused.
    pub swap_free: ByteSize,
    /// What is in swap and was read since: its slots stay used while less than half of all swap is
    /// (mm/memory.c, `should_try_to_free_swap`).
    pub swap_cached: ByteSize,
}

impl Meminfo {
    /// What is in swap and nowhere else.
    pub fn swapped(&self) -> ByteSize {
        self.swap_total - self.swap_free - self.swap_cached
    }

    /// Reads `/proc/meminfo`; lines that it does not know are skipped.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Garbage`] where MemTotal, MemFree or MemAvailable is absent (a
    /// policy cannot act safely without them) or a wanted line does not count in kB.
    pub fn read(root: &Root) -> Result<Self> {
        let text = root.read(FILE)?;
        parse(&text).map_err(|expected| Error::garbage(root.path(FILE), expected, &text))
    }
}

fn parse(text: &str) -> std::result::Result<Meminfo, &'static str> {
    let mut info = Meminfo::default();
    let (mut total, mut free, mut available) = (None, None, None);
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let size = || kib(value).ok_or("sizes such as \"MemTotal: 2014592 kB\"");
        match name {
            "MemTotal" => total = Some(size()?),
            "MemFree" => free = Some(size()?),
            "MemAvailable" => available = Some(size()?),
            "Buffers" => info.buffers = size()?,
            "Cached" => info.cached = size()?,
            "AnonPages" => info.anon_pages = size()?,
            "Shmem" => info.shmem = size()?,
            "SReclaimable" => info.slab_reclaimable = size()?,
            "SwapTotal" => info.swap_total = size()?,
            "SwapFree" => info.swap_free = size()?,
            "SwapCached" => info.swap_cached = size()?,
            _ => {}
        }
    }
    info.total = total.ok_or("a line MemTotal")?;
    info.free = free.ok_or("a line MemFree")?;
    info.available = available.ok_or("a line MemAvailable")?;
    Ok(info)
}

/// `   2014592 kB`, where the kernel's kB are 1024 bytes.
fn kib(value: &str) -> Option<ByteSize> {
    value.trim().strip_suffix(" kB")?.trim().parse().ok().map(ByteSize::from_kib)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use proptest::prelude::*;

    /// A 2 GiB guest, shortened.
    const GUEST: &str = "MemTotal:        1972356 kB\nMemFree:         1804212 kB\n\
        MemAvailable:    1811004 kB\nBuffers:            1024 kB\nCached:            48812 kB\n\
        AnonPages:         20480 kB\nShmem:              4096 kB\nSReclaimable:       9000 kB\n\
        SwapCached:           10 kB\nSwapTotal:           100 kB\nSwapFree:             60 kB\nHugePages_Total:       0\n";

    #[test]
    fn sizes_are_in_units_of_1024_bytes_and_strange_lines_are_skipped() {
        let fake = FakeRoot::new();
        fake.put(FILE, GUEST);
        let info = Meminfo::read(&fake.root()).unwrap();
        assert_eq!(info.total, ByteSize::from_kib(1_972_356));
        assert_eq!(info.available, ByteSize::from_kib(1_811_004));
        assert_eq!(info.shmem, ByteSize::from_mib(4));
        assert_eq!(info.swapped(), ByteSize::from_kib(30));
    }

    #[test]
    fn a_kernel_without_swap_prints_no_swap_lines() {
        let fake = FakeRoot::new();
        fake.put(FILE, &GUEST.replace("Swap", "Other"));
        assert_eq!(Meminfo::read(&fake.root()).unwrap().swap_total, ByteSize::ZERO);
    }

    #[test]
    fn what_a_policy_needs_must_be_there() {
        let fake = FakeRoot::new();
        assert!(Meminfo::read(&fake.root()).unwrap_err().is_missing());
        for name in ["MemTotal", "MemFree", "MemAvailable"] {
            fake.put(FILE, &GUEST.replace(name, "Renamed"));
            let error = Meminfo::read(&fake.root()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        fake.put(FILE, &GUEST.replace("1804212 kB", "lots"));
        assert!(matches!(Meminfo::read(&fake.root()), Err(Error::Garbage { .. })));
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "(Mem(Total|Free|Available):|[ 0-9]{0,24}| kB|.|\n){0,24}") {
            let _ = parse(&text);
        }
    }
}
