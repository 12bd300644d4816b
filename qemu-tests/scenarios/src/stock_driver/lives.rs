//! The driver's life ends and begins again: its module goes, its guest reboots.

use std::time::Duration;

use memtide_api::device::Driver;
use memtide_units::ByteSize;
use serde_json::json;

use super::{Kind, balloon_is, drives, follows};
use crate::error::ScenarioError;
use crate::run::Run;

/// What is inflated when a life ends.
const INFLATED: ByteSize = ByteSize::from_mib(256);
/// What is on its way when one ends in the middle.
const ON_ITS_WAY: ByteSize = ByteSize::from_mib(1024);

const COMMAND: Duration = Duration::from_secs(60);

/// The module goes while it holds pages, and again while it takes them; each time the next one
/// inflates by itself to what the device wants.
pub(super) fn unload(run: &mut Run, kind: &Kind) -> Result<(), ScenarioError> {
    let before = run.guest.mem_total()?;
    balloon_is(run, kind, INFLATED)?;
    run.guest.shell("modprobe -r virtio_balloon", COMMAND)?;
    run.watch("no driver drives", Duration::from_secs(30), |run| run.vm().driver == Driver::None)?;
    let without = run.guest.mem_total()?;
    if without < before {
        return Err(ScenarioError::Program {
            what: "giving its pages back when the module goes".into(),
            said: format!("{before} before, {without} after"),
        });
    }
    run.guest.shell("modprobe virtio_balloon", COMMAND)?;
    drives(run)?;
    follows(run, INFLATED)?;
    run.host.set_target(kind.without(ON_ITS_WAY))?;
    run.guest.shell("modprobe -r virtio_balloon; modprobe virtio_balloon", COMMAND)?;
    drives(run)?;
    follows(run, ON_ITS_WAY)?;
    balloon_is(run, kind, ByteSize::ZERO)
}

/// A reboot from inside, while inflated. The balloon's pages are ordinary memory of the next
/// kernel, which inflates anew.
pub(super) fn reboot(run: &mut Run, kind: &Kind) -> Result<(), ScenarioError> {
    balloon_is(run, kind, INFLATED)?;
    run.guest.reboot(|guest| {
        guest.ask_to_reboot();
        Ok(())
    })?;
    drives(run)?;
    follows(run, INFLATED)?;
    balloon_is(run, kind, ByteSize::ZERO)
}

/// A reset from the monitor, while pages are on their way.
pub(super) fn reset(run: &mut Run, kind: &Kind) -> Result<(), ScenarioError> {
    run.host.set_target(kind.without(ON_ITS_WAY))?;
    run.watch("pages are on their way", Duration::from_secs(60), |run| {
        run.vm().device.as_ref().is_some_and(|device| !device.actual.is_zero())
    })?;
    run.guest.reboot(|guest| guest.qmp("system_reset", json!({})).map(drop))?;
    drives(run)?;
    follows(run, ON_ITS_WAY)?;
    balloon_is(run, kind, ByteSize::ZERO)
}
