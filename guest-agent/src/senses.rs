//! What the agent reads of its guest each time it looks.

use memtide_policy::guest::{Memory, PsiTotals};
use memtide_sysfs::meminfo::Meminfo;
use memtide_sysfs::psi::{Psi, PsiTrigger, Stall};
use memtide_sysfs::vmstat::Vmstat;
use memtide_sysfs::{Error, Root, virtio};
use memtide_units::{ByteSize, Pfn};
use memtide_wire::stats::Stat;

/// A trigger fires when some task stalls for 5 % of half a second, the shortest window that the
/// kernel takes: far over any goal, and heard at once instead of at the next look.
const TRIGGER_STALL_US: u64 = 25_000;
const TRIGGER_WINDOW_US: u64 = 500_000;

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `/proc/meminfo`.
    pub meminfo: Meminfo,
    /// `/proc/pressure/memory`, where the kernel has it.
    pub psi: Option<Psi>,
}

impl Reading {
    /// The policy's part of meminfo.
    pub fn memory(&self) -> Memory {
        let Meminfo { total, free, available, .. } = self.meminfo;
        Memory { total, free, available }
    }

    /// The policy's part of PSI.
    pub fn psi_totals(&self) -> Option<PsiTotals> {
        self.psi.map(|psi| PsiTotals { some_us: psi.some.total_us, full_us: psi.full.total_us })
    }
}

/// The files.
#[derive(Debug)]
pub struct Senses {
    root: Root,
    trigger: Option<PsiTrigger>,
}

impl Senses {
    /// Looks for PSI; answers also with why there is none, or no trigger, in a sentence.
    pub fn open(root: &Root) -> (Self, Option<String>) {
        let opened = Psi::read(root)
            .and_then(|_| PsiTrigger::open(root, Stall::Some, TRIGGER_STALL_US, TRIGGER_WINDOW_US));
        let (trigger, lack) = match opened {
            Ok(trigger) => (Some(trigger), None),
            Err(error) => (None, Some(error.to_string())),
        };
        (Self { root: root.clone(), trigger }, lack)
    }

    /// The trigger's descriptor, for poll(2).
    pub fn trigger(&self) -> Option<&PsiTrigger> {
        self.trigger.as_ref()
    }

    /// Looks. Without meminfo nothing can be decided; without PSI nothing is stolen.
    ///
    /// # Errors
    /// What [`Meminfo::read`] says.
    pub fn read(&self) -> Result<Reading, Error> {
        Ok(Reading { meminfo: Meminfo::read(&self.root)?, psi: Psi::read(&self.root).ok() })
    }

    /// Devices through which the kernel tells the host which pages are free. Where nobody knows, none.
    pub fn free_page_reporters(&self) -> Vec<String> {
        virtio::free_page_reporters(&self.root).unwrap_or_else(|error| {
            tracing::debug!("whether free pages are reported is not known: {error}");
            Vec::new()
        })
    }

    /// Tasks that the OOM killer has ended since boot; 0 where nobody counts.
    pub fn oom_kills(&self) -> u32 {
        let kills = Vmstat::read(&self.root).map_or(0, |vmstat| vmstat.oom_kills());
        u32::try_from(kills).unwrap_or(u32::MAX)
    }

    /// What `virtio_balloon` would tell its host: all statistics that this kernel counts
    /// (drivers/virtio/virtio_balloon.c, `update_balloon_stats`).
    pub fn statistics(&self) -> Vec<Stat> {
        let vmstat = Vmstat::read(&self.root).unwrap_or_default();
        let meminfo = Meminfo::read(&self.root).ok();
        let pages = |name: &str| vmstat.get(name).map(|n| Pfn::SIZE.times(n).bytes());
        let bytes = |size: fn(&Meminfo) -> ByteSize| meminfo.as_ref().map(|m| size(m).bytes());
        let values = [
            pages("pswpin"),
            pages("pswpout"),
            vmstat.get("pgmajfault"),
            vmstat.get("pgfault"),
            bytes(|meminfo| meminfo.free),
            bytes(|meminfo| meminfo.total),
            bytes(|meminfo| meminfo.available),
            pages("nr_file_pages"),
            vmstat.get("htlb_buddy_alloc_success"),
            vmstat.get("htlb_buddy_alloc_fail"),
            vmstat.get("oom_kill"),
            vmstat.sum("allocstall_"),
            pages("pgscan_kswapd"),
            pages("pgscan_direct"),
            pages("pgsteal_kswapd"),
            pages("pgsteal_direct"),
        ];
        let stat = |(tag, value): (u16, Option<u64>)| value.map(|value| Stat { tag, value });
        (0..).zip(values).filter_map(stat).collect()
    }

    /// Resident memory of this process.
    pub fn own_rss(&self) -> ByteSize {
        let text = self.root.read("proc/self/statm").unwrap_or_default();
        let pages = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok());
        ByteSize::from_bytes(rustix::param::page_size() as u64).times(pages.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;
    use memtide_sysfs::psi::Line;

    #[test]
    fn a_guest_without_psi_is_read_and_said_to_lack_it() {
        let fake = FakeRoot::new();
        let total = ByteSize::from_gib(1);
        fake.set_meminfo(Meminfo { total, ..Meminfo::default() });
        let (senses, lack) = Senses::open(&fake.root());
        assert!(lack.unwrap().contains("proc/pressure/memory"));
        assert!(senses.trigger().is_none());
        let reading = senses.read().unwrap();
        assert_eq!((reading.memory().total, reading.psi_totals()), (total, None));
    }

    #[test]
    fn the_host_gets_the_statistics_that_a_stock_driver_sends() {
        let fake = FakeRoot::new();
        let (total, free) = (ByteSize::from_mib(1000), ByteSize::from_mib(100));
        fake.set_meminfo(Meminfo { total, free, available: free, ..Meminfo::default() });
        fake.set_vmstat(&[
            ("pswpin", 2),
            ("pgfault", 7),
            ("nr_file_pages", 3),
            ("allocstall_normal", 4),
            ("allocstall_movable", 5),
            ("oom_kill", 1),
        ]);
        let stats = Senses::open(&fake.root()).0.statistics();
        let named: Vec<_> = stats.iter().map(|stat| (stat.name().unwrap(), stat.value)).collect();
        let expected = [
            ("swap_in", 8192),
            ("minor_faults", 7),
            ("free_memory", free.bytes()),
            ("total_memory", total.bytes()),
            ("available_memory", free.bytes()),
            ("disk_caches", 3 * 4096),
            ("oom_kill", 1),
            ("alloc_stall", 9),
        ];
        assert_eq!(named, expected);
    }

    #[test]
    fn pressure_and_kills_are_read() {
        let fake = FakeRoot::new();
        fake.set_meminfo(Meminfo::default());
        fake.set_vmstat(&[("oom_kill", 3)]);
        let some = Line { total_us: 77, ..Line::default() };
        fake.set_psi(Psi { some, ..Psi::default() });
        let (senses, lack) = Senses::open(&fake.root());
        assert_eq!(lack, None);
        let totals = PsiTotals { some_us: 77, full_us: 0 };
        assert_eq!(senses.read().unwrap().psi_totals(), Some(totals));
        assert_eq!(senses.oom_kills(), 3);
        assert!(senses.own_rss().is_zero(), "the fake has no statm");
    }
}
