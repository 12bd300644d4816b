//! What one can do in a guest: run, spawn, signal, read, write.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Connection, Hello, NoOutcome};
use super::error::GuestError;
use super::process::Process;
use super::protocol::{Ending, MAX_FILE_BYTES, Op, Outcome, decode, encode};
use crate::text::shell_line;

/// What a guest under emulation and memory pressure may take to answer, beyond a command's own time.
const ANSWER_GRACE: Duration = Duration::from_secs(30);
/// For requests that take no time of their own.
const QUICK: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, GuestError>;

/// How a command ended and what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub ending: Ending,
    /// Standard output (its first MiB).
    pub stdout: String,
    /// Standard error (its first MiB).
    pub stderr: String,
}

/// A guest that can be spoken to. Cheap to clone; any thread may use any clone at any time.
#[derive(Debug, Clone)]
pub struct Guest {
    name: Arc<str>,
    connection: Arc<Connection>,
}

impl Guest {
    /// Speaks to the runner at the other end of `port`; `name` is for error texts.
    ///
    /// # Errors
    /// If the system gives no thread or descriptor more.
    pub fn new(name: &str, port: UnixStream) -> std::io::Result<Self> {
        Ok(Self { name: name.into(), connection: Connection::open(name, port)? })
    }

    /// Waits until the runner has said hello, at most until `until`.
    /// `None` if it has not, or if the port has closed.
    pub fn wait_hello(&self, until: Instant) -> Option<Hello> {
        self.connection.wait_hello(until)
    }

    /// How often a runner has said hello: once for each boot, unless it was started anew.
    pub fn hellos(&self) -> u64 {
        self.connection.hellos()
    }

    /// Runs a command to its end, whatever that end is.
    ///
    /// # Errors
    /// If the guest is gone, does not answer, or cannot start the program.
    pub fn run(&self, argv: &[&str], timeout: Duration) -> Result<Output> {
        self.run_with_input(argv, "", timeout)
    }

    /// The same, with something on its standard input.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_with_input(&self, argv: &[&str], stdin: &str, timeout: Duration) -> Result<Output> {
        let doing = shell_line(argv);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let op = Op::Run { argv: owned(argv), timeout_ms, stdin: stdin.to_owned() };
        match self.request(&doing, op, timeout + ANSWER_GRACE)? {
            Outcome::Ran { ending, stdout, stderr } => Ok(Output { ending, stdout, stderr }),
            other => Err(self.unexpected(&doing, &other)),
        }
    }

    /// Runs a command that must succeed and returns what it printed.
    ///
    /// # Errors
    /// As [`run`](Self::run), and if it did not return 0.
    pub fn check(&self, argv: &[&str], timeout: Duration) -> Result<String> {
        let output = self.run(argv, timeout)?;
        if output.ending.is_success() {
            return Ok(output.stdout);
        }
        Err(GuestError::Unsuccessful {
            guest: self.name.to_string(),
            command: shell_line(argv),
            ending: output.ending,
            stderr: output.stderr,
            stdout: output.stdout,
        })
    }

    /// A shell script that must succeed (`sh -e -c`); returns what it printed.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn shell(&self, script: &str, timeout: Duration) -> Result<String> {
        self.check(&["sh", "-e", "-c", script], timeout)
    }

    /// Starts a long-running program under a name; its lines come out of the returned handle.
    ///
    /// # Errors
    /// If it cannot be started or the name is taken by a running one.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Result<Process> {
        let doing = shell_line(argv);
        // Before the request: its first lines may come before the reply does.
        let Some(events) = self.connection.claim(name) else {
            return Err(self.refused(&doing, format!("the name {name} is taken")));
        };
        let op = Op::Spawn { name: name.to_owned(), argv: owned(argv) };
        let started = self.done(&doing, op);
        if let Err(error) = started {
            self.connection.release(name);
            return Err(error);
        }
        Ok(Process::new(self.clone(), name.to_owned(), events))
    }

    /// Sends a signal to a program that was spawned under this name.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn kill(&self, name: &str, signal: i32) -> Result<()> {
        let op = Op::Kill { name: name.to_owned(), signal };
        self.done(&format!("kill -{signal} {name}"), op)
    }

    /// Reads a file of at most 4 MiB.
    ///
    /// # Errors
    /// If it cannot be read or is longer.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let doing = format!("read {path}");
        let op = Op::Read { path: path.to_owned(), max: MAX_FILE_BYTES };
        match self.request(&doing, op, QUICK)? {
            Outcome::Content { base64 } => {
                decode(&base64).map_err(|reason| self.refused(&doing, reason))
            }
            other => Err(self.unexpected(&doing, &other)),
        }
    }

    /// Writes a file of at most 4 MiB; `mode` (as in 0o644) is for a new one.
    ///
    /// # Errors
    /// If it cannot be written or the content is longer.
    pub fn write_file(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let doing = format!("write {path}");
        if content.len() > MAX_FILE_BYTES {
            let reason = format!("{} bytes are too many for the port", content.len());
            return Err(self.refused(&doing, reason));
        }
        let op = Op::Write { path: path.to_owned(), base64: encode(content), mode };
        self.done(&doing, op)
    }

    /// Ends the conversation: everybody who waits is told so.
    pub(crate) fn hang_up(&self) {
        self.connection.hang_up();
    }

    fn done(&self, doing: &str, op: Op) -> Result<()> {
        match self.request(doing, op, QUICK)? {
            Outcome::Done => Ok(()),
            other => Err(self.unexpected(doing, &other)),
        }
    }

    fn request(&self, doing: &str, op: Op, within: Duration) -> Result<Outcome> {
        match self.connection.exchange(op, within) {
            Ok(Outcome::Failed { error }) => Err(self.refused(doing, error)),
            Ok(outcome) => Ok(outcome),
            Err(NoOutcome::Gone(why)) => Err(self.gone(doing, why)),
            Err(NoOutcome::Late) => Err(GuestError::NoAnswer {
                guest: self.name.to_string(),
                doing: doing.to_owned(),
                within,
            }),
        }
    }

    fn gone(&self, doing: &str, why: &'static str) -> GuestError {
        GuestError::Gone { guest: self.name.to_string(), doing: doing.to_owned(), why }
    }

    fn refused(&self, doing: &str, reason: String) -> GuestError {
        GuestError::Refused { guest: self.name.to_string(), doing: doing.to_owned(), reason }
    }

    fn unexpected(&self, doing: &str, outcome: &Outcome) -> GuestError {
        self.refused(doing, format!("the runner answered with {outcome:?}"))
    }
}

fn owned(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests;
