//! What the host may say while a script is played: "go" and "stop".

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// How often the go file is looked at. A host that steps phases waits at least this long anyway.
const GO_FILE_POLL: Duration = Duration::from_millis(50);

/// How long a wait sleeps when nothing needs looking at: signals and lines wake it.
const NO_POLL: Duration = Duration::from_secs(3600);

/// "Go"s that are kept for later waits. More come only from a stream that is no control.
const PENDING_MAX: usize = 1024;

/// Who said "go".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Go {
    /// SIGUSR1.
    Signal,
    /// A line on standard input.
    Stdin,
    /// The go file is new or was written.
    File,
}

/// Somebody asked the program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// What arrives from the threads that listen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Nudge {
    /// Continue.
    Go(Go),
    /// End; the flag is set already, this only wakes a sleeper.
    Stop,
}

/// The host's side of the conversation. A "go" that comes before its `wait` is kept.
#[derive(Debug)]
pub(crate) struct Controls {
    nudges: Receiver<Nudge>,
    stop: Arc<AtomicBool>,
    pending: VecDeque<Go>,
    go_file: Option<GoFile>,
}

impl Controls {
    /// Controls that listen to a channel and a flag: [`listen`] feeds them, or a test does.
    pub(crate) fn new(nudges: Receiver<Nudge>, stop: Arc<AtomicBool>) -> Self {
        Self { nudges, stop, pending: VecDeque::new(), go_file: None }
    }

    /// Also takes every change of this file for a "go"; the file need not exist yet.
    pub(crate) fn with_go_file(mut self, path: PathBuf) -> Self {
        let seen = version(&path);
        self.go_file = Some(GoFile { path, seen });
        self
    }

    /// True once the program shall end. Cheap: asked for every page.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sleeps until `deadline`; a "go" meanwhile is kept for the next wait.
    ///
    /// # Errors
    /// [`Stopped`] as soon as the program shall end.
    pub(crate) fn idle_until(&mut self, deadline: Instant) -> Result<(), Stopped> {
        while !self.stopped() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.receive(left);
        }
        Err(Stopped)
    }

    /// Waits for a "go", or takes one that came before.
    ///
    /// # Errors
    /// [`Stopped`] as soon as the program shall end.
    pub(crate) fn wait_for_go(&mut self) -> Result<Go, Stopped> {
        while !self.stopped() {
            if let Some(go) = self.pending.pop_front() {
                return Ok(go);
            }
            if self.go_file.as_mut().is_some_and(GoFile::changed) {
                return Ok(Go::File);
            }
            self.receive(if self.go_file.is_some() { GO_FILE_POLL } else { NO_POLL });
        }
        Err(Stopped)
    }

    fn receive(&mut self, patience: Duration) {
        match self.nudges.recv_timeout(patience) {
            Ok(Nudge::Go(go)) if self.pending.len() < PENDING_MAX => self.pending.push_back(go),
            Ok(Nudge::Go(_) | Nudge::Stop) | Err(RecvTimeoutError::Timeout) => {}
            // Nobody is left who could speak: sleep without spinning.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(patience),
        }
    }
}

/// A file whose changes mean "go".
#[derive(Debug)]
struct GoFile {
    path: PathBuf,
    seen: Option<Version>,
}

/// What changes when a file is written, touched or replaced: modification time in seconds and
/// nanoseconds, length, inode.
type Version = (i64, i64, u64, u64);

impl GoFile {
    /// True once after each change; that the file goes away is none.
    fn changed(&mut self) -> bool {
        let now = version(&self.path);
        let changed = now.is_some() && now != self.seen;
        self.seen = now;
        changed
    }
}

fn version(path: &PathBuf) -> Option<Version> {
    let file = fs::metadata(path).ok()?;
    Some((file.mtime(), file.mtime_nsec(), file.len(), file.ino()))
}

/// Whether lines on standard input mean "go".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// Each line is one.
    Lines,
    /// It is not read: another program may want it.
    Unread,
}

/// Starts listening: SIGUSR1 is "go", SIGTERM and SIGINT are "stop".
///
/// # Errors
/// Where the kernel refuses a signal handler or a thread.
pub(crate) fn listen(stdin: Stdin) -> io::Result<Controls> {
    let (sender, nudges) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    listen_to_signals(sender.clone(), Arc::clone(&stop))?;
    if stdin == Stdin::Lines {
        thread::Builder::new().name("stdin".into()).spawn(move || listen_to_stdin(&sender))?;
    }
    Ok(Controls::new(nudges, stop))
}

fn listen_to_signals(sender: Sender<Nudge>, stop: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGUSR1, SIGTERM, SIGINT])?;
    let listen = move || {
        for signal in signals.forever() {
            let nudge = if signal == SIGUSR1 { Nudge::Go(Go::Signal) } else { Nudge::Stop };
            if matches!(nudge, Nudge::Stop) {
                stop.store(true, Ordering::Relaxed);
            }
            if sender.send(nudge).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(listen)?;
    Ok(())
}

/// Ends with the input; a closed input is no "go", so a program without one waits for a signal.
fn listen_to_stdin(sender: &Sender<Nudge>) {
    for byte in io::stdin().lock().bytes() {
        match byte {
            Ok(b'\n') if sender.send(Nudge::Go(Go::Stdin)).is_ok() => {}
            Ok(b'\n') | Err(_) => return,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controls() -> (Sender<Nudge>, Arc<AtomicBool>, Controls) {
        let (sender, nudges) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let controls = Controls::new(nudges, Arc::clone(&stop));
        (sender, stop, controls)
    }

    #[test]
    fn a_go_that_comes_during_a_pause_serves_the_next_wait() {
        let (sender, _stop, mut controls) = controls();
        sender.send(Nudge::Go(Go::Signal)).unwrap();
        sender.send(Nudge::Go(Go::Stdin)).unwrap();
        controls.idle_until(Instant::now() + Duration::from_millis(5)).unwrap();
        assert_eq!(controls.wait_for_go(), Ok(Go::Signal));
        assert_eq!(controls.wait_for_go(), Ok(Go::Stdin));
    }

    #[test]
    fn a_stop_ends_a_long_pause_and_a_wait_at_once() {
        let (sender, stop, mut controls) = controls();
        stop.store(true, Ordering::Relaxed);
        sender.send(Nudge::Stop).unwrap();
        let deadline = Instant::now() + Duration::from_secs(3600);
        assert_eq!(controls.idle_until(deadline), Err(Stopped));
        assert_eq!(controls.wait_for_go(), Err(Stopped));
    }

    #[test]
    fn a_go_file_says_go_when_it_appears_and_when_it_is_written_but_not_when_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("go");
        let mut file = GoFile { path: path.clone(), seen: version(&path) };
        assert!(!file.changed());
        fs::write(&path, "1").unwrap();
        assert!(file.changed());
        assert!(!file.changed());
        fs::write(&path, "12").unwrap();
        assert!(file.changed());
        fs::remove_file(&path).unwrap();
        assert!(!file.changed());
        fs::write(&path, "12").unwrap();
        assert!(file.changed());
    }
}
