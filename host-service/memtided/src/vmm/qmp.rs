//! A conversation with QEMU's monitor: commands as JSON lines, one at a time, events in between
//! (QEMU: docs/interop/qmp-spec.rst).
//!
//! QEMU is trusted less than it trusts us: a line, the number of lines and the time of the whole
//! conversation have limits.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memtide_api::line::{LineBuffer, LineError, to_line};
use memtide_units::may_be_shown;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

/// How long a conversation may take, in all: QEMU answers at once unless its big lock is held.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Longest line taken, in bytes; 256 DIMMs take a tenth.
const LINE_MAX: usize = 1 << 20;
/// Lines taken in one conversation, events included.
const LINES_MAX: u32 = 4096;
/// Bytes read at a time.
const CHUNK: usize = 16 << 10;
/// Characters of QEMU's words that are shown.
const WORDS_MAX: usize = 300;
/// What is said to be done while there is no command yet.
const GREETING: &str = "greeting";

/// Why a conversation came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{command} over the QMP socket {} failed: {problem}", path.display())]
pub(super) struct QmpError {
    path: PathBuf,
    command: &'static str,
    pub(super) problem: Problem,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// No socket, or nobody behind it.
    #[error(
        "{0}; is the VM running, and was it started with -qmp unix:PATH,server=on,wait=off for \
         memtided?"
    )]
    Unreachable(io::Error),
    /// It was accepted by the kernel, not by QEMU.
    #[error(
        "it sent none: a monitor serves one client at a time, and another one holds this; give \
         memtided a monitor of its own: -qmp unix:PATH,server=on,wait=off"
    )]
    Held,
    /// Nothing came in time.
    #[error("no answer in time: is the VM's process stopped?")]
    Silent,
    /// The other end went away.
    #[error("the VM closed the connection")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not the lines of QMP.
    #[error("{0}")]
    Line(#[from] LineError),
    /// Lines, but not QMP's.
    #[error("this is no QMP: {0}")]
    NotQmp(&'static str),
    /// QEMU's refusal.
    #[error("{desc} ({class})")]
    Refused {
        /// Its stable class, such as `GenericError`.
        class: String,
        /// Its sentence.
        desc: String,
    },
    /// QEMU's answer is understood as JSON and not as what was asked for.
    #[error("the answer makes no sense: {0}")]
    Answer(String),
}

/// One line of QEMU's.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<serde::de::IgnoredAny>,
    id: Option<u64>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    class: String,
    desc: String,
}

/// A connection that has been greeted and takes commands.
pub(super) struct Conversation<'a> {
    path: &'a Path,
    stream: UnixStream,
    input: LineBuffer,
    chunk: Box<[u8]>,
    deadline: Instant,
    lines: u32,
    last_id: u64,
}

impl<'a> Conversation<'a> {
    /// Connects, waits for the greeting, and turns commands on. All that follows has to end within
    /// `patience` from now.
    pub(super) async fn open(path: &'a Path, patience: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + patience;
        let failed = |problem| QmpError { path: path.into(), command: "connecting", problem };
        let stream = timeout_at(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| failed(Problem::Silent))?
            .map_err(|error| failed(Problem::Unreachable(error)))?;
        let mut conversation = Self {
            path,
            stream,
            input: LineBuffer::for_lines_of(LINE_MAX),
            chunk: vec![0; CHUNK].into_boxed_slice(),
            deadline,
            lines: 0,
            last_id: 0,
        };
        conversation.greeting().await.map_err(|problem| conversation.error(GREETING, problem))?;
        conversation.execute("qmp_capabilities", json!({})).await?;
        Ok(conversation)
    }

    async fn greeting(&mut self) -> Result<(), Problem> {
        match self.message().await {
            Ok(Message { greeting: Some(_), .. }) => Ok(()),
            Ok(_) => Err(Problem::NotQmp("it begins without a greeting")),
            Err(Problem::Silent) => Err(Problem::Held),
            Err(problem) => Err(problem),
        }
    }

    /// Carries a command out and returns what QEMU returns.
    pub(super) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        self.answer(command, arguments).await.map_err(|problem| self.error(command, problem))
    }

    async fn answer(&mut self, command: &str, arguments: Value) -> Result<Value, Problem> {
        self.last_id += 1;
        let line =
            to_line(&json!({"execute": command, "arguments": arguments, "id": self.last_id}))?;
        let written = timeout_at(self.deadline, self.stream.write_all(&line)).await;
        written.map_err(|_| Problem::Silent)??;
        loop {
            let message = self.message().await?;
            match message {
                // A line that it could not read has no id; we send one at a time.
                Message { error: Some(Fault { class, desc }), .. } => {
                    return Err(Problem::Refused { class: shown(&class), desc: shown(&desc) });
                }
                Message { result: Some(result), id, .. } if id == Some(self.last_id) => {
                    return Ok(result);
                }
                Message { result: Some(_), .. } => {
                    return Err(Problem::NotQmp("it answers what was not asked"));
                }
                // An event.
                Message { .. } => {}
            }
        }
    }

    /// The next line.
    async fn message(&mut self) -> Result<Message, Problem> {
        loop {
            if let Some(message) = self.input.next_message()? {
                self.lines += 1;
                if self.lines > LINES_MAX {
                    return Err(Problem::NotQmp("it talks without end"));
                }
                return Ok(message);
            }
            let read = timeout_at(self.deadline, self.stream.read(&mut self.chunk)).await;
            let count = read.map_err(|_| Problem::Silent)??;
            if count == 0 {
                return Err(Problem::Closed);
            }
            self.input.extend(&self.chunk[..count]);
        }
    }

    /// `problem` with the socket and the command it belongs to.
    pub(super) fn error(&self, command: &'static str, problem: Problem) -> QmpError {
        QmpError { path: self.path.into(), command, problem }
    }
}

/// QEMU's words as far as they are fit for a log.
fn shown(text: &str) -> String {
    text.chars().filter(|c| may_be_shown(*c)).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests;
