//! Whether the working set that the agent tells of is the one that there is: a workload touches a known
//! part of the guest over and over, and nothing else.
//!
//! That it was told once says little: an estimate on its way from too little to too much is right for a
//! moment. So it has to stay right until the phase ends, and sizes rise and fall.
//!
//! The agent goes by a sample of pages: of the smallest of these hot sets some 200 are in it, whose number is
//! off by a fourteenth one time in three. What is told may be off by 15 %.
//!
//! Under emulation the workload's neighbours make its accesses visible to DAMON (`--tlb-neighbour`).

mod told;

use std::path::Path;
use std::time::{Duration, Instant};

use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;
use serde_json::Value;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::lone_guest::LoneGuest as Guest;
use told::Told;

const MEMORY: ByteSize = ByteSize::from_gib(2);
/// For filling memory.
const SOON: Duration = Duration::from_secs(120);
/// Longer than any phase.
const PHASE: Duration = Duration::from_secs(140);
/// A quarter, a half and a tenth of the guest: fewer than were filled before, more, and again fewer. What was
/// touched before is forgotten after half a minute, sums are ten seconds long, and one is read after at most some
/// twelve more: what counts begins 65 s into a phase, and was seen to be right after 17 to 51.
const HOT: [(u64, &str); 3] =
    [(512, "hot heap 512MiB 90s"), (1024, "hot heap 1024MiB 85s"), (204, "hot heap 204MiB 85s")];
/// What a user would look at: the middle of the last twenty seconds.
const WSS: &str = "memtide-agent wss --json --last 20s";
/// Between two such looks, each of which is a process in the guest; most of what it tells then lies in the part
/// of the phase that counts.
const WSS_EVERY: Duration = Duration::from_secs(5);

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("truth, {kernel}"));
    let started = Guest::start(lab, programs, (kernel, MEMORY), logs);
    let Some(mut guest) = checks.step("the guest starts", started) else { return checks };
    let script = format!("alloc heap 1100MiB; {}; {}; {}", HOT[0].1, HOT[1].1, HOT[2].1);
    let started = guest.start_agent("").and_then(|()| guest.start_workload(&[&script]));
    checks.step("the agent starts, and a workload", started);
    for (mib, phase) in HOT {
        let what = format!("a hot set of {mib} MiB is told as it is until it changes");
        match listen(&mut guest, phase) {
            Ok(told) => {
                println!("a hot set of {mib} MiB was told at {told}");
                checks.check(&what, told.is_right(ByteSize::from_mib(mib)), &told);
            }
            Err(error) => checks.check(&what, false, error),
        }
    }
    checks.pages(&guest.player);
    checks
}

/// All that is told in a phase.
fn listen(guest: &mut Guest, phase: &str) -> Result<Told, ScenarioError> {
    guest.until("the phase begins", SOON, |guest| {
        guest.listen();
        Ok((guest.player.phase == phase, format!("{:?}", guest.player)))
    })?;
    let (start, mut told, mut looked) = (Instant::now(), Told::default(), Duration::ZERO);
    guest.until("the phase ends", PHASE, |guest| {
        let set = guest.status()?["memory"]["working_set"].as_u64().unwrap_or(0);
        let middle = if start.elapsed() >= looked + WSS_EVERY {
            looked = start.elapsed();
            Some(middle(guest)?)
        } else {
            None
        };
        // Only then is it known to have been told within the phase.
        guest.listen();
        if guest.player.phase != phase || guest.player.finished {
            return Ok((true, String::new()));
        }
        told.status(start.elapsed(), ByteSize::from_bytes(set));
        if let Some(middle) = middle {
            told.wss(ByteSize::from_bytes(middle));
        }
        Ok((false, told.to_string()))
    })?;
    Ok(told)
}

/// What `wss` says; zero as long as it knows nothing.
fn middle(guest: &Guest) -> Result<u64, ScenarioError> {
    let said: Value = serde_json::from_str(&guest.shell(WSS)?).unwrap_or_default();
    Ok(said["working_set"][2].as_u64().unwrap_or(0))
}
