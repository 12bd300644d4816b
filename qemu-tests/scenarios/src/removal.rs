//! Memory that can be unplugged: what is stolen whole loses its `struct page`s, and comes back.
//!
//! The guest has 1 GiB and an NVDIMM in devdax mode, whose 384 MiB `kmem` lends to its kernel: three
//! blocks that go and come together.

use std::path::Path;
use std::time::Duration;

use memtide_lab::cargo::Built;
use memtide_lab::guest::protocol::Stream;
use memtide_lab::guest::{Event, Process};
use memtide_lab::machine::{Balloon, GuestMemory, Machine, MachineSpec};
use memtide_lab::{Kernel, Lab};
use memtide_units::{BlockSize, ByteSize};

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{Unit, tools};
use crate::player::Player;
use crate::wait::{self, Look};

/// From QEMU's start to the runner's hello.
const BOOT: Duration = Duration::from_secs(180);
/// A single command in the guest.
const COMMAND: Duration = Duration::from_secs(30);
/// For what takes the agent a few windows of two seconds.
const SOON: Duration = Duration::from_secs(90);
/// Of a size that nothing else in QEMU has; three whole blocks are in it.
const NVDIMM: ByteSize = ByteSize::from_mib(520);
const BLOCKS: u64 = 3;
/// What QEMU calls the guest's memory, and how much of that its balloon leaves: with the NVDIMM five
/// blocks stay, which are those that cannot go.
const MEMORY: ByteSize = ByteSize::from_gib(1);
const TARGET: ByteSize = ByteSize::from_mib(256);
/// SIGUSR1 on Linux: the workload's "go on".
const SIGUSR1: i32 = 10;

/// From persistent memory to the kernel's own (guest-agent's documentation names `daxctl`, which a
/// guest of the lab has not).
const LEND: &str = "set -e; modprobe -a nfit nd_pmem dax_pmem device_dax kmem; \
    echo online_movable > /sys/devices/system/memory/auto_online_blocks; \
    cd /sys/bus/nd; \
    for i in $(seq 100); do [ -e devices/namespace0.0 ] && [ -e devices/dax0.0 ] && break; sleep 0.1; done; \
    [ ! -e devices/namespace0.0/driver ] || echo namespace0.0 > devices/namespace0.0/driver/unbind; \
    cat /proc/sys/kernel/random/uuid > devices/dax0.0/uuid; \
    echo ram > devices/dax0.0/mode; \
    echo 2097152 > devices/dax0.0/align; \
    echo namespace0.0 > devices/dax0.0/namespace; \
    echo dax0.0 > drivers/dax_pmem/bind; \
    cd /sys/bus/dax; \
    [ ! -e devices/dax0.0/driver ] || echo dax0.0 > devices/dax0.0/driver/unbind; \
    echo dax0.0 > drivers/kmem/new_id 2>/dev/null || true; \
    [ -e devices/dax0.0/driver ] || echo dax0.0 > drivers/kmem/bind; \
    readlink devices/dax0.0/driver";

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("removal, {kernel}"));
    let started = Guest::start(lab, programs, kernel, logs);
    let Some(mut guest) = checks.step("the guest starts", started) else { return checks };
    if checks.step("it has memory that can be unplugged", guest.shell(LEND)).is_some() {
        going(&mut checks, &mut guest);
        killing(&mut checks, &mut guest);
        coming(&mut checks, &mut guest);
    }
    let summary = guest.player.integrity;
    checks.check(
        "every page of the workload is what it was",
        summary.pages_checked > 0 && summary.pages_bad == 0,
        format!("{summary:?} {:?}", guest.player.errors),
    );
    if let Err(error) = guest.machine.collect_logs() {
        eprintln!("the guest's logs could not be collected: {error}");
    }
    checks
}

