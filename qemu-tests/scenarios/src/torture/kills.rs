//! The agent is killed at moments that chance picks, while it steals and returns.

use std::time::Duration;

use memtide_api::device::Driver;
use memtide_units::{ByteSize, GpaRange};

use super::Torture;
use super::arena::Arena;
use super::chance::Chance;
use super::storm::{Calm, Storm, Weather};
use super::summary::Summary;
use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{Unit, blocks_of};
use crate::player::Player;
use crate::solo::Footprint;
use crate::wait::{self, Look};

/// Targets flip faster than a block is stolen, so that a kill finds steals, hellos and returns in
/// flight.
const EVERY: Duration = Duration::from_millis(250);

/// A killed agent is back, and its books right, within this: ten seconds, and what a guest under
/// emulation adds that is writing all its memory at the same time.
const RECOVERY: Duration = Duration::from_secs(30);

/// After the agent is back it is killed within these, in milliseconds.
const KILL_MS: (u64, u64) = (100, 2000);

/// Grows over what is left online, so that the agent must ask blocks back, and shrinks, so that it
/// can steal again; every page is verified each time.
const WORKLOAD: &str = "alloc heap 256MiB; repeat 1000 { grow heap 768MiB; verify; \
     free heap 768MiB; verify; idle 1s }";

/// Which memory is hot does not matter here, and the neighbours that show it to DAMON under
/// emulation take time from everybody else.
const WITHOUT_NEIGHBOURS: [&str; 2] = ["--tlb-neighbour", "off"];

/// In one go, since a look and a kill that follow each other by two commands would be a hundred
/// milliseconds apart: what the blocks are doing, then the kill. Systemd's count of restarts is set
/// back, for twenty in half a minute are what it gives up after.
const KILL: &str = r#"
systemctl reset-failed memtide-agent
cat /proc/$1/status | sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/rss \1/p'
grep -l going-offline /sys/devices/system/memory/memory*/state || true
kill -9 "$1"
"#;

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    kills: u32,
    while_going_offline: u32,
    at_rest: u32,
    slowest_recovery_ms: u128,
    agent_rss_kib: u64,
    device: Footprint,
}

/// Kills the agent `count` times.
pub fn kills(torture: &Torture<'_>) -> Checks {
    let mut checks = Checks::of(format!("kills on {}", torture.kernel));
    let entered = Arena::enter(torture, Unit::Enabled);
    let Some(mut arena) = checks.step("the guest starts", entered) else { return checks };
    let (mut seen, mut player) = (Seen::default(), Player::default());
    let played = play(torture, &mut arena, &mut seen, &mut player);
    checks.step("each killed agent is back with the guest kernel's own books", played);
    let ended = end_workload(&arena, &mut player);
    checks.step("the workload ends and tells", ended);
    checks.step("device and guest agree in the end", agree_at_last(&arena));
    let integrity = player.integrity;
    checks.check(
        "every page of the workload is what it was",
        integrity.is_whole() && player.errors.is_empty(),
        format!("{integrity:?} {:?} {:?}", player.errors, player.noise),
    );
    let oom_kills = arena.guest.oom_kills();
    checks.check(
        "nobody was killed for want of memory",
        matches!(oom_kills, Ok(0)),
        format!("{oom_kills:?}"),
    );
    checks.check(
        "the agent is small (12 MiB), and so is the device (6 MiB)",
        seen.agent_rss_kib <= 12 * 1024 && seen.device.rss <= ByteSize::from_mib(6),
        format!("{seen:?}"),
    );
    tell(torture, &arena, &seen, &player);
    checks
}

fn play(
    torture: &Torture<'_>,
    arena: &mut Arena,
    seen: &mut Seen,
    player: &mut Player,
) -> Result<(), ScenarioError> {
    arena.await_driver(Driver::Agent)?;
    arena.guest.start_workload_with(&WITHOUT_NEIGHBOURS, WORKLOAD)?;
    let weather = Weather { every: EVERY, most: ByteSize::from_gib(1), seed: torture.seed };
    let storm = Storm::begin(&arena.device, weather)?;
    let mut chance = Chance::of(torture.seed ^ 1);
    for _ in 0..torture.count {
        crate::interrupt::check()?;
        std::thread::sleep(Duration::from_millis(chance.between(KILL_MS.0, KILL_MS.1)));
        kill_once(arena, &storm, seen)?;
        for line in arena.guest.workload_lines()? {
            player.read(&line);
        }
        arena.note_footprint(&mut seen.device)?;
    }
    Ok(())
}

