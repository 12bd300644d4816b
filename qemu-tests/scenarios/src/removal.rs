//! Memory that can be unplugged: what is stolen whole loses its `struct page`s, and comes back.
//!
//! The guest has 1 GiB and an NVDIMM in devdax mode, whose 384 MiB `kmem` lends to its kernel: three
//! blocks that go and come together.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use memtide_lab::cargo::Built;
use memtide_lab::machine::GuestMemory;
use memtide_lab::{Kernel, Lab};
use memtide_units::{BlockSize, ByteSize};

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{Unit, struct_pages};
use crate::lone_guest::LoneGuest;
use crate::wait;

/// For what takes the agent a few windows of two seconds.
const SOON: Duration = Duration::from_secs(90);
/// Of a size that nothing else in QEMU has; three whole blocks are in it.
const NVDIMM: ByteSize = ByteSize::from_mib(520);
const BLOCKS: u64 = 3;
/// What QEMU calls the guest's memory, and how much of that its balloon leaves: with the NVDIMM five
/// blocks stay, which are those that cannot go.
const MEMORY: ByteSize = ByteSize::from_gib(1);
const TARGET: ByteSize = ByteSize::from_mib(256);
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
    checks.pages(&guest.player);
    checks
}

/// What was stolen is removed.
fn going(checks: &mut Checks, guest: &mut Guest) {
    guest.structs = guest.struct_pages().unwrap_or(0);
    let said = guest.shell("memtide-agent check || true").unwrap_or_default();
    let offered = said.contains("ok     structs    go with what is stolen whole: dax0.0 (dax/kmem");
    checks.check("check says what can be removed", offered, said);
    let filled = guest.start_workload(&["alloc heap 64MiB; verify; wait; verify; free heap; wait"]);
    let filled =
        filled.and_then(|()| guest.until("the workload has filled", |guest| guest.waits()));
    checks.step("a workload has its memory", filled);
    // The host says how much shall go: which blocks a guest gives up by itself, and whether it keeps one
    // more, is not what this is about.
    let started =
        guest.shell("systemctl start memtide-agent").and_then(|_| guest.host_wants(TARGET));
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
    // It is written once a second.
    let told = guest.until("status says so", |guest| {
        let said = guest.shell("memtide-agent status")?;
        Ok((said.contains("6 MiB of struct pages freed"), said))
    });
    checks.step("status says so", told);
}

/// 128 MiB of pages, 64 bytes for each.
const PAGES_PER_BLOCK: u64 = BlockSize::X86_SMALL.size().bytes() / 4096 * 64 / 4096;

/// The successor of a killed agent knows what was removed.
fn killing(checks: &mut Checks, guest: &mut Guest) {
    let killed = guest.agent_pid().and_then(|pid| {
        guest.shell(&format!("kill -9 {pid}"))?;
        Ok(pid)
    });
    let back = killed.and_then(|before| {
        guest.until("another agent counts the removed blocks", |guest| {
            let pid = guest.agent_pid()?;
            let said = guest.shell("memtide-agent status 2>&1 || true")?;
            let knows = said.contains("6 MiB of struct pages freed");
            Ok((pid != before && knows, said))
        })
    });
    checks.step("the successor of a killed agent knows what was removed", back);
}

/// All of it comes back.
fn coming(checks: &mut Checks, guest: &mut Guest) {
    let asked = guest.host_wants(MEMORY).and_then(|()| guest.shell("memtide-agent restore"));
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
    let met = guest.go().and_then(|()| guest.until("the heap is free", |guest| guest.waits()));
    checks.step("the workload goes on", met);
}

struct Guest {
    lone: LoneGuest,
    nvdimm: GuestMemory,
    /// Pages that hold `struct page`s while everything is there.
    structs: u64,
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
        let memory = format!("memory-backend-memfd,id=nv,size={},share=on", NVDIMM.bytes());
        let arguments =
            ["-machine", "nvdimm=on", "-object", &memory, "-device", "nvdimm,memdev=nv"];
        let agent = (programs, Unit::Installed);
        let lone = LoneGuest::start_with(lab, agent, (kernel, MEMORY), logs, |spec| {
            spec.max_memory_mib = Some(4096);
            spec.qemu_arguments = arguments.map(str::to_owned).to_vec();
        })?;
        let nvdimm = GuestMemory::of_process(lone.machine.qemu_pid(), NVDIMM.bytes())?;
        Ok(Self { lone, nvdimm, structs: 0 })
    }

    /// Waits; the look says whether it is so, and what is there.
    fn until(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<(bool, String), ScenarioError>,
    ) -> Result<(), ScenarioError> {
        wait::until_so(what, SOON, || look(self))
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
        struct_pages(|script| self.shell(script))
    }

    /// What the host holds of the three blocks: the first begins 128 MiB into the NVDIMM at most.
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
}
