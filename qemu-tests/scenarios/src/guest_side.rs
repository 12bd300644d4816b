//! The guest's half of a scenario: the machine, what runs in it, and what the host sees of its memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use memtide_api::http::VmStatus;
use memtide_lab::cargo::Built;
use memtide_lab::guest::protocol::Stream;
use memtide_lab::guest::{Event, Process};
use memtide_lab::machine::{Balloon, Console, Engine, Machine, MachineSpec};
use memtide_lab::tools::{Start, Tools};
use memtide_lab::{Kernel, Lab};
use memtide_units::{BlockSize, ByteSize, GpaRange};

use crate::error::ScenarioError;

/// A single command in the guest; under emulation with a busy neighbour a second is nothing.
const COMMAND: Duration = Duration::from_secs(30);
/// From QEMU's start to the runner's hello.
const BOOT: Duration = Duration::from_secs(180);
/// SIGUSR1 on Linux: the workload's "go on".
const SIGUSR1: i32 = 10;
/// How the workload is called in the guest.
const WORKLOAD: &str = "workload";

/// Whether the agent's unit is in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Installed and started at boot.
    Enabled,
    /// Not there: the guest has its stock driver and nothing else.
    Absent,
}

/// What kind of guest.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its memory.
    pub memory: ByteSize,
    /// Where logs go.
    pub artifacts: PathBuf,
    /// Whether the agent runs.
    pub agent: Unit,
    /// A prompt for people.
    pub console: Console,
}

/// A guest that runs.
pub struct GuestSide {
    machine: Machine,
    workload: Option<Process>,
    kernel: String,
}

impl GuestSide {
    /// Boots a guest with our programs in it and waits until commands can be run.
    ///
    /// # Errors
    /// Where it does not boot; the error ends with the console's last lines.
    pub fn start(
        lab: &Lab,
        programs: &Built,
        vhost_socket: &Path,
        options: &GuestOptions,
    ) -> Result<Self, ScenarioError> {
        let tools = tools(programs, options.agent)?;
        let mut spec = MachineSpec::new("guest", options.kernel, tools.path(), &options.artifacts);
        spec.memory_mib = options.memory.mib();
        spec.balloon = Balloon::VhostUser { socket: vhost_socket.to_owned() };
        spec.console = options.console;
        let machine = Machine::start(lab, &spec)?;
        let hello = machine.wait_ready(BOOT)?;
        Ok(Self { machine, workload: None, kernel: hello.kernel })
    }

    /// Waits until its user has powered it off.
    ///
    /// # Errors
    /// Where QEMU fails, or the user is still there after `within`.
    pub fn wait_end(&self, within: Duration) -> Result<(), ScenarioError> {
        Ok(self.machine.wait_end(within)?)
    }

    /// `kvm` or `tcg`, and why.
    pub fn accelerator(&self) -> (String, String) {
        let chosen = self.machine.acceleration();
        let engine = match chosen.engine {
            Engine::Kvm => "kvm",
            Engine::Tcg => "tcg",
        };
        (engine.to_owned(), chosen.reason.clone())
    }

    /// `uname -r`.
    pub fn kernel_release(&self) -> &str {
        &self.kernel
    }

    /// Runs a command that must succeed and returns what it prints.
    ///
    /// # Errors
    /// Where it fails, with what it said.
    pub fn run(&self, argv: &[&str]) -> Result<String, ScenarioError> {
        Ok(self.machine.guest().check(argv, COMMAND).map_err(memtide_lab::Error::from)?)
    }

