//! Memtide, all of it: the device gets a target, the agent takes blocks offline and reports them,
//! the device drops them; and back.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memtide_api::device::{DeviceStatus, Driver, Request};
use memtide_device_ctl::{Client, ClientError};
use memtide_lab::cargo::Built;
use memtide_lab::machine::{Backing, GuestMemory};
use memtide_units::ByteSize;

use crate::contest::{Contestant, Resizer, turn};
use crate::error::{BenchError, Result};
use crate::huge_pages::HUGE_PAGE;
use crate::machines::Machines;
use crate::meter::Round;
use crate::qemu_devices::{PAGE, resident};
use crate::subject::{LOOK, Subject};

/// For the device's process to listen.
const LISTENS: Duration = Duration::from_secs(10);
/// For the agent to take the balloon over and to make boot memory movable.
const GREETS: Duration = Duration::from_secs(90);

/// A device process. Ended when it is dropped.
pub(crate) struct Device {
    process: Child,
    socket: PathBuf,
    control: Client,
}

impl Device {
    /// One for the guest of this name: its socket is in `sockets`, its log with the guests'.
    pub(crate) fn of_guest(machines: &Machines<'_>, name: &str, sockets: &Path) -> Result<Self> {
        let log = machines.artifacts.join(format!("{name}-device.log"));
        Self::start(machines.programs, &sockets.join(name), &log)
    }

    /// Starts the program and waits until it listens on `socket`.
    pub(crate) fn start(programs: &Built, socket: &Path, log: &Path) -> Result<Self> {
        let file = |source| BenchError::File { doing: "write", path: log.into(), source };
        let log_file = File::create(log).map_err(file)?;
        let program = programs.program("vhost-user-balloon")?;
        let mut process = Command::new(program)
            .arg("--socket-path")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .map_err(BenchError::call("vhost-user-balloon cannot be started"))?;
        match connect(&control_path(socket)) {
            Ok(control) => Ok(Self { process, socket: socket.into(), control }),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where it listens for the VMM.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn control_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".ctl");
    path.into()
}

fn connect(path: &Path) -> Result<Client> {
    let started = Instant::now();
    loop {
        match Client::connect(path) {
            Ok((client, _)) => return Ok(client),
            Err(ClientError::NoSocket(_) | ClientError::NobodyListens(_))
                if started.elapsed() < LISTENS =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Memtide on one guest.
pub(crate) struct Memtide {
    // The guest goes before its device.
    subject: Subject,
    device: Device,
    /// The size of the memfd's pages, in bytes.
    page: usize,
    moved: ByteSize,
}

impl Memtide {
    pub(crate) fn start(
        machines: &Machines<'_>,
        (name, backing): (&'static str, Backing),
        sockets: &Path,
        moved: ByteSize,
    ) -> Result<Self> {
        let device = Device::of_guest(machines, name, sockets)?;
        let page = match backing {
            Backing::HugeMemfd => HUGE_PAGE.bytes() as usize,
            Backing::Memfd | Backing::FileIn(_) => PAGE,
        };
        let subject = machines.with_memtide(name, device.socket(), backing)?;
        let mut memtide = Self { subject, device, page, moved };
        // Its first act, making boot memory movable, is done by then.
        memtide.wait("the agent has said hello", GREETS, |status| {
            status.driver == Driver::Agent && status.telemetry.is_some()
        })?;
        Ok(memtide)
    }

    fn wait(
        &mut self,
        what: &'static str,
        deadline: Duration,
        is_so: impl Fn(&DeviceStatus) -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            memtide_scenarios::interrupt::check()?;
            let status = self.device.control.status()?;
            if is_so(&status) {
                return Ok(());
            }
            if started.elapsed() > deadline {
                let note = status.telemetry.as_ref().map(|told| told.note.as_str());
                let seen = format!("driver {:?}, the agent says {note:?}", status.driver);
                let who = self.subject.name().to_owned();
                return Err(BenchError::Late { who, what, waited: deadline, seen });
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Contestant for Memtide {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn backing(&self) -> (Vec<&GuestMemory>, usize) {
        (vec![self.subject.machine().memory()], self.page)
    }

    fn turn(&mut self) -> Result<Round> {
        let moved = self.moved;
        turn(self, moved)
    }
}

impl Resizer for Memtide {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.subject.machine().qemu_pid(), self.device.pid()]
    }

    fn resident(&self) -> Result<u64> {
        resident(self.subject.machine().memory())
    }

    /// The device was stopped with the guest and wants to be greeted again.
    fn wait_ready(&mut self) -> Result<()> {
        self.wait("the agent drives the device", GREETS, |status| status.driver == Driver::Agent)
    }

    fn take(&mut self, size: ByteSize) -> Result<()> {
        self.device.control.call(Request::SetTarget { balloon: size })?;
        Ok(())
    }
}
