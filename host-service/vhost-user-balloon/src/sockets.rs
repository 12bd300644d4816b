//! Listening sockets that clean up before and after themselves.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Owner and group may connect: QEMU and the host's service share a group, others have no business.
const MODE: Mode = Mode::from_raw_mode(0o660);

/// `sun_path` of unix(7), less the zero that ends it.
const PATH_MAX: usize = 107;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

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

/// A socket that listens on a path, which is removed with it.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl BoundSocket {
    /// Listens on `path`. A socket that an earlier process left behind is replaced; one on which
    /// somebody answers is not.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let failed = |source: io::Error| ListenError::Io { path: path.into(), source };
        if path.as_os_str().len() > PATH_MAX {
            return Err(ListenError::TooLong(path.into()));
        }
        remove_stale(path)?;
        let listener = bind_with_mode(path).map_err(|e| failed(e.into()))?;
        Ok(Self { listener, path: path.into() })
    }

    /// The next connection, or `None` where nobody waits.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // A path that somebody removed already is removed.
        _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Io { path: path.into(), source };
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
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

/// Sets the mode between bind and listen, so that nobody can connect before it holds.
fn bind_with_mode(path: &Path) -> rustix::io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::fs::chmod(path, MODE)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_an_address_is_told_so() {
        let longest = format!("/{}", "x".repeat(PATH_MAX));
        let said = BoundSocket::bind(Path::new(&longest)).unwrap_err().to_string();
        assert!(said.contains("107 bytes at most"), "{said}");
        let said = BoundSocket::bind(Path::new("/nowhere/a.sock")).unwrap_err().to_string();
        assert!(said.contains("its directory must exist"), "{said}");
    }
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_left_behind_is_replaced_and_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let bound = BoundSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(bound.accept().unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(bound.accept().unwrap().is_some());
        drop(bound);
        assert!(!path.exists());
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
