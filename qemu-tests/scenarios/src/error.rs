//! What can go wrong in a scenario.

use std::path::PathBuf;
use std::time::Duration;

/// Why a scenario could not go on. A promise that was not kept is no error but a failure in the
/// report: the run goes on and tells all of them.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The machine, the channel into it or the lab's files.
    #[error("the lab: {0}")]
    Lab(#[from] memtide_lab::Error),
    /// A program of ours did not start.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program of ours said no, or ended.
    #[error("{what} failed: {said}")]
    Program {
        /// What was asked of it.
        what: String,
        /// What it said.
        said: String,
    },
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Something did not happen in time.
    #[error("waited {waited:?} in vain until {what}; last seen: {seen}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The last state that was seen.
        seen: String,
    },
    /// A file of the run.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of ours that should be there.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel did not tell what of guest memory is resident.
    #[error("the guest's memfd cannot be looked at: {0}")]
    Memfd(std::io::Error),
    /// Output that is not what it should be.
    #[error("{what} printed something unexpected: {source}")]
    Json {
        /// Whose.
        what: String,
        /// Where it went wrong.
        source: serde_json::Error,
    },
}
