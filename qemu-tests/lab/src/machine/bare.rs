//! A machine without disks or a system: QEMU boots one ELF file (by PVH) that needs nothing else.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::command_line::bare;
use super::memory::GuestMemory;
use super::process::{QemuProcess, Terminal};
use super::qmp::Qmp;
use super::{Balloon, ended_error, last_words, wait_until};
use crate::error::{Error, IoContext, Result};
use crate::lab::Lab;

/// A bare machine to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BareSpec {
    /// Its name in messages.
    pub name: String,
    /// The file that it boots.
    pub image: PathBuf,
    /// What that file finds on its command line.
    pub command_line: String,
    /// Its memory, in MiB: a memfd.
    pub memory_mib: u64,
    /// Its balloon.
    pub balloon: Balloon,
    /// Where its logs go; made if missing.
    pub artifacts_dir: PathBuf,
}

/// A bare machine that runs, always under emulation. Dropping it kills its QEMU.
#[derive(Debug)]
pub struct BareMachine {
    name: String,
    artifacts: PathBuf,
    qmp: Qmp,
    memory: GuestMemory,
    process: QemuProcess,
}

impl BareMachine {
    /// Starts one.
    ///
    /// # Errors
    /// If QEMU refuses its command line.
    pub fn start(lab: &Lab, spec: &BareSpec) -> Result<Self> {
        let artifacts = spec.artifacts_dir.clone();
        fs::create_dir_all(&artifacts).on("create the artifact directory", &artifacts)?;
        let (monitor, theirs) = UnixStream::pair().on("make sockets for", &artifacts)?;
        let arguments = bare(spec, theirs.as_raw_fd());
        let inherited = vec![OwnedFd::from(theirs)];
        let log = artifacts.join("qemu.log");
        let process =
            QemuProcess::start(lab.qemu(), &arguments, inherited, Terminal::Closed, &log)?;
        let name = format!("{} ({})", spec.name, artifacts.display());
        let size = spec.memory_mib << 20;
        let connected = Qmp::connect(monitor)
            .and_then(|qmp| Ok((qmp, GuestMemory::of_process(process.pid(), size)?)));
        let (qmp, memory) = connected.map_err(|error| {
            let ended = wait_until(Instant::now() + super::POLITE, || process.ended());
            ended.map_or(error, |status| ended_error(&name, &artifacts, status, "its monitor"))
        })?;
        Ok(Self { name, artifacts, qmp, memory, process })
    }

    /// Waits until a line on the serial line is one that is looked for.
    ///
    /// # Errors
    /// If that takes longer than `within`, or QEMU ends: both with the last lines.
    pub fn wait_serial<T>(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let path = self.artifacts.join("serial.log");
        let look = || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            // The last line may not have come to its end.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let found = whole.lines().find_map(|line| wanted(line.trim_end()));
            found.map(Ok).or_else(|| Some(Err(self.process.ended()?)))
        };
        match wait_until(Instant::now() + within, look) {
            Some(Ok(found)) => Ok(found),
            Some(Err(status)) => Err(ended_error(&self.name, &self.artifacts, status, what)),
            None => Err(Error::Timeout {
                machine: self.name.clone(),
                waiting_for: what.to_owned(),
                within,
                last_words: last_words(&self.artifacts),
            }),
        }
    }

    /// QEMU's monitor.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// What the host holds of the guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Whether QEMU runs.
    pub fn is_running(&self) -> bool {
        self.process.ended().is_none()
    }
}
