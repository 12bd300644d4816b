//! A run in a few numbers.

use serde::Serialize;

use crate::world::Outcome;

/// The goal that nobody set: 0.1 %, in millionths.
const GOAL_PPM: u32 = 1_000;

/// A run in a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Mean of what was given up, as a share of the guest, in permille.
    pub saved_permille: u64,
    /// The same at the end, after the calm half.
    pub saved_at_end_permille: u64,
    /// Seconds in which stalls were over the goal, in permille.
    pub over_goal_permille: u64,
    /// Blocks stolen.
    pub stolen: u64,
    /// Blocks that came back.
    pub returned: u64,
    /// Of these, unasked.
    pub unasked: u64,
    /// Steals that failed.
    pub failed: u64,
    /// Returns that were denied.
    pub denied: u64,
    /// Kills for memory.
    pub kills: u64,
    /// In swap at most, in MiB.
    pub swapped_mib_most: u64,
    /// And at the end.
    pub swapped_mib_at_end: u64,
    /// Promises that were not kept.
    pub broken: u64,
}

/// The numbers of a run.
pub fn summary(outcome: &Outcome) -> Summary {
    let (samples, deeds) = (&outcome.story.samples, outcome.deeds);
    let present = outcome.scenario.present().mib().max(1);
    let saved = |online: u64| present.saturating_sub(online) * 1000 / present;
    let count = (samples.len() as u64).max(1);
    let online: u64 = samples.iter().map(|sample| sample.online_mib).sum();
    let over = samples.iter().filter(|sample| sample.stalled_ppm > GOAL_PPM).count() as u64;
    Summary {
        saved_permille: saved(online / count),
        saved_at_end_permille: saved(samples.last().map_or(present, |sample| sample.online_mib)),
        over_goal_permille: over * 1000 / count,
        stolen: deeds.stolen,
        returned: deeds.returned,
        unasked: deeds.unasked,
        failed: deeds.failed,
        denied: deeds.denied,
        kills: outcome.kills,
        swapped_mib_most: samples.iter().map(|sample| sample.swapped_mib).max().unwrap_or(0),
        swapped_mib_at_end: samples.last().map_or(0, |sample| sample.swapped_mib),
        broken: outcome.broken.len() as u64,
    }
}
