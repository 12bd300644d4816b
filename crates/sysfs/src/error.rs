//! What can go wrong with one of the kernel's files.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Most characters of a file that an error repeats: enough to see what it was, little enough to log.
const EXCERPT_CHARS: usize = 120;

/// A result of this crate's readers and writers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a kernel file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or directory does not exist: the kernel lacks the feature, or the object (a memory
    /// block, a device) went away.
    #[error("{} does not exist: the kernel was built or started without it, or the object went away", .path.display())]
    Missing {
        /// The absent file.
        path: PathBuf,
    },
    /// The file exists and says that the feature is switched off (EOPNOTSUPP).
    #[error("{} is switched off in this kernel: look for the feature's option on the kernel command line", .path.display())]
    Disabled {
        /// The file that answered so.
        path: PathBuf,
    },
    /// The file was read and says something that it should not say.
    #[error("{}: expected {expected}, but read {read:?}", .path.display())]
    Garbage {
        /// The file.
        path: PathBuf,
        /// What would have been understood.
        expected: &'static str,
        /// What stood there, its first 120 characters.
        read: String,
    },
    /// The kernel gives its numbers to privileged readers only, and gave zeros instead.
    #[error("{} hides its addresses from this process: it needs CAP_SYS_ADMIN", .path.display())]
    Hidden {
        /// The file.
        path: PathBuf,
    },
    /// A write was not taken.
    #[error("the kernel refused {wrote:?} in {}: {source}", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What was written.
        wrote: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Opening or reading failed in another way, most often for lack of privilege.
    #[error("{} could not be read: {source} (most of the kernel's memory files are for root only)", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// The error for `read` found in `path` instead of `expected`.
    pub(crate) fn garbage(path: impl Into<PathBuf>, expected: &'static str, read: &str) -> Self {
        let read = read.chars().take(EXCERPT_CHARS).collect();
        Self::Garbage { path: path.into(), expected, read }
    }

    /// The error for a failed open or read.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match errno(&source) {
            // ENODEV: a sysfs file was open while its object was taken away.
            Some(Errno::NOENT | Errno::NOTDIR | Errno::NODEV) => Self::Missing { path },
            Some(Errno::OPNOTSUPP) => Self::Disabled { path },
            _ => Self::Io { path, source },
        }
    }

    /// The error for a failed open for writing, or a failed write.
    pub(crate) fn writing(path: &Path, wrote: &str, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match errno(&source) {
            Some(Errno::NOENT | Errno::NOTDIR) => Self::Missing { path },
            _ => Self::Refused { path, wrote: wrote.into(), source },
        }
    }

    /// True where the file is absent: the usual sign of a feature that this kernel lacks.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// The system's error number, where the system gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } | Self::Io { source, .. } => errno(source),
            Self::Missing { .. } => Some(Errno::NOENT),
            Self::Disabled { .. } => Some(Errno::OPNOTSUPP),
            Self::Garbage { .. } | Self::Hidden { .. } => None,
        }
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// `Missing` as `None`, for files that are allowed to be absent.
pub(crate) fn optional<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_which_file_what_was_expected_and_what_stood_there() {
        let error = Error::garbage("/proc/meminfo", "a line MemTotal", &"x".repeat(500));
        let text = error.to_string();
        assert!(text.contains("/proc/meminfo") && text.contains("a line MemTotal"));
        assert!(text.len() < 250, "{text}");
    }

    #[test]
    fn absent_switched_off_and_broken_are_told_apart() {
        let path = Path::new("/proc/pressure/memory");
        let of = |errno: Errno| Error::reading(path, errno.into());
        assert!(of(Errno::NOENT).is_missing());
        assert!(matches!(of(Errno::OPNOTSUPP), Error::Disabled { .. }));
        assert_eq!(of(Errno::ACCESS).errno(), Some(Errno::ACCESS));
    }
}
