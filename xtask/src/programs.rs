//! Our own programs, built for scenarios.

use std::time::Instant;

use memtide_lab::cargo::{self, Built, Profile};
use memtide_scenarios::PACKAGES;

use crate::lab::Result;

/// Builds every program of ours, optimised: under emulation an unoptimised agent is ten times
/// slower, and resident sizes are measured.
pub(crate) fn build() -> Result<Built> {
    let start = Instant::now();
    eprintln!("building Memtide's programs (a few minutes the first time) ...");
    let built = cargo::build(&PACKAGES, Profile::Release)?;
    eprintln!("building Memtide's programs ... done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(built)
}
