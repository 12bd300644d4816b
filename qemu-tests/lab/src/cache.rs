//! The cache directory: downloads and images that outlive a clone of the repository.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::command::Log;
use crate::error::{Error, IoContext, Result};

/// The environment variable that moves the cache.
pub const CACHE_VARIABLE: &str = "MEMTIDE_CACHE";

/// The lab's directory in the user's cache.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache in this directory, which is made if it is missing.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        std::fs::create_dir_all(&root).on("create the cache directory", &root)?;
        let root = root.canonicalize().on("resolve the cache directory", &root)?;
        Ok(Self { root })
    }

    /// The user's cache: `$MEMTIDE_CACHE`, else `$XDG_CACHE_HOME/memtide`, else `~/.cache/memtide`.
    ///
    /// # Errors
    /// If none of the variables is set or the directory cannot be made.
    pub fn of_user() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let chosen = variable(CACHE_VARIABLE).map(PathBuf::from);
        let xdg = || variable("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("memtide"));
        let home = || variable("HOME").map(|home| Path::new(&home).join(".cache/memtide"));
        let root = chosen.or_else(xdg).or_else(home).ok_or_else(|| Error::Unusable {
            what: "there is no place for the lab's cache: HOME is not set".to_owned(),
            advice: "set MEMTIDE_CACHE to a directory with 1 GiB of room",
        })?;
        Self::at(root)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Something in the cache.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// The log of what set-up's programs printed.
    pub fn log(&self) -> Log {
        Log::new(self.join("setup.log"))
    }

    /// Takes the cache for a set-up; `waiting` is called once if somebody else has it.
    ///
    /// # Errors
    /// If the lock file cannot be made or locked.
    pub(crate) fn lock(&self, waiting: impl FnOnce()) -> Result<CacheLock> {
        let path = self.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .on("open the lock", &path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            waiting();
            flock(&file, FlockOperation::LockExclusive).on("take the lock", &path)?;
        }
        Ok(CacheLock { _file: file })
    }
}

/// Nobody else sets up in this cache while this lives; the kernel frees it if we are killed.
#[derive(Debug)]
pub(crate) struct CacheLock {
    _file: File,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_second_setup_learns_that_it_waits() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let waited = Cell::new(0);
        let count = || waited.set(waited.get() + 1);
        let first = cache.lock(count).unwrap();
        assert_eq!(waited.get(), 0);
        std::thread::scope(|scope| {
            let (told, is_told) = std::sync::mpsc::channel();
            let cache = &cache;
            let second = scope.spawn(move || {
                let _lock = cache.lock(|| told.send(()).unwrap()).unwrap();
            });
            is_told.recv().unwrap();
            drop(first);
            second.join().unwrap();
        });
    }
}
