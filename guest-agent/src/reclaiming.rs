//! Paging cold memory out, so that what is stolen next need not be free already.
//!
//! The policy says when; DAMON's second scheme finds what is coldest and how much may go without
//! more stall than the user accepts; [`SwapSpace`] is where it goes.

use std::time::Duration;

use memtide_policy::guest::{Limits, Reclaim, ReclaimEffort, Swap};
use memtide_sysfs::Root;
use memtide_sysfs::cpu::CpuTimes;
use memtide_sysfs::damon::{PageoutConfig, PageoutStats, Paging};
use memtide_sysfs::meminfo::Meminfo;
use memtide_sysfs::psi::Psi;
use memtide_sysfs::swaps::{self, SwapArea};
use memtide_units::{ByteSize, Instant, PpMillion};

use crate::status::ReclaimStatus;
use crate::swap_space::SwapSpace;

/// ACMA's: what nobody has touched for a minute is cold.
pub const MIN_AGE: Duration = Duration::from_secs(60);
/// Bytes that may be tried in each second: a 64th of all memory, so that a minute suffices for all of
/// it, within these bounds. The bound on time goes by an average of what was tried, and most of that
/// is free memory, which is tried in no time: without this one a cold gigabyte would go at once.
const BYTES_SHARE: u64 = 64;
const BYTES_LEAST: ByteSize = ByteSize::from_mib(32);
const BYTES_MOST: ByteSize = ByteSize::from_mib(256);

/// What the scheme is told on a guest with so much memory, where what was not touched for `min_age` is
/// cold. A goal in millionths is as many microseconds of a second.
pub fn pageout_config(limits: &Limits, present: ByteSize, min_age: Duration) -> PageoutConfig {
    let share = ByteSize::from_bytes(present.bytes() / BYTES_SHARE);
    PageoutConfig {
        min_age,
        bytes: share.clamp(BYTES_LEAST, BYTES_MOST),
        stall_us: u64::from(limits.psi_goal().0).max(1),
    }
}

/// What is going on.
#[derive(Debug)]
pub struct Reclaiming {
    space: SwapSpace,
    last: Option<Reclaim>,
    stats: PageoutStats,
    /// What earlier schemes have done: each counts from its own start on.
    before: PageoutStats,
    /// PSI's counter of some task's stall, and when it was read.
    stalled: Option<(Instant, u64)>,
    /// The same of what tasks waited for disks, where pages go to one.
    waited: Option<(Instant, u64)>,
    /// The processors' time when it was looked at last, and what that left of each second for paging out.
    cpu: CpuTimes,
    effort: ReclaimEffort,
}

impl Reclaiming {
    /// With somewhere to go.
    pub fn new(space: SwapSpace) -> Self {
        Self {
            space,
            last: None,
            stats: PageoutStats::default(),
            before: PageoutStats::default(),
            stalled: None,
            waited: None,
            cpu: CpuTimes::default(),
            effort: ReclaimEffort::default(),
        }
    }

    /// The same after DAMON has ended and was started anew.
    pub fn go_on(self, space: SwapSpace) -> Self {
        let Self { before, stats, cpu, effort, .. } = self;
        let before = PageoutStats {
            tried: before.tried + stats.tried,
            applied: before.applied + stats.applied,
            exceeded: before.exceeded.saturating_add(stats.exceeded),
            effective: None,
        };
        Self { before, cpu, effort, ..Self::new(space) }
    }

    /// What there is of swap.
    pub fn swap(&self, root: &Root, meminfo: &Meminfo) -> Swap {
        self.space.now(root, meminfo)
    }

    /// Takes a decision; answers with it where it is another than before, whatever its numbers.
    pub fn take(&mut self, reclaim: Reclaim) -> Option<Reclaim> {
        let kind = |reclaim: &Reclaim| match reclaim {
            Reclaim::On(_) => None,
            Reclaim::Off(reason) => Some(std::mem::discriminant(reason)),
        };
        let is_news = self.last.as_ref().map(kind) != Some(kind(&reclaim));
        self.last = Some(reclaim);
        is_news.then_some(reclaim)
    }

