//! The device's process dies under an agent. QEMU ends the VM at the next read of that device's
//! configuration, so nothing that people do to an agent afterwards may lead to one.

use std::path::Path;
use std::time::Duration;

use memtide_api::device::Driver;
use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::checks::Checks;
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, Unit};
use crate::host_side::HostLimits;
use crate::run::{Run, Stage};
use crate::screen::Screen;
use crate::wait::{self, Look};

const MEMORY: ByteSize = ByteSize::from_gib(2);
/// For what takes the agent seconds: five for an answer, ten for a gate.
const SOON: Duration = Duration::from_secs(60);
/// For writing and reading so much under emulation.
const FILL: Duration = Duration::from_secs(240);

/// memtided asks a device how it is once a second, and a look is taken each 0.2 s.
const SAME_LOOKS: u32 = 8;

/// The agent says how it is once a second, and takes a device for silent that does not answer for five.
const ASKED_WITHIN: Duration = Duration::from_millis(2500);

const AGENT: &str = "/opt/memtide/bin/memtide-agent";
/// Which driver has the balloon, or "none".
const DRIVER: &str = "for d in /sys/bus/pci/devices/*; do \
    [ \"$(cat $d/vendor)$(cat $d/device)\" = 0x1af40x1045 ] || continue; \
    if [ -e $d/driver ]; then basename $(readlink $d/driver); else echo none; fi; done";
/// More than the guest had while blocks were stolen.
const TOUCH: &str = "alloc heap 1600MiB; verify heap; wait";

/// Kills the device of a guest whose agent drives it and has stolen blocks, and does to the agent what
/// crashes, upgrades and removals do.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("death of the device, {kernel}"));
    if let Some(mut run) = checks.step("the guest starts", start(lab, programs, kernel, logs)) {
        dying(&mut checks, &mut run);
    }
    checks
}

fn start(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Result<Run, ScenarioError> {
    let limits = HostLimits { budget: None, min: ByteSize::from_mib(512) };
    let options = GuestOptions::new((kernel, MEMORY), Unit::Enabled, logs);
    let stage = Stage::start(lab, programs, limits, &options)?;
    let screen = Screen::new(format!("death of the device, {kernel}"), MEMORY);
    Ok(Run::new(stage, screen, logs))
}

fn dying(checks: &mut Checks, run: &mut Run) {
    let stolen = run.watch("blocks are stolen", SOON, |run| {
        run.vm().driver == Driver::Agent && run.vm().stolen >= ByteSize::from_mib(256)
    });
    checks.step("the device holds stolen blocks", stolen);
    let noticed = kill_behind_an_answer(run).and_then(|()| until_noticed(run));
    checks.step("the agent notices that the device is silent, and says so on file", noticed);

    let killed = run
        .guest
        .agent_pid()
        .and_then(|pid| run.guest.run(&["kill", "-9", &pid.to_string()]).map(drop))
        .and_then(|()| until_refused(run));
    checks.step("a killed agent's successor leaves the device alone, status 11", killed);
    let restarted = restart(run);
    checks.step("an upgraded agent does so too, and says why", restarted);

    let returned = run.guest.run(&[AGENT, "hand-back", "--return-blocks", "--within", "5s"]);
    checks.step("hand-back --return-blocks succeeds", returned);
    let (offline, driver) = (run.guest.block_states(), run.guest.shell(DRIVER, SOON));
    let is_back = offline.as_ref().is_ok_and(|(offline, _)| offline.is_empty())
        && driver.as_ref().is_ok_and(|driver| driver.trim() == "none");
    checks.check(
        "every block is back, and no driver has the device",
        is_back,
        format!("{offline:?} offline, driver {driver:?}"),
    );
    let touched = run
        .guest
        .start_workload(TOUCH)
        .and_then(|()| run.watch("the workload has filled them", FILL, |run| run.player.waiting));
    checks.step("they can be used", touched);
    checks.step("the VM has lived through all that", run.guest.qmp("query-status", json!({})));
}

/// Kills the device when it has answered what the agent asked, and before the agent can read that: an
/// answer that lies in the ring is no proof that somebody can still be asked.
fn kill_behind_an_answer(run: &mut Run) -> Result<(), ScenarioError> {
    let qemu = Some(run.guest.machine().qemu_pid());
    let device = run.host.pids().1;
    signal(device, Signal::STOP)?;
    std::thread::sleep(ASKED_WITHIN);
    signal(qemu, Signal::STOP)?;
    signal(device, Signal::CONT)?;
    let at_rest = until_at_rest(run);
    let killed = run.host.kill_device();
    signal(qemu, Signal::CONT)?;
    at_rest.and(killed)
}

fn until_at_rest(run: &Run) -> Result<(), ScenarioError> {
    let (mut before, mut same) = (None, 0);
    wait::until_so("the device has done what it was asked", SOON, || {
        let now = run.host.vm()?.stolen;
        same = if before.replace(now) == Some(now) { same + 1 } else { 0 };
        Ok((same >= SAME_LOOKS, format!("{now} stolen, {same} times the same")))
    })
}

fn signal(process: Option<u32>, signal: Signal) -> Result<(), ScenarioError> {
    let pid = process.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    pid.ok_or(Errno::SRCH).and_then(|pid| kill_process(pid, signal)).map_err(|error| {
        ScenarioError::Program { what: format!("process {process:?}"), said: error.to_string() }
    })
}

fn until_noticed(run: &Run) -> Result<(), ScenarioError> {
    let look = "test -e /run/memtide-agent/silent && echo yes || echo no";
    until(run, "the mark is there", look, |said| said.trim() == "yes")
}

fn until_refused(run: &Run) -> Result<(), ScenarioError> {
    let look = "systemctl show -p ActiveState,SubState,ExecMainStatus memtide-agent; \
                systemctl show -p ActiveState memtide-agent-hand-back | sed s/^/HandBack/";
    // Also its failure's unit must have ended, which takes the function away from UIO.
    let wanted = ["ActiveState=failed", "ExecMainStatus=11", "HandBackActiveState=inactive"];
    until(run, "the agent has refused to start", look, |said| {
        wanted.iter().all(|line| said.lines().any(|found| found == *line))
    })?;
    until(run, "no driver has the device", DRIVER, |said| said.trim() == "none")
}

fn restart(run: &Run) -> Result<(), ScenarioError> {
    run.guest.shell("! systemctl restart memtide-agent", SOON)?;
    until_refused(run)?;
    let look = "journalctl -u memtide-agent -n 20 -o cat";
    until(run, "its last words", look, |said| {
        said.contains("had stopped answering") && said.contains("ends this VM")
    })
}

fn until(
    run: &Run,
    what: &str,
    script: &str,
    is_so: impl Fn(&str) -> bool,
) -> Result<(), ScenarioError> {
    wait::until(what, SOON, || {
        let said = run.guest.shell(script, SOON)?;
        Ok(if is_so(&said) { Look::Found(()) } else { Look::NotYet(said) })
    })
}
