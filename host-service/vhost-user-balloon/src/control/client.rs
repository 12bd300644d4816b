//! One client of the control socket: lines in, lines out, and no more memory than that takes.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use memtide_api::device::{Call, FromDevice, Role};
use memtide_api::line::{CALL_MAX, LINE_MAX, LineBuffer, LineError, to_line};
use memtide_units::Instant;

/// What may wait for a client that does not read: an answer of the longest kind, and events of some
/// seconds. One that falls further behind is dropped, as it would learn of everything too late.
const OUTPUT_MAX: usize = 2 * LINE_MAX;

/// Bytes that are read of one client before others get their turn.
const READ_AT_ONCE: usize = 16 << 10;

/// Why a client is dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Gone {
    #[error("it closed the connection")]
    Closed,
    #[error("it does not read what it is sent")]
    Slow,
    #[error("it says nothing, and its place is needed")]
    Idle,
    #[error(transparent)]
    Line(LineError),
    #[error("its connection failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// Will it ask for more?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    Open,
    /// It has closed its side; what it asked before is answered.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    input: LineBuffer,
    asking: Asking,
    output: Vec<u8>,
    /// When it last sent something.
    heard: Instant,
    /// Set once it has attached.
    pub(crate) role: Option<Role>,
}

impl Client {
    pub(crate) fn new(stream: UnixStream, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let input = LineBuffer::for_lines_of(CALL_MAX);
        let output = Vec::new();
        Ok(Self { stream, input, asking: Asking::Open, output, heard: now, role: None })
    }

    /// Reads what is there, if what was read before is dealt with. After this, [`Client::next_call`]
    /// hands out the calls in it.
    pub(crate) fn read(&mut self, now: Instant) -> Result<(), Gone> {
        if !self.wants_input() {
            return Ok(());
        }
        let mut bytes = [0; READ_AT_ONCE];
        match self.stream.read(&mut bytes) {
            Ok(0) => {
                self.asking = Asking::Ended;
                Ok(())
            }
            Ok(len) => {
                self.heard = now;
                self.input.extend(&bytes[..len]);
                Ok(())
            }
            Err(e) if is_nothing(&e) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The next call; a line that is none comes as the reason why. A client that does not read gets
    /// no more answers than that, so that asking cannot make the device's memory grow.
    pub(crate) fn next_call(&mut self) -> Result<Option<Result<Call, LineError>>, Gone> {
        if self.has_output() {
            return Ok(None);
        }
        match self.input.next_message() {
            Ok(None) if self.asking == Asking::Ended => Err(Gone::Closed),
            Ok(call) => Ok(call.map(Ok)),
            Err(error @ LineError::Json(_)) => Ok(Some(Err(error))),
            Err(error) => Err(Gone::Line(error)),
        }
    }

    /// Sends a line, or keeps it until the client reads.
    pub(crate) fn send(&mut self, line: &FromDevice) -> Result<(), Gone> {
        self.output.extend(to_line(line)?);
        self.flush()?;
        if self.output.len() > OUTPUT_MAX { Err(Gone::Slow) } else { Ok(()) }
    }

    /// Writes as much as the client takes.
    pub(crate) fn flush(&mut self) -> Result<(), Gone> {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(len) => written += len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_nothing(&e) => break,
                Err(e) => return Err(e.into()),
            }
        }
        self.output.drain(..written);
        if self.output.is_empty() {
            // A status can be long, and the next may be hours away.
            self.output = Vec::new();
        }
        Ok(())
    }

    /// Is there something to write as soon as the client reads?
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Has it asked something that can be answered now?
    pub(crate) fn has_calls(&self) -> bool {
        !self.has_output() && self.input.has_line()
    }

    /// May it say more?
    pub(crate) fn wants_input(&self) -> bool {
        self.asking == Asking::Open && !self.has_output() && !self.input.has_line()
    }

    /// Since when it has said nothing.
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_api::device::Event;

    const NOW: Instant = Instant::from_millis(0);

    impl Client {
        fn input_len(&self) -> usize {
            self.input.len()
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up() {
        let (_deaf, ours) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours, NOW).unwrap();
        let event = FromDevice::Event { event: Event::ReturnCancelled { ticket: 1 } };
        let line = to_line(&event).unwrap().len();
        let gone = (0..2 * OUTPUT_MAX / line).find_map(|_| client.send(&event).err());
        assert!(matches!(gone, Some(Gone::Slow)));
        assert!(client.output.len() <= OUTPUT_MAX + line);
    }

    #[test]
    fn a_bad_line_does_not_end_the_connection() {
        let (mut person, ours) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours, NOW).unwrap();
        person.write_all(b"hello?\n{\"id\":4,\"call\":\"status\"}\n").unwrap();
        client.read(NOW).unwrap();
        assert!(matches!(client.next_call().unwrap(), Some(Err(LineError::Json(_)))));
        assert_eq!(client.next_call().unwrap().unwrap().unwrap().id, 4);
        assert!(client.next_call().unwrap().is_none());
        drop(person);
        client.read(NOW).unwrap();
        assert!(matches!(client.next_call(), Err(Gone::Closed)));
    }

    #[test]
    fn who_has_asked_and_says_no_more_is_answered() {
        let (mut script, ours) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours, NOW).unwrap();
        script.write_all(b"{\"id\":1,\"call\":\"status\"}\n").unwrap();
        script.shutdown(std::net::Shutdown::Write).unwrap();
        client.read(NOW).unwrap();
        assert!(!client.wants_input(), "first the call");
        assert!(client.next_call().unwrap().is_some());
        client.read(NOW).unwrap();
        assert!(matches!(client.next_call(), Err(Gone::Closed)));
    }

    #[test]
    fn asking_without_reading_is_no_way_to_make_memory_grow() {
        let (mut deaf, ours) = UnixStream::pair().unwrap();
        deaf.set_nonblocking(true).unwrap();
        let mut client = Client::new(ours, NOW).unwrap();
        let status = memtide_api::device::Answer::Status(Box::default());
        let result = memtide_api::device::Outcome::Ok(status);
        let reply = FromDevice::Reply(memtide_api::device::Reply { id: 1, result });
        let mut kept = 0;
        for _ in 0..10_000 {
            let _ = deaf.write(b"{\"id\":1,\"call\":\"status\"}\n");
            client.flush().unwrap();
            client.read(NOW).unwrap();
            while client.next_call().unwrap().is_some() {
                client.send(&reply).unwrap();
            }
            kept = kept.max(client.output.len() + client.input_len());
        }
        let line = to_line(&reply).unwrap().len();
        assert!(kept <= line + READ_AT_ONCE + CALL_MAX, "{kept} bytes");
    }
}
