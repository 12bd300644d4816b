//! The API's socket: taken over when stale, refused when somebody answers, removed at the end.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tokio::net::UnixListener;

/// Owner and group may read and write, which is what connecting takes (unix(7)).
const SOCKET_MODE: u32 = 0o660;

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error(
        "somebody listens on {} already: is another memtided running? Stop it, or give this one \
         another --socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else than a socket is there.
    #[error("{} exists and is no socket: remove it, or give another --socket", .0.display())]
    NoSocket(PathBuf),
    /// The system refused.
    #[error(
        "the API's socket {} cannot be made: {source}; start memtided as root, or give a --socket \
         in a directory that it may write to",
        path.display()
    )]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket whose file is removed with it.
#[derive(Debug)]
pub(crate) struct ApiSocket {
    path: PathBuf,
    inode: u64,
}

impl ApiSocket {
    /// Listens on `path`. Call it before other threads create files: it sets the file mode by the
    /// process's umask, so that nobody can connect in a moment between.
    pub(crate) fn listen(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |source| SocketError::Io { path: path.into(), source };
        remove_stale(path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let before = rustix::process::umask(Mode::from_raw_mode(!SOCKET_MODE & 0o777));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener.map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok((Self { path: path.into(), inode }, listener))
    }
}

impl Drop for ApiSocket {
    /// Removes the file, unless another memtided has put its own there by now.
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{} stays behind: {error}", self.path.display());
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.into(), source };
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
            if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
                return Err(SocketError::NoSocket(path.into()));
            }
            tracing::info!("{} was left behind by a process that is gone: removed", path.display());
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn the_socket_is_for_owner_and_group_and_goes_when_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/api.sock");
        let (socket, _listener) = ApiSocket::listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_taken_over_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_socket, _listener) = ApiSocket::listen(&path).unwrap();
        let error = ApiSocket::listen(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = ApiSocket::listen(&file).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket(_)), "{error}");
        assert!(file.exists());
    }
}
