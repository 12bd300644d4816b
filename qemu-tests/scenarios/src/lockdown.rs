//! A guest that is locked down, as under Secure Boot: no program may drive a device there.

use std::path::Path;
use std::time::Duration;

use memtide_lab::cargo::Built;
use memtide_lab::machine::{Balloon, Machine, MachineSpec};
use memtide_lab::{Kernel, Lab};

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{Unit, tools};
use crate::wait::{self, Look};

/// From QEMU's start to the runner's hello.
const BOOT: Duration = Duration::from_secs(180);
const COMMAND: Duration = Duration::from_secs(30);
/// For a unit that fails at once.
const SOON: Duration = Duration::from_secs(60);

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("locked down, {kernel}"));
    let started = start(lab, programs, kernel, logs);
    let Some(machine) = checks.step("the guest starts", started) else { return checks };
    let shell = |script: &str| -> Result<String, ScenarioError> {
        Ok(machine.guest().shell(script, COMMAND).map_err(memtide_lab::Error::from)?)
    };
    let ended = wait::until("the unit has failed", SOON, || {
        let state = shell("systemctl show -p ActiveState,ExecMainStatus,NRestarts memtide-agent")?;
        let wanted = ["ActiveState=failed", "ExecMainStatus=6", "NRestarts=0"];
        let is_so = wanted.iter().all(|line| state.lines().any(|found| found == *line));
        Ok(if is_so { Look::Found(()) } else { Look::NotYet(state) })
    });
    checks.step("the agent ends with status 6 and is not started again", ended);
    let said = shell("/opt/memtide/bin/memtide-agent check 2>&1 || true")
        .unwrap_or_else(|e| e.to_string());
    checks.check("check says why, and what to do", is_plain(&said), &said);
    let driver = shell("basename $(readlink /sys/bus/virtio/drivers/virtio_balloon/virtio*)");
    let is_stock = driver.as_ref().is_ok_and(|name| name.starts_with("virtio"));
    checks.check("the stock driver has the balloon", is_stock, format!("{driver:?}"));
    if let Err(error) = machine.collect_logs() {
        eprintln!("the guest's logs could not be collected: {error}");
    }
    checks
}

fn is_plain(said: &str) -> bool {
    said.contains("locked down (integrity)")
        && said.contains("without Secure Boot")
        && said.contains("cannot run here")
}

fn start(
    lab: &Lab,
    programs: &Built,
    kernel: Kernel,
    logs: &Path,
) -> Result<Machine, ScenarioError> {
    let tools = tools(programs, Unit::Enabled)?;
    let spec = MachineSpec {
        balloon: Balloon::Qemu,
        kernel_arguments: vec!["lockdown=integrity".into()],
        ..MachineSpec::new("guest", kernel, tools.path(), logs)
    };
    let machine = Machine::start(lab, &spec)?;
    machine.wait_ready(BOOT)?;
    Ok(machine)
}
