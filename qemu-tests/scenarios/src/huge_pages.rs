//! A small guest on 2 MiB pages of the host, whose balloon gives way before anybody is killed.

use std::path::Path;
use std::time::Duration;

use memtide_api::device::Driver;
use memtide_lab::cargo::Built;
use memtide_lab::machine::{Backing, HugePool};
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Shape, Unit};
use crate::player::Player;
use crate::torture::Arena;
use crate::wait::{self, Look};

const MEMORY: ByteSize = ByteSize::from_gib(1);
/// For filling memory, and for some reports of 2 s each.
const SOON: Duration = Duration::from_secs(90);
/// What the balloon takes of it.
const BALLOON: ByteSize = ByteSize::from_mib(512);
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
const DEFLATE_ON_OOM: u64 = 1 << 2;

/// More than what the balloon leaves: without its giving way something would be killed.
const SCRIPT: &str =
    "alloc heap 384MiB; wait; free heap; wait; alloc more 600MiB; verify; free more";

/// Plays it, on huge pages where the host's pool may be resized.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("2 MiB pages, and deflation on OOM, on {kernel}"));
    let Some(pool) = checks.step("pages for the guest are found", pool()) else { return checks };
    let backing = if pool.is_some() { Backing::HugeMemfd } else { Backing::Memfd };
    let options = GuestOptions {
        shape: Shape { backing, ..Shape::default() },
        ..GuestOptions::new((kernel, MEMORY), Unit::Absent, logs)
    };
    let arena = Arena::start(lab, programs, &["--deflate-on-oom"], &options);
    let Some(mut arena) = checks.step("the guest starts", arena) else { return checks };
    let mut player = Player::default();
    checks.step("free memory is reported in whole huge pages", reports(&mut arena, &mut player));
    checks.step("it inflates", inflates(&arena));
    checks.step("the balloon gives way to the workload", gives_way(&arena, &mut player));
    let oom_kills = arena.guest.oom_kills();
    checks.check(
        "nobody was killed, and every page is what it was",
        matches!(oom_kills, Ok(0)) && player.integrity.is_whole(),
        format!("{oom_kills:?} kills, {:?}", player.integrity),
    );
    checks
}

/// Huge pages for the guest; none where only root could have them.
fn pool() -> Result<Option<HugePool>, ScenarioError> {
    match HugePool::with(MEMORY.mib()) {
        Ok(pool) => Ok(Some(pool)),
        Err(error) if !rustix::process::geteuid().is_root() => {
            println!("on ordinary pages, not on huge ones: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn reports(arena: &mut Arena, player: &mut Player) -> Result<(), ScenarioError> {
    arena.await_driver(Driver::Stock)?;
    arena.guest.start_workload_with(&["--tlb-neighbour", "off"], SCRIPT)?;
    arena.heard(player, SOON, "the workload has filled", |player| player.waiting)?;
    let filled = arena.guest.resident()?;
    arena.go(player)?;
    arena.heard(player, SOON, "the workload has freed", |player| player.waiting)?;
    wait::until("reporting gives the memory back", Duration::from_secs(60), || {
        let now = arena.guest.resident()?;
        Ok(match filled - now >= ByteSize::from_mib(256) {
            true => Look::Found(()),
            false => Look::NotYet(format!("{filled} before, {now} now")),
        })
    })
}

fn inflates(arena: &Arena) -> Result<(), ScenarioError> {
    let features = arena.device.status()?.features;
    if features & DEFLATE_ON_OOM == 0 {
        return Err(ScenarioError::Program {
            what: "taking the feature up".into(),
            said: format!("features {features:#x}"),
        });
    }
    arena.device.control()?.set_balloon(BALLOON)?;
    let inflated = arena
        .await_device("it is inflated", Duration::from_secs(90), |status| status.actual == BALLOON);
    inflated.map(drop)
}

/// While the target stays where it is, what the driver gives back it gives by itself: 1 MiB each
/// time that the kernel is about to kill something, after it has looked for memory everywhere else.
/// That is slow, so the host gives the rest once it has been seen.
fn gives_way(arena: &Arena, player: &mut Player) -> Result<(), ScenarioError> {
    arena.go(player)?;
    arena.await_device("the balloon gives way", Duration::from_secs(180), |status| {
        status.target == BALLOON && status.actual < BALLOON
    })?;
    arena.device.control()?.set_balloon(ByteSize::ZERO)?;
    arena.heard(player, SOON, "the workload has had its memory", |player| player.finished)
}
