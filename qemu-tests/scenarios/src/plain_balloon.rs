//! The agent on QEMU's own balloon: no process of ours on the host, and QEMU's books are the host's.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use memtide_lab::cargo::Built;
use memtide_lab::machine::Machine;
use memtide_lab::{Kernel, Lab};
use memtide_units::{BlockId, BlockSize, ByteSize};
use serde_json::{Value, json};

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::Unit;
use crate::lone_guest::LoneGuest;
use crate::wait;

const MEMORY: ByteSize = ByteSize::from_gib(2);
const BLOCK: BlockSize = BlockSize::X86_SMALL;
/// For what takes the agent a few windows of two seconds.
const SOON: Duration = Duration::from_secs(90);
/// What the host wants to have, and what is then in the balloon.
const TARGET: ByteSize = ByteSize::from_gib(1);
/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("agent on QEMU's balloon, {kernel}"));
    let Some(mut guest) =
        checks.step("the guest starts", Guest::start(lab, programs, kernel, logs))
    else {
        return checks;
    };
    stealing(&mut checks, &mut guest);
    making_swap(&mut checks, &guest, kernel);
    growing(&mut checks, &mut guest);
    polling(&mut checks, &mut guest);
    killing(&mut checks, &mut guest);
    squeezing(&mut checks, &mut guest);
    failing(&mut checks, &mut guest);
    leaving(&mut checks, &mut guest);
    removing(&mut checks, &mut guest);
    checks.pages(&guest.player);
    checks
}

/// An idle guest gives its memory away, and says what kind of balloon it has.
fn stealing(checks: &mut Checks, guest: &mut Guest) {
    let stolen = guest.until("six blocks are stolen and QEMU counts them", |guest| {
        let (stolen, given) = (guest.stolen()?.len() as u64, guest.given()?);
        Ok((stolen >= 6 && given == BLOCK.size().times(stolen), format!("{stolen}, {given}")))
    });
    checks.step("an idle guest's blocks go, and QEMU's books follow", stolen);
    let left = guest.resident_in_stolen();
    checks.check("nothing of them is left on the host", left == Some(0), format!("{left:?}"));
    let said = guest.shell("memtide-agent status").unwrap_or_default();
    checks.check("the agent says that there is no gate", said.contains("plain balloon"), said);
    let stats = guest.watch_statistics().and_then(|()| {
        guest.until("statistics come", |guest| {
            let stats = guest.balloon_property("guest-stats")?;
            let of = |name: &str| stats["stats"][name].as_u64().filter(|value| *value != u64::MAX);
            let all = ["stat-total-memory", "stat-available-memory", "stat-disk-caches"].map(of);
            Ok((all.iter().all(|value| value.unwrap_or(0) > 1 << 20), stats.to_string()))
        })
    });
    checks.step("the host gets the statistics that it asks for", stats);
}

/// A guest without swap gets some for what is cold, where DAMON can tell what that is.
fn making_swap(checks: &mut Checks, guest: &Guest, kernel: Kernel) {
    let swaps = guest.shell("tail -n +2 /proc/swaps; memtide-agent status").unwrap_or_default();
    let (is_there, what) = match kernel {
        // Without DAMON: bookworm's kernel was built without it.
        Kernel::V6_1 => (
            !swaps.contains("zram")
                && swaps.contains("in use     nobody watches")
                && swaps.contains("access monitoring (DAMON): this kernel has no DAMON"),
            "a kernel without DAMON gets no swap, and the agent says why",
        ),
        Kernel::V6_12 | Kernel::V7_3 => (
            swaps.contains("/zram0 ") && swaps.contains("the agent's own"),
            "a guest without swap gets zram for what is cold",
        ),
    };
    checks.check(what, is_there, swaps);
}

/// A workload that grows gets blocks back.
fn growing(checks: &mut Checks, guest: &mut Guest) {
    let filled = guest.start_workload(&["alloc heap 1GiB; verify; wait; verify; free heap; wait"]);
    let filled =
        filled.and_then(|()| guest.until("the workload has filled", |guest| guest.waits()));
    checks.step("a workload gets 1 GiB although most was stolen", filled);
    let books = guest.until("QEMU's books follow", Guest::books_agree);
    checks.step("QEMU's books follow what came back", books);
}