/// What was stolen is removed.
fn going(checks: &mut Checks, guest: &mut Guest) {
    guest.structs = guest.struct_pages().unwrap_or(0);
    let said = guest.shell("memtide-agent check || true").unwrap_or_default();
    let offered = said.contains("ok     structs    go with what is stolen whole: dax0.0 (dax/kmem");
    checks.check("check says what can be removed", offered, said);
    let filled = guest.start_workload("alloc heap 64MiB; verify; wait; verify; free heap; wait");
    let filled = filled.and_then(|()| guest.until("the workload has filled", Guest::waits));
    checks.step("a workload has its memory", filled);
    // The host says how much shall go: which blocks a guest gives up by itself, and whether it keeps one
    // more, is not what this is about.
    let started = guest.shell("systemctl start memtide-agent").and_then(|_| guest.ask(TARGET));
    let gone = started.and_then(|()| {
        guest.until("the blocks are gone", |guest| {
            let left = guest.blocks()?;
            Ok((left.is_empty(), left.join(" ")))
        })
    });
    checks.step("what is stolen whole is removed", gone);
    let now = guest.struct_pages();
    let expected = guest.structs.saturating_sub(BLOCKS * PAGES_PER_BLOCK);
    checks.check(
        "its struct pages are gone",
        now.as_ref().is_ok_and(|now| *now == expected),
        format!("{now:?} pages after {}", guest.structs),
    );
    println!("pages of struct pages: {} before, {now:?} after", guest.structs);
    let resident = guest.resident();
    checks.check("the host has all of it", resident == Some(0), format!("{resident:?}"));
    let said = guest.shell("memtide-agent status").unwrap_or_default();
    checks.check("status says so", said.contains("6 MiB of struct pages freed"), said);
}

/// 128 MiB of pages, 64 bytes for each.
const PAGES_PER_BLOCK: u64 = BlockSize::X86_SMALL.size().bytes() / 4096 * 64 / 4096;

/// The successor of a killed agent knows what was removed.
fn killing(checks: &mut Checks, guest: &mut Guest) {
    let before = guest.shell("systemctl show -P MainPID memtide-agent").unwrap_or_default();
    let killed = guest.shell(&format!("kill -9 {before}"));
    let back = killed.and_then(|_| {
        guest.until("another agent counts the removed blocks", |guest| {
            let pid = guest.shell("systemctl show -P MainPID memtide-agent")?;
            let said = guest.shell("memtide-agent status 2>&1 || true")?;
            let knows = said.contains("6 MiB of struct pages freed");
            Ok((pid != before && knows, said))
        })
    });
    checks.step("the successor of a killed agent knows what was removed", back);
}

/// All of it comes back.
fn coming(checks: &mut Checks, guest: &mut Guest) {
    let asked = guest.ask(MEMORY).and_then(|()| guest.shell("memtide-agent restore"));
    let back = asked.and_then(|_| {
        guest.until("nothing is offline", |guest| {
            let (blocks, offline) = (guest.blocks()?, guest.offline()?);
            let is_so = blocks.len() as u64 == BLOCKS && offline.is_empty();
            Ok((is_so, format!("{blocks:?}, offline: {offline}")))
        })
    });
    checks.step("a restore plugs it in again", back);
    let now = guest.struct_pages();
    let is_whole = now.as_ref().is_ok_and(|now| *now == guest.structs);
    checks.check("its struct pages are there", is_whole, format!("{now:?}, {}", guest.structs));
    let policy = guest.shell("cat /sys/devices/system/memory/auto_online_blocks");
    let is_kept = policy.as_ref().is_ok_and(|policy| policy.trim() == "online_movable");
    checks.check("plugged memory is treated as before", is_kept, format!("{policy:?}"));
    let met = guest.go().and_then(|()| guest.until("the heap is free", Guest::waits));
    checks.step("the workload goes on", met);
}

struct Guest {
    machine: Machine,
    workload: Option<Process>,
    player: Player,
    nvdimm: GuestMemory,
    /// Pages that hold `struct page`s while everything is there.
    structs: u64,
}

impl Guest {
    fn start(
        lab: &Lab,
        programs: &Built,
        kernel: Kernel,
        logs: &Path,
    ) -> Result<Self, ScenarioError> {
        let tools = tools(programs, Unit::Installed)?;
        let memory = format!("memory-backend-memfd,id=nv,size={},share=on", NVDIMM.bytes());
        let arguments =
            ["-machine", "nvdimm=on", "-object", &memory, "-device", "nvdimm,memdev=nv"];
        let spec = MachineSpec {
            balloon: Balloon::Qemu,
            max_memory_mib: Some(4096),
            qemu_arguments: arguments.map(str::to_owned).to_vec(),
            ..MachineSpec::new("guest", kernel, tools.path(), logs)
        };
        let machine = Machine::start(lab, &spec)?;
        machine.wait_ready(BOOT)?;
        let nvdimm = GuestMemory::of_process(machine.qemu_pid(), NVDIMM.bytes())?;
        Ok(Self { machine, workload: None, player: Player::default(), nvdimm, structs: 0 })
    }

