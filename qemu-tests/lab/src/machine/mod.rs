//! A virtual machine of the lab: started, waited for, looked into, and gone when dropped.

mod accel;
mod bare;
mod clock;
mod command_line;
mod huge_pool;
mod memory;
mod process;
mod qmp;
mod spec;

pub use accel::{Acceleration, Engine};
pub use bare::{BareMachine, BareSpec};
pub use clock::{GuestClock, NoSuchClock};
pub use huge_pool::HugePool;
pub use memory::{GuestMemory, rss_kib};
pub use qmp::{Qmp, QmpEvent};
pub use spec::{Accel, Backing, Balloon, Console, MachineSpec, OnReset, QEMU_BALLOON};

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{Log, outcome};
use crate::error::{Error, IoContext, Result};
use crate::guest::{Guest, Hello};
use crate::lab::Lab;
use crate::rundir::RunDir;
use crate::setup::Kernel;
use crate::text::file_tail;
use crate::tools;
use command_line::{Files, Sockets, qemu};
use process::{QemuProcess, Terminal};

/// How often conditions are looked at: a guest under emulation does little in this time.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// Lines of a log in an error: enough for a kernel's last words.
const TAIL_LINES: usize = 30;
/// As `systemctl poweroff` does it, but without asking logind first, which lab guests do without.
const POWER_OFF: [&str; 5] =
    ["systemctl", "start", "--no-block", "--job-mode=replace-irreversibly", "poweroff.target"];
/// For the runner to pass on a polite word.
const POLITE: Duration = Duration::from_secs(10);
/// For QEMU to end when its monitor says so.
const QUIT: Duration = Duration::from_secs(10);

/// A running machine. Dropping it kills its QEMU.
#[derive(Debug)]
pub struct Machine {
    name: String,
    acceleration: Acceleration,
    artifacts: PathBuf,
    guest: Guest,
    qmp: Qmp,
    memory: GuestMemory,
    process: QemuProcess,
    /// Holds the tools disk; removed after QEMU is gone, for fields are dropped in this order.
    _scratch: RunDir,
}

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// The guest powered itself off.
    Polite,
    /// The guest took too long; QEMU ended it when told to.
    Quit,
    /// QEMU had to be killed.
    Killed,
}

impl Machine {
    /// Starts a machine; it boots while this returns. See [`wait_ready`](Self::wait_ready).
    ///
    /// The first machine on a host with [`Accel::Auto`] takes up to 20 s longer, for KVM is tried.
    ///
    /// # Errors
    /// If the lab lacks the kernel, the tools disk cannot be made, or QEMU refuses its command line.
    pub fn start(lab: &Lab, spec: &MachineSpec) -> Result<Self> {
        let artifacts = &spec.artifacts_dir;
        fs::create_dir_all(artifacts).on("create the artifact directory", artifacts)?;
        let acceleration = accel::choose(lab, spec.kernel, spec.accelerator)?;
        let scratch = RunDir::new()?;
        let files = files(lab, spec, &scratch)?;
        let (process, monitor, port) = launch(lab, spec, acceleration.engine, &files)?;

        let name = format!("{} ({})", spec.name, artifacts.display());
        let guest = Guest::new(&name, port).on("listen to the guest in", artifacts)?;
        let connected = Qmp::connect(monitor).and_then(|qmp| {
            Ok((qmp, GuestMemory::of_process(process.pid(), spec.memory_bytes())?))
        });
        let (qmp, memory) = connected.map_err(|error| {
            // QEMU that hangs up is about to end, and its own words say more.
            let ended = wait_until(Instant::now() + POLITE, || process.ended());
            ended.map_or(error, |status| ended_error(&name, artifacts, status, "its monitor"))
        })?;
        let artifacts = artifacts.clone();
        Ok(Self { name, acceleration, artifacts, guest, qmp, memory, process, _scratch: scratch })
    }

    /// Waits until commands can be run in the guest: systemd is past basic.target, and the services
    /// of multi-user.target are starting.
    ///
    /// # Errors
    /// If that takes longer than `within`, or QEMU ends; both with the guest's last lines.
    pub fn wait_ready(&self, within: Duration) -> Result<Hello> {
        let hello = || Ok(self.guest.wait_hello(Instant::now() + POLL));
        self.wait_for("the guest's runner", within, hello)
    }

    /// Waits until commands can be run again after a reset. `hellos` is what
    /// [`Guest::hellos`](crate::guest::Guest::hellos) said before it.
    ///
    /// # Errors
    /// As [`wait_ready`](Self::wait_ready).
    pub fn wait_ready_again(&self, hellos: u64, within: Duration) -> Result<Hello> {
        let hello = || {
            let anew = self.guest.hellos() > hellos;
            Ok(anew.then(|| self.guest.wait_hello(Instant::now() + POLL)).flatten())
        };
        self.wait_for("the runner of the guest that was reset", within, hello)
    }

