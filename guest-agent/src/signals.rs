//! Signals as something that poll(2) sees.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memtide_policy::guest::Mode;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

/// SIGTERM and SIGINT end the agent; SIGUSR2 has it return everything, SIGUSR1 take up its work; SIGHUP has it
/// read its settings anew.
#[derive(Debug)]
pub struct Signals {
    reader: UnixStream,
    ended: Arc<AtomicBool>,
    restore: Arc<AtomicBool>,
    tune: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    /// Handles them from now on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn install() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let flag = |signals: &[i32]| -> io::Result<Arc<AtomicBool>> {
            let flag = Arc::new(AtomicBool::new(false));
            for signal in signals {
                signal_hook::flag::register(*signal, Arc::clone(&flag))?;
                let wake: OwnedFd = writer.try_clone()?.into();
                signal_hook::low_level::pipe::register(*signal, wake)?;
            }
            Ok(flag)
        };
        let (ended, restore, tune) =
            (flag(&[SIGTERM, SIGINT])?, flag(&[SIGUSR2])?, flag(&[SIGUSR1])?);
        let reload = flag(&[SIGHUP])?;
        Ok(Self { reader, ended, restore, tune, reload })
    }

    /// Whether the agent is to end.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// The mode that somebody has asked for since the last call.
    pub fn mode(&self) -> Option<Mode> {
        let restore = self.restore.swap(false, Ordering::SeqCst);
        let tune = self.tune.swap(false, Ordering::SeqCst);
        match (restore, tune) {
            (true, _) => Some(Mode::Restore),
            (false, true) => Some(Mode::Tune),
            (false, false) => None,
        }
    }

    /// Whether somebody wants settings read anew since the last call.
    pub fn wants_reload(&self) -> bool {
        self.reload.swap(false, Ordering::SeqCst)
    }

    /// Forgets that it woke somebody.
    pub fn drain(&self) {
        let mut bytes = [0; 16];
        while rustix::io::read(&self.reader, &mut bytes).is_ok_and(|read| read > 0) {}
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn a_signal_wakes_and_is_remembered() {
        let signals = Signals::install().unwrap();
        assert_eq!((signals.mode(), signals.is_ended()), (None, false));
        assert!(!signals.wants_reload());
        raise(Signal::SIGHUP).unwrap();
        assert_eq!([signals.wants_reload(), signals.wants_reload()], [true, false]);
        signals.drain();
        raise(Signal::SIGUSR2).unwrap();
        let mut fds = [PollFd::new(&signals, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(1));
        signals.drain();
        assert_eq!((signals.mode(), signals.mode()), (Some(Mode::Restore), None));
        let mut fds = [PollFd::new(&signals, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(0));
    }
}
