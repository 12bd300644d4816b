//! What can go wrong in a measurement.

use std::path::PathBuf;
use std::time::Duration;

use memtide_scenarios::error::ScenarioError;
use memtide_units::ByteSize;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The machine, the channel into it or the lab's files.
    #[error("the lab: {0}")]
    Lab(#[from] memtide_lab::Error),
    /// Somebody pressed Ctrl-C, or a step of the scenarios' failed.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// A step did not end in time.
    #[error("{who}: waited {waited:?} in vain until {what}; last seen: {seen}")]
    Late {
        /// Whose step.
        who: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
        /// The last state that was seen.
        seen: String,
    },
    /// A guest printed something else than a script of ours prints.
    #[error("{who}: {what} printed {text:?}")]
    Unexpected {
        /// Whose guest.
        who: String,
        /// What was run there.
        what: &'static str,
        /// What it printed.
        text: String,
    },
    /// Too few blocks of a guest could be made movable.
    #[error("{who}: only {found} blocks can be taken offline, and {needed} are to be moved")]
    FewBlocks {
        /// Whose guest.
        who: String,
        /// How many there are.
        found: usize,
        /// How many are needed.
        needed: u64,
    },
    /// The host has not enough huge pages, and cannot make them.
    #[error(
        "{wanted} huge pages of 2 MiB are wanted and the kernel found memory for {got}: free memory on \
         this host, or leave Memtide on huge pages out with --no-huge-pages"
    )]
    HugePages {
        /// How many were asked for.
        wanted: u64,
        /// How many there are.
        got: u64,
    },
    /// The host has too little memory for the guests.
    #[error(
        "the guests need {needed} of memory and this host has {available} available: close something, \
         or measure with less (--memory)"
    )]
    NoMemory {
        /// What all of them touch at most.
        needed: ByteSize,
        /// `MemAvailable`.
        available: ByteSize,
    },
    /// A file of the host.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A system call of the measurement's own.
    #[error("{what}: {source}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The device's control socket.
    #[error(transparent)]
    Control(#[from] memtide_device_ctl::ClientError),
    /// The device said no, or something that is no answer.
    #[error("the device {0}")]
    Device(String),
}

impl BenchError {
    /// Names a failed system call.
    pub(crate) fn call<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::Call { what, source: source.into() }
    }
}

impl From<memtide_lab::guest::GuestError> for BenchError {
    fn from(error: memtide_lab::guest::GuestError) -> Self {
        Self::Lab(error.into())
    }
}

/// The result of a step.
pub(crate) type Result<T> = std::result::Result<T, BenchError>;
