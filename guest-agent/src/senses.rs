//! What the agent reads of its guest each time it looks.

use std::time::Duration;

use memtide_policy::guest::{Memory, PsiTotals, Squeeze};
use memtide_sysfs::cpu::CpuTimes;
use memtide_sysfs::meminfo::Meminfo;
use memtide_sysfs::psi::{Psi, PsiTrigger, Stall};
use memtide_sysfs::vmstat::Vmstat;
use memtide_sysfs::{Error, Root, virtio};
use memtide_units::{ByteSize, Instant, Pfn};
use memtide_wire::stats::Stat;

use crate::status::Lack;

/// A trigger fires when some task stalls for 5 % of half a second, the shortest window that the
/// kernel takes: far over any goal, and heard at once instead of at the next look.
const TRIGGER_STALL_US: u64 = 25_000;
const TRIGGER_WINDOW_US: u64 = 500_000;

/// `/proc/vmstat` is read so often where nobody stalls; the kernel adds up some hundred counters of
/// all processors for it.
const COUNTS_APART: Duration = Duration::from_secs(1);

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `/proc/meminfo`.
    pub meminfo: Meminfo,
    /// `/proc/pressure/memory`, where the kernel has it.
    pub psi: Option<Psi>,
    /// What `/proc/vmstat` counts, and when it was read.
    counted: Option<(Instant, Counted)>,
}

/// What is wanted of `/proc/vmstat` all the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    squeeze: Option<Squeeze>,
    oom_kills: u32,
    memmap_pages: Option<u64>,
}

impl Reading {
    /// The policy's part of meminfo.
    pub fn memory(&self) -> Memory {
        memory(&self.meminfo)
    }

    /// The policy's part of vmstat.
    pub fn squeeze(&self) -> Option<Squeeze> {
        self.counted()?.squeeze
    }

    /// Tasks that the OOM killer had ended since boot, a second ago at the earliest; 0 where nobody counts.
    pub fn oom_kills(&self) -> u32 {
        self.counted().map_or(0, |counted| counted.oom_kills)
    }

    /// Pages that hold `struct page`s, where the kernel counts them.
    pub fn memmap_pages(&self) -> Option<u64> {
        self.counted()?.memmap_pages
    }

