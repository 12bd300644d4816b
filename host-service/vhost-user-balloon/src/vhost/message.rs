//! Messages on the vhost-user socket: bytes and file descriptors in, replies out.
//!
//! A message is read without ever blocking and never beyond its end, since descriptors belong to
//! the bytes that they came with. Descriptors are owned from the moment the kernel hands them over:
//! whatever becomes of a message, those that nobody took are closed.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};
use zerocopy::{FromBytes, IntoBytes};

use super::protocol::{
    FDS_MAX, HEADER_LEN, Header, NEED_REPLY, PAYLOAD_MAX, REPLY, VERSION, VERSION_MASK,
};

/// Descriptors that the kernel passes in one piece at most (`SCM_MAX_FD`). All of them are taken,
/// so that all can be closed.
const FDS_IN_ONE_PIECE: usize = 253;

/// One message of the VMM.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) request: u32,
    flags: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Why it cannot be believed, although its end was found.
    pub(crate) defect: Option<Defect>,
}

impl Message {
    /// Does the VMM wait for an answer?
    pub(crate) fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// What is wrong with a message whose end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Defect {
    #[error("its payload has {0} bytes, more than {PAYLOAD_MAX}; they were skipped")]
    Oversized(u32),
    #[error("more than {FDS_MAX} file descriptors came with it; they were closed")]
    TooManyFds,
    #[error("it is marked as a reply, and nothing was asked")]
    Reply,
}

/// After this the stream is out of step: nothing more can be read from it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the connection ended inside a message")]
    Cut,
    #[error("a message is of version {0} of the vhost-user protocol, not {VERSION}")]
    Version(u32),
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// What reading brought.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    /// The rest has not arrived yet.
    NotYet,
    /// The VMM has closed the connection between two messages.
    Closed,
}

/// A message that is being read.
#[derive(Debug, Default)]
pub(crate) struct MessageReader {
    head: Vec<u8>,
    header: Option<Header>,
    payload: Vec<u8>,
    skipped: usize,
    fds: Vec<OwnedFd>,
    too_many_fds: bool,
}

impl MessageReader {
    /// Reads on, as far as bytes are there.
    pub(crate) fn receive(&mut self, socket: &UnixStream) -> Result<Received, StreamError> {
        while let Some(wanted) = self.missing() {
            let mut buffer = [0; 4096];
            let room = wanted.min(buffer.len());
            match self.receive_piece(socket, &mut buffer[..room]) {
                Ok(0) if self.at_start() => return Ok(Received::Closed),
                Ok(0) => return Err(StreamError::Cut),
                Ok(len) => self.append(&buffer[..len])?,
                Err(Errno::AGAIN) => return Ok(Received::NotYet),
                Err(Errno::INTR) => {}
                // The VMM has died with bytes of ours unread.
                Err(Errno::CONNRESET) if self.at_start() => return Ok(Received::Closed),
                Err(e) => return Err(StreamError::Socket(e.into())),
            }
        }
        Ok(Received::Message(self.take()))
    }

    /// Bytes to the end of the message as far as it is known; `None` at its end.
    fn missing(&self) -> Option<usize> {
        let missing = match self.header {
            None => HEADER_LEN - self.head.len(),
            Some(header) => header.size as usize - self.payload.len() - self.skipped,
        };
        (missing > 0).then_some(missing)
    }

    fn at_start(&self) -> bool {
        self.head.is_empty()
    }

