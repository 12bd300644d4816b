//! How long a decision holds, where nothing happens.

use core::time::Duration;

use memtide_units::ByteSize;

use super::figures::Figures;
use super::observation::{Observation, StealState};
use super::plan::{Decision, WaitReason};

/// How long to wait when nothing can go wrong soon: telemetry's period.
const CALM: Duration = Duration::from_secs(1);
/// How long to wait while a return may become necessary soon: a fifth of the time that the trend looks
/// ahead.
const WATCHFUL: Duration = Duration::from_millis(100);
/// What a guest grows by in a second at most: two processors that touch new memory as fast as the
/// kernel clears it.
const FASTEST: ByteSize = ByteSize::from_gib(4);

/// Free memory, where only growth could make a decision sooner than in a second: nothing is under way,
/// nobody stalls, and so much is free that growth takes from that, and not from page cache, unseen.
pub(super) fn while_free(
    seen: &Observation,
    figures: &Figures,
    report: &Decision,
) -> Option<ByteSize> {
    let Decision::Rest(reason) = report else { return None };
    let is_urgent = matches!(
        reason,
        WaitReason::Denied
            | WaitReason::Pressure { .. }
            | WaitReason::Trigger
            | WaitReason::NoFree { .. }
            | WaitReason::NothingToReturn { .. }
    );
    let is_calm = !is_urgent && figures.over_goal.is_none() && !figures.trigger_fired;
    let is_still = seen.steal == StealState::Idle && seen.ticket.is_none();
    let is_seen = seen.memory.free >= figures.headroom.low;
    (is_calm && is_still && is_seen).then_some(seen.memory.free)
}

/// Watchful while something runs, and calm while nothing could come back. Else the next look comes
/// before a guest that begins to grow now, as fast as guests do, has used up what is there for that:
/// neither PSI nor anything else tells before the memory is gone.
pub(super) fn wait(seen: &Observation, figures: &Figures) -> Duration {
    if seen.steal == StealState::Running || seen.ticket.is_some() {
        return WATCHFUL;
    }
    if seen.stolen().next().is_none() {
        return CALM;
    }
    let spare =
        seen.memory.available - figures.hot_cache - figures.growth.ahead - figures.headroom.low;
    let ms = spare.bytes() * 1_000 / FASTEST.bytes();
    Duration::from_millis(ms).clamp(WATCHFUL, CALM)
}
