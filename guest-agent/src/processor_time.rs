//! What the processors do, and what that leaves for Memtide's own work.

use std::time::Duration;

use memtide_policy::guest::SpareTime;
use memtide_sysfs::Root;
use memtide_sysfs::cpu::CpuTimes;
use memtide_sysfs::psi::Psi;
use memtide_sysfs::swaps::{self, SwapArea};
use memtide_units::{Instant, PpMillion};

/// Processor time that the calling thread has taken so far, in the kernel as well.
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The guest's processors, looked at once a second or so.
#[derive(Clone, Debug, Default)]
pub struct ProcessorTime {
    /// What they had done when they were looked at last.
    cpu: CpuTimes,
    /// What tasks waited for disks, where pages go to one.
    waited: Rate,
    spare: SpareTime,
}

impl ProcessorTime {
    /// What is left over for Memtide.
    pub fn spare(&self) -> &SpareTime {
        &self.spare
    }

    /// Takes the processors' time in.
    pub fn take(&mut self, now: Instant, cpu: CpuTimes) {
        let total = cpu.total.saturating_sub(self.cpu.total);
        let idle = cpu.idle.saturating_sub(self.cpu.idle);
        self.cpu = cpu;
        // Nothing is known of no time at all.
        if total > 0 {
            self.spare.look(now, PpMillion::of_time(idle, total));
        }
    }

    /// Looks whether somebody waits for the disk that pages go to, if they go to one.
    pub fn look_at_disk(&mut self, now: Instant, root: &Root, goal: PpMillion) {
        let areas = swaps::read(root).unwrap_or_default();
        if swaps::next(&areas).is_none_or(SwapArea::is_in_memory) {
            self.waited = Rate::default();
            return;
        }
        let stall_us = match Psi::read_io(root) {
            Ok(psi) => self.waited.by_the_second(now, psi.some.total_us),
            // Nobody would notice.
            Err(_) => Some(u64::MAX),
        };
        if let Some(stall_us) = stall_us {
            self.spare.look_at_disk(now, PpMillion::of_time(stall_us, 1_000_000), goal);
        }
    }
}

/// By how much a counter of microseconds grows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    last: Option<(Instant, u64)>,
}

impl Rate {
    /// Microseconds of a second by which it has grown since the last call.
    pub fn by_the_second(&mut self, now: Instant, total_us: u64) -> Option<u64> {
        let (then, before) = self.last.replace((now, total_us))?;
        let elapsed_ms = u64::try_from(now.since(then).as_millis()).ok().filter(|ms| *ms > 0)?;
        Some(total_us.saturating_sub(before).saturating_mul(1_000) / elapsed_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;

    #[test]
    fn a_disk_that_somebody_waits_for_gets_a_millisecond_and_zram_does_not_wait() {
        let fake = FakeRoot::new();
        let mut time = ProcessorTime::default();
        let mut after = |s: u64, swap: &str, waited_us: Option<u64>| {
            let head = "Filename Type Size Used Priority\n";
            fake.put("proc/swaps", &format!("{head}/dev/{swap} partition 65536 0 -2\n"));
            let line = |total| format!("avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n");
            let text = waited_us.map(|us| format!("some {}full {}", line(us), line(0)));
            fake.put("proc/pressure/io", &text.unwrap_or_default());
            let now = Instant::from_millis(s * 1_000);
            time.look_at_disk(now, &fake.root(), PpMillion(1_000));
            time.spare().for_paging()
        };
        let (at_work, least) = (Duration::from_millis(15), Duration::from_millis(1));
        assert_eq!(after(0, "zram0", Some(0)), at_work);
        assert_eq!(after(1, "zram0", Some(900_000)), at_work);
        assert_eq!(after(2, "vda2", Some(1_800_000)), at_work, "nothing to compare");
        assert_eq!(after(3, "vda2", Some(1_816_000)), at_work);
        assert_eq!(after(4, "vda2", Some(1_833_000)), least);
        assert_eq!(after(34, "vda2", Some(1_833_000)), at_work);
        assert_eq!(after(35, "vda2", None), least, "nobody would notice");
    }

    #[test]
    fn a_guest_at_rest_leaves_more_over_than_one_at_work() {
        let mut time = ProcessorTime::default();
        let mut after = |s: u64, idle, total| {
            time.take(Instant::from_millis(s * 1_000), CpuTimes { idle, total });
            time.spare().for_paging().as_millis()
        };
        assert_eq!(after(0, 10, 100), 15);
        assert_eq!(after(1, 190, 300), 15, "nine tenths of the time since");
        assert_eq!(after(31, 2_890, 3_300), 250, "and for half a minute");
        assert_eq!(after(31, 2_890, 3_300), 250, "no time has passed");
        assert_eq!(after(32, 2_900, 3_500), 15);
        assert_eq!(after(63, 0, 3_600), 15, "a counter that went back");
    }
}