/// From here on the agent looks instead of waiting for interrupts.
fn polling(checks: &mut Checks, guest: &mut Guest) {
    let before = guest.agent_pid().unwrap_or(0);
    let settings = "mkdir -p /etc/memtide; echo 'interrupt = \"poll\"' > /etc/memtide/agent.toml; \
                    systemctl restart memtide-agent";
    let back = guest.shell(settings).and_then(|_| guest.agent_other_than(before));
    checks.step("an agent that polls takes over", back);
    let books = guest.until("QEMU's books are right", Guest::books_agree);
    checks.step("it puts QEMU's books right", books);
    // A figure to read and no check: on a busy host emulation makes any time it likes of it.
    if let Ok((main, all)) = guest.cpu_at_rest(Duration::from_secs(10)) {
        println!("an agent that polls, at rest, in % of a processor: {main:.1} main, {all:.1} all");
    }
    let rss = guest.agent_rss();
    let is_small = rss.as_ref().is_ok_and(|rss| *rss <= ByteSize::from_mib(12));
    checks.check("the agent is small (12 MiB)", is_small, format!("{rss:?}"));
}

/// A killed agent's successor finds everything as it was.
fn killing(checks: &mut Checks, guest: &mut Guest) {
    let before = guest.stolen().unwrap_or_default();
    let killed = guest.agent_pid().unwrap_or(0);
    let killed_it = guest.shell(&format!("kill -9 {killed}"));
    let back = killed_it.and_then(|_| guest.agent_other_than(killed));
    checks.step("a killed agent is back", back);
    let books = guest.until("QEMU's books are right again", Guest::books_agree);
    checks.step("QEMU's books are right again", books);
    let after = guest.stolen().unwrap_or_default();
    // It may have stolen or returned since, but not all.
    let kept = before.iter().filter(|block| after.contains(block)).count();
    let (few, seen) = (before.len().min(after.len()) / 2, format!("{before:?}, then {after:?}"));
    checks.check("what was stolen stays stolen", kept >= few, seen);
}

/// The host's target is met, and memory leaves the host.
fn squeezing(checks: &mut Checks, guest: &mut Guest) {
    let memory = |guest: &Guest| {
        ByteSize::from_bytes(guest.machine.memory().resident_bytes().unwrap_or(u64::MAX))
    };
    let filled = memory(guest);
    let met = guest.go().and_then(|()| guest.until("the heap is free", |guest| guest.waits()));
    checks.step("the workload frees its 1 GiB", met);
    let met = guest.host_wants(TARGET).and_then(|()| {
        guest.until("the target is met", |guest| {
            let given = guest.given()?;
            Ok((given >= MEMORY - TARGET, given.to_string()))
        })
    });
    checks.step("QEMU's target is met", met);
    let now = memory(guest);
    println!("resident on the host: {filled} with the heap, {now} after");
    // What is left may all be resident, and QEMU's own regions besides: ROMs and video memory.
    let most = TARGET + ByteSize::from_mib(64);
    checks.check("the host has that memory", now <= most && now < filled, now);
}

/// An agent that nobody starts again: the unit that systemd starts in its place gives the balloon back.
fn failing(checks: &mut Checks, guest: &mut Guest) {
    let offline = guest.stolen().unwrap_or_default().len();
    let fail = "mkdir -p /run/systemd/system/memtide-agent.service.d; \
                printf '[Service]\\nRestart=no\\n' > /run/systemd/system/memtide-agent.service.d/no.conf; \
                systemctl daemon-reload; systemctl kill --signal=KILL memtide-agent";
    let failed = guest.shell(fail);
    checks.step("the agent fails for good", failed);
    stock_driver_has_it(checks, guest, offline);
    let again = "rm -r /run/systemd/system/memtide-agent.service.d; systemctl daemon-reload; \
                 systemctl start memtide-agent";
    let again = guest.shell(again).and_then(|_| {
        guest.until("the target is met again", |guest| {
            let (given, driver) = (guest.given()?, guest.shell(DRIVER_OF_BALLOON)?);
            Ok((given >= MEMORY - TARGET && driver.is_empty(), format!("{given} by {driver:?}")))
        })
    });
    checks.step("an agent that is repaired takes over again", again);
}

