//! The host unplugs a DIMM whose blocks are stolen, and plugs it in again.
//!
//! Nothing has to be moved out of it, so it goes at once, its `struct page`s too. The agent has no part
//! in it, and its books and the device's must follow.

use std::path::Path;
use std::time::{Duration, Instant};

use memtide_api::device::DeviceStatus;
use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::{ByteSize, Gpa};
use serde_json::json;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Shape, Unit};
use crate::torture::Arena;
use crate::wait::{self, Look};

const MEMORY: ByteSize = ByteSize::from_gib(1);
const DIMM: ByteSize = ByteSize::from_mib(512);
/// QEMU plugs in from there on: it is the end of the hole below it.
const ABOVE: Gpa = Gpa(4 << 30);
/// 64 bytes for each page of it, in pages.
const STRUCTS: u64 = DIMM.bytes() / 4096 * 64 / 4096;
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

/// Makes the memory of a DIMM.
fn make(arena: &Arena, memory: &str) -> Result<(), ScenarioError> {
    let (kind, size) = ("memory-backend-memfd", DIMM.bytes());
    let backend = json!({ "qom-type": kind, "id": memory, "size": size, "share": true });
    arena.guest.qmp("object-add", backend).map(drop)
}

fn plug(arena: &Arena, memory: &str) -> Result<(), ScenarioError> {
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm", "memdev": memory });
    arena.guest.qmp("device_add", dimm)?;
    online(arena, "the guest has the new memory", 4)
}

fn online(arena: &Arena, what: &str, wanted: usize) -> Result<(), ScenarioError> {
    wait::until(what, SOON, || {
        let text = shell(arena, "cd /sys/devices/system/memory; grep -l online memory*/state")?;
        let number =
            |name: &str| name.strip_prefix("memory")?.strip_suffix("/state")?.parse::<u64>().ok();
        let above = text.lines().filter_map(number).filter(|block| *block >= ABOVE.0 >> 27).count();
        Ok(if above == wanted { Look::Found(()) } else { Look::NotYet(text) })
    })
}

fn of_dimm(status: &DeviceStatus) -> ByteSize {
    let above = status.stolen.iter().filter(|range| range.start() >= ABOVE);
    above.fold(ByteSize::ZERO, |sum, range| sum + range.len())
}

fn stolen(arena: &Arena) -> Result<(), ScenarioError> {
    shell(arena, "echo online_movable > /sys/devices/system/memory/auto_online_blocks")?;
    make(arena, FIRST)?;
    plug(arena, FIRST)?;
    arena.guest.write_file("/etc/memtide/agent.toml", "min = \"512MiB\"\nswap = \"off\"\n")?;
    shell(arena, "systemctl start memtide-agent")?;
    arena.await_device("all of it is stolen", SOON, |status| of_dimm(status) == DIMM).map(drop)
}

/// Pages that hold `struct page`s.
fn struct_pages(arena: &Arena) -> Result<u64, ScenarioError> {
    let script = "awk '/^nr_memmap_/ { sum += $2 } END { print sum }' /proc/vmstat";
    Ok(shell(arena, script)?.trim().parse().unwrap_or(0))
}

fn gone(arena: &Arena) -> Result<(), ScenarioError> {
    let (before, started) = (struct_pages(arena)?, Instant::now());
    arena.guest.qmp("device_del", json!({ "id": "dimm" }))?;
    arena.guest.machine().qmp().wait_event("DEVICE_DELETED", SOON)?;
    println!("unplugged in {} ms", started.elapsed().as_millis());
    make(arena, SECOND)?;
    arena.guest.qmp("object-del", json!({ "id": FIRST }))?;
    wait::until("its struct pages are gone", SOON, || {
        let now = struct_pages(arena)?;
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
    plug(arena, SECOND)?;
    // It is the agent's to steal again, as much as the guest has to spare now, and so known to be there.
    arena.await_device("it is stolen again", SOON, |status| of_dimm(status) > ByteSize::ZERO)?;
    shell(arena, "/opt/memtide/bin/memtide-agent restore")?;
    arena.await_device("nothing is stolen", SOON, |status| status.stolen.is_empty())?;
    online(arena, "all of it is online", 4)
}