    fn receive_piece(&mut self, socket: &UnixStream, into: &mut [u8]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_IN_ONE_PIECE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            rustix::net::recvmsg(socket, &mut [IoSliceMut::new(into)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if self.fds.len() > FDS_MAX || received.flags.contains(ReturnFlags::CTRUNC) {
            self.fds.clear();
            self.too_many_fds = true;
        }
        Ok(received.bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        match self.header {
            None => {
                self.head.extend_from_slice(bytes);
                self.header = Header::read_from_bytes(&self.head).ok();
                match self.header.map(|header| header.flags & VERSION_MASK) {
                    Some(version) if version != VERSION => Err(StreamError::Version(version)),
                    _ => Ok(()),
                }
            }
            Some(header) if header.size as usize > PAYLOAD_MAX => {
                self.skipped += bytes.len();
                Ok(())
            }
            Some(_) => {
                self.payload.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn take(&mut self) -> Message {
        let done = std::mem::take(self);
        let header = done.header.unwrap_or(Header { request: 0, flags: 0, size: 0 });
        let defect = if done.skipped > 0 {
            Some(Defect::Oversized(header.size))
        } else if done.too_many_fds {
            Some(Defect::TooManyFds)
        } else {
            (header.flags & REPLY != 0).then_some(Defect::Reply)
        };
        Message {
            request: header.request,
            flags: header.flags,
            payload: done.payload,
            fds: done.fds,
            defect,
        }
    }
}

/// Did a reply find room in the socket?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    AtOnce,
    /// Only when the VMM had read an earlier one.
    Late,
}

/// Sends the reply to `request`. The VMM waits for it, so the socket takes it at once; one that does
/// not within the socket's own timeout belongs to a VMM that has stopped reading.
pub(crate) fn send_reply(
    socket: &UnixStream,
    request: u32,
    payload: &[u8],
) -> Result<Sent, StreamError> {
    let size = payload.len() as u32;
    let header = Header { request, flags: VERSION | REPLY, size };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    let (mut rest, mut sent) = (&bytes[..], Sent::AtOnce);
    while !rest.is_empty() {
        let flags = match sent {
            Sent::AtOnce => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            Sent::Late => SendFlags::NOSIGNAL,
        };
        match rustix::net::send(socket, rest, flags) {
            Ok(len) => rest = &rest[len..],
            Err(Errno::AGAIN) if sent == Sent::AtOnce => sent = Sent::Late,
            Err(Errno::INTR) => {}
            Err(e) => return Err(StreamError::Socket(e.into())),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
    use std::io::{IoSlice, Write};
    use std::os::fd::AsFd;

    fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
        Header { request, flags, size }.as_bytes().to_vec()
    }

    fn send_with_fds(socket: &UnixStream, bytes: &[u8], count: usize) {
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = vec![null.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_IN_ONE_PIECE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let sent =
            rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
        assert_eq!(sent.unwrap(), bytes.len());
    }

    fn message(reader: &mut MessageReader, socket: &UnixStream) -> Message {
        match reader.receive(socket).unwrap() {
            Received::Message(message) => message,
            other => panic!("a message was expected, not {other:?}"),
        }
    }

    #[test]
    fn a_message_comes_together_byte_by_byte() {
        let (mut vmm, device) = UnixStream::pair().unwrap();
        let mut reader = MessageReader::default();
        let mut bytes = header(8, VERSION | NEED_REPLY, 8);
        bytes.extend([1, 0, 0, 0, 128, 0, 0, 0]);
        let (last, first) = bytes.split_last().unwrap();
        for byte in first {
            vmm.write_all(&[*byte]).unwrap();
            assert!(matches!(reader.receive(&device).unwrap(), Received::NotYet));
        }
        vmm.write_all(&[*last]).unwrap();
        let got = message(&mut reader, &device);
        assert_eq!((got.request, got.payload.len(), got.needs_reply()), (8, 8, true));
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (mut vmm, device) = UnixStream::pair().unwrap();
        send_with_fds(&vmm, &header(12, VERSION, 0), 2);
        vmm.write_all(&header(3, VERSION, 0)).unwrap();
        let mut reader = MessageReader::default();
        assert_eq!(message(&mut reader, &device).fds.len(), 2);
        assert_eq!(message(&mut reader, &device).fds.len(), 0);
    }

    #[test]
    fn too_many_descriptors_are_a_defect_and_no_leak() {
        let (mut vmm, device) = UnixStream::pair().unwrap();
        send_with_fds(&vmm, &header(12, VERSION, 8), 200);
        vmm.write_all(&[0; 8]).unwrap();
        let got = message(&mut MessageReader::default(), &device);
        assert_eq!((got.defect, got.fds.len()), (Some(Defect::TooManyFds), 0));
    }

    #[test]
    fn an_oversized_payload_is_skipped_and_the_next_message_read() {
        let (mut vmm, device) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            vmm.write_all(&header(25, VERSION, 1 << 20)).unwrap();
            vmm.write_all(&vec![7; 1 << 20]).unwrap();
            vmm.write_all(&header(1, VERSION, 0)).unwrap();
            vmm
        });
        let mut reader = MessageReader::default();
        let mut got = Vec::new();
        while got.len() < 2 {
            if let Received::Message(message) = reader.receive(&device).unwrap() {
                got.push(message);
            }
        }
        assert_eq!(got[0].defect, Some(Defect::Oversized(1 << 20)));
        assert_eq!((got[1].request, got[1].defect), (1, None));
        drop(writer.join().unwrap());
    }

    /// One reply into a socket that is full until somebody reads.
    fn reply_while_read() -> Sent {
        let (mut vmm, device) = UnixStream::pair().unwrap();
        while rustix::net::send(&device, &[0; 4096], SendFlags::DONTWAIT).is_ok() {}
        let reader = std::thread::spawn(move || {
            std::io::Read::read(&mut vmm, &mut [0; 1 << 20]).unwrap();
            vmm
        });
        let sent = send_reply(&device, 1, &[0; 8]).unwrap();
        drop(reader.join().unwrap());
        sent
    }

    #[test]
    fn a_reply_that_had_to_wait_says_so() {
        let (_vmm, device) = UnixStream::pair().unwrap();
        assert_eq!(send_reply(&device, 1, &[0; 8]).unwrap(), Sent::AtOnce);
        // The reader may be the faster one.
        let start = std::time::Instant::now();
        while reply_while_read() == Sent::AtOnce {
            assert!(start.elapsed().as_secs() < 20);
        }
    }

    #[test]
    fn a_stream_out_of_step_ends_and_a_closed_one_is_no_error() {
        let (mut vmm, device) = UnixStream::pair().unwrap();
        vmm.write_all(&header(1, 2, 0)).unwrap();
        let error = MessageReader::default().receive(&device).unwrap_err();
        assert!(matches!(error, StreamError::Version(2)), "{error}");
        vmm.write_all(&header(1, VERSION, 0)[..5]).unwrap();
        drop(vmm);
        let mut reader = MessageReader::default();
        assert!(matches!(reader.receive(&device).unwrap_err(), StreamError::Cut));
        assert!(matches!(MessageReader::default().receive(&device).unwrap(), Received::Closed));
    }
}
