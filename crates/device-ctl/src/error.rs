//! Why a command failed, and with which status the program ends.

use std::io;

use memtide_units::ByteSize;

use crate::client::ClientError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The device could not be asked, or said no.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The guest's memory is not known.
    #[error(
        "no VMM is connected to the device: start the VM, and look at its log where it runs already"
    )]
    NoVmm,
    /// Nobody drives the device.
    #[error(
        "the guest does not drive the device: it is still booting, or has no balloon driver; in a \
         Linux guest run \"modprobe virtio_balloon\""
    )]
    NoDriver,
    /// The balloon would hold all that there is.
    #[error(
        "a balloon of {balloon} leaves nothing to a guest of {memory}: give a smaller one, or what \
         the guest shall keep with --guest SIZE"
    )]
    TooLarge {
        /// What was asked for.
        balloon: ByteSize,
        /// What the guest has.
        memory: ByteSize,
    },
    /// The guest shall keep more than it has.
    #[error(
        "the guest has {memory} and cannot keep {guest}: \"target 0\" gives it everything that it \
         has"
    )]
    TooMuch {
        /// What it shall keep.
        guest: ByteSize,
        /// What it has.
        memory: ByteSize,
    },
    /// Nothing waits to be decided.
    #[error("the guest asks for nothing back: there is nothing to grant or to deny")]
    NothingWaits,
    /// It takes longer than the user wants to wait. The text says what stands.
    #[error("{0}")]
    Deadline(String),
    /// Nobody takes what is printed.
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
}

impl CtlError {
    /// The program's exit status: 3 where no device could be spoken to, 4 where it refused or the
    /// command makes no sense for it now, 5 where the time is up, 1 for anything else. 2 is for
    /// command lines that are not understood.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Client(ClientError::Refused(_)) => 4,
            Self::Client(_) => 3,
            Self::NoVmm | Self::NoDriver | Self::NothingWaits => 4,
            Self::TooLarge { .. } | Self::TooMuch { .. } => 4,
            Self::Deadline(_) => 5,
            Self::Output(_) => 1,
        }
    }
}
