//! Memory that a workload holds and does not touch goes to compressed swap that the agent makes, and
//! comes back as it was.
//!
//! A guest in use waits a minute before memory is cold; here it is `SETTINGS` that makes it less.
//! Under emulation a page takes some twenty times longer to find, to compress and to bring back than on
//! hardware: so only a few MiB are waited for, and twenty times the usual stall is accepted. Whoever
//! starts a program in the guest meanwhile causes such stalls, since what it consists of is cold too; so
//! the waiting reads a file through a process that is there already.

use std::path::Path;
use std::time::Duration;

use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::lone_guest::LoneGuest as Guest;

const MEMORY: ByteSize = ByteSize::from_gib(1);
/// For filling memory, and for what takes the agent a few windows of two seconds.
const SOON: Duration = Duration::from_secs(90);
/// Until memory is cold, until DAMON's loop lets more than a page go (25 windows), and what it takes to
/// compress some; a stall over the goal on a busy host starts the loop anew.
const COLD: Duration = Duration::from_secs(180);
const SETTINGS: &str = "psi_goal = \"2%\"\n[for-tests]\ncold_after = \"15s\"\n";
/// Held and not touched while the host waits; no neighbours that show hot memory, since there is none.
const WORKLOAD: [&str; 3] =
    ["--tlb-neighbour", "off", "alloc cold 384MiB; wait; verify; wait; verify; wait"];
/// What must have gone; half of it must still be there when another agent has come.
const ENOUGH: ByteSize = ByteSize::from_mib(4);
/// Most that some task may stall meanwhile, as a share of the time, in percent: the agent's goal.
const STALL_MOST: f64 = 2.0;

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("reclaim, {kernel}"));
    let started = Guest::start(lab, programs, (kernel, MEMORY), logs);
    let Some(mut guest) = checks.step("the guest starts", started) else { return checks };
    making_room(&mut checks, &mut guest);
    going(&mut checks, &mut guest);
    killing(&mut checks, &mut guest);
    coming_back(&mut checks, &mut guest);
    leaving(&mut checks, &mut guest);
    let summary = guest.player.integrity;
    checks.check(
        "every page of the workload is what it was",
        summary.pages_checked >= 2 * PAGES_OF_WORKLOAD && summary.pages_bad == 0,
        format!("{summary:?} {:?}", guest.player.errors),
    );
    checks
}

/// 384 MiB of 4 KiB.
const PAGES_OF_WORKLOAD: u64 = 384 << 8;

/// A guest without swap gets some.
fn making_room(checks: &mut Checks, guest: &mut Guest) {
    let none = swaps(guest);
    checks.check("there is no swap", none.as_ref().is_ok_and(Vec::is_empty), format!("{none:?}"));
    let made = guest.start_agent(SETTINGS).and_then(|()| has_own_swap(guest));
    checks.step("the agent makes zram for what is cold", made);
}

/// What is not touched goes there, and nobody suffers.
fn going(checks: &mut Checks, guest: &mut Guest) {
    let filled = guest
        .start_workload(&WORKLOAD)
        .and_then(|()| guest.until("the workload has filled", SOON, Guest::waits));
    checks.step("a workload holds 384 MiB and touches none of it", filled);
    let before = stall(guest);
    // What is in swap alone could be the kernel's own doing, while blocks are emptied.
    let gone = guest.until("enough is in swap by DAMON's doing", COLD, |guest| {
        let status = guest.status()?;
        let reclaim = &status["reclaim"];
        let bytes = |name: &str| reclaim[name].as_u64().unwrap_or(0);
        let in_swap = bytes("swap_total").saturating_sub(bytes("swap_free"));
        let is_enough = in_swap.min(bytes("paged_out")) >= ENOUGH.bytes();
        Ok((is_enough, format!("{reclaim} while {}", status["doing"])))
    });
    checks.step("cold memory is paged out", gone);
    let share = before.and_then(|before| Ok(stall(guest)?.share_since(before)));
    let is_sane = share.as_ref().is_ok_and(|share| *share <= STALL_MOST);
    checks.check("hardly a task stalls for it", is_sane, format!("{share:?} % of the time"));
}

