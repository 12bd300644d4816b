//! Waiting for a child with a deadline.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use memtide_lab::guest::protocol::Ending;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Waits for a child that leads its own process group; kills the whole group when time is up.
pub(crate) fn wait_until(child: &mut Child, until: Instant) -> io::Result<Ending> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // It may have ended by itself just now; then there is no group to kill.
            let _ = kill_process_group(pid, Signal::KILL);
            child.wait()?;
            return Ok(Ending::TimedOut);
        }
        // An hour at a time, since poll's timeout has its limits.
        let timeout = left.min(Duration::from_secs(3600)).try_into().map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(ending(child.wait()?)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// An exit status in the protocol's words.
pub(crate) fn ending(status: ExitStatus) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Code(code),
        (None, signal) => Ending::Signal(signal.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    fn sh(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap()
    }

    #[test]
    fn endings_are_told_apart() {
        let far = || Instant::now() + Duration::from_secs(60);
        assert_eq!(wait_until(&mut sh("exit 3"), far()).unwrap(), Ending::Code(3));
        assert_eq!(wait_until(&mut sh("kill -9 $$"), far()).unwrap(), Ending::Signal(9));
        let soon = Instant::now() + Duration::from_millis(30);
        assert_eq!(wait_until(&mut sh("sleep 600"), soon).unwrap(), Ending::TimedOut);
    }
}