    /// Waits until `look` finds something, looking every 20 ms.
    ///
    /// # Errors
    /// If that takes longer than `within`, `look` fails, or QEMU ends (which is told first).
    pub fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let until = Instant::now() + within;
        loop {
            let found = look();
            if let Ok(Some(found)) = found {
                return Ok(found);
            }
            if let Some(status) = self.process.ended() {
                return Err(ended_error(&self.name, &self.artifacts, status, what));
            }
            found?;
            if Instant::now() >= until {
                return Err(self.timeout(what, within));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for the machine's end, as when its user powers it off.
    ///
    /// # Errors
    /// If it runs on for longer than `within`.
    pub fn wait_end(&self, within: Duration) -> Result<()> {
        let ended = wait_until(Instant::now() + within, || self.process.ended());
        ended.map(drop).ok_or_else(|| self.timeout("end of the machine", within))
    }

    /// Asks the guest to power off, and ends the machine anyhow if that takes longer than `within`.
    pub fn poweroff(&self, within: Duration) -> Shutdown {
        let until = Instant::now() + within;
        if self.guest.wait_hello(Instant::now()).is_some() {
            // Whether it hears us shows in whether it goes.
            let _ = self.guest.run(&POWER_OFF, POLITE);
            if wait_until(until, || self.process.ended()).is_some() {
                return Shutdown::Polite;
            }
        }
        // QEMU may hang up before it answers.
        let _ = self.qmp.execute("quit", serde_json::json!({}));
        if wait_until(Instant::now() + QUIT, || self.process.ended()).is_some() {
            return Shutdown::Quit;
        }
        self.process.kill();
        Shutdown::Killed
    }

    /// Commands and files.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// QEMU's monitor.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// What the host holds of the guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The machine's name and where its logs are, as in error texts.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its logs are: `serial.log`, `qemu.log`, and those of [`collect_logs`](Self::collect_logs).
    pub fn artifacts(&self) -> &Path {
        &self.artifacts
    }

    /// KVM or emulation, and why.
    pub fn acceleration(&self) -> &Acceleration {
        &self.acceleration
    }

    /// QEMU's process id.
    pub fn qemu_pid(&self) -> u32 {
        self.process.pid()
    }

    /// Memory of QEMU that is in RAM, in KiB; the guest's included.
    ///
    /// # Errors
    /// If QEMU has ended.
    pub fn rss_kib(&self) -> Result<u64> {
        rss_kib(self.process.pid())
    }

    /// Whether QEMU runs.
    pub fn is_running(&self) -> bool {
        self.process.ended().is_none()
    }

    /// Saves the guest's journal and kernel log as `journal.log` and `dmesg.log`.
    ///
    /// # Errors
    /// If the guest does not answer or the files cannot be written.
    pub fn collect_logs(&self) -> Result<()> {
        let commands: [(&str, &[&str]); 2] =
            [("dmesg.log", &["dmesg"]), ("journal.log", &["journalctl", "--no-pager", "-b"])];
        for (name, argv) in commands {
            let path = self.artifacts.join(name);
            fs::write(&path, self.guest.run(argv, POLITE)?.stdout).on("write", &path)?;
        }
        Ok(())
    }

    fn timeout(&self, what: &str, within: Duration) -> Error {
        Error::Timeout {
            machine: self.name.clone(),
            waiting_for: what.to_owned(),
            within,
            last_words: last_words(&self.artifacts),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A failing test wants to be understood, so the guest's own logs are kept if it still talks.
        let talks = || self.is_running() && self.guest.wait_hello(Instant::now()).is_some();
        if thread::panicking() && talks() {
            let _ = self.collect_logs();
        }
        self.process.kill();
        self.guest.hang_up();
    }
}

/// The engine that [`Accel::Auto`] means for this kernel on this host; tried on the first call.
///
/// # Errors
/// If the lab lacks the kernel, or its QEMU cannot be started at all.
pub fn acceleration(lab: &Lab, kernel: Kernel) -> Result<Acceleration> {
    accel::choose(lab, kernel, Accel::Auto)
}

fn files(lab: &Lab, spec: &MachineSpec, scratch: &RunDir) -> Result<Files> {
    let kernel = lab.kernel(spec.kernel)?;
    let tools = scratch.join("tools.ext4");
    tools::make_disk(&spec.tools_dir, &tools, &Log::new(spec.artifacts_dir.join("tools.log")))?;
    Ok(Files {
        vmlinuz: kernel.vmlinuz,
        initramfs: lab.initramfs(spec.kernel),
        root: lab.root_image(),
        modules: kernel.modules,
        tools,
        serial_log: spec.artifacts_dir.join("serial.log"),
    })
}

/// Starts QEMU and returns it with our ends of its monitor and of the guest's port.
fn launch(
    lab: &Lab,
    spec: &MachineSpec,
    engine: Engine,
    files: &Files,
) -> Result<(QemuProcess, UnixStream, UnixStream)> {
    let pair = || UnixStream::pair().on("make sockets for", &spec.artifacts_dir);
    let (monitor, qemus_monitor) = pair()?;
    let (port, qemus_port) = pair()?;
    let sockets = Sockets { monitor: qemus_monitor.as_raw_fd(), guest: qemus_port.as_raw_fd() };
    let arguments = qemu(spec, engine, files, sockets);
    let terminal = match spec.console {
        Console::None => Terminal::Closed,
        Console::Terminal { .. } => Terminal::Ours,
    };
    let inherited = vec![OwnedFd::from(qemus_monitor), OwnedFd::from(qemus_port)];
    let log = spec.artifacts_dir.join("qemu.log");
    let process = QemuProcess::start(lab.qemu(), &arguments, inherited, terminal, &log)?;
    Ok((process, monitor, port))
}

fn ended_error(machine: &str, artifacts: &Path, status: ExitStatus, waiting_for: &str) -> Error {
    Error::QemuEnded {
        machine: machine.to_owned(),
        outcome: outcome(status),
        waiting_for: waiting_for.to_owned(),
        last_words: last_words(artifacts),
    }
}

/// The ends of the logs that say something.
fn last_words(artifacts: &Path) -> String {
    let tail = |name: &str| match file_tail(&artifacts.join(name), 0, TAIL_LINES) {
        tail if tail.trim().is_empty() => format!("--- {name} is empty ---"),
        tail => format!("--- {name} ---\n{tail}"),
    };
    ["qemu.log", "serial.log"].map(tail).join("\n")
}

/// What `look` finds before `until`.
fn wait_until<T>(until: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= until {
            return found;
        }
        thread::sleep(POLL);
    }
}
