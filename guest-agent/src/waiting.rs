//! Waiting between two turns: for signals, ended jobs, pressure, and the device.

use std::time::{Duration, Instant};

use memtide_units::ByteSize;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::system::sysinfo;

use crate::agent::{Agent, Still, Woken};
use crate::hardware::Hardware;
use crate::run::{Clock, RunError, own};
use crate::signals::Signals;

/// Without an interrupt the device is looked at so often, which costs a register read and a load,
/// and a thousand times a second while an answer is awaited.
const BLIND_LOOK: Duration = Duration::from_millis(100);
pub(crate) const BLIND_AWAIT: Duration = Duration::from_millis(1);
/// Even with an interrupt an answer is looked for after this long: one may get lost.
const LOST_INTERRUPT: Duration = Duration::from_millis(50);

/// What free memory may have become less by without the agent's having to look: a guest that grows as
/// fast as guests do does so in a millisecond.
const UNSTIRRED: ByteSize = ByteSize::from_mib(4);

/// Waits until something happens, or as long as the turn said; longer where all that the turn waited for
/// is a guest that begins to grow, and it does not. A turn reads ten files to find that out, and this is
/// one system call: ten times a second they would be most of what the agent costs a guest at rest.
///
/// # Errors
/// That poll(2) fails.
pub(crate) fn wait_for(
    agent: &Agent,
    hardware: &mut Hardware,
    signals: &Signals,
    (clock, wait): (Clock, Duration),
) -> Result<Woken, RunError> {
    let start = Instant::now();
    let mut end = start + wait;
    let mut still_at = None;
    let parts = agent.parts();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let longest = match (parts.link.awaits_answer(), hardware.awaited().is_some()) {
            (true, true) => LOST_INTERRUPT,
            (true, false) => BLIND_AWAIT,
            (false, true) => left,
            (false, false) => BLIND_LOOK,
        };
        let timeout = Timespec::try_from(left.min(longest)).unwrap_or_default();
        let mut fds =
            vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&parts.hands, PollFlags::IN)];
        fds.extend(parts.senses.trigger().map(|trigger| PollFd::new(trigger, PollFlags::PRI)));
        fds.extend(hardware.awaited());
        let woken = match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => true,
            Err(error) => return Err(own("waiting failed")(error.into())),
        };
        let by_trigger = fds.get(2).is_some_and(|fd| fd.revents().contains(PollFlags::PRI));
        signals.drain();
        let by_device = hardware.take_interrupt(&parts.link);
        let now = Instant::now();
        let is_quiet = !woken && !by_device && now >= end;
        if let Some(still) = agent.still().filter(|_| is_quiet)
            && let Some(more) = longer(still, now - start, free_memory())
        {
            end = now + more;
            still_at = Some(clock.now());
        }
        if woken || by_device || parts.link.has_news() || now >= end {
            return Ok(Woken { by_trigger, by_device, still_at });
        }
    }
}

/// How much longer the turn can wait, `waited` after the last one, with so much free.
fn longer(still: Still, waited: Duration, free: ByteSize) -> Option<Duration> {
    let left = still.latest.checked_sub(waited).filter(|left| !left.is_zero())?;
    (free + UNSTIRRED >= still.free).then(|| left.min(still.every))
}

/// `MemFree`, nearly.
fn free_memory() -> ByteSize {
    let info = sysinfo();
    ByteSize::from_bytes(info.freeram).times(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_waits_longer_while_memory_lies_still_and_never_past_what_is_due() {
        let (ms, mib) = (Duration::from_millis, ByteSize::from_mib);
        let still = Still { latest: ms(1000), free: mib(500), every: ms(100) };
        let after = |waited, free| longer(still, ms(waited), mib(free));
        assert_eq!(after(100, 500), Some(ms(100)));
        assert_eq!(after(100, 496), Some(ms(100)));
        assert_eq!(after(100, 495), None, "it grows");
        assert_eq!(after(950, 700), Some(ms(50)));
        assert_eq!((after(1000, 500), after(1400, 500)), (None, None));
    }

    #[test]
    fn free_memory_is_what_meminfo_says() {
        let is_near = || {
            let text = std::fs::read_to_string("/proc/meminfo").unwrap();
            let kib =
                text.lines().find_map(|line| line.strip_prefix("MemFree:")?.strip_suffix("kB"));
            let said = ByteSize::from_kib(kib.unwrap().trim().parse().unwrap());
            let told = free_memory();
            told.max(said) - told.min(said) < ByteSize::from_mib(64)
        };
        // Others take and free memory meanwhile.
        assert!((0..100).any(|_| is_near()));
    }
}
