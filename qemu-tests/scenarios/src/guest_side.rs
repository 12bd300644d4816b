//! The guest's half of a scenario: the machine, what runs in it, and what the host sees of its memory.

use std::path::Path;
use std::time::Duration;

use memtide_api::device::DeviceStatus;
use memtide_api::http::VmStatus;
use memtide_lab::Lab;
use memtide_lab::cargo::Built;
use memtide_lab::guest::protocol::Stream;
use memtide_lab::guest::{Event, Process};
use memtide_lab::machine::{Balloon, Engine, Machine, MachineSpec};
use memtide_lab::tools::{Start, Tools};
use memtide_units::{BlockSize, ByteSize, GpaRange};
use serde_json::Value;

use crate::error::ScenarioError;
pub use crate::guest_options::{GuestOptions, Shape, Unit};

/// A single command in the guest; under emulation with a busy neighbour a second is nothing.
const COMMAND: Duration = Duration::from_secs(30);
/// From QEMU's start to the runner's hello.
const BOOT: Duration = Duration::from_secs(180);
/// As `systemctl reboot` does it, but without logind, which lab guests do without.
const REBOOT: [&str; 5] =
    ["systemctl", "start", "--no-block", "--job-mode=replace-irreversibly", "reboot.target"];
/// For a guest that is going down to say that it has heard us, if it still can.
const GOING: Duration = Duration::from_secs(5);
/// From QEMU's hanging up to its end.
const HUNG_UP: Duration = Duration::from_secs(2);
/// SIGUSR1 on Linux: the workload's "go on".
const SIGUSR1: i32 = 10;
/// SIGTERM on Linux: the workload's "that is all".
const SIGTERM: i32 = 15;
/// How the workload is called in the guest.
const WORKLOAD: &str = "workload";

