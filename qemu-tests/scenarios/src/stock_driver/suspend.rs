//! The guest sleeps: the driver gives its pages back, and takes them again when it wakes.

use std::time::Duration;

use memtide_api::device::Driver;
use memtide_units::ByteSize;
use serde_json::json;

use super::{Kind, balloon_is, drives, follows};
use crate::error::ScenarioError;
use crate::run::Run;

/// What is inflated when the guest goes to sleep.
const INFLATED: ByteSize = ByteSize::from_mib(256);

/// For a guest under emulation to go to sleep, or to get up.
const SLEEPY: Duration = Duration::from_secs(60);

const SLEEP: &str = "echo deep > /sys/power/mem_sleep; echo mem > /sys/power/state";

/// Suspends to memory (S3) with an inflated balloon, and is woken from outside. The driver's
/// `freeze` gives all pages back and stops the rings; its `restore` starts anew.
pub(super) fn sleep(run: &mut Run, kind: &Kind) -> Result<(), ScenarioError> {
    balloon_is(run, kind, INFLATED)?;
    let machine = run.guest.machine();
    // Its end is not waited for: on 7.3 nothing that a guest says on a virtio-serial port arrives
    // after it has slept, until it boots again. That its balloon follows shows that it is awake.
    let _asleep = machine
        .guest()
        .spawn("sleep", &["sh", "-e", "-c", SLEEP])
        .map_err(memtide_lab::Error::from)?;
    machine.qmp().wait_event("SUSPEND", SLEEPY)?;
    run.watch("no driver drives a sleeping guest's balloon", SLEEPY, |run| {
        run.vm().driver == Driver::None
    })?;
    run.guest.qmp("system_wakeup", json!({}))?;
    drives(run)?;
    follows(run, INFLATED)?;
    balloon_is(run, kind, ByteSize::ZERO)
}
