//! A DIMM that is stolen whole is ejected by the agent, and plugged in again by memtided when a block of it
//! is granted.
//!
//! Its `struct page`s go with it. What the two know of it outlives either's death; a guest that boots anew
//! and knows nothing of it gets it back.

use std::path::Path;
use std::time::{Duration, Instant};

use memtide_api::http::VmStatus;
use memtide_lab::cargo::Built;
use memtide_lab::machine::OnReset;
use memtide_lab::rundir::RunDir;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;
use serde_json::json;

use crate::checks::Checks;
use crate::dimm::{self, ABOVE, BLOCKS, DIMM, STRUCTS};
use crate::error::ScenarioError;
use crate::guest_side::{GuestOptions, GuestSide, Shape, Unit};
use crate::host_side::{HostLimits, HostSide};
use crate::player::Player;
use crate::run::Stage;
use crate::wait;

const MEMORY: ByteSize = ByteSize::from_gib(1);
const MIN: ByteSize = ByteSize::from_mib(512);
/// Stealing, and then being at rest.
const SOON: Duration = Duration::from_secs(150);
/// For touching so much under emulation.
const FILL: Duration = Duration::from_secs(180);
const COMMAND: Duration = Duration::from_secs(30);
const AGENT: &str = "/opt/memtide/bin/memtide-agent";
/// Together more than the guest has without its DIMM.
const WORKLOAD: &str =
    "alloc heap 64MiB; verify; wait; alloc surge 850MiB; verify; wait; free surge; wait";
const SETTINGS: &str = "min = \"512MiB\"\nswap = \"off\"\n";

/// Plays it.
pub fn play(lab: &Lab, programs: &Built, kernel: Kernel, logs: &Path) -> Checks {
    let mut checks = Checks::of(format!("a DIMM is ejected, {kernel}"));
    let started = Story::start(lab, programs, kernel, logs);
    let Some(mut story) = checks.step("the guest starts", started) else { return checks };
    if checks.step("a DIMM is plugged in, and a workload runs", story.prepared()).is_some() {
        going(&mut checks, &mut story);
        dying(&mut checks, &mut story);
        coming(&mut checks, &mut story);
        booting(&mut checks, &mut story);
    }
    checks.pages(&story.player);
    checks
}

fn going(checks: &mut Checks, story: &mut Story) {
    checks.step("what is stolen whole is ejected", story.until_ejected());
    // Before 6.11 the kernel does not count them.
    if story.structs > 0 {
        let now = dimm::structs(&story.guest).unwrap_or(0);
        let is_gone = now + STRUCTS == story.structs;
        println!("pages of struct pages: {} before, {now} after", story.structs);
        checks.check("its struct pages are gone", is_gone, format!("{now} of {}", story.structs));
    }
    let left = story.guest.qmp("query-memory-devices", json!({}));
    let is_out = left.as_ref().is_ok_and(|left| left.as_array().is_some_and(Vec::is_empty));
    checks.check("the VM has no DIMM", is_out, format!("{left:?}"));
    let told = story.host.memtide(&["vm", "demo"]);
    let is_told =
        told.as_ref().is_ok_and(|told| told.contains("512 MiB") && told.contains("eject"));
    checks.check("memtide says so", is_told, format!("{told:?}"));
}

/// Both are killed while it is out.
fn dying(checks: &mut Checks, story: &mut Story) {
    let killed = story.guest.agent_pid().and_then(|pid| {
        story.guest.run(&["kill", "-9", &pid.to_string()])?;
        story.host.kill_and_restart_memtided()?;
        story.until("another agent holds it", |story| {
            let (vm, now) = (story.host.vm()?, story.guest.agent_pid()?);
            let hello = vm.device.as_ref().and_then(|device| device.hello.as_ref());
            let is_named = hello.is_some_and(|h| h.stolen.iter().any(|r| r.start() >= ABOVE));
            let is_so = now != 0 && now != pid && is_named && vm.ejected == DIMM;
            Ok((is_so, format!("agent {now}, {} ejected", vm.ejected)))
        })
    });
    checks.step("it outlives the agent and memtided", killed);
}

/// The guest needs more than it has.
fn coming(checks: &mut Checks, story: &mut Story) {
    let started = Instant::now();
    let filled = story.go().and_then(|()| story.waits("the workload has what it wants", FILL));
    println!("the workload has had its memory after {:.1} s", started.elapsed().as_secs_f64());
    checks.step("a workload that needs it gets it", filled);
    // A reboot takes the journal with it.
    let said = "journalctl -b -u memtide-agent -o short-monotonic | grep -a PNP0C80";
    println!("{}", story.guest.shell(said, COMMAND).unwrap_or_default());
    let online = dimm::online(&story.guest);
    let is_back = online.as_ref().is_ok_and(|(count, _)| *count > 0);
    checks.check("it is plugged in again", is_back, format!("{online:?}"));
    let policy = "cat /sys/devices/system/memory/auto_online_blocks";
    let policy = story.guest.shell(policy, COMMAND);
    let is_kept = policy.as_ref().is_ok_and(|policy| policy.trim() == "online_movable");
    checks.check("plugged memory is treated as before", is_kept, format!("{policy:?}"));
    let kills = story.guest.oom_kills();
    checks.check("nothing was killed", matches!(kills, Ok(0)), format!("{kills:?}"));
    let structs = dimm::structs(&story.guest);
    let is_whole = structs.as_ref().is_ok_and(|now| *now == story.structs);
    checks.check("its struct pages are there", is_whole, format!("{structs:?}"));
    let again = story.go().and_then(|()| {
        story.waits("the workload has let go", FILL)?;
        story.until_ejected()
    });
    checks.step("it is ejected again when it is not needed", again);
}

