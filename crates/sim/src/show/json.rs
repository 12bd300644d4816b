//! A run for programs.

use serde_json::{Value, json};

use super::summary;
use crate::world::Outcome;

/// The scenario, the samples, what happened, the numbers.
pub fn json(outcome: &Outcome) -> Value {
    let scenario = &outcome.scenario;
    json!({
        "seed": scenario.seed,
        "workload": scenario.workload.name(),
        "minutes": scenario.minutes,
        "block_mib": scenario.unit.size().mib(),
        "present_mib": scenario.present().mib(),
        "swap": scenario.swap_space().name(),
        "weather": scenario.weather.name(),
        "command": scenario.command(),
        "summary": summary(outcome),
        "broken": outcome.broken,
        "lines": outcome.story.lines,
        "samples": outcome.story.samples,
    })
}
