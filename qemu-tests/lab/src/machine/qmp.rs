//! QEMU's monitor (QMP): commands as JSON, one at a time, and the events in between.
//!
//! After QEMU's `docs/interop/qmp-spec.rst`.

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::guest::protocol::read_line;

/// Longest answer taken, in bytes; the longest known, all of QEMU's types, is a tenth of it.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// How long QEMU may take to answer: its big lock may be held while a back end works.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to QEMU's monitor. Threads take turns, command by command.
#[derive(Debug)]
pub struct Qmp {
    connection: Mutex<Connection>,
}

/// Something that QEMU told unasked.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// As in QEMU's manual: `SHUTDOWN`, `BALLOON_CHANGE`, ...
    pub name: String,
    /// What came with it.
    pub data: Value,
}

#[derive(Debug)]
struct Connection {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    last_id: u64,
    events: Vec<QmpEvent>,
}

impl Qmp {
    /// Takes the greeting and turns commands on.
    ///
    /// # Errors
    /// If QEMU hangs up, as it does when it refuses its command line.
    pub fn connect(stream: UnixStream) -> Result<Self> {
        let failed = |error| failure("connecting", &error);
        let writer = stream.try_clone().map_err(failed)?;
        let reader = BufReader::new(stream);
        let mut connection = Connection { reader, writer, last_id: 0, events: Vec::new() };
        connection.read(Instant::now() + ANSWER).map_err(failed)?;
        let qmp = Self { connection: Mutex::new(connection) };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns what it returns.
    ///
    /// # Errors
    /// If QEMU refuses it, does not answer within 30 s, or has ended.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.last_id += 1;
        let id = connection.last_id;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        let failed = |error| failure(command, &error);
        connection.writer.write_all(format!("{request}\n").as_bytes()).map_err(failed)?;
        let until = Instant::now() + ANSWER;
        loop {
            let answer = connection.read(until).map_err(failed)?;
            if answer["id"] != json!(id) {
                // The answer to a command that was given up earlier.
                continue;
            }
            return match answer.get("error") {
                Some(error) => Err(refusal(command, error)),
                None => Ok(answer["return"].clone()),
            };
        }
    }

    /// The events since this was last called, oldest first, as far as they have been read.
    pub fn take_events(&self) -> Vec<QmpEvent> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut connection.events)
    }

    /// Waits for an event of this name, passing over others.
    ///
    /// # Errors
    /// If none comes within the time or QEMU ends.
    pub fn wait_event(&self, name: &str, within: Duration) -> Result<QmpEvent> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + within;
        loop {
            if let Some(at) = connection.events.iter().position(|event| event.name == name) {
                return Ok(connection.events.remove(at));
            }
            let doing = format!("waiting for {name}");
            connection.read_any(until).map_err(|error| failure(&doing, &error))?;
        }
    }
}

impl Connection {
    /// The next message that is no event; events are kept.
    fn read(&mut self, until: Instant) -> io::Result<Value> {
        loop {
            if let Some(message) = self.read_any(until)? {
                return Ok(message);
            }
        }
    }

    /// The next message, or nothing if it was an event.
    fn read_any(&mut self, until: Instant) -> io::Result<Option<Value>> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.reader.get_ref().set_read_timeout(Some(left))?;
        // QEMU writes a line at once: a timeout cannot strike within one.
        let line = read_line(&mut self.reader, MAX_ANSWER_BYTES)?;
        let line = line.ok_or(io::ErrorKind::UnexpectedEof)?;
        let message: Value = serde_json::from_slice(&line)?;
        let Some(name) = message["event"].as_str() else { return Ok(Some(message)) };
        self.events.push(QmpEvent { name: name.to_owned(), data: message["data"].clone() });
        Ok(None)
    }
}

fn failure(doing: &str, error: &io::Error) -> Error {
    let reason = match error.kind() {
        // The last one where it ended without having read what was sent.
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => "QEMU hung up".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => error.to_string(),
    };
    Error::Qmp { doing: doing.to_owned(), reason }
}

fn refusal(command: &str, error: &Value) -> Error {
    let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
    Error::Qmp { doing: command.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::thread;

    /// Plays QEMU: sends the greeting, then for each command the lines that belong to it.
    fn qemu(answers: &'static [&'static [&'static str]]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut writer = theirs.try_clone().unwrap();
            writeln!(writer, r#"{{"QMP": {{"version": {{}}}}}}"#).unwrap();
            let mut commands = BufReader::new(theirs).lines();
            for lines in answers {
                commands.next().unwrap().unwrap();
                for line in *lines {
                    writeln!(writer, "{line}").unwrap();
                }
            }
        });
        ours
    }

    const READY: &[&str] = &[r#"{"return": {}, "id": 1}"#];

    #[test]
    fn answers_are_told_from_events_and_from_older_answers() {
        let qmp = Qmp::connect(qemu(&[
            READY,
            &[
                r#"{"event": "RESUME", "timestamp": {}}"#,
                r#"{"return": "late", "id": 1}"#,
                r#"{"event": "BALLOON_CHANGE", "data": {"actual": 5}}"#,
                r#"{"return": {"running": true}, "id": 2}"#,
            ],
        ]))
        .unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).unwrap()["running"], true);
        let change = qmp.wait_event("BALLOON_CHANGE", Duration::from_secs(5)).unwrap();
        assert_eq!(change.data["actual"], 5);
        let names: Vec<String> = qmp.take_events().into_iter().map(|event| event.name).collect();
        assert_eq!(names, ["RESUME"]);
    }

    #[test]
    fn a_refusal_and_a_hang_up_say_what_was_being_done() {
        let error = r#"{"error": {"class": "GenericError", "desc": "no such device"}, "id": 2}"#;
        let error: &'static [&'static str] = Box::leak(Box::new([error]));
        let answers: &'static [&'static [&'static str]] = Box::leak(Box::new([READY, error]));
        let qmp = Qmp::connect(qemu(answers)).unwrap();
        let refused = qmp.execute("device_del", json!({ "id": "x" })).unwrap_err().to_string();
        assert!(refused.contains("device_del") && refused.contains("no such device"), "{refused}");
        let gone = qmp.execute("query-status", json!({})).unwrap_err().to_string();
        assert!(gone.contains("query-status") && gone.contains("QEMU hung up"), "{gone}");
    }

    #[test]
    fn waiting_for_an_event_has_an_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n").unwrap();
        let qmp = Qmp::connect(ours).unwrap();
        let error = qmp.wait_event("SHUTDOWN", Duration::from_millis(10)).unwrap_err().to_string();
        assert!(error.contains("SHUTDOWN") && error.contains("no answer in time"), "{error}");
    }
}
