//! One client of the control socket: lines in, lines out, and no more memory than that takes.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use memtide_api::device::{Call, FromDevice, Role};
use memtide_api::line::{LINE_MAX, LineBuffer, LineError, to_line};

/// What may wait for a client that does not read: a few of the longest lines. One that falls further
/// behind is dropped, as it would learn of everything too late.
const OUTPUT_MAX: usize = 4 * LINE_MAX;

/// Bytes that are read of one client before others get their turn.
const READ_AT_ONCE: usize = 16 << 10;

/// Why a client is dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Gone {
    #[error("it closed the connection")]
    Closed,
    #[error("it does not read what it is sent")]
    Slow,
    #[error(transparent)]
    Line(LineError),
    #[error("its connection failed: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    input: LineBuffer,
    output: Vec<u8>,
    /// Set once it has attached.
    pub(crate) role: Option<Role>,
}

impl Client {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, input: LineBuffer::default(), output: Vec::new(), role: None })
    }

    /// Reads what is there. After this, [`Client::next_call`] hands out the calls in it.
    pub(crate) fn read(&mut self) -> Result<(), Gone> {
        let mut bytes = [0; READ_AT_ONCE];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Gone::Closed),
            Ok(len) => {
                self.input.extend(&bytes[..len]);
                Ok(())
            }
            Err(e) if is_nothing(&e) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The next call; a line that is none comes as the reason why.
    pub(crate) fn next_call(&mut self) -> Result<Option<Result<Call, LineError>>, Gone> {
        match self.input.next_message() {
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
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(e) if is_nothing(&e) => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Is there something to write as soon as the client reads?
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
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

    #[test]
    fn a_client_that_does_not_read_is_given_up() {
        let (_deaf, ours) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours).unwrap();
        let event = FromDevice::Event { event: Event::ReturnCancelled { ticket: 1 } };
        let line = to_line(&event).unwrap().len();
        let gone = (0..2 * OUTPUT_MAX / line).find_map(|_| client.send(&event).err());
        assert!(matches!(gone, Some(Gone::Slow)));
        assert!(client.output.len() <= OUTPUT_MAX + line);
    }

    #[test]
    fn a_bad_line_does_not_end_the_connection() {
        let (mut person, ours) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours).unwrap();
        person.write_all(b"hello?\n{\"id\":4,\"call\":\"status\"}\n").unwrap();
        client.read().unwrap();
        assert!(matches!(client.next_call().unwrap(), Some(Err(LineError::Json(_)))));
        assert_eq!(client.next_call().unwrap().unwrap().unwrap().id, 4);
        assert!(client.next_call().unwrap().is_none());
        drop(person);
        assert!(matches!(client.read(), Err(Gone::Closed)));
    }
}
