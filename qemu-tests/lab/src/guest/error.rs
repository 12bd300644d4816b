//! Why a request to a guest came to nothing.

use std::time::Duration;

use super::protocol::Ending;

/// Why a request to a guest came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// The port closed: QEMU ended, or the runner was started anew.
    #[error("{guest}: `{doing}` has no answer, because {why}; look at its serial.log and qemu.log")]
    Gone {
        /// The machine's name.
        guest: String,
        /// What was being done.
        doing: String,
        /// What happened to the port.
        why: &'static str,
    },
    /// The guest is there but does not answer.
    #[error("{guest}: no answer to `{doing}` within {} s; is the guest out of memory?", within.as_secs())]
    NoAnswer {
        /// The machine's name.
        guest: String,
        /// What was being done.
        doing: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// The guest could not do it.
    #[error("{guest}: `{doing}`: {reason}")]
    Refused {
        /// The machine's name.
        guest: String,
        /// What was being done.
        doing: String,
        /// The guest's own words.
        reason: String,
    },
    /// A command that had to succeed did not.
    #[error(
        "{guest}: `{command}` ended with {ending}\n--- stderr ---\n{stderr}\n--- stdout ---\n{stdout}"
    )]
    Unsuccessful {
        /// The machine's name.
        guest: String,
        /// The command.
        command: String,
        /// How it ended.
        ending: Ending,
        /// What it complained.
        stderr: String,
        /// What it printed.
        stdout: String,
    },
}
