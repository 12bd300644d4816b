//! Drivers come and go while the target changes a hundred times a second.

use std::time::Duration;

use memtide_api::device::Driver;
use memtide_units::ByteSize;

use super::Torture;
use super::arena::Arena;
use super::storm::{Storm, Weather};
use super::summary::Summary;
use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::Unit;
use crate::solo::Footprint;

/// A hundred targets a second.
const EVERY: Duration = Duration::from_millis(10);

/// Of so many cycles one has the agent stopped in order, one has it killed; the others take the
/// stock driver away and bring it back.
const AGENT_STOPS_EVERY: u32 = 5;
const AGENT_DIES_EVERY: u32 = 8;
/// A guest takes its time to boot.
const REBOOT_EVERY: u32 = 25;

/// The stock driver goes and comes.
const REBIND: &str = r#"
cd /sys/bus/virtio/drivers/virtio_balloon
for device in virtio*; do
  echo "$device" > unbind
  echo "$device" > bind
done
"#;

/// What the agent stole stays stolen when it goes, and the stock driver's targets must still fit.
const AGENT_SETTINGS: &str = "min = \"1536MiB\"\n";

/// What the cycles were.
#[derive(Debug, Default)]
struct Cycles {
    stock: u32,
    agent_stopped: u32,
    agent_killed: u32,
    reboots: u32,
}

/// Binds and unbinds drivers `count` times while the target changes.
pub fn rebinds(torture: &Torture<'_>) -> Checks {
    let mut checks = Checks::of(format!("rebinds on {}", torture.kernel));
    let Some(mut arena) = checks.step("the guest starts", Arena::enter(torture, Unit::Installed))
    else {
        return checks;
    };
    let mut summary = Summary::default();
    let mut cycles = Cycles::default();
    let mut peak = Footprint::default();
    let weather = Weather { every: EVERY, most: ByteSize::from_mib(256), seed: torture.seed };
    let settings = arena.guest.write_file("/etc/memtide/agent.toml", AGENT_SETTINGS);
    checks.step("the agent is told to leave the stock driver room", settings);
    let played = Storm::begin(&arena.device, weather).and_then(|storm| {
        let played = play(torture.count, &mut arena, &mut cycles, &mut peak);
        let (set, failed) = storm.end();
        summary.tell("targets_set", set);
        summary.tell("targets_refused", failed);
        played
    });
    checks.step("QEMU and the device live through drivers that come and go", played);
    let settled = arena.device.control().and_then(|mut control| {
        control.set_balloon(ByteSize::from_mib(128))?;
        arena.await_device("the last target is reached", Duration::from_secs(90), |status| {
            status.actual == ByteSize::from_mib(128)
        })
    });
    let status = checks.step("the stock driver follows the last target", settled);
    summary.tell("seed", torture.seed);
    summary.tell("kernel", arena.guest.kernel_release());
    summary.tell("stock_driver_rebinds", cycles.stock);
    summary.tell("agent_started_and_stopped", cycles.agent_stopped);
    summary.tell("agent_started_and_killed", cycles.agent_killed);
    summary.tell("guest_reboots", cycles.reboots);
    if let Some(status) = status {
        summary.tell("inflated_mib", status.counters.inflated.mib());
        summary.tell("deflated_mib", status.counters.deflated.mib());
        summary.tell("config_changed_messages", status.counters.notices);
        summary.tell("config_changed_called_off", status.counters.notices_called_off);
        summary.tell("refused", status.counters.refused.values().sum::<u64>());
    }
    summary.tell("device_rss_kib", peak.rss.kib());
    summary.tell("device_descriptors", peak.descriptors);
    summary.tell("device_log_bytes", peak.log.bytes());
    checks.check(
        "the device is small (6 MiB) and keeps no descriptors",
        peak.rss <= ByteSize::from_mib(6) && peak.descriptors < 64,
        format!("{peak:?}"),
    );
    summary.publish(torture.logs);
    checks
}

fn play(
    count: u32,
    arena: &mut Arena,
    cycles: &mut Cycles,
    peak: &mut Footprint,
) -> Result<(), ScenarioError> {
    for cycle in 1..=count {
        crate::interrupt::check()?;
        if cycle % REBOOT_EVERY == 0 {
            arena.guest.reboot(|guest| {
                guest.ask_to_reboot();
                Ok(())
            })?;
            cycles.reboots += 1;
        } else if cycle % AGENT_DIES_EVERY == 0 {
            agent_dies(arena)?;
            cycles.agent_killed += 1;
        } else if cycle % AGENT_STOPS_EVERY == 0 {
            arena.guest.run(&["systemctl", "start", "memtide-agent"])?;
            arena.await_driver(Driver::Agent)?;
            arena.guest.run(&["systemctl", "stop", "memtide-agent"])?;
            cycles.agent_stopped += 1;
        } else {
            arena.guest.shell(REBIND, Duration::from_secs(60))?;
            cycles.stock += 1;
        }
        arena.guest.alive("the next cycle")?;
        arena.await_driver(Driver::Stock)?;
        arena.note_footprint(peak)?;
    }
    Ok(())
}

/// The agent is killed while targets come in, and once it is back it ends in order.
fn agent_dies(arena: &Arena) -> Result<(), ScenarioError> {
    arena.guest.run(&["systemctl", "start", "memtide-agent"])?;
    arena.await_driver(Driver::Agent)?;
    let killed = arena.guest.agent_pid()?;
    arena.guest.run(&["kill", "-9", &killed.to_string()])?;
    crate::wait::until("the killed agent is back", Duration::from_secs(30), || {
        arena.guest.alive("the killed agent")?;
        let pid = arena.guest.agent_pid()?;
        Ok(match pid != 0 && pid != killed {
            true => crate::wait::Look::Found(()),
            false => crate::wait::Look::NotYet(format!("process {pid}")),
        })
    })?;
    arena.await_driver(Driver::Agent)?;
    arena.guest.run(&["systemctl", "stop", "memtide-agent"])?;
    Ok(())
}