/// An agent that is stopped gives the balloon back itself.
fn leaving(checks: &mut Checks, guest: &mut Guest) {
    let offline = guest.stolen().unwrap_or_default().len();
    let stopped = guest.shell("systemctl stop memtide-agent");
    checks.step("the agent stops", stopped);
    stock_driver_has_it(checks, guest, offline);
}

/// The stock driver gets the balloon back, and finds memory for the target: some of the `offline`
/// blocks have come back for it.
fn stock_driver_has_it(checks: &mut Checks, guest: &mut Guest, offline: usize) {
    let met = guest.until("the stock driver meets the target", |guest| {
        let (given, driver) = (guest.given()?, guest.shell(DRIVER_OF_BALLOON)?);
        let met = given == MEMORY - TARGET && driver.trim() == "virtio_balloon";
        Ok((met, format!("{given} by {driver}")))
    });
    checks.step("the stock driver has the balloon and meets the target", met);
    let (left, free) = (guest.stolen().unwrap_or_default().len(), guest.available_mib());
    checks.check(
        "it takes blocks that came back for it, not what the guest has left",
        left < offline && free.unwrap_or(0) > 100,
        format!("{offline} offline before, {left} after, {free:?} MiB available"),
    );
}

/// What removing the package does.
fn removing(checks: &mut Checks, guest: &mut Guest) {
    let command = "memtide-agent hand-back --return-blocks --within 20s";
    let done = guest.host_wants(MEMORY).and_then(|()| guest.shell(command));
    checks.step("hand-back --return-blocks succeeds", done);
    let is_back = guest.until("nothing is offline and the stock driver drives", |guest| {
        let (left, given) = (guest.stolen()?.len(), guest.given()?);
        let driver = guest.shell(DRIVER_OF_BALLOON)?;
        let is_back = left == 0 && given.is_zero() && driver.trim() == "virtio_balloon";
        Ok((is_back, format!("{left} blocks, {given} by {driver}")))
    });
    checks.step("every block is back, and the stock driver too", is_back);
    let modes = "cat /proc/sys/vm/overcommit_memory; tail -n +2 /proc/swaps; ls /sys/block; \
                 cat /sys/module/damon_stat/parameters/enabled 2>/dev/null || echo Y";
    let modes = guest.shell(modes).unwrap_or_default();
    let is_undone = modes.starts_with("0\n") && modes.ends_with("Y\n") && !modes.contains("zram");
    checks.check("and the kernel's settings, and the agent's swap is gone", is_undone, modes);
}

/// The virtio driver of the balloon, or nothing.
const DRIVER_OF_BALLOON: &str = "for d in /sys/bus/virtio/devices/*; do \
    [ \"$(cat $d/device)\" = 0x0005 ] && [ -e $d/driver ] && basename $(readlink $d/driver); \
    done; true";

/// The guest and what is known of it.
struct Guest {
    lone: LoneGuest,
    /// QEMU's path to the balloon.
    balloon: String,
}

impl Deref for Guest {
    type Target = LoneGuest;

    fn deref(&self) -> &LoneGuest {
        &self.lone
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut LoneGuest {
        &mut self.lone
    }
}

impl Guest {
    fn start(
        lab: &Lab,
        programs: &Built,
        kernel: Kernel,
        logs: &Path,
    ) -> Result<Self, ScenarioError> {
        let agent = (programs, Unit::Enabled);
        let lone = LoneGuest::start_with(lab, agent, (kernel, MEMORY), logs, |_| {})?;
        let balloon = balloon_path(&lone.machine)?;
        Ok(Self { lone, balloon })
    }

    fn qmp(&self, command: &str, arguments: Value) -> Result<Value, ScenarioError> {
        Ok(self.machine.qmp().execute(command, arguments)?)
    }

    /// Waits; the look says whether it is so, and what is there.
    fn until(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<(bool, String), ScenarioError>,
    ) -> Result<(), ScenarioError> {
        wait::until_so(what, SOON, || look(self))
    }

