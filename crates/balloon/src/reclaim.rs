//! The one thing that the device model asks of its host.

use std::fmt;
use std::io;

use memtide_units::{ByteSize, GpaRange};

/// What came of a reclaim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes that have no backing any more.
    pub bytes: ByteSize,
    /// Holes that were punched for it.
    pub punches: u64,
}

/// Why the host could not drop backing, as far as counting goes: each kind has another remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailKind {
    /// A signal came each time that it was tried (`EINTR`).
    Interrupted,
    /// The file system has no room to split what it stores (`ENOSPC`, a file as backing).
    NoSpace,
    /// The storage failed (`EIO`).
    Io,
    /// The file does not do it, or not in pieces like this (`EINVAL`, `EOPNOTSUPP`).
    Invalid,
    /// The file was sealed meanwhile (`EPERM`).
    Forbidden,
    /// There is no such memory, or not any more.
    Outside,
    /// Anything else.
    Other,
}

impl FailKind {
    /// Its name in the counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupted => "reclaim-interrupted",
            Self::NoSpace => "reclaim-no-space",
            Self::Io => "reclaim-io",
            Self::Invalid => "reclaim-invalid",
            Self::Forbidden => "reclaim-forbidden",
            Self::Outside => "reclaim-outside",
            Self::Other => "reclaim-other",
        }
    }
}

impl From<&io::Error> for FailKind {
    fn from(error: &io::Error) -> Self {
        /// `EIO` of include/uapi/asm-generic/errno-base.h: the library has no kind for it.
        const EIO: i32 = 5;
        match error.kind() {
            io::ErrorKind::Interrupted => Self::Interrupted,
            io::ErrorKind::StorageFull => Self::NoSpace,
            io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => Self::Invalid,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ if error.raw_os_error() == Some(EIO) => Self::Io,
            _ => Self::Other,
        }
    }
}

/// The host could not drop the backing, or not all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReclaimFailed {
    /// What went wrong, for the counters.
    pub kind: FailKind,
    /// What went wrong, in words.
    pub text: String,
}

impl fmt::Display for ReclaimFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ReclaimFailed {}

/// Whoever owns the backing of guest memory.
pub trait Reclaim {
    /// Drops the backing of `range`, now: when this returns, it has happened or failed for good.
    /// An answer that reaches the guest before its discard, or a discard that is tried again after
    /// its answer, would take pages that the guest uses.
    ///
    /// # Errors
    /// [`ReclaimFailed`], also for a range that is not guest memory. Parts of the range may have no
    /// backing any more; nobody may rely on it.
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_fallocate_are_told_apart() {
        let named = [
            (4, FailKind::Interrupted),
            (28, FailKind::NoSpace),
            (5, FailKind::Io),
            (22, FailKind::Invalid),
            (95, FailKind::Invalid),
            (1, FailKind::Forbidden),
            (9, FailKind::Other),
        ];
        for (errno, kind) in named {
            assert_eq!(FailKind::from(&io::Error::from_raw_os_error(errno)), kind, "{errno}");
        }
    }
}