    /// What the scheme says that it has done.
    pub fn take_stats(&mut self, stats: PageoutStats) {
        self.stats = stats;
    }

    /// Microseconds of a second in which some task stalled, since the last call.
    pub fn stall_us(&mut self, now: Instant, total_us: u64) -> Option<u64> {
        by_the_second(&mut self.stalled, now, total_us)
    }

    /// Looks whether somebody waits for the disk that pages go to, if they go to one: once a second or so.
    pub fn look_at_disk(&mut self, now: Instant, root: &Root, goal: PpMillion) {
        let areas = swaps::read(root).unwrap_or_default();
        if swaps::next(&areas).is_none_or(SwapArea::is_in_memory) {
            self.waited = None;
            return;
        }
        let stall_us = match Psi::read_io(root) {
            Ok(psi) => by_the_second(&mut self.waited, now, psi.some.total_us),
            // Nobody would notice.
            Err(_) => Some(u64::MAX),
        };
        if let Some(stall_us) = stall_us {
            self.effort.look_at_disk(now, PpMillion::of_time(stall_us, 1_000_000), goal);
        }
    }

    /// Takes the processors' time in, once a second or so.
    pub fn take_cpu(&mut self, now: Instant, cpu: CpuTimes) {
        let total = cpu.total.saturating_sub(self.cpu.total);
        let idle = cpu.idle.saturating_sub(self.cpu.idle);
        self.cpu = cpu;
        // Nothing is known of no time at all.
        if total > 0 {
            self.effort.look(now, PpMillion::of_time(idle, total));
        }
    }

    /// The scheme's switch for a decision.
    pub fn paging(&self, reclaim: Reclaim) -> Paging {
        match reclaim {
            Reclaim::On(_) => Paging::On(self.effort.time()),
            Reclaim::Off(_) => Paging::Off,
        }
    }

    /// For people.
    pub fn status(&self, swap: Swap) -> ReclaimStatus {
        ReclaimStatus {
            doing: self.last.map_or_else(|| "starting".into(), |last| last.to_string()),
            paged_out: self.before.applied + self.stats.applied,
            tried: self.before.tried + self.stats.tried,
            per_second: self.stats.effective,
            swap_total: swap.total,
            swap_free: swap.free,
            own_device: match self.space {
                SwapSpace::Existing => None,
                SwapSpace::Ours(zram) => Some(zram.device()),
            },
        }
    }
}

