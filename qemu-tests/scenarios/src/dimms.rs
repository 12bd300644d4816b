//! The host unplugs a DIMM whose blocks are stolen, and plugs it in again.
//!
//! Nothing has to be moved out of it, so it goes at once, its `struct page`s too. The agent has no part
//! in it, and its books and the device's must follow.
//!
//! The second time it goes online as most kernels have it, which is to a kernel zone, and the agent makes it
//! movable.

use std::path::Path;
use std::time::{Duration, Instant};

use memtide_api::device::DeviceStatus;
use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;
use serde_json::json;

use crate::checks::Checks;
use crate::dimm::{self, ABOVE, BLOCKS, DIMM, STRUCTS};
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Shape, Unit};
use crate::torture::Arena;
use crate::wait::{self, Look};

const MEMORY: ByteSize = ByteSize::from_gib(1);
/// What the DIMM's memory is called the first and the second time. The second is made while the first is
/// still there: emulated processors keep the code that they have translated by the place of its memory in
/// QEMU, also when that has been taken away, and would run it in new memory at the same place
/// (docs/testing.md).
const FIRST: &str = "mem1";
const SECOND: &str = "mem2";
const COMMAND: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(90);

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("a DIMM comes and goes, {kernel}"));
    let options = GuestOptions {
        shape: Shape { memory_max: Some(ByteSize::from_gib(4)), ..Shape::default() },
        ..GuestOptions::new((kernel, MEMORY), Unit::Installed, logs)
    };
    let arena = Arena::start(lab, programs, &[], &options);
    let Some(arena) = checks.step("the guest starts", arena) else { return checks };
    if checks.step("a DIMM is plugged in and stolen", stolen(&arena)).is_some() {
        let gone = gone(&arena);
        checks.step("it is unplugged at once, and its struct pages go", gone);
        checks.step("what is stolen of the rest is on the books, and it is not", booked(&arena));
        checks.step("it is plugged in and used again", back(&arena));
    }
    checks
}

fn shell(arena: &Arena, script: &str) -> Result<String, ScenarioError> {
    arena.guest.shell(script, COMMAND)
}

fn plug(arena: &Arena, memory: &str) -> Result<(), ScenarioError> {
    dimm::plug(&arena.guest, memory)?;
    // There, and not online: the agent may have begun to take it.
    wait::until_so("the guest has the new memory", SOON, || {
        let (count, text) = dimm::present(&arena.guest)?;
        Ok((count == BLOCKS, text))
    })
}

fn online(arena: &Arena, what: &str) -> Result<(), ScenarioError> {
    wait::until_so(what, SOON, || {
        let (count, text) = dimm::online(&arena.guest)?;
        Ok((count == BLOCKS, text))
    })
}

fn of_dimm(status: &DeviceStatus) -> ByteSize {
    let above = status.stolen.iter().filter(|range| range.start() >= ABOVE);
    above.fold(ByteSize::ZERO, |sum, range| sum + range.len())
}

fn stolen(arena: &Arena) -> Result<(), ScenarioError> {
    shell(arena, "echo online_movable > /sys/devices/system/memory/auto_online_blocks")?;
    dimm::make(&arena.guest, FIRST)?;
    plug(arena, FIRST)?;
    arena.guest.write_file("/etc/memtide/agent.toml", "min = \"512MiB\"\nswap = \"off\"\n")?;
    shell(arena, "systemctl start memtide-agent")?;
    arena.await_device("all of it is stolen", SOON, |status| of_dimm(status) == DIMM).map(drop)
}

fn gone(arena: &Arena) -> Result<(), ScenarioError> {
    let (before, started) = (dimm::structs(&arena.guest)?, Instant::now());
    arena.guest.qmp("device_del", json!({ "id": "dimm" }))?;
    arena.guest.machine().qmp().wait_event("DEVICE_DELETED", SOON)?;
    println!("unplugged in {} ms", started.elapsed().as_millis());
    dimm::make(&arena.guest, SECOND)?;
    arena.guest.qmp("object-del", json!({ "id": FIRST }))?;
    wait::until("its struct pages are gone", SOON, || {
        let now = dimm::structs(&arena.guest)?;
        let is_so = now + STRUCTS == before;
        Ok(if is_so { Look::Found(()) } else { Look::NotYet(format!("{now} of {before}")) })
    })
}

/// The device keeps its map while regions come and go: the agent tells it anew.
fn booked(arena: &Arena) -> Result<(), ScenarioError> {
    let is_so = |status: &DeviceStatus| {
        of_dimm(status) == ByteSize::ZERO && status.memory.iter().all(|r| r.range.start() < ABOVE)
    };
    let status = arena.await_device("the device knows", SOON, is_so)?;
    wait::until("the agent's books are the device's", SOON, || {
        let said = shell(arena, "/opt/memtide/bin/memtide-agent status")?;
        let stolen: u64 = status.stolen.iter().map(|range| range.len().mib() / 128).sum();
        let is_so = said.contains("blocks     8 of 128 MiB")
            && said.contains(&format!(", {stolen} stolen, 0 foreign"));
        Ok(if is_so { Look::Found(()) } else { Look::NotYet(said) })
    })
}

fn back(arena: &Arena) -> Result<(), ScenarioError> {
    // What it is from Linux 6.12 on in Debian; 6.1 leaves plugged memory offline.
    shell(arena, "echo online > /sys/devices/system/memory/auto_online_blocks")?;
    plug(arena, SECOND)?;
    println!("plugged in: {:?}", dimm::in_kernel_zones(&arena.guest)?);
    let started = Instant::now();
    // Not all of them: the kernel may have put something of its own there meanwhile.
    wait::until_so("blocks of it were made movable", SOON, || {
        let said = shell(arena, "/opt/memtide/bin/memtide-agent explain -n 64")?;
        Ok((said.contains("blocks that came to a kernel zone were made movable"), said))
    })?;
    let after = dimm::in_kernel_zones(&arena.guest)?;
    println!("{} ms later: {after:?}", started.elapsed().as_millis());
    // It is the agent's to steal again, as much as the guest has to spare now, and so known to be there.
    arena.await_device("it is stolen again", SOON, |status| of_dimm(status) > ByteSize::ZERO)?;
    shell(arena, "/opt/memtide/bin/memtide-agent restore")?;
    arena.await_device("nothing is stolen", SOON, |status| status.stolen.is_empty())?;
    online(arena, "all of it is online")
}
