//! Processor time: of processes of this host, and of a guest as its kernel counts it.

use std::time::Duration;

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// `/proc/stat` counts these, a hundred a second whatever the kernel's own tick is (proc(5)).
const TICK: Duration = Duration::from_millis(10);

/// Processor time of all threads of these processes since they started, ended threads included:
/// user and system time, to the nanosecond (clock_getcpuclockid(3)). A process that has ended
/// counts nothing.
pub(crate) fn of_processes(pids: &[u32]) -> Duration {
    let one = |pid: &u32| {
        let pid = Pid::from_raw(pid.cast_signed());
        clock_getcpuclockid(pid).and_then(ClockId::now).map(Duration::from).unwrap_or_default()
    };
    pids.iter().map(one).sum()
}

/// Busy time of all processors of a guest, from the text of its `/proc/stat`: user, nice, system,
/// irq and softirq. `None` where the text is another.
pub(crate) fn of_guest(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u32> = line.split_ascii_whitespace().map_while(|f| f.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else { return None };
    Some(TICK * (user + nice + system + irq + softirq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_busy_where_it_does_not_wait() {
        let stat = "cpu  100 20 3 40000 500 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(of_guest(stat), Some(Duration::from_millis(1360)));
        assert_eq!(of_guest("intr 1 2 3"), None);
        assert_eq!(of_guest("cpu  1 2"), None);
    }

    #[test]
    fn our_own_time_passes_and_a_dead_process_has_none() {
        let before = of_processes(&[std::process::id()]);
        let mut sum = 0_u64;
        while of_processes(&[std::process::id()]) < before + Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        assert_eq!(of_processes(&[dead.id()]), Duration::ZERO);
    }
}
