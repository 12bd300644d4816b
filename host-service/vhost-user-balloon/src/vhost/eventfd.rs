//! The event descriptors through which a VMM kicks a ring and is called back.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Where the kernel says that a descriptor is an eventfd (fs/eventfd.c: `anon_inode_getfile`).
const KIND: &str = "anon_inode:[eventfd]";

/// An eventfd of the VMM, made non-blocking: nothing that it does may stop this program.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    /// # Errors
    /// For anything else. A file on FUSE blocks whatever its flags say, and `/dev/zero` is ready for
    /// ever.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        if !is_eventfd(&fd)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no eventfd"));
        }
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    /// Takes what has been signalled. A kick that somebody else took is none; anything else means
    /// that this is no eventfd, and would be ready for ever.
    pub(crate) fn drain(&self) -> io::Result<()> {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(8) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) => Err(e.into()),
        }
    }

    /// Signals once. A counter that is full has a signal pending anyway.
    pub(crate) fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Without /proc (a sandbox) any anonymous inode must do, which has no file type: whatever can be read
/// of those does not block.
fn is_eventfd(fd: &OwnedFd) -> io::Result<bool> {
    match std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
        Ok(kind) => Ok(kind.as_os_str() == KIND),
        Err(_) => Ok(rustix::fs::fstat(fd)?.st_mode & FILE_TYPE == 0),
    }
}

/// `S_IFMT` of inode(7).
const FILE_TYPE: u32 = 0o170_000;

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;

    #[test]
    fn an_eventfd_counts_and_nothing_else_is_taken() {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let event = EventFd::new(fd).unwrap();
        event.signal().unwrap();
        event.drain().unwrap();
        event.drain().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let file = |path| std::fs::File::options().read(true).open(path).unwrap().into();
        for fd in [reader, writer, file("/dev/zero"), file("/dev/null"), file("/proc/self/exe")] {
            assert!(EventFd::new(fd).is_err());
        }
    }
}
