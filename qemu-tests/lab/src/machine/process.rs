//! QEMU as a process: started with inherited sockets, never outliving us.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::error::{Error, IoContext, Result};
use crate::setup::Qemu;

/// Whether QEMU may use our terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    Ours,
    Closed,
}

/// A QEMU that is killed, by its process id, when this is dropped.
#[derive(Debug)]
pub(crate) struct QemuProcess {
    child: Mutex<Child>,
    pid: u32,
}

impl QemuProcess {
    /// Starts QEMU with these arguments. `sockets` keep their numbers in it; its complaints go to
    /// `log`.
    pub(crate) fn start(
        qemu: &Qemu,
        arguments: &[OsString],
        sockets: Vec<OwnedFd>,
        terminal: Terminal,
        log: &Path,
    ) -> Result<Self> {
        let errors = File::create(log).on("create", log)?;
        let argv = qemu.argv();
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).args(arguments).envs(qemu.env()).stderr(errors);
        if terminal == Terminal::Closed {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        in_child(&mut command, sockets);
        let child = spawn(command).map_err(|source| Error::Spawn {
            command: argv[0].to_string_lossy().into_owned(),
            advice: "run `cargo xtask lab setup`",
            source,
        })?;
        let pid = child.id();
        Ok(Self { child: Mutex::new(child), pid })
    }

    /// Its process id; it stays its own until this is dropped or has told of the end.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        // An error would mean that somebody else has waited for our child: it is gone then, too,
        // but nobody does that here.
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// Ends it now and waits until it is gone.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Both fail only for a child that has been waited for, whose id must not be used again.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for QemuProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the child die with us and keep the sockets.
fn in_child(command: &mut Command, sockets: Vec<OwnedFd>) {
    let prepare = move || -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        for socket in &sockets {
            fcntl_setfd(socket.as_fd(), FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls may be made. The closure makes
    // one prctl and some fcntl system calls on descriptors that it owns; it neither allocates nor
    // takes a lock, and turning an errno into an `io::Error` allocates nothing either.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Starts a command from a thread that lives as long as this process.
///
/// The death signal comes when the *thread* that forked ends, not only the process; a test may well
/// start a machine in a short-lived thread.
fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, incoming) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in incoming {
                // Whoever asked waits for this.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, child) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts QEMU is gone");
    spawner
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let child = thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("600");
            in_child(&mut command, Vec::new());
            spawn(command).unwrap()
        });
        let mut child = child.join().unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "the thread has ended, the child has not");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_inherited_socket_keeps_its_number() {
        use std::io::Read;
        use std::os::fd::AsRawFd;
        use std::os::unix::net::UnixStream;
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo heard >&{}", theirs.as_raw_fd())]);
        in_child(&mut command, vec![theirs]);
        assert!(spawn(command).unwrap().wait().unwrap().success());
        let mut heard = String::new();
        ours.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "heard\n", "and the end came: no copy is left in this process");
    }
}