    /// Starts the workload with `script`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_workload(&mut self, script: &str) -> Result<(), ScenarioError> {
        let argv = ["/opt/memtide/bin/memtide-workload", "play", script];
        let process =
            self.machine.guest().spawn(WORKLOAD, &argv).map_err(memtide_lab::Error::from)?;
        self.workload = Some(process);
        Ok(())
    }

    /// What the workload has printed since the last time.
    ///
    /// # Errors
    /// Where the guest has died.
    pub fn workload_lines(&self) -> Result<Vec<String>, ScenarioError> {
        if !self.machine.is_running() {
            // This tells how it ended, with the console's last lines.
            self.machine.wait_for("the workload", Duration::ZERO, || Ok(None::<()>))?;
        }
        let events = self.workload.iter().flat_map(Process::new_events);
        Ok(events
            .map(|event| match event {
                Event::Line(Stream::Stdout, line) => line,
                Event::Line(Stream::Stderr, line) => format!("stderr: {line}"),
                Event::Exited(ending) => format!("the workload ended: {ending}"),
            })
            .collect())
    }

    /// Tells the workload to go on from its `wait`.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn workload_go(&self) -> Result<(), ScenarioError> {
        let Some(workload) = &self.workload else { return Ok(()) };
        Ok(workload.kill(SIGUSR1).map_err(memtide_lab::Error::from)?)
    }

    /// Guest memory resident on the host, from the memfd.
    ///
    /// # Errors
    /// Where QEMU has gone.
    pub fn resident(&self) -> Result<ByteSize, ScenarioError> {
        let resident = self.machine.memory().resident_bytes().map_err(ScenarioError::Memfd)?;
        Ok(ByteSize::from_bytes(resident))
    }

    /// Backing found under the blocks that the device holds for stolen.
    ///
    /// # Errors
    /// Where QEMU has gone.
    pub fn resident_in_stolen(&self, vm: &VmStatus) -> Result<ByteSize, ScenarioError> {
        let Some(device) = &vm.device else { return Ok(ByteSize::ZERO) };
        let memory = self.machine.memory();
        let mut found = 0;
        for stolen in &device.stolen {
            for region in &device.memory {
                let Some(part) = stolen.intersection(region.range) else { continue };
                let offset = part.start().0 - region.range.start().0 + region.file_offset.bytes();
                let resident = memory.resident_in(offset, part.len().bytes());
                found += resident.map_err(ScenarioError::Memfd)?;
            }
        }
        Ok(ByteSize::from_bytes(found))
    }

    /// True where the blocks that the guest's kernel has offline are those that the device holds
    /// for stolen.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn offline_matches(&self, vm: &VmStatus) -> Result<bool, ScenarioError> {
        let Some(device) = &vm.device else { return Ok(false) };
        let block = BlockSize::X86_SMALL;
        let text =
            self.run(&["sh", "-c", "grep -l offline /sys/devices/system/memory/*/state; true"])?;
        let mut offline: Vec<GpaRange> =
            text.lines().filter_map(block_number).filter_map(|n| block.range(n)).collect();
        offline.sort_unstable();
        let mut held = Vec::new();
        for range in &device.stolen {
            let first = block.block_of(range.start()).0;
            let count = block.count_in(range.len());
            let ids = (first..first + count).map(memtide_units::BlockId);
            held.extend(ids.filter_map(|id| block.range(id)));
        }
        held.sort_unstable();
        Ok(offline == held)
    }

    /// `MemTotal`.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn mem_total(&self) -> Result<ByteSize, ScenarioError> {
        let text = self.run(&["awk", "/^MemTotal/ { print $2 }", "/proc/meminfo"])?;
        Ok(ByteSize::from_kib(text.trim().parse().unwrap_or(0)))
    }

    /// The agent's process id.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn agent_pid(&self) -> Result<u32, ScenarioError> {
        let text = self.run(&["systemctl", "show", "-P", "MainPID", "memtide-agent"])?;
        Ok(text.trim().parse().unwrap_or(0))
    }

    /// `kill -9` of the agent's main process, in the moment in which it takes a block offline; after
    /// some seconds without such a moment at any other. Says which it was.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn kill_stealing_agent(&self) -> Result<String, ScenarioError> {
        let pid = self.agent_pid()?.to_string();
        let said = self.run(&["sh", "-c", KILL_WHILE_GOING_OFFLINE, "sh", &pid])?;
        Ok(said.trim().to_owned())
    }
}

/// Without a process of its own per look, one look at all blocks takes a few milliseconds, and
/// offlining a block ten at least.
const KILL_WHILE_GOING_OFFLINE: &str = r#"
end=$(( $(cut -d. -f1 /proc/uptime) + 8 ))
while :; do
  for file in /sys/devices/system/memory/memory*/state; do
    read -r state < "$file"
    if [ "$state" = going-offline ]; then
      kill -9 "$1"
      file=${file%/state}
      echo "while ${file##*/} was going offline"
      exit
    fi
  done
  read -r now rest < /proc/uptime
  [ "${now%.*}" -ge "$end" ] && break
done
kill -9 "$1"
echo "between two steals"
"#;

impl Drop for GuestSide {
    /// The guest's journal and kernel log join the other logs, for whoever looks at a failed run.
    fn drop(&mut self) {
        if self.machine.is_running()
            && let Err(error) = self.machine.collect_logs()
        {
            eprintln!("the guest's logs could not be collected: {error}");
        }
    }
}

/// `/sys/devices/system/memory/memory12/state` is block 12.
fn block_number(path: &str) -> Option<memtide_units::BlockId> {
    let name = path.strip_suffix("/state")?.rsplit('/').next()?;
    name.strip_prefix("memory")?.parse().ok().map(memtide_units::BlockId)
}

/// What becomes the guest's /opt/memtide.
fn tools(programs: &Built, agent: Unit) -> Result<Tools, ScenarioError> {
    let mut tools = Tools::new(programs.program("memtide-lab-guest")?)?;
    for name in ["memtide-agent", "memtide-workload"] {
        tools.program(name, programs.program(name)?)?;
    }
    if agent == Unit::Enabled {
        for (name, start) in AGENT_UNITS {
            let path = Path::new(AGENT_DIR).join(name);
            let unit = std::fs::read_to_string(&path)
                .map_err(|source| ScenarioError::Read { path, source })?;
            // The lab's guest has the agent on its tools disk, not where a package puts it.
            let unit = unit.replace("/usr/bin/memtide-agent", "/opt/memtide/bin/memtide-agent");
            tools.unit(name, &unit, start)?;
        }
    }
    Ok(tools)
}

/// The units as they are shipped, and where they are.
const AGENT_UNITS: [(&str, Start); 2] = [
    ("memtide-agent.service", Start::AtBoot),
    ("memtide-agent-hand-back.service", Start::OnDemand),
];
const AGENT_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-agent");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_names_its_block() {
        let id = block_number("/sys/devices/system/memory/memory12/state");
        assert_eq!(id, Some(memtide_units::BlockId(12)));
        assert_eq!(block_number("/sys/devices/system/memory/probe"), None);
    }
}
