//! A device process that is memtided's to start, and to start again when it dies.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Child;
use tokio::time::Instant;

use super::spawn::Launcher;
use crate::config::VmConfig;

/// Between two starts of a process that does not stay; doubled each time.
const RESTART_MIN: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A process that lived for so long did not fail because of how it was started.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// A started process that does not listen by then is called lost, so that nobody waits for it.
const LISTEN_DEADLINE: Duration = Duration::from_secs(5);

/// How the process is, now that nobody answers on its control socket.
#[derive(Debug)]
pub(super) enum Standing {
    /// Started just now, with this process id.
    Started(u32),
    /// Started a moment ago: it will listen soon.
    Starting,
    /// It does not run, or does not listen; why.
    Failed(String),
}

/// The process of one VM.
pub(crate) struct Process {
    launcher: Launcher,
    vhost_socket: PathBuf,
    running: Option<(Child, Instant)>,
    not_before: Option<Instant>,
    pause: Duration,
    last_words: String,
}

impl Process {
    /// A process that has not been started.
    pub(crate) fn new(launcher: Launcher, vhost_socket: PathBuf) -> Self {
        Self {
            launcher,
            vhost_socket,
            running: None,
            not_before: None,
            pause: RESTART_MIN,
            last_words: String::new(),
        }
    }

    /// Starts it where it does not run and it is time to.
    pub(super) fn ensure(&mut self, vm: &VmConfig) -> Standing {
        self.bury();
        if let Some((child, since)) = &self.running {
            let pid = child.id().unwrap_or(0);
            return if since.elapsed() < LISTEN_DEADLINE {
                Standing::Starting
            } else {
                Standing::Failed(format!("its device, process {pid}, runs and does not listen"))
            };
        }
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return Standing::Failed(self.last_words.clone());
        }
        match self.launcher.start(&vm.name, &self.vhost_socket, &vm.control) {
            Ok(child) => {
                let pid = child.id().unwrap_or(0);
                self.running = Some((child, Instant::now()));
                Standing::Started(pid)
            }
            Err(error) => {
                let binary = self.launcher.binary().display();
                self.last_words = format!("its device {binary} cannot be started: {error}");
                self.pause_longer();
                Standing::Failed(self.last_words.clone())
            }
        }
    }

    /// Takes note of a process that ended.
    fn bury(&mut self) {
        let Some((child, since)) = &mut self.running else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        let lived = since.elapsed();
        self.last_words =
            format!("its device process ended after {} s ({status}), see its log", lived.as_secs());
        self.running = None;
        if lived >= GOOD_LIFE {
            self.pause = RESTART_MIN;
            self.not_before = None;
        } else {
            self.pause_longer();
        }
    }

    fn pause_longer(&mut self) {
        self.not_before = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RESTART_MAX);
    }
}
