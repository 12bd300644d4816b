//! The machine is stopped, reset and ended while requests are in flight, and at last the device dies.

use std::time::Duration;

use memtide_api::device::Driver;
use memtide_units::ByteSize;
use serde_json::json;

use super::Torture;
use super::arena::Arena;
use super::chance::Chance;
use super::storm::{Storm, Weather};
use super::summary::Summary;
use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::Unit;
use crate::solo::Footprint;
use crate::wait::{self, Look};

/// Each target comes while the pages of the last are still on their way.
const EVERY: Duration = Duration::from_millis(100);

/// One stop of so many is a reset: a guest takes its time to boot.
const RESET_EVERY: u32 = 20;

/// Stops the machine `count` times, then ends it.
pub fn stops(torture: &Torture<'_>) -> Checks {
    let mut checks = Checks::of(format!("stops on {}", torture.kernel));
    let mut summary = Summary::default();
    summary.tell("seed", torture.seed);
    if let Some(mut arena) = checks.step("the guest starts", Arena::enter(torture, Unit::Absent)) {
        let (mut counts, mut peak) = ((0, 0), Footprint::default());
        let played = play(torture, &mut arena, &mut counts, &mut peak);
        checks.step("QEMU and the device live through stops and resets", played);
        let moved = arena.device.status().map(|status| status.counters).unwrap_or_default();
        summary.tell("stops_and_continues", counts.0);
        summary.tell("resets", counts.1);
        summary.tell("inflated_mib", moved.inflated.mib());
        summary.tell("deflated_mib", moved.deflated.mib());
        summary.tell("device_rss_kib", peak.rss.kib());
        summary.tell("device_descriptors", peak.descriptors);
        checks.step("a device that is killed leaves its guest running", device_dies(&mut arena));
    }
    if let Some(mut arena) =
        checks.step("another guest starts", Arena::enter(torture, Unit::Absent))
    {
        let quit = quits(torture, &mut arena);
        checks.step("the device outlives a QEMU that quits with requests in flight", quit);
    }
    summary.publish(torture.logs);
    checks
}

fn storm(torture: &Torture<'_>, arena: &Arena) -> Result<Storm, ScenarioError> {
    let weather = Weather { every: EVERY, most: ByteSize::from_gib(1), seed: torture.seed };
    Storm::begin(&arena.device, weather)
}

fn play(
    torture: &Torture<'_>,
    arena: &mut Arena,
    (stops, resets): &mut (u32, u32),
    peak: &mut Footprint,
) -> Result<(), ScenarioError> {
    arena.await_driver(Driver::Stock)?;
    let _storm = storm(torture, arena)?;
    let mut chance = Chance::of(torture.seed ^ 2);
    for round in 1..=torture.count {
        crate::interrupt::check()?;
        std::thread::sleep(Duration::from_millis(chance.between(20, 400)));
        await_flight(arena)?;
        if round % RESET_EVERY == 0 {
            arena.guest.reboot(|guest| guest.qmp("system_reset", json!({})).map(drop))?;
            *resets += 1;
        } else {
            arena.guest.qmp("stop", json!({}))?;
            std::thread::sleep(Duration::from_millis(chance.between(0, 100)));
            arena.guest.qmp("cont", json!({}))?;
            *stops += 1;
        }
        arena.await_driver(Driver::Stock)?;
        arena.note_footprint(peak)?;
    }
    Ok(())
}

/// Until the balloon moves: pages are on their way.
fn await_flight(arena: &Arena) -> Result<(), ScenarioError> {
    let moved = |status: &memtide_api::device::DeviceStatus| {
        status.counters.inflated.bytes() + status.counters.deflated.bytes()
    };
    let before = moved(&arena.device.status()?);
    arena
        .await_device("pages are on their way", Duration::from_secs(60), |now| moved(now) != before)
        .map(drop)
}

/// The VM loses its balloon and nothing else.
/// At rest: while a stock driver is on its way to a target it reads that again after each step, and QEMU
/// 11.1 ends with an assertion where the device's process is gone by then (ADR 0008).
fn device_dies(arena: &mut Arena) -> Result<(), ScenarioError> {
    arena.device.control()?.set_balloon(ByteSize::ZERO)?;
    arena.await_device("the balloon is empty", Duration::from_secs(90), |status| {
        status.actual.is_zero()
    })?;
    arena.device.kill();
    for _ in 0..5 {
        arena.guest.run(&["cat", "/proc/meminfo"])?;
        arena.guest.qmp("query-status", json!({}))?;
    }
    Ok(())
}

fn quits(torture: &Torture<'_>, arena: &mut Arena) -> Result<(), ScenarioError> {
    arena.await_driver(Driver::Stock)?;
    let storm = storm(torture, arena)?;
    await_flight(arena)?;
    // QEMU may hang up before it answers.
    let _ = arena.guest.machine().qmp().execute("quit", json!({}));
    arena.guest.wait_end(Duration::from_secs(30))?;
    drop(storm);
    wait::until("the device waits for another VMM", Duration::from_secs(10), || {
        let status = arena.device.status()?;
        Ok(match !status.vmm_connected && status.driver == Driver::None {
            true => Look::Found(()),
            false => Look::NotYet(format!("{:?}", status.driver)),
        })
    })
}
