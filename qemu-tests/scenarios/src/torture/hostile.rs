//! A bare-metal guest that drives its balloon wrongly on purpose (`qemu-tests/hostile-guest`).
//!
//! What it does is drawn from the seed; it names each step on its serial line. In the end it keeps
//! to the rules: pages that it inflates must be gone from the memfd, and those that nobody named
//! must be there.

use std::ops::Range;
use std::time::{Duration, Instant};

use memtide_lab::cargo::{Profile, build_apart};
use memtide_lab::machine::{Balloon, BareMachine, BareSpec};
use memtide_lab::rundir::RunDir;
use memtide_units::ByteSize;

use super::Torture;
use super::summary::Summary;
use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::solo::{Device, Footprint};

/// Where the guest's package is, in ours.
const PACKAGE: &str = "qemu-tests/hostile-guest";

/// The guest's memory and what lies where in it, as its `layout.rs` has it, in MiB.
const MEMORY_MIB: u64 = 256;
const CANARIES_MIB: Range<u64> = 64..96;
/// Of the pages that it inflates in the end it takes the lower half back.
const TAKEN_BACK_MIB: Range<u64> = 160..176;
const GIVEN_MIB: Range<u64> = 176..192;

/// Steps of one boot: as many as fit a minute of a busy machine.
const STEPS_PER_BOOT: u32 = 5000;
/// What a step may take on a busy machine, and what a boot takes beside its steps.
const STEP: Duration = Duration::from_millis(100);
const BOOT: Duration = Duration::from_secs(60);

/// A device process keeps its sockets, its timers, the guest's memory, two descriptors for each of
/// six queues; not those of rings that are gone.
const DESCRIPTORS_MAX: usize = 40;
/// Lines in its log: what starts and ends, and what a guest may cause in a second.
const LINES_ANYHOW: usize = 40;
const LINES_PER_SECOND: usize = 10;

/// What one boot came to.
struct Outcome {
    footprint: Footprint,
    log_lines: usize,
    seconds: f64,
    given: ByteSize,
    kept: ByteSize,
}

/// Does `count` wrong things, then a right one; again with another seed where the count is large.
pub fn hostile(torture: &Torture<'_>) -> Checks {
    let mut checks = Checks::of("hostile guest");
    let mut summary = Summary::default();
    summary.tell("seed", torture.seed);
    let (mut left, mut boots, mut peak) = (torture.count, 0, Footprint::default());
    while left > 0 {
        let steps = left.min(STEPS_PER_BOOT);
        let seed = torture.seed.wrapping_add(boots);
        let outcome = play(torture, seed, steps);
        let what = format!("QEMU and the device survive {steps} wrong steps of seed {seed}");
        let Some(outcome) = checks.step(&what, outcome) else { break };
        check(&mut checks, &outcome);
        peak.rss = peak.rss.max(outcome.footprint.rss);
        peak.descriptors = peak.descriptors.max(outcome.footprint.descriptors);
        left -= steps;
        boots += 1;
    }
    summary.tell("wrong_steps", torture.count - left);
    summary.tell("boots", boots);
    summary.tell("device_rss_kib", peak.rss.kib());
    summary.tell("device_descriptors", peak.descriptors);
    summary.publish(torture.logs);
    checks
}

fn check(checks: &mut Checks, outcome: &Outcome) {
    let sizes = |range: Range<u64>| ByteSize::from_mib(range.end - range.start);
    checks.check(
        "what it inflates in the end is reclaimed",
        outcome.given.is_zero(),
        format!("{} are still there", outcome.given),
    );
    let kept = sizes(TAKEN_BACK_MIB) + sizes(CANARIES_MIB);
    checks.check(
        "what it did not name, and what it took back, is there",
        outcome.kept == kept,
        format!("{} of {kept} are there", outcome.kept),
    );
    let footprint = outcome.footprint;
    let lines = LINES_ANYHOW + (outcome.seconds as usize + 1) * LINES_PER_SECOND;
    checks.check(
        "the device is small, keeps no descriptors and writes little",
        footprint.rss <= ByteSize::from_mib(6)
            && footprint.descriptors <= DESCRIPTORS_MAX
            && outcome.log_lines <= lines,
        format!("{footprint:?}, {} lines in {:.1} s", outcome.log_lines, outcome.seconds),
    );
}

/// One boot: the device, the guest, its last line, and what is left of memory then.
fn play(torture: &Torture<'_>, seed: u64, steps: u32) -> Result<Outcome, ScenarioError> {
    crate::interrupt::check()?;
    let built = build_apart(PACKAGE, Profile::Release)?;
    let sockets = RunDir::new()?;
    let logs = torture.logs.join(format!("seed-{seed}"));
    std::fs::create_dir_all(&logs)
        .map_err(|source| ScenarioError::File { path: logs.clone(), source })?;
    let device = Device::start(torture.programs, sockets.path(), &logs, &[])?;
    let started = Instant::now();
    let spec = BareSpec {
        name: "hostile".into(),
        image: built.program("memtide-hostile-guest")?.clone(),
        command_line: format!("seed={seed} steps={steps}"),
        memory_mib: MEMORY_MIB,
        balloon: Balloon::VhostUser { socket: device.vhost_socket().to_owned() },
        artifacts_dir: logs.clone(),
    };
    let machine = BareMachine::start(torture.lab, &spec)?;
    let last = machine.wait_serial("the guest's last line", BOOT + STEP * steps, |line| {
        let is_last = ["survived", "FAILED", "there is no balloon"];
        is_last.iter().any(|word| line.starts_with(word)).then(|| line.to_owned())
    })?;
    if last != format!("survived {steps} steps") {
        return Err(ScenarioError::Program { what: "the guest".into(), said: last });
    }
    let resident = |mib: Range<u64>| {
        let bytes = machine.memory().resident_in(mib.start << 20, (mib.end - mib.start) << 20);
        bytes.map(ByteSize::from_bytes).map_err(ScenarioError::Memfd)
    };
    // Both still answer.
    machine.qmp().execute("query-status", serde_json::json!({}))?;
    device.status()?;
    let log = std::fs::read_to_string(logs.join("device.log")).unwrap_or_default();
    Ok(Outcome {
        footprint: device.footprint()?,
        log_lines: log.lines().count(),
        seconds: started.elapsed().as_secs_f64(),
        given: resident(GIVEN_MIB)?,
        kept: resident(TAKEN_BACK_MIB)? + resident(CANARIES_MIB)?,
    })
}
