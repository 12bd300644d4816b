//! Carries the device's state to the VMM and back, for migration and snapshots.
//!
//! The VMM opens a channel, a pipe as a rule, and asks for the outcome when all has gone through
//! it. The other end may be slow, or stop: nothing here blocks, the size is limited, and a transfer
//! that takes too long has failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use memtide_balloon::{Balloon, STATE_MAX, StateError};
use memtide_units::Instant;
use rustix::event::PollFlags;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

/// How long a transfer may take. It moves some kilobytes while the guest stands still.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a state did not go through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("the channel failed: {0}")]
    Channel(#[from] io::Error),
    #[error("more than {STATE_MAX} bytes came")]
    TooLarge,
    #[error("it took longer than {DEADLINE:?}")]
    TooSlow,
    #[error(transparent)]
    State(#[from] StateError),
}

/// One transfer, in whichever direction.
#[derive(Debug)]
pub(crate) struct Transfer {
    stage: Stage,
    deadline: Instant,
}

#[derive(Debug)]
enum Stage {
    Saving { channel: OwnedFd, rest: Vec<u8> },
    Loading { channel: OwnedFd, read: Vec<u8> },
    Done(Result<(), TransferError>),
}

/// Does a stage go on?
enum Step {
    Waits(Stage),
    Ends,
}

impl Transfer {
    /// Begins to write `state` into the channel.
    pub(crate) fn save(channel: OwnedFd, state: Vec<u8>, now: Instant) -> io::Result<Self> {
        let channel = nonblocking(channel)?;
        Ok(Self { stage: Stage::Saving { channel, rest: state }, deadline: now + DEADLINE })
    }

    /// Begins to read a state from the channel.
    pub(crate) fn load(channel: OwnedFd, now: Instant) -> io::Result<Self> {
        let channel = nonblocking(channel)?;
        Ok(Self { stage: Stage::Loading { channel, read: Vec::new() }, deadline: now + DEADLINE })
    }

    /// What to wait for, until it is done.
    pub(crate) fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.stage {
            Stage::Saving { channel, .. } => Some((channel.as_fd(), PollFlags::OUT)),
            Stage::Loading { channel, .. } => Some((channel.as_fd(), PollFlags::IN)),
            Stage::Done(_) => None,
        }
    }

    /// When it has taken too long.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waits_for().map(|_| self.deadline)
    }

    /// Goes on as far as the channel lets it. The channel is closed as soon as all has gone
    /// through it, or nothing more will.
    pub(crate) fn proceed(&mut self, balloon: &mut Balloon, now: Instant) {
        let stage = std::mem::replace(&mut self.stage, Stage::Done(Ok(())));
        let step = match stage {
            Stage::Saving { channel, rest } => write(channel, rest),
            Stage::Loading { channel, read } => self::read(channel, read, balloon),
            Stage::Done(outcome) => Ok(Step::Waits(Stage::Done(outcome))),
        };
        self.stage = match step {
            Ok(Step::Waits(stage @ Stage::Done(_))) => stage,
            Ok(Step::Waits(_)) if self.deadline <= now => Stage::Done(Err(TransferError::TooSlow)),
            Ok(Step::Waits(stage)) => stage,
            Ok(Step::Ends) => Stage::Done(Ok(())),
            Err(error) => Stage::Done(Err(error)),
        };
    }

    /// How it ended, once it has.
    pub(crate) fn outcome(&self) -> Option<&Result<(), TransferError>> {
        match &self.stage {
            Stage::Done(outcome) => Some(outcome),
            Stage::Saving { .. } | Stage::Loading { .. } => None,
        }
    }
}

/// A pipe as a rule; a socket and a file do as well. Other kinds block or never end, whatever their
/// flags say.
fn nonblocking(channel: OwnedFd) -> io::Result<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&channel)?.st_mode);
    if !matches!(kind, FileType::Fifo | FileType::Socket | FileType::RegularFile) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no pipe, socket or file"));
    }
    let flags = rustix::fs::fcntl_getfl(&channel)?;
    rustix::fs::fcntl_setfl(&channel, flags | OFlags::NONBLOCK)?;
    Ok(channel)
}

fn write(channel: OwnedFd, mut rest: Vec<u8>) -> Result<Step, TransferError> {
    while !rest.is_empty() {
        match rustix::io::write(&channel, &rest) {
            Ok(written) => drop(rest.drain(..written)),
            Err(Errno::AGAIN) => return Ok(Step::Waits(Stage::Saving { channel, rest })),
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(Step::Ends)
}

fn read(channel: OwnedFd, mut read: Vec<u8>, balloon: &mut Balloon) -> Result<Step, TransferError> {
    let mut piece = [0; 4096];
    loop {
        match rustix::io::read(&channel, &mut piece) {
            Ok(0) => {
                balloon.load_state(&read)?;
                return Ok(Step::Ends);
            }
            Ok(len) if read.len() + len > STATE_MAX => return Err(TransferError::TooLarge),
            Ok(len) => read.extend_from_slice(&piece[..len]),
            Err(Errno::AGAIN) => return Ok(Step::Waits(Stage::Loading { channel, read })),
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}
