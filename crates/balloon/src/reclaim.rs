//! The one thing that the device model asks of its host.

use memtide_units::{ByteSize, GpaRange};

/// What came of a reclaim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes that have no backing any more.
    pub bytes: ByteSize,
    /// Holes that were punched for it.
    pub punches: u64,
}

/// The host could not drop the backing. Carries its reason in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReclaimFailed(pub String);

/// Whoever owns the backing of guest memory.
pub trait Reclaim {
    /// Drops the backing of `range`, now: when this returns, it has happened or failed for good.
    /// An answer that reaches the guest before its discard, or a discard that is tried again after
    /// its answer, would take pages that the guest uses.
    ///
    /// # Errors
    /// [`ReclaimFailed`], also for a range that is not guest memory.
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed>;
}
