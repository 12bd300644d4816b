//! A DIMM that is plugged into a guest of the lab, and what the guest makes of it.

use std::time::Duration;

use memtide_units::{ByteSize, Gpa};
use serde_json::json;

use crate::error::ScenarioError;
use crate::guest_side::{GuestSide, struct_pages};

/// Its size: four blocks.
pub(crate) const DIMM: ByteSize = ByteSize::from_mib(512);
/// How many these are.
pub(crate) const BLOCKS: usize = 4;
/// QEMU plugs in from there on: it is the end of the hole below it.
pub(crate) const ABOVE: Gpa = Gpa(4 << 30);
/// 64 bytes for each page of it, in pages.
pub(crate) const STRUCTS: u64 = DIMM.bytes() / 4096 * 64 / 4096;

const COMMAND: Duration = Duration::from_secs(30);

/// Makes the memory of a DIMM.
pub(crate) fn make(guest: &GuestSide, memory: &str) -> Result<(), ScenarioError> {
    let (kind, size) = ("memory-backend-memfd", DIMM.bytes());
    let backend = json!({ "qom-type": kind, "id": memory, "size": size, "share": true });
    guest.qmp("object-add", backend).map(drop)
}

/// Plugs it in.
pub(crate) fn plug(guest: &GuestSide, memory: &str) -> Result<(), ScenarioError> {
    let dimm = json!({ "driver": "pc-dimm", "id": "dimm", "memdev": memory });
    guest.qmp("device_add", dimm).map(drop)
}

/// How many blocks of it are online, and what the guest has there.
pub(crate) fn online(guest: &GuestSide) -> Result<(usize, String), ScenarioError> {
    let script = "cd /sys/devices/system/memory; grep -l online memory*/state || true";
    let text = guest.shell(script, COMMAND)?;
    let number =
        |name: &str| name.strip_prefix("memory")?.strip_suffix("/state")?.parse::<u64>().ok();
    let is_above = |block: &u64| *block >= ABOVE.0 >> 27;
    Ok((text.lines().filter_map(number).filter(is_above).count(), text))
}

/// How many blocks of it are there, online or not, and what the guest has.
pub(crate) fn present(guest: &GuestSide) -> Result<(usize, String), ScenarioError> {
    let text = guest.shell("ls /sys/devices/system/memory", COMMAND)?;
    let number = |name: &str| name.strip_prefix("memory")?.parse::<u64>().ok();
    let is_above = |block: &u64| *block >= ABOVE.0 >> 27;
    Ok((text.lines().filter_map(number).filter(is_above).count(), text))
}

/// How many of its blocks are online in a kernel zone, and what the guest says of all of them.
pub(crate) fn in_kernel_zones(guest: &GuestSide) -> Result<(usize, String), ScenarioError> {
    let (first, last) = (ABOVE.0 >> 27, (ABOVE.0 >> 27) + BLOCKS as u64 - 1);
    let script = format!(
        "cd /sys/devices/system/memory; for n in $(seq {first} {last}); do \
           echo $(cat memory$n/state memory$n/valid_zones); done"
    );
    let text = guest.shell(&script, COMMAND)?;
    let is_so = |line: &&str| line.starts_with("online ") && *line != "online Movable";
    Ok((text.lines().filter(is_so).count(), text))
}

/// Pages that hold `struct page`s.
pub(crate) fn structs(guest: &GuestSide) -> Result<u64, ScenarioError> {
    struct_pages(|script| guest.shell(script, COMMAND))
}
