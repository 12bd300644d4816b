//! A guest with QEMU's balloon beside Memtide's, as libvirt's guests are: the agent drives its own, and
//! through the other one free memory reaches the host that nobody has stolen.

use std::path::Path;
use std::time::Duration;

use memtide_api::device::Driver;
use memtide_lab::cargo::Built;
use memtide_lab::machine::QEMU_BALLOON;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;
use serde_json::Value;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Shape, Unit};
use crate::player::Player;
use crate::torture::Arena;
use crate::wait::{self, Look};

const MEMORY: ByteSize = ByteSize::from_gib(1);
/// What the workload has and frees, and how much of it must go: the kernel keeps back what fills less
/// than 2 MiB, and some 64 MiB of each zone.
const HEAP: ByteSize = ByteSize::from_mib(384);
const GOES: ByteSize = ByteSize::from_mib(256);
const SCRIPT: &str = "alloc heap 384MiB; wait; free heap; wait; alloc heap 384MiB; verify";
/// For filling memory, and for some reports of 2 s each.
const SOON: Duration = Duration::from_secs(90);
const COMMAND: Duration = Duration::from_secs(30);

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("QEMU's balloon beside Memtide's, on {kernel}"));
    let reporter = ["-device", QEMU_BALLOON];
    let options = GuestOptions {
        shape: Shape { qemu_arguments: reporter.map(Into::into).into(), ..Shape::default() },
        ..GuestOptions::new((kernel, MEMORY), Unit::Enabled, logs)
    };
    let arena = Arena::start(lab, programs, &[], &options);
    let Some(mut arena) = checks.step("the guest starts", arena) else { return checks };
    checks.step("the agent drives Memtide's, the stock driver QEMU's", shared(&arena));
    let mut player = Player::default();
    checks.step("what is freed goes without being stolen", goes(&mut arena, &mut player));
    checks.step("an agent that starts anew finds its balloon again", anew(&arena));
    checks.step("the workload ends", ends(&arena, &mut player));
    checks.pages(&player);
    checks
}

fn shared(arena: &Arena) -> Result<(), ScenarioError> {
    arena.await_driver(Driver::Agent)?;
    wait::until("the agent sees the other one report", SOON, || {
        let status = status(arena)?;
        let reporters = status["free_page_reporters"].as_array().map_or(0, Vec::len);
        Ok(if reporters == 1 { Look::Found(()) } else { Look::NotYet(status.to_string()) })
    })
}

fn goes(arena: &mut Arena, player: &mut Player) -> Result<(), ScenarioError> {
    arena.guest.start_workload_with(&["--tlb-neighbour", "off"], SCRIPT)?;
    arena.heard(player, SOON, "the workload has filled", |player| player.waiting)?;
    let filled = arena.guest.resident()?;
    if filled < HEAP {
        let said = format!("{filled} is resident");
        return Err(ScenarioError::Program { what: "filling memory".into(), said });
    }
    arena.go(player)?;
    arena.heard(player, SOON, "the workload has freed", |player| player.waiting)?;
    wait::until("reporting gives the memory back", SOON, || {
        let now = arena.guest.resident()?;
        Ok(match filled - now >= GOES {
            true => Look::Found(()),
            false => Look::NotYet(format!("{filled} before, {now} now")),
        })
    })?;
    match stolen(&status(arena)?) {
        0 => Ok(()),
        count => Err(ScenarioError::Program {
            what: "leaving free memory to the reports".into(),
            said: format!("{count} blocks are stolen"),
        }),
    }
}

fn anew(arena: &Arena) -> Result<(), ScenarioError> {
    arena.guest.shell("systemctl restart memtide-agent", COMMAND)?;
    shared(arena)
}

fn ends(arena: &Arena, player: &mut Player) -> Result<(), ScenarioError> {
    arena.go(player)?;
    arena.heard(player, SOON, "the workload has verified all", |player| player.finished)
}

fn status(arena: &Arena) -> Result<Value, ScenarioError> {
    let text =
        arena.guest.shell("/opt/memtide/bin/memtide-agent status --json || true", COMMAND)?;
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

fn stolen(status: &Value) -> usize {
    status["blocks"]["stolen"].as_array().map_or(0, Vec::len)
}