/// Microseconds of a second by which a counter has grown since `last`, which is replaced.
fn by_the_second(last: &mut Option<(Instant, u64)>, now: Instant, total_us: u64) -> Option<u64> {
    let (then, before) = last.replace((now, total_us))?;
    let elapsed_ms = u64::try_from(now.since(then).as_millis()).ok().filter(|ms| *ms > 0)?;
    Some(total_us.saturating_sub(before).saturating_mul(1_000) / elapsed_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_policy::guest::{Gain, LimitsWish, NoReclaim};
    use memtide_sysfs::fake::FakeRoot;

    #[test]
    fn the_bounds_follow_the_guest() {
        let of = |gib| {
            let present = ByteSize::from_gib(gib);
            let limits = Limits::new(present, LimitsWish::default()).unwrap();
            let config = pageout_config(&limits, present, MIN_AGE);
            (config.bytes.mib(), config.stall_us)
        };
        assert_eq!([of(1), of(8), of(64)], [(32, 1_000), (128, 1_000), (256, 1_000)]);
    }

    #[test]
    fn only_another_thought_is_news() {
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        let on = |mib| Reclaim::On(Gain::Block { missing: ByteSize::from_mib(mib) });
        let full = |mib| Reclaim::Off(NoReclaim::SwapFull { free: ByteSize::from_mib(mib) });
        let thoughts = [on(1), on(2), full(1), full(2), Reclaim::Off(NoReclaim::NotNeeded)];
        let news = thoughts.map(|thought| reclaiming.take(thought).is_some());
        assert_eq!(news, [true, false, true, false, true]);
    }

    #[test]
    fn what_was_paged_out_is_counted_on_when_damon_begins_anew() {
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        for applied in [7, 5] {
            let (tried, applied) = (ByteSize::from_mib(100), ByteSize::from_mib(applied));
            reclaiming.take_stats(PageoutStats { tried, applied, ..PageoutStats::default() });
            reclaiming = reclaiming.go_on(SwapSpace::Existing);
        }
        let status = reclaiming.status(Swap::default());
        assert_eq!((status.paged_out.mib(), status.tried.mib()), (12, 200));
    }

    #[test]
    fn a_stall_is_counted_by_the_second() {
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        let mut at = |ms, total| reclaiming.stall_us(Instant::from_millis(ms), total);
        assert_eq!([at(0, 900), at(2_000, 1_900), at(2_000, 1_900)], [None, Some(500), None]);
        assert_eq!(at(3_000, 5), Some(0), "a counter that went back");
    }

    #[test]
    fn a_disk_that_somebody_waits_for_gets_a_millisecond_and_zram_does_not_wait() {
        let fake = FakeRoot::new();
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        let mut after = |s: u64, swap: &str, waited_us: Option<u64>| {
            let head = "Filename Type Size Used Priority\n";
            fake.put("proc/swaps", &format!("{head}/dev/{swap} partition 65536 0 -2\n"));
            let line = |total| format!("avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
            let text = waited_us.map(|us| format!("some {}full {}", line(us), line(0)));
            fake.put("proc/pressure/io", &text.unwrap_or_default());
            let now = Instant::from_millis(s * 1_000);
            reclaiming.look_at_disk(now, &fake.root(), PpMillion(1_000));
            reclaiming.paging(Reclaim::On(Gain::Room))
        };
        let (at_work, least) = (Duration::from_millis(15), Duration::from_millis(1));
        assert_eq!(after(0, "zram0", Some(0)), Paging::On(at_work));
        assert_eq!(after(1, "zram0", Some(900_000)), Paging::On(at_work));
        assert_eq!(after(2, "vda2", Some(1_800_000)), Paging::On(at_work), "nothing to compare");
        assert_eq!(after(3, "vda2", Some(1_816_000)), Paging::On(at_work));
        assert_eq!(after(4, "vda2", Some(1_833_000)), Paging::On(least));
        assert_eq!(after(34, "vda2", Some(1_833_000)), Paging::On(at_work));
        assert_eq!(after(35, "vda2", None), Paging::On(least), "nobody would notice");
    }

    #[test]
    fn a_guest_at_rest_pages_out_faster_than_one_at_work() {
        let mut reclaiming = Reclaiming::new(SwapSpace::Existing);
        let on = Reclaim::On(Gain::Room);
        let mut after = |s: u64, idle, total| {
            reclaiming.take_cpu(Instant::from_millis(s * 1_000), CpuTimes { idle, total });
            match reclaiming.paging(on) {
                Paging::On(time) => time.as_millis(),
                Paging::Off => 0,
            }
        };
        assert_eq!(after(0, 10, 100), 15);
        assert_eq!(after(1, 190, 300), 15, "nine tenths of the time since");
        assert_eq!(after(31, 2_890, 3_300), 250, "and for half a minute");
        assert_eq!(after(31, 2_890, 3_300), 250, "no time has passed");
        assert_eq!(after(32, 2_900, 3_500), 15);
        assert_eq!(after(63, 0, 3_600), 15, "a counter that went back");
        assert_eq!(reclaiming.paging(Reclaim::Off(NoReclaim::NotNeeded)), Paging::Off);
    }
}