/// One kill, and the proof that what comes after it is right.
fn kill_once(arena: &Arena, storm: &Storm, seen: &mut Seen) -> Result<(), ScenarioError> {
    let killed = arena.guest.agent_pid()?;
    let said = arena.guest.run(&["sh", "-c", KILL, "sh", &killed.to_string()])?;
    let started = std::time::Instant::now();
    seen.kills += 1;
    seen.while_going_offline += u32::from(said.contains("/state"));
    let rss = said.lines().find_map(|line| line.strip_prefix("rss ")?.parse().ok());
    seen.agent_rss_kib = seen.agent_rss_kib.max(rss.unwrap_or(0));
    // With the target at rest the agent comes to rest as well, and the books can be compared.
    storm.pause(Calm::Yes);
    let consistent = wait::until("the agent is back with right books", RECOVERY, || {
        arena.guest.alive("the killed agent")?;
        let pid = arena.guest.agent_pid()?;
        let back = pid != 0 && pid != killed;
        Ok(match books(arena)? {
            books if back && books.are_right() => Look::Found(books),
            books => Look::NotYet(format!("process {pid} after {killed}, {books:?}")),
        })
    });
    storm.pause(Calm::No);
    seen.slowest_recovery_ms = seen.slowest_recovery_ms.max(started.elapsed().as_millis());
    seen.at_rest += u32::from(consistent?.are_equal());
    Ok(())
}

/// What the device holds for stolen, and what the guest's kernel has offline.
#[derive(Debug)]
struct Books {
    driver: Driver,
    held: Vec<GpaRange>,
    offline: Vec<GpaRange>,
    going_offline: usize,
}

impl Books {
    /// They are the same.
    fn are_equal(&self) -> bool {
        self.driver == Driver::Agent && self.held == self.offline
    }

    /// They are the same; or the agent is at work, has blocks offline that it is about to report,
    /// and the device holds none that the guest might use.
    fn are_right(&self) -> bool {
        let held_are_offline = self.held.iter().all(|block| self.offline.contains(block));
        self.are_equal()
            || (self.driver == Driver::Agent && held_are_offline && self.going_offline > 0)
    }
}

fn books(arena: &Arena) -> Result<Books, ScenarioError> {
    // In this order: what was held before the look at the guest must be offline in it. A block that
    // was returned in between makes another look necessary, no more.
    let device = arena.device.status()?;
    let (offline, going_offline) = arena.guest.block_states()?;
    Ok(Books { driver: device.driver, held: blocks_of(&device.stolen), offline, going_offline })
}

/// With nothing going on any more both sides must agree to the block.
fn agree_at_last(arena: &Arena) -> Result<(), ScenarioError> {
    wait::until("the agent has come to rest", Duration::from_secs(60), || {
        Ok(match books(arena)? {
            books if books.are_equal() => Look::Found(()),
            books => Look::NotYet(format!("{books:?}")),
        })
    })
}

/// SIGTERM ends the script with its summary.
fn end_workload(arena: &Arena, player: &mut Player) -> Result<(), ScenarioError> {
    arena.guest.end_workload()?;
    wait::until("the workload's summary", Duration::from_secs(60), || {
        for line in arena.guest.workload_lines()? {
            player.read(&line);
        }
        Ok(match player.finished {
            true => Look::Found(()),
            false => Look::NotYet(format!("it is in \"{}\"", player.phase)),
        })
    })
}

fn tell(torture: &Torture<'_>, arena: &Arena, seen: &Seen, player: &Player) {
    let mut summary = Summary::default();
    summary.tell("seed", torture.seed);
    summary.tell("kernel", arena.guest.kernel_release());
    summary.tell("kills", seen.kills);
    summary.tell("of_them_while_a_block_went_offline", seen.while_going_offline);
    summary.tell("books_equal_at_once", seen.at_rest);
    summary.tell("slowest_recovery_ms", u64::try_from(seen.slowest_recovery_ms).unwrap_or(0));
    summary.tell("pages_checked", player.integrity.pages_checked);
    summary.tell("pages_bad", player.integrity.pages_bad);
    if let Ok(status) = arena.device.status() {
        summary.tell("stolen_mib", status.counters.stolen.mib());
        summary.tell("returned_mib", status.counters.returned.mib());
        summary.tell("taken_mib", status.counters.taken.mib());
        summary.tell("punch_errors", status.counters.punch_errors);
        summary.tell("refused", status.counters.refused.values().sum::<u64>());
    }
    summary.tell("agent_rss_kib", seen.agent_rss_kib);
    summary.tell("device_rss_kib", seen.device.rss.kib());
    summary.publish(torture.logs);
}
