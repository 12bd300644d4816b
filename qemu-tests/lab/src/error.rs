//! Everything that can go wrong in the lab, in words that say what to do next.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A lab failure. The text is complete: what failed, on what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation of our own failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The verb, as in "cannot create".
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program that the lab calls is missing or could not be started.
    #[error("cannot start `{command}`; {advice}")]
    Spawn {
        /// The command line, as one could type it.
        command: String,
        /// What to do.
        advice: &'static str,
        /// Why it did not start.
        source: io::Error,
    },
    /// A program that the lab calls ended badly.
    #[error("`{command}` ended with {outcome}; {advice}\n--- its last lines ---\n{tail}")]
    Command {
        /// The command line, as one could type it.
        command: String,
        /// Exit status or signal.
        outcome: String,
        /// What to do.
        advice: &'static str,
        /// The end of what it printed.
        tail: String,
    },
    /// Something is not as the lab needs it.
    #[error("{what}; {advice}")]
    Unusable {
        /// What was found.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// QEMU ended although the machine was still wanted.
    #[error("{machine}: QEMU ended with {outcome} while waiting for {waiting_for}\n{last_words}")]
    QemuEnded {
        /// The machine's name and where its logs are.
        machine: String,
        /// Exit status or signal.
        outcome: String,
        /// What was being waited for.
        waiting_for: String,
        /// The end of what QEMU and the guest printed.
        last_words: String,
    },
    /// A condition did not come true in time.
    #[error("{machine}: no {waiting_for} within {} s\n{last_words}", within.as_secs())]
    Timeout {
        /// The machine's name and where its logs are.
        machine: String,
        /// What was being waited for.
        waiting_for: String,
        /// How long it was waited for.
        within: Duration,
        /// The end of what QEMU and the guest printed.
        last_words: String,
    },
    /// QEMU's monitor refused a command or hung up.
    #[error("QEMU's monitor, {doing}: {reason}")]
    Qmp {
        /// The command that was being executed.
        doing: String,
        /// What came back.
        reason: String,
    },
    /// The guest's side of the lab failed.
    #[error(transparent)]
    Guest(#[from] crate::guest::GuestError),
}

/// The result of everything in the lab.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Gives a file operation's error its verb and its path.
pub(crate) trait IoContext<T> {
    /// Turns the error into [`Error::Io`].
    fn on(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::Io { doing, path: path.into(), source })
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn on(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(io::Error::from).on(doing, path)
    }
}
