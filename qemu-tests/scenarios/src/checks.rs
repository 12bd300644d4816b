//! What a scenario promised and whether it was kept: each check is one test in the count.

use std::fmt::Display;

use crate::error::ScenarioError;
use crate::player::Player;

/// The checks of one scenario.
#[derive(Debug, Default)]
pub struct Checks {
    scenario: String,
    passed: u64,
    failures: Vec<String>,
}

impl Checks {
    /// No checks yet of the scenario called `scenario`.
    pub fn of(scenario: impl Into<String>) -> Self {
        Self { scenario: scenario.into(), ..Self::default() }
    }

    /// Counts and prints one check.
    pub fn check(&mut self, what: &str, kept: bool, seen: impl Display) {
        let scenario = &self.scenario;
        if kept {
            self.passed += 1;
            println!("test {scenario}: {what} ... ok");
        } else {
            let failure = format!("test {scenario}: {what} ... FAILED: {seen}");
            println!("{failure}");
            self.failures.push(failure);
        }
    }

    /// Counts a step that either went well or says why not.
    pub fn step<T>(&mut self, what: &str, result: Result<T, ScenarioError>) -> Option<T> {
        match result {
            Ok(value) => {
                self.check(what, true, "");
                Some(value)
            }
            Err(error) => {
                self.check(what, false, error);
                None
            }
        }
    }

    /// Counts whether the workload found all of its pages as it had left them.
    pub fn pages(&mut self, player: &Player) {
        self.check(
            "every page of the workload is what it was",
            player.integrity.is_whole(),
            format!("{:?} {:?}", player.integrity, player.errors),
        );
    }

    /// How many were kept.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// What was printed of those that were not.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}
