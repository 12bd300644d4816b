//! A deadline for a blocking system call: a timer that interrupts one thread.
//!
//! Taking a block offline is a write(2) that the kernel may repeat for ever; a signal to the thread
//! that does it ends it with EINTR (mm/memory_hotplug.c, `offline_pages`). The signal handler does
//! nothing but exist. A signal that comes just before the write begins would be lost, so the timer
//! goes on ticking until it is disarmed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// The signal that interrupts. Nothing else in the agent uses it.
pub const SIGNAL: Signal = Signal::SIGALRM;
/// Between two signals once the deadline has passed.
const INSIST: Duration = Duration::from_millis(50);

/// Makes [`SIGNAL`] interrupt instead of kill. Once per process, before the first [`Alarm`].
///
/// # Errors
/// What sigaction(2) says.
pub fn install_handler() -> io::Result<()> {
    // Without SA_RESTART nothing would change: offlining returns EINTR of its own accord.
    signal_hook::flag::register(SIGNAL as i32, Arc::new(AtomicBool::new(false))).map(drop)
}

/// A timer of the calling thread.
#[derive(Debug)]
pub struct Alarm(Timer);

impl Alarm {
    /// A timer that will interrupt the calling thread and no other.
    ///
    /// # Errors
    /// What timer_create(2) says.
    pub fn of_this_thread() -> io::Result<Self> {
        let notify = SigevNotify::SigevThreadId {
            signal: SIGNAL,
            thread_id: rustix::thread::gettid().as_raw_nonzero().get(),
            si_value: 0,
        };
        Ok(Self(Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify))?))
    }

    /// Runs `work`, interrupting it after `deadline` and every 50 ms from then on.
    ///
    /// # Errors
    /// What timer_settime(2) says: then `work` was not run.
    pub fn around<T>(&mut self, deadline: Duration, work: impl FnOnce() -> T) -> io::Result<T> {
        let first = TimeSpec::from_duration(deadline.max(Duration::from_millis(1)));
        let insist = TimeSpec::from_duration(INSIST);
        let flags = TimerSetTimeFlags::empty();
        self.0.set(Expiration::IntervalDelayed(first, insist), flags)?;
        let result = work();
        // A one-shot of zero disarms.
        self.0.set(Expiration::OneShot(TimeSpec::from_duration(Duration::ZERO)), flags)?;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;
    use std::time::Instant;

    #[test]
    fn a_blocking_call_ends_at_its_deadline() {
        install_handler().unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let mut alarm = Alarm::of_this_thread().unwrap();
        let started = Instant::now();
        let wait = || poll(&mut [PollFd::new(&reader, PollFlags::IN)], None);
        let ended = alarm.around(Duration::from_millis(30), wait).unwrap();
        assert_eq!(ended, Err(Errno::INTR));
        assert!(started.elapsed() >= Duration::from_millis(30));
    }
}