    fn counted(&self) -> Option<Counted> {
        self.counted.map(|(_, counted)| counted)
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
    /// Looks for PSI; answers also with what is lacking of it.
    pub fn open(root: &Root) -> (Self, Option<Lack>) {
        let trigger = || PsiTrigger::open(root, Stall::Some, TRIGGER_STALL_US, TRIGGER_WINDOW_US);
        let opened = Psi::read(root)
            .map_err(|error| Lack::psi(&error.to_string()))
            .and_then(|_| trigger().map_err(|error| Lack::psi_trigger(&error.to_string())));
        let (trigger, lack) = match opened {
            Ok(trigger) => (Some(trigger), None),
            Err(lack) => (None, Some(lack)),
        };
        (Self { root: root.clone(), trigger }, lack)
    }

    /// The trigger's descriptor, for poll(2).
    pub fn trigger(&self) -> Option<&PsiTrigger> {
        self.trigger.as_ref()
    }

    /// Looks at `now`. Without meminfo nothing can be decided; without PSI nothing is stolen.
    ///
    /// # Errors
    /// What [`Meminfo::read`] says.
    pub fn read(&self, now: Instant, last: &Reading) -> Result<Reading, Error> {
        let (meminfo, psi) = (Meminfo::read(&self.root)?, Psi::read(&self.root).ok());
        let mut reading = Reading { meminfo, psi, counted: last.counted };
        let is_fresh = reading.counted.is_some_and(|(at, _)| now.since(at) < COUNTS_APART);
        if !is_fresh || reading.psi_totals() != last.psi_totals() {
            reading.counted = Some((now, counted(&Vmstat::read(&self.root).unwrap_or_default())));
        }
        Ok(reading)
    }

    /// What the processors have done since boot, where that can be read.
    pub fn cpu(&self) -> Option<CpuTimes> {
        CpuTimes::read(&self.root).ok()
    }

    /// Devices through which the kernel tells the host which pages are free. Where nobody knows, none.
    pub fn free_page_reporters(&self) -> Vec<String> {
        virtio::free_page_reporters(&self.root).unwrap_or_else(|error| {
            tracing::debug!("whether free pages are reported is not known: {error}");
            Vec::new()
        })
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

/// The policy's part of meminfo. Shared memory is in `Cached`, and only swap can take it.
pub fn memory(info: &Meminfo) -> Memory {
    let cache = info.cached + info.buffers - info.shmem;
    Memory { total: info.total, free: info.free, available: info.available, cache }
}

fn counted(vmstat: &Vmstat) -> Counted {
    Counted {
        squeeze: squeeze(vmstat),
        oom_kills: u32::try_from(vmstat.oom_kills()).unwrap_or(u32::MAX),
        memmap_pages: vmstat.memmap_pages(),
    }
}

/// The counters that move where the guest as a whole is short, and not where a control group is.
fn squeeze(vmstat: &Vmstat) -> Option<Squeeze> {
    let reclaim = ["pgscan_kswapd", "pgscan_direct"];
    let scanned = reclaim.into_iter().map(|name| vmstat.get(name)).sum::<Option<u64>>()?;
    let reread = vmstat.get("workingset_activate_file")?;
    // What zswap holds is read without a read (mm/page_io.c, `swap_read_folio`).
    let swapped_in = ["pswpin", "zswpin"].into_iter();
    let pages = |count| ByteSize::from_bytes(rustix::param::page_size() as u64).times(count);
    Some(Squeeze {
        events: scanned.saturating_add(vmstat.get("compact_stall").unwrap_or(0)),
        swapped_in: swapped_in.filter_map(|name| vmstat.get(name)).fold(0, u64::saturating_add),
        reread: pages(reread),
        refaulted: pages(vmstat.refaults()),
    })
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
        assert!(lack.unwrap().what.contains("proc/pressure/memory"));
        assert!(senses.trigger().is_none());
        let reading = senses.read(Instant::default(), &Reading::default()).unwrap();
        assert_eq!(reading.squeeze(), None, "the fake counts nothing");
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
    fn why_tasks_stall_is_read_when_they_do_and_once_a_second() {
        let fake = FakeRoot::new();
        let (cached, shmem) = (ByteSize::from_mib(300), ByteSize::from_mib(100));
        fake.set_meminfo(Meminfo { cached, shmem, ..Meminfo::default() });
        let senses = Senses::open(&fake.root()).0;
        let mut last = Reading::default();
        let mut look = |ms, scanned, stalled| {
            let named =
                ["pgscan_kswapd", "pgscan_direct", "pswpin", "zswpin", "workingset_activate_file"];
            let mut counts: Vec<_> = named.map(|name| (name, scanned)).into();
            counts.extend([("workingset_refault_anon", 4), ("workingset_refault_file", scanned)]);
            fake.set_vmstat(&counts);
            let some = Line { total_us: stalled, ..Line::default() };
            fake.set_psi(Psi { some, ..Psi::default() });
            last = senses.read(Instant::from_millis(ms), &last).unwrap();
            last.squeeze().map(|squeeze| squeeze.events)
        };
        let seen = [look(0, 1, 0), look(999, 2, 0), look(1_000, 2, 0), look(1_100, 3, 7)];
        assert_eq!(seen, [Some(2), Some(2), Some(4), Some(6)]);
        assert_eq!(last.memory().cache.mib(), 200);
        let Squeeze { reread, refaulted, swapped_in, .. } = last.squeeze().unwrap();
        assert_eq!((reread, refaulted), (Pfn::SIZE.times(3), Pfn::SIZE.times(7)));
        assert_eq!(swapped_in, 6);
        fake.set_vmstat(&[("pgscan_kswapd", 1)]);
        assert_eq!(squeeze(&Vmstat::read(&fake.root()).unwrap()), None, "half of it is nothing");
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
        let reading = senses.read(Instant::default(), &Reading::default()).unwrap();
        assert_eq!(reading.psi_totals(), Some(totals));
        assert_eq!(reading.oom_kills(), 3);
        assert!(senses.own_rss().is_zero(), "the fake has no statm");
    }
}
