//! Whether the working set that the agent tells of is the one that there is: a workload touches a known
//! part of the guest over and over, and nothing else.
//!
//! The agent goes by a sample of pages: of the smallest of these hot sets some 200 are in it, whose number is
//! off by a fourteenth one time in three. What is told may be off by 15 %.
//!
//! Under emulation the workload's neighbours make its accesses visible to DAMON (`--tlb-neighbour`).

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::{ByteSize, Permille};
use serde_json::Value;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::lone_guest::LoneGuest as Guest;

const MEMORY: ByteSize = ByteSize::from_gib(2);
/// For filling memory.
const SOON: Duration = Duration::from_secs(120);
/// Longer than any phase.
const PHASE: Duration = Duration::from_secs(140);
/// A tenth, a quarter and a half of the guest. What was touched before is forgotten after half a minute, and
/// what is told is half a minute old at the most.
const HOT: [(u64, &str); 3] =
    [(204, "hot heap 204MiB 90s"), (512, "hot heap 512MiB 75s"), (1024, "hot heap 1024MiB 75s")];
/// What a user would look at: the middle of the last twenty seconds.
const WSS: &str = "memtide-agent wss --json --last 20s";
/// Of the hot set so much must be told at the least.
const LEAST: Permille = Permille(850);
/// And at the most so much more, with what the system itself touches.
const MOST_BESIDE: Permille = Permille(150);

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("truth, {kernel}"));
    let started = Guest::start(lab, programs, (kernel, MEMORY), logs);
    let Some(mut guest) = checks.step("the guest starts", started) else { return checks };
    let script = format!("alloc heap 1100MiB; {}; {}; {}", HOT[0].1, HOT[1].1, HOT[2].1);
    let started = guest.start_agent("").and_then(|()| guest.start_workload(&[&script]));
    checks.step("the agent starts, and a workload", started);
    for (mib, phase) in HOT {
        let found = found(&mut guest, ByteSize::from_mib(mib), phase);
        if let Some(seen) = checks.step(&format!("a hot set of {mib} MiB is found"), found) {
            println!("a hot set of {mib} MiB was told at {seen} MiB");
        }
    }
    checks.pages(&guest.player);
    checks
}

fn bounds(hot: ByteSize) -> RangeInclusive<u64> {
    LEAST.of(hot).bytes()..=(hot + MOST_BESIDE.of(hot)).bytes()
}

/// Waits until the working set is told to be `hot`, in the phase in which it is; answers with what was
/// told from the phase's beginning on, in MiB.
fn found(guest: &mut Guest, hot: ByteSize, phase: &str) -> Result<String, ScenarioError> {
    guest.until("the phase begins", SOON, |guest| {
        guest.listen();
        Ok((guest.player.phase == phase, format!("{:?}", guest.player)))
    })?;
    let (start, mut told) = (Instant::now(), Vec::new());
    guest.until("the working set is told", PHASE, |guest| {
        guest.listen();
        let now = guest.status()?["memory"]["working_set"].as_u64().unwrap_or(0);
        if told.last() != Some(&(now >> 20)) {
            told.push(now >> 20);
        }
        let seen = format!("{told:?}");
        if guest.player.phase != phase {
            let what = format!("the working set is told while \"{phase}\"");
            return Err(ScenarioError::Deadline { what, waited: start.elapsed(), seen });
        }
        // A process in the guest only where it may find something.
        let is_near = bounds(hot).contains(&now);
        let said = if is_near { guest.shell(WSS)? } else { String::new() };
        let said: Value = serde_json::from_str(&said).unwrap_or_default();
        let middle = said["working_set"][2].as_u64();
        Ok((middle.is_some_and(|set| bounds(hot).contains(&set)), seen))
    })?;
    Ok(format!("{told:?}"))
}
