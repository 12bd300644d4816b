//! Memory is plugged in and out (pc-dimm) while the rings run.

use std::time::Duration;

use memtide_api::device::MemoryRegion;
use memtide_units::ByteSize;
use serde_json::json;

use super::{Kind, balloon_is, follows};
use crate::error::ScenarioError;
use crate::run::Run;

/// What is plugged in: one block, since it is unplugged page by page.
const DIMM: ByteSize = ByteSize::from_mib(128);
/// What the guest is to do without of its first memory while that happens: pages move on both
/// queues. It is told what to keep, so what is plugged in goes into the balloon as well.
const SMALL: ByteSize = ByteSize::from_mib(256);
const LARGE: ByteSize = ByteSize::from_mib(1024);

/// Plugs a module in while the balloon grows, and out while pages of it are in the balloon. Linux
/// moves those one by one, with a request on each queue, and not while the balloon grows or shrinks
/// (`virtballoon_migratepage` only tries the lock): so that comes to rest first.
pub(super) fn plug(run: &mut Run, kind: &Kind) -> Result<(), ScenarioError> {
    let (total, regions) = (run.guest.mem_total()?, regions(run));
    run.host.set_target(kind.without(SMALL))?;
    let size = DIMM.bytes();
    let backend = json!({
        "qom-type": "memory-backend-memfd", "id": "mem1", "size": size, "share": true
    });
    run.guest.qmp("object-add", backend)?;
    run.guest.qmp("device_add", json!({ "driver": "pc-dimm", "id": "dimm1", "memdev": "mem1" }))?;
    run.watch("the device has the new memory", Duration::from_secs(60), |run| {
        self::regions(run) > regions
    })?;
    follows(run, SMALL)?;
    await_total(run, total - SMALL)?;

    balloon_is(run, kind, LARGE)?;
    run.guest.qmp("device_del", json!({ "id": "dimm1" }))?;
    let gone = run.guest.machine().qmp().wait_event("DEVICE_DELETED", Duration::from_secs(90));
    gone.map_err(ScenarioError::from)?;
    run.guest.qmp("object-del", json!({ "id": "mem1" }))?;
    run.watch("the device has that memory no more", Duration::from_secs(60), |run| {
        self::regions(run) == regions
    })?;
    // The guest is told what to keep, and has less than before.
    follows(run, LARGE)?;
    balloon_is(run, kind, ByteSize::ZERO)
}

/// How much of this memory was plugged in: it lies in a file of its own.
pub(super) fn plugged(memory: &[MemoryRegion]) -> ByteSize {
    let first = memory.first().map(|region| region.inode);
    let later = memory.iter().filter(|region| Some(region.inode) != first);
    later.fold(ByteSize::ZERO, |sum, region| sum + region.range.len())
}

fn regions(run: &Run) -> usize {
    run.vm().device.as_ref().map_or(0, |device| device.memory.len())
}

/// Until the guest has about so much, the new memory among it.
fn await_total(run: &Run, wanted: ByteSize) -> Result<(), ScenarioError> {
    let slack = ByteSize::from_mib(32);
    crate::wait::until("the guest has the new memory", Duration::from_secs(60), || {
        let total = run.guest.mem_total()?;
        Ok(match total + slack >= wanted {
            true => crate::wait::Look::Found(()),
            false => crate::wait::Look::NotYet(format!("{total} of {wanted}")),
        })
    })
}
