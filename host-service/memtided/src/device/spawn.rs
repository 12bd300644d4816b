//! Starts device processes that outlive memtided.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::process::Child;

const BINARY: &str = "vhost-user-balloon";

/// Where a device process writes its log.
#[derive(Clone, Debug)]
pub(crate) enum DeviceLog {
    /// To memtided's own standard error: systemd's journal keeps the stream open for it.
    Inherit,
    /// To a file per device in this directory.
    Dir(PathBuf),
}

/// Starts device processes.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    binary: PathBuf,
    log: DeviceLog,
}

/// The device program is nowhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "the device program {BINARY} is neither beside memtided nor in PATH: install it, or name it \
     with --device-binary; VMs with device = \"start\" need it"
)]
pub struct NoDeviceBinary;

impl Launcher {
    /// Finds the program: the one that is named, beside memtided, or in `PATH`.
    pub(crate) fn find(named: Option<&Path>, log: DeviceLog) -> Result<Self, NoDeviceBinary> {
        if let Some(binary) = named {
            return Ok(Self { binary: binary.into(), log });
        }
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf()));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let binary = beside
            .into_iter()
            .chain(std::env::split_paths(&path))
            .map(|dir| dir.join(BINARY))
            .find(|candidate| candidate.is_file())
            .ok_or(NoDeviceBinary)?;
        Ok(Self { binary, log })
    }

    /// Starts a device, in a session of its own so that what ends memtided does not end it.
    pub(super) fn start(&self, name: &str, vhost: &Path, control: &Path) -> io::Result<Child> {
        let mut command = Command::new(&self.binary);
        command.arg("--socket-path").arg(vhost).arg("--control-path").arg(control);
        // It must not speak to systemd in memtided's name.
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(file) = self.log_file(name) {
            command.stderr(file);
        }
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; setsid(2) is
        // one, and rustix makes it without allocating or locking.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?));
        }
        tokio::process::Command::from(command).spawn()
    }

    fn log_file(&self, name: &str) -> Option<Stdio> {
        let DeviceLog::Dir(dir) = &self.log else { return None };
        let path = dir.join(format!("device-{name}.log"));
        let open = |path: &Path| -> io::Result<File> {
            OpenOptions::new().append(true).create(true).open(path)
        };
        match open(&path) {
            Ok(file) => Some(file.into()),
            Err(error) => {
                let path = path.display();
                tracing::warn!(vm = name, "the device's log {path} cannot be written: {error}");
                Some(Stdio::null())
            }
        }
    }

    /// The program.
    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }
}