/// A killed agent's swap is in use all the same, and its successor's.
fn killing(checks: &mut Checks, guest: &mut Guest) {
    let before = swaps(guest).unwrap_or_default();
    let killed = guest.agent_pid().and_then(|pid| {
        guest.shell(&format!("kill -9 {pid}"))?;
        guest.until("another agent is there", SOON, |guest| {
            let now = guest.agent_pid()?;
            Ok((now != 0 && now != pid, format!("{now} after {pid}")))
        })?;
        has_own_swap(guest)
    });
    checks.step("a killed agent's successor goes on with its swap", killed);
    let (after, used) = (swaps(guest).unwrap_or_default(), in_swap(guest));
    let is_kept = before == after && used.as_ref().is_ok_and(|used| used.times(2) >= ENOUGH);
    checks.check("what was in it is there", is_kept, format!("{before:?}, {after:?}, {used:?}"));
}

/// The workload touches everything again, with the agent at work.
fn coming_back(checks: &mut Checks, guest: &mut Guest) {
    let touched = guest.go().and_then(|()| guest.until("it has looked", SOON, Guest::waits));
    checks.step("the workload has its memory when it touches it", touched);
}

/// What removing the package does brings all of it back into memory.
fn leaving(checks: &mut Checks, guest: &mut Guest) {
    let done = guest.shell(
        "systemctl stop memtide-agent; memtide-agent hand-back --return-blocks --within 10s",
    );
    checks.step("hand-back succeeds", done);
    let left = guest.shell("tail -n +2 /proc/swaps; ls /sys/block; ls /run/memtide-agent");
    let is_gone = left.as_ref().is_ok_and(|left| !left.contains("zram"));
    checks.check("and no zram is left", is_gone, format!("{left:?}"));
    let touched = guest.go().and_then(|()| guest.until("it has looked", SOON, Guest::waits));
    checks.step("the workload looks at every page once more", touched);
}

/// What the guest has stalled for memory until a moment, both in seconds since it booted.
#[derive(Clone, Copy, Debug)]
struct Stall {
    at: f64,
    stalled: f64,
}

impl Stall {
    /// In percent of the time.
    fn share_since(self, before: Self) -> f64 {
        100.0 * (self.stalled - before.stalled) / (self.at - before.at).max(1.0)
    }
}

/// The names of the guest's swap devices: a path is another when the mounts are gone of the agent that
/// has switched one on.
fn swaps(guest: &Guest) -> Result<Vec<String>, ScenarioError> {
    let text = guest.shell("tail -n +2 /proc/swaps")?;
    let device = |line: &str| {
        let path = line.split_whitespace().next()?;
        path.rsplit('/').next().map(str::to_owned)
    };
    Ok(text.lines().filter_map(device).collect())
}

/// Waits until the agent that runs says that the only swap is its own.
fn has_own_swap(guest: &mut Guest) -> Result<(), ScenarioError> {
    guest.until("the agent has swap of its own", SOON, |guest| {
        let (pid, swaps) = (guest.agent_pid()?, swaps(guest)?);
        let status = guest.status().unwrap_or_default();
        let own = status["reclaim"]["own_device"].as_str().unwrap_or_default().to_owned();
        let is_there = status["pid"] == pid && swaps.len() == 1 && own.ends_with("/zram0");
        Ok((is_there, format!("{swaps:?} of {}", status["reclaim"])))
    })
}

fn stall(guest: &Guest) -> Result<Stall, ScenarioError> {
    let script = "cut -d' ' -f1 /proc/uptime; sed -n 's/^some.*total=//p' /proc/pressure/memory";
    let text = guest.shell(script)?;
    let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(f64::NAN));
    let mut next = || numbers.next().unwrap_or(f64::NAN);
    Ok(Stall { at: next(), stalled: next() / 1e6 })
}

fn in_swap(guest: &Guest) -> Result<ByteSize, ScenarioError> {
    let script = "awk '/^SwapTotal/ { t = $2 } /^SwapFree/ { print t - $2 }' /proc/meminfo";
    Ok(ByteSize::from_kib(guest.shell(script)?.trim().parse().unwrap_or(0)))
}
