//! Guests in which the agent may not run: one that is locked down, as under Secure Boot, where no program may drive a
//! device, and one whose kernel does not tell of pressure, without which nothing may be stolen.

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

/// Why the agent may not run, by the kernel's command line.
struct Obstacle {
    what: &'static str,
    argument: &'static str,
    /// The agent's exit status (`memtide-agent --help`).
    status: u8,
    /// What `check` says among other things.
    words: [&'static str; 2],
}

const OBSTACLES: [Obstacle; 2] = [
    Obstacle {
        what: "locked down",
        argument: "lockdown=integrity",
        status: 6,
        words: ["locked down (integrity)", "without Secure Boot"],
    },
    Obstacle {
        what: "without PSI",
        argument: "psi=0",
        status: 12,
        words: ["does not tell of memory pressure", "psi=1"],
    },
];

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("no place for an agent, {kernel}"));
    for obstacle in &OBSTACLES {
        let logs = logs.join(obstacle.argument);
        let started = start(lab, programs, (kernel, obstacle), &logs);
        let what = |promise: &str| format!("{}: {promise}", obstacle.what);
        if let Some(machine) = checks.step(&what("the guest starts"), started) {
            look(&mut checks, &machine, obstacle);
        }
    }
    checks
}

fn look(checks: &mut Checks, machine: &Machine, obstacle: &Obstacle) {
    let what = |promise: &str| format!("{}: {promise}", obstacle.what);
    let shell = |script: &str| -> Result<String, ScenarioError> {
        Ok(machine.guest().shell(script, COMMAND).map_err(memtide_lab::Error::from)?)
    };
    let ended = wait::until("the unit has failed", SOON, || {
        let state = shell("systemctl show -p ActiveState,ExecMainStatus,NRestarts memtide-agent")?;
        let status = format!("ExecMainStatus={}", obstacle.status);
        let wanted = ["ActiveState=failed", &status, "NRestarts=0"];
        let is_so = wanted.iter().all(|line| state.lines().any(|found| found == *line));
        Ok(if is_so { Look::Found(()) } else { Look::NotYet(state) })
    });
    let status = obstacle.status;
    checks.step(&what(&format!("the agent ends with status {status} for good")), ended);
    let said = shell("/opt/memtide/bin/memtide-agent check 2>&1 || true")
        .unwrap_or_else(|e| e.to_string());
    checks.check(&what("check says why, and what to do"), obstacle.is_told(&said), &said);
    let driver = shell("basename $(readlink /sys/bus/virtio/drivers/virtio_balloon/virtio*)");
    let is_stock = driver.as_ref().is_ok_and(|name| name.starts_with("virtio"));
    checks.check(&what("the stock driver has the balloon"), is_stock, format!("{driver:?}"));
    if let Err(error) = machine.collect_logs() {
        eprintln!("the guest's logs could not be collected: {error}");
    }
}

impl Obstacle {
    fn is_told(&self, said: &str) -> bool {
        said.contains("cannot run here") && self.words.iter().all(|word| said.contains(word))
    }
}

fn start(
    lab: &Lab,
    programs: &Built,
    (kernel, obstacle): (Kernel, &Obstacle),
    logs: &Path,
) -> Result<Machine, ScenarioError> {
    let tools = tools(programs, Unit::Enabled)?;
    let spec = MachineSpec {
        balloon: Balloon::Qemu,
        kernel_arguments: vec![obstacle.argument.into()],
        ..MachineSpec::new("guest", kernel, tools.path(), logs)
    };
    let machine = Machine::start(lab, &spec)?;
    machine.wait_ready(BOOT)?;
    Ok(machine)
}