/// What the guest knew of it is gone with the boot.
fn booting(checks: &mut Checks, story: &mut Story) {
    let booted = story.guest.reboot(|guest| {
        guest.ask_to_reboot();
        Ok(())
    });
    let back = booted.and_then(|()| {
        story.start_agent()?;
        story.until("the DIMM is there", |story| {
            // 6.1 leaves what is plugged in offline, and so does this guest.
            let now = dimm::present(&story.guest)?;
            Ok((now.0 == BLOCKS, now.1))
        })
    });
    checks.step("a guest that boots anew gets it back", back);
}

struct Story {
    /// Before the host, so that QEMU goes first.
    guest: GuestSide,
    host: HostSide,
    player: Player,
    /// Pages that hold `struct page`s with the DIMM there.
    structs: u64,
    _sockets: RunDir,
}

impl Story {
    fn start(
        lab: &Lab,
        programs: &Built,
        kernel: Kernel,
        logs: &Path,
    ) -> Result<Self, ScenarioError> {
        let sockets = RunDir::new()?;
        let monitor = sockets.path().join("demo.qmp").display().to_string();
        let limits = HostLimits { budget: None, min: MIN };
        let lines = format!("qmp = \"{monitor}\"\n");
        let shape = Shape {
            memory_max: Some(ByteSize::from_gib(4)),
            on_reset: OnReset::Boots,
            qemu_arguments: vec!["-qmp".into(), format!("unix:{monitor},server=on,wait=off")],
            ..Shape::default()
        };
        let options =
            GuestOptions { shape, ..GuestOptions::new((kernel, MEMORY), Unit::Installed, logs) };
        let Stage { host, guest, sockets } =
            Stage::start_in(sockets, (lab, programs), (limits, &lines), &options)?;
        Ok(Self { guest, host, player: Player::default(), structs: 0, _sockets: sockets })
    }

    fn prepared(&mut self) -> Result<(), ScenarioError> {
        // Before there is a DIMM: programs' memory comes from movable memory first, and a block that holds some
        // of it may be the one that the guest keeps.
        self.guest.start_workload(WORKLOAD)?;
        self.waits("the workload has its heap", FILL)?;
        dimm::make(&self.guest, "mem1")?;
        let policy = "echo online_movable > /sys/devices/system/memory/auto_online_blocks";
        self.guest.shell(policy, COMMAND)?;
        dimm::plug(&self.guest, "mem1")?;
        self.until("the guest has the new memory", |story| {
            let now = dimm::online(&story.guest)?;
            Ok((now.0 == BLOCKS, now.1))
        })?;
        self.structs = dimm::structs(&self.guest)?;
        self.start_agent()
    }

    fn start_agent(&self) -> Result<(), ScenarioError> {
        self.guest.write_file("/etc/memtide/agent.toml", SETTINGS)?;
        self.guest.shell("systemctl start memtide-agent", COMMAND).map(drop)
    }

    fn until(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<(bool, String), ScenarioError>,
    ) -> Result<(), ScenarioError> {
        wait::until_so(what, SOON, || {
            self.guest.alive(what)?;
            look(self)
        })
    }

    fn until_ejected(&mut self) -> Result<(), ScenarioError> {
        self.until("the DIMM is out", |story| {
            let vm = story.host.vm()?;
            Ok((vm.ejected == DIMM && !has_dimm(&vm), story.said(&vm)))
        })
    }

    fn said(&self, vm: &VmStatus) -> String {
        let agent = self.guest.shell(&format!("{AGENT} status || true"), COMMAND);
        let pluggable = vm.device.as_ref().map(|device| &device.pluggable);
        let (stolen, ejected) = (vm.stolen, vm.ejected);
        format!(
            "{stolen} stolen, {ejected} ejected of {pluggable:?}; {}",
            agent.unwrap_or_default()
        )
    }

    fn waits(&mut self, what: &str, within: Duration) -> Result<(), ScenarioError> {
        wait::until_so(what, within, || {
            self.guest.alive(what)?;
            for line in self.guest.workload_lines()? {
                self.player.read(&line);
            }
            Ok((self.player.waiting, format!("{:?}", self.player)))
        })
    }

    fn go(&mut self) -> Result<(), ScenarioError> {
        self.player.went();
        self.guest.workload_go()
    }
}

fn has_dimm(vm: &VmStatus) -> bool {
    let regions = vm.device.iter().flat_map(|device| &device.memory);
    regions.into_iter().any(|region| region.range.start() >= ABOVE)
}
