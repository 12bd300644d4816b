//! Waiting between two turns: for signals, ended jobs, pressure, and the device.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::agent::{Agent, Woken};
use crate::hardware::Hardware;
use crate::run::{RunError, own};
use crate::signals::Signals;

/// Without an interrupt the device is looked at so often, which costs a register read and a load,
/// and a thousand times a second while an answer is awaited.
const BLIND_LOOK: Duration = Duration::from_millis(100);
pub(crate) const BLIND_AWAIT: Duration = Duration::from_millis(1);
/// Even with an interrupt an answer is looked for after this long: one may get lost.
const LOST_INTERRUPT: Duration = Duration::from_millis(50);

/// Waits until something happens, or as long as the turn said.
///
/// # Errors
/// That poll(2) fails.
pub(crate) fn wait_for(
    agent: &Agent,
    hardware: &mut Hardware,
    signals: &Signals,
    wait: Duration,
) -> Result<Woken, RunError> {
    let end = Instant::now() + wait;
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
        if woken || by_device || parts.link.has_news() || Instant::now() >= end {
            return Ok(Woken { by_trigger, by_device });
        }
    }
}
