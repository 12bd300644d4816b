//! Memory that cannot go offline: it goes in huge pages, most of its `struct page`s with it, and comes
//! back.
//!
//! The guest has 1 GiB, and nothing of it is movable, as in one whose agent came late.

use std::path::Path;
use std::time::Duration;

use memtide_api::device::DeviceStatus;
use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::{BlockSize, ByteSize};

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Unit, struct_pages};
use crate::player::Player;
use crate::torture::Arena;
use crate::wait::{self, Look};

const MEMORY: ByteSize = ByteSize::from_gib(1);
const COMMAND: Duration = Duration::from_secs(30);
/// For what takes the agent a few windows of two seconds.
const SOON: Duration = Duration::from_secs(90);
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// In a guest so small it is more than it takes.
const PLENTY: ByteSize = ByteSize::from_mib(256);
/// Of each 2 MiB page 28 of 32 KiB.
const FREED_PER_BLOCK: u64 = BlockSize::X86_SMALL.size().bytes() / (2 << 20) * 28 / 4;

/// What an administrator does, and a mark that says that the memory was tried to be made movable.
const PREPARE: &str = "set -e; sysctl -q vm.hugetlb_optimize_vmemmap=1; \
    mkdir -p /dev/hugepages; mount -t hugetlbfs hugetlbfs /dev/hugepages; \
    install -d -m 755 /run/memtide-agent; touch /run/memtide-agent/converted";
const SCRIPT: &str = "alloc heap 128MiB; verify; wait; verify; free heap; wait";

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("memory in pieces, {kernel}"));
    let options = GuestOptions::new((kernel, MEMORY), Unit::Installed, logs);
    let arena = Arena::start(lab, programs, &[], &options);
    let Some(arena) = checks.step("the guest starts", arena) else { return checks };
    let mut story = Story { arena, player: Player::default(), structs: 0 };
    if checks.step("a workload has its memory", story.prepare()).is_some() {
        going(&mut checks, &mut story);
        coming(&mut checks, &mut story);
    }
    checks.pages(&story.player);
    checks
}

fn going(checks: &mut Checks, story: &mut Story) {
    let said = story.agent("check || true").unwrap_or_default();
    let offered = said.contains("ok     pieces     what cannot go offline goes in huge pages");
    checks.check("check says that it can be had", offered, &said);
    let taken = story.shell("systemctl start memtide-agent").and_then(|_| story.settled());
    let Some(taken) = checks.step("it goes in pieces", taken) else { return };
    let (blocks, structs) = (taken.blocks(), story.struct_pages());
    let expected = story.structs.saturating_sub(blocks * FREED_PER_BLOCK);
    println!("pages of struct pages: {} before, {structs:?} with {blocks} blocks", story.structs);
    checks.check(
        "seven of eight of their struct pages are gone",
        structs.as_ref().is_ok_and(|now| *now == expected),
        format!("{structs:?}, {} before, {blocks} blocks", story.structs),
    );
    let resident = story.arena.guest.resident_in(&taken.0);
    checks.check(
        "the host has all of it",
        resident.as_ref().is_ok_and(|r| *r == ByteSize::ZERO),
        format!("{resident:?}"),
    );
    let said = story.agent("status").unwrap_or_default();
    let expected = format!("{blocks} stolen ({blocks} of them in pieces of 2 MiB)");
    checks.check("status says so", said.contains(&expected), said);

    killing(checks, story, &taken, &expected);
    wanting(checks, story);
}

fn killing(checks: &mut Checks, story: &Story, taken: &Taken, expected: &str) {
    let pid = || story.shell("systemctl show -P MainPID memtide-agent");
    let again = pid().and_then(|before| {
        story.shell(&format!("kill -9 {before}"))?;
        wait::until("its successor says the same", SOON, || {
            let (now, said) = (pid()?, story.agent("status 2>&1 || true")?);
            let is_new = now != before && said.contains(&format!("(pid {})", now.trim()));
            let is_so = is_new && said.contains(expected);
            Ok(if is_so { Look::Found(()) } else { Look::NotYet(said) })
        })?;
        story.arena.device.status()
    });
    let same = again.as_ref().is_ok_and(|now| now.stolen == taken.0.stolen);
    checks.check(
        "the successor of a killed agent holds the same pages",
        same,
        format!("{again:?}"),
    );
}