    /// Blocks that the guest's kernel has offline.
    fn stolen(&self) -> Result<Vec<BlockId>, ScenarioError> {
        let text = self.shell("grep -l offline /sys/devices/system/memory/*/state || true")?;
        let number = |line: &str| {
            let name = line.strip_suffix("/state")?.rsplit('/').next()?;
            name.strip_prefix("memory")?.parse().ok().map(BlockId)
        };
        Ok(text.lines().filter_map(number).collect())
    }

    /// What QEMU holds for being in the balloon.
    fn given(&self) -> Result<ByteSize, ScenarioError> {
        let balloon = self.qmp("query-balloon", json!({}))?;
        Ok(MEMORY - ByteSize::from_bytes(balloon["actual"].as_u64().unwrap_or(0)))
    }

    fn books_agree(&mut self) -> Result<(bool, String), ScenarioError> {
        let (stolen, given) = (self.stolen()?.len() as u64, self.given()?);
        Ok((given == BLOCK.size().times(stolen), format!("{stolen} blocks, {given}")))
    }

    /// Backing of stolen blocks. With 2 GiB on q35 an address is its offset in the file.
    fn resident_in_stolen(&self) -> Option<u64> {
        let ranges = self.stolen().ok()?.into_iter().filter_map(|block| BLOCK.range(block));
        let memory = self.machine.memory();
        ranges.map(|range| memory.resident_in(range.start().0, range.len().bytes()).ok()).sum()
    }

    fn watch_statistics(&self) -> Result<(), ScenarioError> {
        let (path, property) = (&self.balloon, "guest-stats-polling-interval");
        self.qmp("qom-set", json!({ "path": path, "property": property, "value": 1 })).map(drop)
    }

    fn balloon_property(&self, property: &str) -> Result<Value, ScenarioError> {
        self.qmp("qom-get", json!({ "path": self.balloon, "property": property }))
    }

    fn agent_other_than(&mut self, before: u32) -> Result<(), ScenarioError> {
        self.until("another agent is there", |guest| {
            let pid = guest.agent_pid()?;
            let answers = guest.shell("memtide-agent status").is_ok();
            Ok((pid != 0 && pid != before && answers, format!("{pid} after {before}")))
        })
    }

    /// The share of a processor over so long, in percent, that the agent's main thread has, which
    /// looks, and all of its threads together, one of which reads DAMON's files.
    fn cpu_at_rest(&self, over: Duration) -> Result<(f64, f64), ScenarioError> {
        let script = format!(
            "p=$(systemctl show -P MainPID memtide-agent); \
             t() {{ awk '{{ print $14 + $15 }}' /proc/$p/task/$p/stat /proc/$p/stat; }}; \
             t; sleep {}; t",
            over.as_secs()
        );
        // In hundredths of a second: USER_HZ is 100 on every x86 kernel.
        let text = self.shell(&script)?;
        let ticks: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let [main, all, main_later, all_later] = ticks[..] else { return Ok((100.0, 100.0)) };
        let share = |from: f64, to: f64| (to - from) / over.as_secs_f64();
        Ok((share(main, main_later), share(all, all_later)))
    }

    fn agent_rss(&self) -> Result<ByteSize, ScenarioError> {
        let script = "awk '/^VmRSS/ { print $2 }' \
                      /proc/$(systemctl show -P MainPID memtide-agent)/status";
        Ok(ByteSize::from_kib(self.shell(script)?.trim().parse().unwrap_or(u64::MAX)))
    }

    fn available_mib(&self) -> Option<u64> {
        let text = self.shell("awk '/^MemAvailable/ { print $2 }' /proc/meminfo").ok()?;
        text.trim().parse().ok().map(|kib: u64| kib >> 10)
    }
}

/// A device without an id is among the anonymous ones.
fn balloon_path(machine: &Machine) -> Result<String, ScenarioError> {
    let parent = "/machine/peripheral-anon";
    let children = machine.qmp().execute("qom-list", json!({ "path": parent }))?;
    let is_balloon = |child: &&Value| child["type"] == "child<virtio-balloon-pci>";
    let balloon = children.as_array().and_then(|all| all.iter().find(is_balloon));
    let name = balloon.and_then(|balloon| balloon["name"].as_str()).unwrap_or_default();
    Ok(format!("{parent}/{name}"))
}
