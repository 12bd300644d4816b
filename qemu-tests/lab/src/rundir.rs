//! A short directory for sockets and scratch files.
//!
//! It is removed when it is dropped. A process that is killed drops nothing, so each directory is
//! locked for as long as its process lives, and making one removes those that nobody holds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::error::{IoContext, Result};

const PREFIX: &str = "memtide-";
const LOCK: &str = ".lock";

/// Longest directory that leaves room for a socket's name: a unix socket's path has 108 bytes.
const LONGEST_BYTES: usize = 60;

/// Younger ones may be unlocked only because they are being made.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// A directory for sockets and scratch files, removed with this.
#[derive(Debug)]
pub struct RunDir {
    directory: TempDir,
    _lock: File,
}

impl RunDir {
    /// Makes one in the temporary directory, or in /tmp where that has too long a name.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new() -> Result<Self> {
        let parent = short(std::env::temp_dir());
        remove_left_behind(&parent, SystemTime::now());
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&parent)
            .on("create a directory in", &parent)?;
        let path = directory.path().join(LOCK);
        let lock = File::create(&path).on("create", &path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).on("lock", &path)?;
        Ok(Self { directory, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

fn short(directory: PathBuf) -> PathBuf {
    if directory.as_os_str().len() <= LONGEST_BYTES { directory } else { "/tmp".into() }
}

/// Best effort: what cannot be removed is somebody else's.
fn remove_left_behind(parent: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let ours = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path());
    for directory in ours.filter(|directory| is_left_behind(directory, now)) {
        let _ = fs::remove_dir_all(directory);
    }
}

fn is_left_behind(directory: &Path, now: SystemTime) -> bool {
    let Ok(lock) = File::open(directory.join(LOCK)) else { return false };
    let made = lock.metadata().and_then(|metadata| metadata.modified());
    let old = made.is_ok_and(|made| now.duration_since(made).is_ok_and(|age| age > LEFT_BEHIND));
    old && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_fit_and_nothing_stays_behind() {
        assert_eq!(short("/t".repeat(80).into()), PathBuf::from("/tmp"));
        let run = RunDir::new().unwrap();
        let path = run.path().to_owned();
        std::os::unix::net::UnixListener::bind(run.join("a-socket-with-a-long-name.sock")).unwrap();
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn only_old_directories_that_nobody_holds_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let directory = parent.path().join(name);
            fs::create_dir(&directory).unwrap();
            (File::create(directory.join(LOCK)).unwrap(), directory)
        };
        let (held, living) = make("memtide-living");
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let (_, dead) = make("memtide-dead");
        let (_, stranger) = make("stranger");
        let without_lock = parent.path().join("memtide-tools");
        fs::create_dir(&without_lock).unwrap();

        remove_left_behind(parent.path(), SystemTime::now());
        assert!(dead.exists(), "too young: it may be in the making");
        remove_left_behind(parent.path(), SystemTime::now() + 2 * LEFT_BEHIND);
        assert!(!dead.exists());
        assert!(living.exists() && stranger.exists() && without_lock.exists());
    }
}
