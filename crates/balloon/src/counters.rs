//! What the device has done since its process started.

use std::collections::BTreeMap;

use memtide_units::ByteSize;

use crate::reclaim::{FailKind, Reclaimed};

/// Counts; they only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that a stock driver put into its balloon.
    pub inflated: ByteSize,
    /// Bytes that a stock driver took out of it.
    pub deflated: ByteSize,
    /// Bytes that free page reporting named.
    pub reported: ByteSize,
    /// Bytes that the agent stole.
    pub stolen: ByteSize,
    /// Bytes that were returned to the agent.
    pub returned: ByteSize,
    /// Returns that were asked for, by ticket.
    pub returns_asked: u64,
    /// Returns that were granted.
    pub returns_granted: u64,
    /// Returns that were held for a reason other than that somebody is being asked.
    pub returns_held: u64,
    /// Bytes that the agent took unasked.
    pub taken: ByteSize,
    /// Times that a stock driver was told of a new balloon size.
    pub notices: u64,
    /// Times that this was begun and called off, since the device was about to stop.
    pub notices_called_off: u64,
    /// Holes punched.
    pub punches: u64,
    /// Reclaims that failed.
    pub punch_errors: u64,
    /// What was refused or ignored, by the reason's name. The names are the program's own, so a
    /// guest cannot make the map grow.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Counters {
    pub(crate) fn count_reclaim(&mut self, reclaimed: Reclaimed) {
        self.punches += reclaimed.punches;
    }

    pub(crate) fn count_failure(&mut self, kind: FailKind) {
        self.punch_errors += 1;
        self.count_refusal(kind.name());
    }

    pub(crate) fn count_refusal(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }
}
