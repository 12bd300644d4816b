//! Tells the VMM that the configuration has changed, without ever hitting one whose device is not
//! started.
//!
//! QEMU 11.1 dies of a null pointer when the message reaches a device that is stopped
//! (`vub_config_notifier`), and a message that is simply sent can wait in the socket while a stop
//! overtakes it on the other one. So it goes in two halves: one byte, and the rest when that byte
//! has been *read*. QEMU reads a header to its end with its big lock held (`backend_read`), and each
//! stop, under the same lock, waits for answers of this program. Where the byte has been read and no
//! stop was answered since it was sent, QEMU is inside the read, its device is started, and stays so
//! until the rest has been read as well.
//!
//! Where a stop comes first, the rest is that of a request that nobody knows: it is refused by the
//! VMM with a line in its log, and does nothing.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use memtide_units::Instant;
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::SendFlags;
use zerocopy::IntoBytes;

use super::protocol::{BACKEND_CONFIG_CHANGE, BACKEND_NOTHING, Header, VERSION};

/// `SIOCOUTQ` of include/uapi/linux/sockios.h, which is `TIOCOUTQ`: what a socket has sent and its
/// peer has not read.
const SIOCOUTQ: Opcode = 0x5411;

/// The first half is one byte: it is read as a whole or not at all.
const FIRST: usize = 1;

/// Bounds of the time between two looks whether it was read.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(50);

const _: () = assert!(BACKEND_NOTHING.to_ne_bytes()[0] == BACKEND_CONFIG_CHANGE.to_ne_bytes()[0]);

/// What has become of a notice that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// There is none.
    No,
    /// Its first half waits in the socket.
    Unread,
    /// The VMM has read the first half and waits for the other.
    Read,
}

/// The back-end channel that the VMM has opened.
#[derive(Debug)]
pub(crate) struct NoticeChannel {
    socket: OwnedFd,
    /// When the first half of a notice was sent that has no other half yet.
    begun: Option<Instant>,
}

impl NoticeChannel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, begun: None }
    }

    /// Sends the first half of a notice.
    pub(crate) fn begin(&mut self, now: Instant) -> io::Result<()> {
        self.send(&message(BACKEND_CONFIG_CHANGE)[..FIRST])?;
        self.begun = Some(now);
        Ok(())
    }

    /// When to look whether the first half has been read: the kernel does not tell. Soon at first,
    /// since the VMM then waits with its big lock held; less and less often where it does not read
    /// for a long time.
    pub(crate) fn look_due(&self, now: Instant) -> Option<Instant> {
        let waited = now.since(self.begun?);
        Some(now + (waited / 8).clamp(LOOK_MIN, LOOK_MAX))
    }

    /// How far a notice has come.
    pub(crate) fn begun(&self) -> io::Result<Begun> {
        match self.begun {
            None => Ok(Begun::No),
            Some(_) if unread(self.socket.as_fd())? > 0 => Ok(Begun::Unread),
            Some(_) => Ok(Begun::Read),
        }
    }

    /// Sends the other half: the VMM interrupts its guest.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.begun = None;
        self.send(&message(BACKEND_CONFIG_CHANGE)[FIRST..])
    }

    /// Makes a notice that was begun one that means nothing; true where there was one.
    pub(crate) fn call_off(&mut self) -> io::Result<bool> {
        if self.begun.take().is_none() {
            return Ok(false);
        }
        self.send(&message(BACKEND_NOTHING)[FIRST..])?;
        Ok(true)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent =
            rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

fn message(request: u32) -> [u8; size_of::<Header>()] {
    let header = Header { request, flags: VERSION, size: 0 };
    let mut bytes = [0; size_of::<Header>()];
    bytes.copy_from_slice(header.as_bytes());
    bytes
}

/// Memory of the socket's messages that the other end has not read: zero where it has read all.
fn unread(socket: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: SIOCOUTQ writes one int, which is what the getter has room for (unix_ioctl in
    // net/unix/af_unix.c).
    let getter = unsafe { Getter::<SIOCOUTQ, c_int>::new() };
    // SAFETY: as above; the descriptor is borrowed for the call, and any other descriptor than a
    // socket or a terminal answers with an error.
    Ok(unsafe { ioctl(socket, getter) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn channel() -> (NoticeChannel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (NoticeChannel::new(ours.into()), theirs)
    }

    #[test]
    fn a_notice_is_read_in_two_halves() {
        let (mut channel, mut vmm) = channel();
        assert_eq!(channel.begun().unwrap(), Begun::No);
        channel.begin(Instant::default()).unwrap();
        assert_eq!(channel.begun().unwrap(), Begun::Unread);
        let mut message = [0; 12];
        vmm.read_exact(&mut message[..1]).unwrap();
        assert_eq!(channel.begun().unwrap(), Begun::Read);
        channel.finish().unwrap();
        vmm.read_exact(&mut message[1..]).unwrap();
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(channel.begun().unwrap(), Begun::No);
        assert!(!channel.call_off().unwrap());
    }

    #[test]
    fn one_that_is_called_off_means_nothing() {
        let (mut channel, mut vmm) = channel();
        channel.begin(Instant::default()).unwrap();
        assert!(channel.call_off().unwrap());
        let mut message = [0; 12];
        vmm.read_exact(&mut message).unwrap();
        assert_eq!(message, [2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let (mut channel, vmm) = channel();
        drop(vmm);
        assert!(channel.begin(Instant::default()).is_err());
    }
}
