//! What host and guest say to each other over the virtio-serial port: one JSON object to a line.
//!
//! The host sends [`Request`]s, each with a number of its own; the guest answers with a
//! [`Message::Reply`] of that number in any order, and speaks unasked only about programs that it
//! was told to [`Op::Spawn`]. Lines are bounded on both sides.

use std::io::{self, BufRead, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The port's name, as QEMU and the guest's /sys/class/virtio-ports show it.
pub const PORT_NAME: &str = "org.memtide.lab";

/// Longest line either side reads, in bytes: a file of [`MAX_FILE_BYTES`] in base64 and some words.
pub const MAX_LINE_BYTES: u64 = 8 << 20;

/// Largest file that goes through the port, in bytes; bigger things belong on the tools disk.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// What is kept of a command's output, in bytes for each of its two streams.
pub const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// A request to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The number that the reply will bear.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub op: Op,
}

/// What the guest can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Runs a program to its end and sends back what it printed.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// After how long it is killed, with all its children, in milliseconds.
        timeout_ms: u64,
        /// What it reads on standard input.
        #[serde(default)]
        stdin: String,
    },
    /// Starts a program whose lines come as [`Message::Line`] while it runs.
    Spawn {
        /// What it is called from now on; no two running programs share a name.
        name: String,
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// Sends a signal to a spawned program (not to its children).
    Kill {
        /// Its name.
        name: String,
        /// The signal's number.
        signal: i32,
    },
    /// Reads a file.
    Read {
        /// Which.
        path: String,
        /// Fails rather than to read more bytes than this.
        max: usize,
    },
    /// Writes a file: to a temporary name, then renamed, unless it is a special file.
    Write {
        /// Which.
        path: String,
        /// Its new content.
        base64: String,
        /// Its permissions if it is created.
        mode: u32,
    },
}

/// What the guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// The first line of every runner: it takes requests from now on.
    Hello {
        /// `uname -r`.
        kernel: String,
        /// Guest time since boot, in milliseconds.
        uptime_ms: u64,
    },
    /// The answer to a request.
    Reply {
        /// The request's number.
        id: u64,
        /// What came of it.
        #[serde(flatten)]
        outcome: Outcome,
    },
    /// A spawned program printed a line.
    Line {
        /// Its name.
        name: String,
        /// Where it printed.
        stream: Stream,
        /// The line, without its end.
        line: String,
    },
    /// A spawned program ended.
    Exited {
        /// Its name.
        name: String,
        /// How.
        ending: Ending,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The program of [`Op::Run`] ran.
    Ran {
        /// How it ended.
        ending: Ending,
        /// What it printed; anything that is not UTF-8 is replaced.
        stdout: String,
        /// What it complained.
        stderr: String,
    },
    /// Done, with nothing to say.
    Done,
    /// The file's content.
    Content {
        /// The bytes.
        base64: String,
    },
    /// It could not be done.
    Failed {
        /// Why, naming what it was about.
        error: String,
    },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It took too long and was killed.
    TimedOut,
}

impl Ending {
    /// Whether it returned 0.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::TimedOut => f.write_str("its time running out"),
        }
    }
}

/// One of a program's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes as text for a message.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of such a text.
///
/// # Errors
/// If the text is none.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|error| format!("not base64: {error}"))
}

/// A message as its line, end of line included.
pub fn to_line<T: Serialize>(message: &T) -> Vec<u8> {
    // Maps with string keys and strings: nothing here can fail to become JSON.
    let mut line = serde_json::to_vec(message).expect("protocol messages become JSON");
    line.push(b'\n');
    line
}

/// Reads one line, without its end, of at most `max` bytes; `None` at the end of the stream.
///
/// # Errors
/// If reading fails, the line is longer, or the stream ends within it.
pub fn read_line(reader: &mut impl BufRead, max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.by_ref().take(max).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() as u64 + 1 >= max => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line over {max} bytes")))
        }
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_flat_and_readable() {
        let op = Op::Run { argv: vec!["true".into()], timeout_ms: 1000, stdin: String::new() };
        let line = to_line(&Request { id: 7, op });
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"id\":7,\"op\":\"run\",\"argv\":[\"true\"],\"timeout_ms\":1000,\"stdin\":\"\"}\n"
        );
    }

    #[test]
    fn replies_survive_the_wire() {
        let outcome = Outcome::Ran {
            ending: Ending::Signal(9),
            stdout: "two\nlines \u{fffd}".into(),
            stderr: String::new(),
        };
        let message = Message::Reply { id: 3, outcome };
        assert_eq!(serde_json::from_slice::<Message>(&to_line(&message)).unwrap(), message);
    }

    #[test]
    fn a_line_too_long_or_cut_short_is_an_error() {
        let read = |mut bytes: &[u8]| read_line(&mut bytes, 8);
        assert_eq!(read(b"short\nmore").unwrap(), Some(b"short".to_vec()));
        assert_eq!(read(b"").unwrap(), None);
        assert_eq!(read(b"1234567\n").unwrap(), Some(b"1234567".to_vec()));
        assert_eq!(read(b"12345678\n").unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(b"cut").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn any_command_arrives_as_it_was(argv in proptest::collection::vec(".*", 1..4), stdin in ".*") {
            let request = Request { id: 1, op: Op::Run { argv, timeout_ms: 5, stdin } };
            let line = to_line(&request);
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            prop_assert_eq!(serde_json::from_slice::<Request>(&line).unwrap(), request);
        }
    }
}
