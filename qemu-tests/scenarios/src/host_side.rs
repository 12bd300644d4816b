//! The host's half of a scenario: memtided, and through it the device process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use memtide_api::http::{VmState, VmStatus};
use memtide_lab::cargo::Built;
use memtide_units::ByteSize;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::error::ScenarioError;
use crate::wait::{self, Look};

/// The VM's name in every scenario.
pub const VM: &str = "demo";

/// What the host guarantees and lends.
#[derive(Clone, Copy, Debug)]
pub struct HostLimits {
    /// For all VMs together; `None` for what the host has free.
    pub budget: Option<ByteSize>,
    /// Guaranteed to the VM.
    pub min: ByteSize,
}

/// memtided and its device process. Both are ended when it is dropped.
pub struct HostSide {
    programs: Built,
    dir: PathBuf,
    logs: PathBuf,
    config: PathBuf,
    memtided: Child,
    device_pid: Option<Pid>,
}

impl HostSide {
    /// Writes a configuration into `dir` (short: unix sockets live there), starts memtided, which
    /// starts the device, and waits until both are up. Logs go to `logs`; the lines are more about the VM.
    ///
    /// # Errors
    /// A program that does not start, or is not up within a deadline.
    pub fn start(
        programs: &Built,
        dir: &Path,
        logs: &Path,
        (limits, lines): (HostLimits, &str),
    ) -> Result<Self, ScenarioError> {
        let config = dir.join("memtided.toml");
        let text = config_text(dir, limits) + lines;
        std::fs::write(&config, text)
            .map_err(|source| ScenarioError::File { path: config.clone(), source })?;
        let memtided = spawn_memtided(programs, dir, &config, logs)?;
        let mut host = Self {
            programs: programs.clone(),
            dir: dir.to_owned(),
            logs: logs.to_owned(),
            config,
            memtided,
            device_pid: None,
        };
        host.wait_connected()?;
        Ok(host)
    }

    /// The socket that QEMU's chardev connects to.
    pub fn vhost_socket(&self) -> PathBuf {
        self.dir.join("demo.sock")
    }

    /// memtided's API socket.
    pub fn api_socket(&self) -> PathBuf {
        self.dir.join("memtided.sock")
    }

    /// Process ids of memtided and of the device.
    pub fn pids(&self) -> (u32, Option<u32>) {
        (self.memtided.id(), self.device_pid.map(|pid| pid.as_raw_nonzero().get().cast_unsigned()))
    }

    /// The VM as `memtide vm NAME --json` tells.
    ///
    /// # Errors
    /// As [`HostSide::memtide`].
    pub fn vm(&self) -> Result<VmStatus, ScenarioError> {
        self.json(&["vm", VM, "--json"])
    }

    /// Lends so much to all VMs together from now on.
    ///
    /// # Errors
    /// As [`HostSide::memtide`].
    pub fn set_budget(&self, budget: ByteSize) -> Result<(), ScenarioError> {
        let size = format!("{}B", budget.bytes());
        self.memtide(&["host", "set", "--budget", &size]).map(drop)
    }

    /// Asks the VM to keep no more than so much.
    ///
    /// # Errors
    /// As [`HostSide::memtide`].
    pub fn set_target(&self, target: ByteSize) -> Result<(), ScenarioError> {
        let size = format!("{}B", target.bytes());
        self.memtide(&["vm", VM, "set", "--target", &size]).map(drop)
    }

    /// Runs the command line as a person would and returns what it prints.
    ///
    /// # Errors
    /// [`ScenarioError::Program`] with its words where it fails.
    pub fn memtide(&self, args: &[&str]) -> Result<String, ScenarioError> {
        let program = self.programs.program("memtide")?.clone();
        let output = Command::new(&program)
            .arg("--socket")
            .arg(self.api_socket())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ScenarioError::Start { program, source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(ScenarioError::Program {
            what: format!("memtide {}", args.join(" ")),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T, ScenarioError> {
        let text = self.memtide(args)?;
        serde_json::from_str(&text).map_err(|source| ScenarioError::Json {
            what: format!("memtide {}", args.join(" ")),
            source,
        })
    }

    /// Ends memtided the hard way and starts another one on the same configuration.
    ///
    /// # Errors
    /// As [`HostSide::start`].
    pub fn kill_and_restart_memtided(&mut self) -> Result<(), ScenarioError> {
        let _ = self.memtided.kill();
        let _ = self.memtided.wait();
        self.memtided = spawn_memtided(&self.programs, &self.dir, &self.config, &self.logs)?;
        self.wait_connected()
    }

    /// Ends the device's process the hard way.
    ///
    /// # Errors
    /// Where there is none.
    pub fn kill_device(&mut self) -> Result<(), ScenarioError> {
        let gone = || ScenarioError::Program {
            what: "kill -9 of the device".into(),
            said: "it does not run".into(),
        };
        let pid = self.device_pid.take().ok_or_else(gone)?;
        kill_process(pid, Signal::KILL).map_err(|_| gone())
    }

    fn wait_connected(&mut self) -> Result<(), ScenarioError> {
        let vm = wait::until("memtided has its device", Duration::from_secs(20), || {
            Ok(match self.vm() {
                Ok(vm) if vm.state == VmState::Connected && vm.device.is_some() => Look::Found(vm),
                Ok(vm) => Look::NotYet(format!("{:?}", vm.state)),
                Err(error) => Look::NotYet(error.to_string()),
            })
        })?;
        let pid = vm.device.and_then(|device| i32::try_from(device.pid).ok());
        self.device_pid = pid.and_then(Pid::from_raw);
        Ok(())
    }
}

impl Drop for HostSide {
    fn drop(&mut self) {
        // Where the device had died, memtided has started another one.
        let now = self.vm().ok().and_then(|vm| i32::try_from(vm.device?.pid).ok());
        self.device_pid = now.and_then(Pid::from_raw).or(self.device_pid);
        let _ = self.memtided.kill();
        let _ = self.memtided.wait();
        if let Some(pid) = self.device_pid {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn config_text(dir: &Path, limits: HostLimits) -> String {
    let dir = dir.display();
    let budget = match limits.budget {
        Some(budget) => format!("{}B", budget.bytes()),
        None => "host".into(),
    };
    format!(
        "socket = \"{dir}/memtided.sock\"\n\
         budget = \"{budget}\"\n\
         [[vm]]\n\
         name = \"{VM}\"\n\
         min = \"{}B\"\n\
         device = \"start\"\n\
         vhost_socket = \"{dir}/demo.sock\"\n",
        limits.min.bytes()
    )
}

fn spawn_memtided(
    programs: &Built,
    dir: &Path,
    config: &Path,
    logs: &Path,
) -> Result<Child, ScenarioError> {
    let log = logs.join("memtided.log");
    let file = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(|source| ScenarioError::File { path: log.clone(), source })?;
    let error_file =
        file.try_clone().map_err(|source| ScenarioError::File { path: log.clone(), source })?;
    let program = programs.program("memtided")?.clone();
    Command::new(&program)
        .arg("--config")
        .arg(config)
        .arg("--state-dir")
        .arg(dir)
        .arg("--device-binary")
        .arg(programs.program("vhost-user-balloon")?.clone())
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(error_file)
        .spawn()
        .map_err(|source| ScenarioError::Start { program, source })
}
