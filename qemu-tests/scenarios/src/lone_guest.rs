//! A guest with the agent on QEMU's own balloon, nothing of ours on the host, and a workload in it.

use std::path::Path;
use std::time::Duration;

use memtide_lab::cargo::Built;
use memtide_lab::guest::protocol::Stream;
use memtide_lab::guest::{Event, Process};
use memtide_lab::machine::{Balloon, Machine, MachineSpec};
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;
use serde_json::{Value, json};

use crate::error::ScenarioError;
use crate::guest_side::{Unit, tools};
use crate::player::Player;
use crate::wait;

/// From QEMU's start to the runner's hello.
const BOOT: Duration = Duration::from_secs(180);
/// A single command in the guest.
const COMMAND: Duration = Duration::from_secs(30);
/// SIGUSR1 on Linux: the workload's "go on".
const SIGUSR1: i32 = 10;

/// The guest, and what its workload has said.
pub(crate) struct LoneGuest {
    pub(crate) machine: Machine,
    workload: Option<Process>,
    pub(crate) player: Player,
}

impl LoneGuest {
    /// Boots one whose agent waits to be started ([`Self::start_agent`]).
    pub(crate) fn start(
        lab: &Lab,
        programs: &Built,
        size: (Kernel, ByteSize),
        logs: &Path,
    ) -> Result<Self, ScenarioError> {
        Self::start_with(lab, (programs, Unit::Installed), size, logs, |_| {})
    }

    /// Boots one that differs.
    pub(crate) fn start_with(
        lab: &Lab,
        (programs, agent): (&Built, Unit),
        (kernel, memory): (Kernel, ByteSize),
        logs: &Path,
        differ: impl FnOnce(&mut MachineSpec),
    ) -> Result<Self, ScenarioError> {
        let tools = tools(programs, agent)?;
        let mut spec = MachineSpec {
            memory_mib: memory.mib(),
            balloon: Balloon::Qemu,
            ..MachineSpec::new("guest", kernel, tools.path(), logs)
        };
        differ(&mut spec);
        let machine = Machine::start(lab, &spec)?;
        machine.wait_ready(BOOT)?;
        Ok(Self { machine, workload: None, player: Player::default() })
    }

    /// Starts the agent with these settings.
    pub(crate) fn start_agent(&self, settings: &str) -> Result<(), ScenarioError> {
        self.shell("mkdir -p /etc/memtide")?;
        let (guest, path) = (self.machine.guest(), "/etc/memtide/agent.toml");
        let written = guest.write_file(path, settings.as_bytes(), 0o644);
        written.map_err(memtide_lab::Error::from)?;
        self.shell("systemctl start memtide-agent").map(drop)
    }

    /// Runs a script that must succeed; our programs are in its path.
    pub(crate) fn shell(&self, script: &str) -> Result<String, ScenarioError> {
        let path = "PATH=$PATH:/opt/memtide/bin; ";
        let guest = self.machine.guest();
        Ok(guest.shell(&(path.to_owned() + script), COMMAND).map_err(memtide_lab::Error::from)?)
    }

    /// Waits; the look says whether it is so, and what is there.
    pub(crate) fn until(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&mut Self) -> Result<(bool, String), ScenarioError>,
    ) -> Result<(), ScenarioError> {
        wait::until_so(what, within, || look(self))
    }

    /// Has QEMU's balloon leave the guest so much of its memory.
    pub(crate) fn host_wants(&self, left: ByteSize) -> Result<(), ScenarioError> {
        Ok(self.machine.qmp().execute("balloon", json!({ "value": left.bytes() })).map(drop)?)
    }

    /// What the agent says of itself, without a process that reads it.
    pub(crate) fn status(&self) -> Result<Value, ScenarioError> {
        let text = self.machine.guest().read_file("/run/memtide-agent/status.json");
        Ok(serde_json::from_slice(&text.map_err(memtide_lab::Error::from)?).unwrap_or_default())
    }

    pub(crate) fn agent_pid(&self) -> Result<u32, ScenarioError> {
        let text = self.shell("systemctl show -P MainPID memtide-agent")?;
        Ok(text.trim().parse().unwrap_or(0))
    }

    /// Starts the workload with these options and this script.
    pub(crate) fn start_workload(&mut self, arguments: &[&str]) -> Result<(), ScenarioError> {
        let program = ["/opt/memtide/bin/memtide-workload", "play"];
        let process = self.machine.guest().spawn("workload", &[&program, arguments].concat());
        self.workload = Some(process.map_err(memtide_lab::Error::from)?);
        Ok(())
    }

    /// Hears what the workload has said since.
    pub(crate) fn listen(&mut self) {
        for event in self.workload.iter().flat_map(Process::new_events) {
            match event {
                Event::Line(Stream::Stdout, line) => self.player.read(&line),
                Event::Line(Stream::Stderr, line) => self.player.errors.push(line),
                Event::Exited(ending) => self.player.errors.push(ending.to_string()),
            }
        }
    }

    /// Whether the workload waits for a word.
    pub(crate) fn waits(&mut self) -> Result<(bool, String), ScenarioError> {
        self.listen();
        Ok((self.player.waiting, format!("{:?}", self.player)))
    }

    /// Gives it.
    pub(crate) fn go(&mut self) -> Result<(), ScenarioError> {
        self.player.went();
        let Some(workload) = &self.workload else { return Ok(()) };
        Ok(workload.kill(SIGUSR1).map_err(memtide_lab::Error::from)?)
    }
}

impl Drop for LoneGuest {
    /// The guest's journal and kernel log join the other logs, for whoever looks at a failed run.
    fn drop(&mut self) {
        if self.machine.is_running()
            && let Err(error) = self.machine.collect_logs()
        {
            eprintln!("the guest's logs could not be collected: {error}");
        }
    }
}