    fn shell(&self, script: &str) -> Result<String, ScenarioError> {
        let path = "PATH=$PATH:/opt/memtide/bin; ";
        let guest = self.machine.guest();
        Ok(guest.shell(&(path.to_owned() + script), COMMAND).map_err(memtide_lab::Error::from)?)
    }

    /// Waits; the look says whether it is so, and what is there.
    fn until(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<(bool, String), ScenarioError>,
    ) -> Result<(), ScenarioError> {
        wait::until(what, SOON, || {
            let (found, seen) = look(self)?;
            Ok(if found { Look::Found(()) } else { Look::NotYet(seen) })
        })
    }

    /// The blocks above 4 GiB: there is nothing else. Names alone: a look at each (`ls -d memory*`) fails
    /// where one goes meanwhile.
    fn blocks(&self) -> Result<Vec<String>, ScenarioError> {
        let text = self.shell("ls /sys/devices/system/memory")?;
        let number = |name: &str| name.strip_prefix("memory").and_then(|n| n.parse::<u64>().ok());
        let is_above = |name: &&str| number(name).is_some_and(|number| number >= 32);
        Ok(text.lines().filter(is_above).map(str::to_owned).collect())
    }

    fn offline(&self) -> Result<String, ScenarioError> {
        self.shell("grep -l offline /sys/devices/system/memory/*/state || true")
    }

    /// Pages that hold `struct page`s.
    fn struct_pages(&self) -> Result<u64, ScenarioError> {
        let script = "awk '/^nr_memmap_/ { sum += $2 } END { print sum }' /proc/vmstat";
        Ok(self.shell(script)?.trim().parse().unwrap_or(0))
    }

    /// What the host holds of the three blocks: the first begins 128 MiB into the NVDIMM at most.
    /// Sets the balloon's target: so much of [`MEMORY`] shall stay.
    fn ask(&self, left: ByteSize) -> Result<(), ScenarioError> {
        let value = serde_json::json!({ "value": left.bytes() });
        self.machine.qmp().execute("balloon", value)?;
        Ok(())
    }

    fn resident(&self) -> Option<u64> {
        let text = self.shell("cat /sys/bus/dax/devices/dax0.0/resource").ok()?;
        let start = u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()?;
        let size = self.shell("cat /sys/bus/dax/devices/dax0.0/size").ok()?;
        let block = BlockSize::X86_SMALL.size().bytes();
        // The device is the end of the NVDIMM, after what tells how it is used.
        let offset = NVDIMM.bytes().checked_sub(size.trim().parse().ok()?)?;
        let first = start.next_multiple_of(block) - start;
        self.nvdimm.resident_in(offset + first, BLOCKS * block).ok()
    }

    fn start_workload(&mut self, script: &str) -> Result<(), ScenarioError> {
        let argv = ["/opt/memtide/bin/memtide-workload", "play", script];
        let process = self.machine.guest().spawn("workload", &argv);
        self.workload = Some(process.map_err(memtide_lab::Error::from)?);
        Ok(())
    }

    /// Whether the workload waits for a word.
    fn waits(&mut self) -> Result<(bool, String), ScenarioError> {
        for event in self.workload.iter().flat_map(Process::new_events) {
            match event {
                Event::Line(Stream::Stdout, line) => self.player.read(&line),
                Event::Line(Stream::Stderr, line) => self.player.errors.push(line),
                Event::Exited(ending) => self.player.errors.push(ending.to_string()),
            }
        }
        Ok((self.player.waiting, format!("{:?}", self.player)))
    }

    fn go(&mut self) -> Result<(), ScenarioError> {
        self.player.went();
        let Some(workload) = &self.workload else { return Ok(()) };
        Ok(workload.kill(SIGUSR1).map_err(memtide_lab::Error::from)?)
    }
}
