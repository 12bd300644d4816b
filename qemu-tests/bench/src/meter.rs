//! What is measured: how much moved, how long it took, and what processor time that cost.

use std::time::{Duration, Instant};

use memtide_units::ByteSize;

use crate::error::{BenchError, Result};
use crate::subject::Subject;

/// Between two looks at the memfd while there is much to go: whoever wakes up more often is in the way of those
/// that are measured.
const LOOK_FIRST: Duration = Duration::from_millis(10);
/// And near the end: short beside anything that is measured, and a look is one stat(2).
const LOOK: Duration = Duration::from_millis(1);
/// Where the end is near, in percent of what goes: the fastest takes 100 ms for all.
const NEAR_THE_END: u64 = 80;
/// Between two looks into the guest, where each costs the guest a millisecond.
const LOOK_INSIDE: Duration = Duration::from_millis(4);
/// What has not changed for so long is at rest.
const REST: Duration = Duration::from_millis(200);
/// So much of what was asked for must have been resident before and gone after, in permille: what
/// the guest's kernel keeps free for itself was never touched.
const GONE_LEAST: u64 = 970;
/// The last of it may be this little: pages that the guest touches meanwhile come on top.
const LAST: ByteSize = ByteSize::from_mib(1);

/// Memory that moved.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moved {
    /// How much, in bytes.
    pub(crate) bytes: u64,
    /// From the word that it shall to the last byte.
    pub(crate) time: Duration,
    /// Processor time of QEMU and of our own processes.
    pub(crate) host_cpu: Duration,
    /// Busy time of the guest's processors.
    pub(crate) guest_cpu: Duration,
}

impl Moved {
    /// GiB a second.
    pub(crate) fn rate(&self) -> f64 {
        gib(self.bytes) / self.time.as_secs_f64().max(1e-9)
    }

    /// Seconds of the host's processors for each GiB.
    pub(crate) fn host_cost(&self) -> f64 {
        self.host_cpu.as_secs_f64() / gib(self.bytes).max(1e-9)
    }

    /// Seconds of the guest's processors for each GiB.
    pub(crate) fn guest_cost(&self) -> f64 {
        self.guest_cpu.as_secs_f64() / gib(self.bytes).max(1e-9)
    }
}

/// One there and back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Round {
    /// To the host.
    pub(crate) reclaim: Moved,
    /// Back to the guest.
    pub(crate) give_back: Moved,
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / ByteSize::from_gib(1).bytes() as f64
}

/// A stopwatch for time and processor time.
pub(crate) struct Stopwatch {
    guest: Duration,
    host: Duration,
    started: Instant,
}

impl Stopwatch {
    /// Starts it. `pids` are the processes whose time is the host's share.
    pub(crate) fn start(subject: &Subject, pids: &[u32]) -> Result<Self> {
        let guest = subject.cpu()?;
        let host = crate::clocks::of_processes(pids);
        Ok(Self { guest, host, started: Instant::now() })
    }

    /// What has been spent until now, for `bytes` that had moved at `end`.
    pub(crate) fn stop(
        self,
        subject: &Subject,
        pids: &[u32],
        (bytes, end): (u64, Instant),
    ) -> Result<Moved> {
        let host_cpu = crate::clocks::of_processes(pids).saturating_sub(self.host);
        let guest_cpu = subject.cpu()?.saturating_sub(self.guest);
        Ok(Moved { bytes, time: end.duration_since(self.started), host_cpu, guest_cpu })
    }
}

/// Watches the backing go: `resident` says how much of it there is. Answers with how much went of
/// what there was `before`, and when the last of it had gone.
pub(crate) fn watch_gone(
    who: &str,
    resident: impl Fn() -> Result<u64>,
    (before, wanted): (u64, u64),
    deadline: Duration,
) -> Result<(u64, Instant)> {
    let started = Instant::now();
    let mut seen = vec![(started, before)];
    let mut changed = started;
    loop {
        memtide_scenarios::interrupt::check()?;
        let now = (Instant::now(), resident()?);
        if now.1 < seen.last().map_or(before, |last| last.1) {
            changed = now.0;
            seen.push(now);
        }
        let gone = before.saturating_sub(now.1);
        let enough = gone >= wanted / 1000 * GONE_LEAST;
        if enough && changed.elapsed() >= REST {
            return Ok((gone, last_gone(&seen, now.1)));
        }
        if started.elapsed() > deadline {
            let seen = format!("{} of {} are gone", size(gone), size(wanted));
            let what = "the backing is gone";
            return Err(BenchError::Late { who: who.into(), what, waited: deadline, seen });
        }
        std::thread::sleep(if gone < wanted / 100 * NEAR_THE_END { LOOK_FIRST } else { LOOK });
    }
}

/// The first look at which no more was there than at the end.
fn last_gone(seen: &[(Instant, u64)], end: u64) -> Instant {
    let is_gone = |(_, resident): &&(Instant, u64)| *resident <= end + LAST.bytes();
    seen.iter().find(is_gone).or(seen.last()).map_or_else(Instant::now, |(at, _)| *at)
}

/// Watches the guest's memory come back up to `total`; answers when it had.
pub(crate) fn watch_back(
    subject: &Subject,
    total: ByteSize,
    deadline: Duration,
) -> Result<Instant> {
    let started = Instant::now();
    loop {
        memtide_scenarios::interrupt::check()?;
        let now = subject.meminfo("MemTotal")?;
        let at = Instant::now();
        if now + LAST >= total {
            return Ok(at);
        }
        if started.elapsed() > deadline {
            let seen = format!("the guest has {now} of {total}");
            let (who, what) = (subject.name().to_owned(), "the memory is the guest's again");
            return Err(BenchError::Late { who, what, waited: deadline, seen });
        }
        std::thread::sleep(LOOK_INSIDE);
    }
}

pub(crate) fn size(bytes: u64) -> ByteSize {
    ByteSize::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rates_and_costs_are_per_gib() {
        let moved = Moved {
            bytes: 3 << 30,
            time: Duration::from_millis(1500),
            host_cpu: Duration::from_secs(6),
            guest_cpu: Duration::from_millis(750),
        };
        assert_eq!((moved.rate(), moved.host_cost(), moved.guest_cost()), (2.0, 2.0, 0.25));
    }

    #[test]
    fn the_clock_stops_when_the_last_byte_is_gone_and_not_when_that_is_certain() {
        let looks = Cell::new(0);
        let started = Instant::now();
        let resident = || {
            looks.set(looks.get() + 1);
            Ok(if looks.get() < 5 { 900 * MIB } else { 400 * MIB })
        };
        let gone = watch_gone("x", resident, (900 * MIB, 500 * MIB), Duration::from_secs(60));
        let (bytes, at) = gone.unwrap();
        assert_eq!(bytes, 500 * MIB);
        assert!(
            started.elapsed() >= REST && at.duration_since(started) < started.elapsed() - REST / 2
        );
    }

    #[test]
    fn what_does_not_go_is_an_error_that_says_how_much_did() {
        let resident = || Ok(800 * MIB);
        let text = watch_gone("x", resident, (900 * MIB, 500 * MIB), Duration::from_millis(5))
            .unwrap_err()
            .to_string();
        assert!(text.contains("100 MiB of 500 MiB are gone"), "{text}");
    }
}
