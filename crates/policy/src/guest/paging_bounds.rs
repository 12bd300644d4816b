//! How much cold memory may be paged out in a second.

use core::time::Duration;

use memtide_units::ByteSize;

use super::limits::Limits;

/// ACMA's: what nobody has touched for a minute is cold.
pub const COLD_AFTER: Duration = Duration::from_secs(60);
/// Bytes that may be tried in each second: a 64th of all memory, so that a minute suffices for all of
/// it, within these bounds. The bound on time goes by an average of what was tried, and most of that
/// is free memory, which is tried in no time: without this one a cold gigabyte would go at once.
const BYTES_SHARE: u64 = 64;
const BYTES_LEAST: ByteSize = ByteSize::from_mib(32);
const BYTES_MOST: ByteSize = ByteSize::from_mib(256);
/// The goal of who pages out is this part of the user's. DAMON's scheme pages out until tasks stall as much as
/// it may have them (mm/damon/core.c, `damos_quota_score`), for as long as what has gone comes back now and then;
/// with all of the goal for it, every other window was over, and nothing could be stolen any more.
const GOAL_PART: u32 = 2;

/// What may go in a second at most, and what it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingBounds {
    /// What may be tried.
    pub bytes: ByteSize,
    /// So many microseconds some task may stall; a goal in millionths is as many of a second.
    pub stall_us: u64,
}

impl PagingBounds {
    /// Those of a guest with so much memory.
    pub fn of(limits: &Limits, present: ByteSize) -> Self {
        let share = ByteSize::from_bytes(present.bytes() / BYTES_SHARE);
        Self {
            bytes: share.clamp(BYTES_LEAST, BYTES_MOST),
            stall_us: u64::from(limits.psi_goal().0 / GOAL_PART).max(1),
        }
    }
}
