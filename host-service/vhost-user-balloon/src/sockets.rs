//! Listening sockets that clean up before and after themselves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use memtide_units::Instant;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Owner and group may connect: QEMU and the host's service share a group, others have no business.
const MODE: Mode = Mode::from_raw_mode(0o660);

/// `sun_path` of unix(7), less the zero that ends it.
const PATH_MAX: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// Between a failure to take a connection and the next attempt.
const REST: Duration = Duration::from_secs(1);

/// Why a program cannot listen on a path.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error(
        "the socket {0} is in use: a running program answers on it. Give another path, or stop that program first"
    )]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{0} exists and is no socket. Give another path, or move it away")]
    NotASocket(PathBuf),
    /// Longer than a unix socket's address can be.
    #[error(
        "the socket's path {0} is too long: {PATH_MAX} bytes at most. Give a shorter one, such as /run/memtide/NAME.sock"
    )]
    TooLong(PathBuf),
    /// A socket that was handed over.
    #[error("the socket that was handed over cannot be used: {source}")]
    Inherited {
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error(
        "cannot listen on {path}: {source}; its directory must exist and be writable for this user"
    )]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where a socket is listened on.
#[derive(Debug)]
pub enum Endpoint {
    /// At this path, which is made and removed by this process.
    Path(PathBuf),
    /// On a socket that whoever started this process made, and keeps.
    Inherited(UnixListener),
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// A socket that listens. Its path is removed with it, where it was made here.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    listener: UnixListener,
    /// The path and the inode that was made there.
    made: Option<(PathBuf, u64)>,
    /// No connection is taken before, since taking one has failed.
    rests_until: Option<Instant>,
}

impl BoundSocket {
    /// Listens. At a path, a socket that an earlier process left behind is replaced; one on which
    /// somebody answers is not.
    pub(crate) fn listen(endpoint: Endpoint) -> Result<Self, ListenError> {
        match endpoint {
            Endpoint::Path(path) => Self::bind(&path),
            Endpoint::Inherited(listener) => {
                let failed = |source| ListenError::Inherited { source };
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self { listener, made: None, rests_until: None })
            }
        }
    }

    fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |source: io::Error| ListenError::Io { path: path.into(), source };
        if path.as_os_str().len() > PATH_MAX {
            return Err(ListenError::TooLong(path.into()));
        }
        remove_stale(path)?;
        let listener = bind_with_mode(path).map_err(|e| failed(e.into()))?;
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self { listener, made: Some((path.into(), inode)), rests_until: None })
    }

    /// The next connection, or `None` where nobody waits. After a failure it rests for a while: who
    /// cannot be taken for want of descriptors or memory waits still, and would be found again at
    /// once.
    pub(crate) fn accept(&mut self, now: Instant) -> io::Result<Option<UnixStream>> {
        self.rests_until = None;
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => {
                self.rests_until = Some(now + REST);
                Err(e)
            }
        }
    }

    /// Until when nobody is to be taken.
    pub(crate) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.rests_until.filter(|until| *until > now)
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for BoundSocket {
    /// Removes the file, unless another process has put its own there by now.
    fn drop(&mut self) {
        let Some((path, inode)) = &self.made else { return };
        let is_ours = std::fs::symlink_metadata(path).is_ok_and(|file| file.ino() == *inode);
        if is_ours && let Err(error) = std::fs::remove_file(path) {
            tracing::warn!("{} stays behind: {error}", path.display());
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Io { path: path.into(), source };
    match probe(path).map_err(io::Error::from) {
        Ok(()) => Err(ListenError::InUse(path.into())),
        // Its queue is full: it hangs, perhaps, but it is there.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(ListenError::InUse(path.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            let kind = std::fs::symlink_metadata(path).map_err(failed)?.file_type();
            if !kind.is_socket() {
                return Err(ListenError::NotASocket(path.into()));
            }
            tracing::info!("the socket {} was left behind and is replaced", path.display());
            std::fs::remove_file(path).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Connects, and hangs up. It does not wait for a process that does not take connections.
fn probe(path: &Path) -> rustix::io::Result<()> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)
}

/// Held while the umask is another than the process's own.
static UMASK: Mutex<()> = Mutex::new(());

/// The socket has its mode before it has a name, and the file gets it from there (net/unix/af_unix.c,
/// `unix_bind_bsd`), less the umask: a change by name would follow whatever lies there by then.
fn bind_with_mode(path: &Path) -> rustix::io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, MODE)?;
    let held = UMASK.lock();
    let before = rustix::process::umask(Mode::empty());
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(before);
    drop(held);
    bound?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_path_that_cannot_be_an_address_is_told_so() {
        let longest = format!("/{}", "x".repeat(PATH_MAX));
        let said = BoundSocket::bind(Path::new(&longest)).unwrap_err().to_string();
        assert!(said.contains("107 bytes at most"), "{said}");
        let said = BoundSocket::bind(Path::new("/nowhere/a.sock")).unwrap_err().to_string();
        assert!(said.contains("its directory must exist"), "{said}");
    }
    #[test]
    fn a_socket_left_behind_is_replaced_and_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let mut bound = BoundSocket::bind(&path).unwrap();
        let now = Instant::default();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(bound.accept(now).unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(bound.accept(now).unwrap().is_some());
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_somebody_else_has_made_in_its_place_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let bound = BoundSocket::bind(&path).unwrap();
        let elsewhere = directory.path().join("new.sock");
        let _theirs = UnixListener::bind(&elsewhere).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_whose_program_hangs_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let address = SocketAddrUnix::new(&path).unwrap();
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = rustix::net::socket(family, kind, None).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        // Who has hung up stays in the queue until somebody takes the connection.
        let asked = (0..100).take_while(|_| probe(&path).is_ok()).count();
        assert!(asked < 100);
        let error = BoundSocket::bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
    }

    #[test]
    fn a_path_in_use_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let _other = UnixListener::bind(&path).unwrap();
        let text = BoundSocket::bind(&path).unwrap_err().to_string();
        assert!(text.contains("vm.sock") && text.contains("in use"), "{text}");
        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let error = BoundSocket::bind(&file).unwrap_err();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let error = BoundSocket::bind(&directory.path().join("no/such")).unwrap_err();
        assert!(matches!(error, ListenError::Io { .. }), "{error}");
    }
}