/// An administrator sets huge pages apart while the agent holds some, and thinks better of it.
fn wanting(checks: &mut Checks, story: &Story) {
    let raised = story.shell(&format!("echo 10 > {POOL}/nr_hugepages; cat {POOL}/free_hugepages"));
    let is_taken = raised.as_ref().is_ok_and(|free| free.trim() == "0");
    checks.check(
        "the kernel takes what is held for what is wanted",
        is_taken,
        format!("{raised:?}"),
    );
    let lack = "10 huge pages of 2 MiB that nr_hugepages asks for";
    let says = |wanted: bool| {
        wait::until("the agent has noticed", SOON, || {
            let said = story.agent("status")?;
            let is_so = said.contains(lack) == wanted;
            Ok(if is_so { Look::Found(()) } else { Look::NotYet(said) })
        })
    };
    checks.step("the agent says so", says(true));
    let lowered = story.shell(&format!("echo 0 > {POOL}/nr_hugepages")).and_then(|_| says(false));
    checks.step("and no longer when they are not wanted any more", lowered);
}

fn coming(checks: &mut Checks, story: &mut Story) {
    let back = story.agent("restore").and_then(|_| {
        story.arena.await_device("nothing is stolen", SOON, |status| status.stolen.is_empty())
    });
    checks.step("a restore brings it back", back);
    let (whole, structs) = (story.structs, || story.struct_pages());
    let there = wait::until("their struct pages are there", SOON, || {
        let now = structs()?;
        Ok(if now == whole { Look::Found(()) } else { Look::NotYet(format!("{now} of {whole}")) })
    });
    checks.step("their struct pages are there again", there);
    let pool = story.shell(&format!(
        "cat {POOL}/nr_hugepages {POOL}/nr_overcommit_hugepages /proc/sys/kernel/tainted"
    ));
    let is_clean = pool.as_ref().is_ok_and(|said| said.split_whitespace().all(|n| n == "0"));
    checks.check("the pool and the kernel are as before", is_clean, format!("{pool:?}"));
    checks.step("the workload goes on", story.go());
}

struct Taken(DeviceStatus);

impl Taken {
    fn blocks(&self) -> u64 {
        let bytes: u64 = self.0.stolen.iter().map(|range| range.len().bytes()).sum();
        bytes / BlockSize::X86_SMALL.size().bytes()
    }
}

struct Story {
    arena: Arena,
    player: Player,
    /// Pages that hold `struct page`s while everything is there.
    structs: u64,
}

impl Story {
    fn prepare(&mut self) -> Result<(), ScenarioError> {
        self.shell(PREPARE)?;
        self.arena
            .guest
            .write_file("/etc/memtide/agent.toml", "min = \"384MiB\"\nswap = \"off\"\n")?;
        self.structs = self.struct_pages()?;
        self.arena.guest.start_workload_with(&["--tlb-neighbour", "off"], SCRIPT)?;
        self.until_it_waits()
    }

    fn shell(&self, script: &str) -> Result<String, ScenarioError> {
        self.arena.guest.shell(script, COMMAND)
    }

    fn agent(&self, command: &str) -> Result<String, ScenarioError> {
        self.shell(&format!("/opt/memtide/bin/memtide-agent {command}"))
    }

    /// Waits until the agent has taken what it wants.
    fn settled(&self) -> Result<Taken, ScenarioError> {
        self.arena.await_device("plenty is taken", SOON, |status| {
            let bytes: u64 = status.stolen.iter().map(|range| range.len().bytes()).sum();
            bytes >= PLENTY.bytes()
        })?;
        wait::until("the agent rests", SOON, || {
            let said = self.agent("status")?;
            let is_resting = said.contains("doing      rest");
            Ok(if is_resting { Look::Found(()) } else { Look::NotYet(said) })
        })?;
        Ok(Taken(self.arena.device.status()?))
    }

    /// Pages that hold `struct page`s.
    fn struct_pages(&self) -> Result<u64, ScenarioError> {
        struct_pages(|script| self.shell(script))
    }

    fn until_it_waits(&mut self) -> Result<(), ScenarioError> {
        self.arena.heard(&mut self.player, SOON, "the workload waits", |player| player.waiting)
    }

    fn go(&mut self) -> Result<(), ScenarioError> {
        self.arena.go(&mut self.player)?;
        self.until_it_waits()
    }
}