/// Pages that hold `struct page`s, by a guest's shell; 0 where its kernel does not count them.
pub(crate) fn struct_pages(
    shell: impl FnOnce(&str) -> Result<String, ScenarioError>,
) -> Result<u64, ScenarioError> {
    let script = "awk '/^nr_memmap_/ { sum += $2 } END { print sum }' /proc/vmstat";
    Ok(shell(script)?.trim().parse().unwrap_or(0))
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
        let shape = options.shape.clone();
        let spec = MachineSpec {
            memory_mib: options.memory.mib(),
            max_memory_mib: shape.memory_max.map(ByteSize::mib),
            backing: shape.backing,
            on_reset: shape.on_reset,
            accelerator: shape.clock.accelerator(),
            balloon: Balloon::VhostUser { socket: vhost_socket.to_owned() },
            console: options.console,
            kernel_arguments: shape.kernel_arguments,
            qemu_arguments: shape.qemu_arguments,
            ..MachineSpec::new("guest", options.kernel, tools.path(), &options.artifacts)
        };
        let machine = Machine::start(lab, &spec)?;
        let hello = machine.wait_ready(machine.acceleration().engine.patience(BOOT))?;
        Ok(Self { machine, workload: None, kernel: hello.kernel })
    }

    /// Waits until its user has powered it off.
    ///
    /// # Errors
    /// Where QEMU fails, or the user is still there after `within`.
    pub fn wait_end(&self, within: Duration) -> Result<(), ScenarioError> {
        Ok(self.machine.wait_end(within)?)
    }

    /// The machine itself.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Runs a shell script that must succeed (`sh -e -c`) within `within`, and returns what it
    /// prints.
    ///
    /// # Errors
    /// Where it fails, with what it said.
    pub fn shell(&self, script: &str, within: Duration) -> Result<String, ScenarioError> {
        Ok(self.machine.guest().shell(script, within).map_err(memtide_lab::Error::from)?)
    }

    /// Writes a file, and the directories that it lies in.
    ///
    /// # Errors
    /// Where the guest does not.
    pub fn write_file(&self, path: &str, text: &str) -> Result<(), ScenarioError> {
        self.run(&["sh", "-c", "mkdir -p \"$(dirname \"$1\")\"", "sh", path])?;
        let guest = self.machine.guest();
        Ok(guest.write_file(path, text.as_bytes(), 0o644).map_err(memtide_lab::Error::from)?)
    }

    /// Has the guest boot anew by `reset`, and waits until commands can be run again.
    ///
    /// # Errors
    /// Where `reset` fails, QEMU ends, or the guest does not come back.
    pub fn reboot(
        &mut self,
        reset: impl FnOnce(&Self) -> Result<(), ScenarioError>,
    ) -> Result<(), ScenarioError> {
        let hellos = self.machine.guest().hellos();
        reset(self)?;
        self.workload = None;
        self.machine.wait_ready_again(hellos, BOOT)?;
        Ok(())
    }

    /// Has the guest reboot by itself, as its user would. Whether it heard us shows in whether it
    /// does: it may go before it answers.
    pub fn ask_to_reboot(&self) {
        let _ = self.machine.guest().run(&REBOOT, GOING);
    }

    /// Executes a command of QEMU's monitor.
    ///
    /// # Errors
    /// Where QEMU refuses it or has ended.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value, ScenarioError> {
        match self.machine.qmp().execute(command, arguments) {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if self.machine.wait_end(HUNG_UP).is_ok() {
                    // How it ended says more than that it hung up.
                    self.alive(command)?;
                }
                Err(error.into())
            }
        }
    }

    /// `kvm`, `tcg` or `counted`, and why.
    pub fn accelerator(&self) -> (String, String) {
        let chosen = self.machine.acceleration();
        let engine = match chosen.engine {
            Engine::Kvm => "kvm",
            Engine::Tcg => "tcg",
            Engine::Counted => "counted",
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
        self.start_workload_with(&[], script)
    }

    /// The same, with these options.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_workload_with(
        &mut self,
        options: &[&str],
        script: &str,
    ) -> Result<(), ScenarioError> {
        let program = ["/opt/memtide/bin/memtide-workload", "play"];
        let argv: Vec<&str> = program.iter().chain(options).chain([&script]).copied().collect();
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
        self.alive("the workload")?;
        let events = self.workload.iter().flat_map(Process::new_events);
        Ok(events
            .map(|event| match event {
                Event::Line(Stream::Stdout, line) => line,
                Event::Line(Stream::Stderr, line) => format!("stderr: {line}"),
                Event::Exited(ending) => format!("the workload ended: {ending}"),
            })
            .collect())
    }

    /// Has the workload end with its summary.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn end_workload(&self) -> Result<(), ScenarioError> {
        let Some(workload) = &self.workload else { return Ok(()) };
        Ok(workload.kill(SIGTERM).map_err(memtide_lab::Error::from)?)
    }

    /// Tasks that the OOM killer has ended since the guest booted.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn oom_kills(&self) -> Result<u64, ScenarioError> {
        let text = self.run(&["awk", "/^oom_kill / { print $2 }", "/proc/vmstat"])?;
        Ok(text.trim().parse().unwrap_or(u64::MAX))
    }

    /// Whether QEMU runs, asked by who waits for `what`.
    ///
    /// # Errors
    /// Where it has ended: how, with the console's last lines.
    pub fn alive(&self, what: &str) -> Result<(), ScenarioError> {
        if !self.machine.is_running() {
            self.machine.wait_for(what, Duration::ZERO, || Ok(None::<()>))?;
        }
        Ok(())
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
        vm.device.as_ref().map_or(Ok(ByteSize::ZERO), |device| self.resident_in(device))
    }

    /// The same, of a device by itself.
    ///
    /// # Errors
    /// Where QEMU has gone.
    pub fn resident_in(&self, device: &DeviceStatus) -> Result<ByteSize, ScenarioError> {
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
        match &vm.device {
            Some(device) => self.offline_are(&device.stolen),
            None => Ok(false),
        }
    }

    /// True where the blocks that the guest's kernel has offline are these.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn offline_are(&self, stolen: &[GpaRange]) -> Result<bool, ScenarioError> {
        let (offline, _) = self.block_states()?;
        Ok(offline == blocks_of(stolen))
    }

    /// The blocks that the guest's kernel has offline, in order, and how many it is taking offline.
    ///
    /// # Errors
    /// Where the guest does not answer.
    pub fn block_states(&self) -> Result<(Vec<GpaRange>, usize), ScenarioError> {
        let block = BlockSize::X86_SMALL;
        let text =
            self.run(&["sh", "-c", "grep -H offline /sys/devices/system/memory/*/state; true"])?;
        let states = text.lines().filter_map(|line| line.split_once(':'));
        let (offline, going): (Vec<_>, Vec<_>) = states.partition(|(_, state)| *state == "offline");
        let numbers = offline.into_iter().filter_map(|(path, _)| block_number(path));
        let mut offline: Vec<GpaRange> = numbers.filter_map(|number| block.range(number)).collect();
        offline.sort_unstable();
        Ok((offline, going.len()))
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

/// These ranges block by block, in order.
pub(crate) fn blocks_of(ranges: &[GpaRange]) -> Vec<GpaRange> {
    let block = BlockSize::X86_SMALL;
    let mut blocks = Vec::new();
    for range in ranges {
        let first = block.block_of(range.start()).0;
        let count = block.count_in(range.len());
        let ids = (first..first + count).map(memtide_units::BlockId);
        blocks.extend(ids.filter_map(|id| block.range(id)));
    }
    blocks.sort_unstable();
    blocks
}

/// `/sys/devices/system/memory/memory12/state` is block 12.
fn block_number(path: &str) -> Option<memtide_units::BlockId> {
    let name = path.strip_suffix("/state")?.rsplit('/').next()?;
    name.strip_prefix("memory")?.parse().ok().map(memtide_units::BlockId)
}

/// What becomes the guest's /opt/memtide.
pub(crate) fn tools(programs: &Built, agent: Unit) -> Result<Tools, ScenarioError> {
    let mut tools = Tools::new(programs.program("memtide-lab-guest")?)?;
    for name in ["memtide-agent", "memtide-workload"] {
        tools.program(name, programs.program(name)?)?;
    }
    if agent != Unit::Absent {
        for (name, start) in AGENT_UNITS {
            let start = if agent == Unit::Enabled { start } else { Start::OnDemand };
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
