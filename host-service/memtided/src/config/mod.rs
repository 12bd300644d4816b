//! What the operator wants, checked.
//!
//! Three sources make one [`Config`]: the file, the command line, defaults; the command line wins.
//! Everything is checked before anything is started, and an error names where it stands, the key,
//! and what to write instead.

mod check;
mod file;
mod flag;

use std::io;
use std::path::{Path, PathBuf};

use memtide_api::http::{Budget, DEFAULT_SOCKET};
use memtide_policy::host::Limits;
use memtide_units::ByteSize;

use crate::Args;

/// The file that is read where it exists and none is named.
pub const DEFAULT_FILE: &str = "/etc/memtide/memtided.toml";

/// What a VM is guaranteed where nobody says: about what a small Linux guest needs to stay alive.
pub const DEFAULT_MIN: ByteSize = ByteSize::from_mib(512);

/// What memtided does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the API listens.
    pub socket: PathBuf,
    /// What all VMs together may have.
    pub budget: Budget,
    /// The VMs, in the order in which they were written.
    pub vms: Vec<VmConfig>,
    /// The device program, where one is named.
    pub device_binary: Option<PathBuf>,
    /// Where changes by the API are kept.
    pub state_dir: PathBuf,
    /// Where the host's memory is read.
    pub meminfo: PathBuf,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// Its name: letters, digits, `.`, `_`, `-`; at most 64 of them.
    pub name: String,
    /// What it is guaranteed, and what it may not pass.
    pub limits: Limits,
    /// The device's control socket.
    pub control: PathBuf,
    /// Who starts the device.
    pub device: Device,
    /// A QMP socket of the VMM's, to plug in what the guest ejects; without one a guest may eject
    /// nothing.
    pub qmp: Option<PathBuf>,
}

/// Who starts a device process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// memtided, with this socket for the VMM.
    Start {
        /// Where QEMU's chardev connects.
        vhost_socket: PathBuf,
    },
    /// Somebody else.
    Adopt,
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "the configuration {} cannot be read: {source}; make it readable, or name another with \
         --config",
        path.display()
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no TOML, or a key or value in it is not known.
    // The library's text ends with an empty line.
    #[error("{}: {}", path.display(), source.to_string().trim_end())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value that makes no sense, or contradicts another.
    #[error("{place}: {message}")]
    Value {
        /// File and line, or the option.
        place: String,
        /// The key, what is wrong, and the remedy.
        message: String,
    },
}

/// A VM before it is checked, and where it was written.
#[derive(Clone, Debug)]
struct Draft {
    place: String,
    name: String,
    min: Option<ByteSize>,
    max: Option<ByteSize>,
    start: bool,
    vhost_socket: Option<PathBuf>,
    control: Option<PathBuf>,
    qmp: Option<PathBuf>,
}

impl Config {
    /// Reads the file and the command line.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and line or the option, the key, and the remedy.
    pub fn from_args(args: &Args) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => file::read(path)?,
            None => file::read_if_there(Path::new(DEFAULT_FILE))?,
        };
        let mut drafts = file.vms;
        for text in &args.vms {
            drafts.push(flag::vm(text)?);
        }
        let budget = match &args.budget {
            Some(text) => Some(flag::budget(text)?),
            None => file.budget,
        };
        let file_name = args.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE)).display();
        let (socket, place) = match (&args.socket, file.socket) {
            (Some(socket), _) => (socket.clone(), "--socket".to_owned()),
            (None, Some(socket)) => (socket, file_name.to_string()),
            (None, None) => (DEFAULT_SOCKET.into(), "the default".to_owned()),
        };
        check::api_socket(&socket, &place)?;
        Ok(Self {
            vms: check::vms(drafts, &socket)?,
            socket,
            budget: budget.unwrap_or(Budget::Host),
            device_binary: args.device_binary.clone(),
            state_dir: args.state_dir.clone(),
            meminfo: args.meminfo.clone(),
        })
    }
}

/// A budget as people write it.
fn parse_budget(text: &str) -> Result<Budget, String> {
    if text == "host" {
        return Ok(Budget::Host);
    }
    match text.parse::<ByteSize>() {
        Ok(bytes) if bytes.is_zero() => {
            Err("a budget of nothing lets no VM have memory: give more, or \"host\"".into())
        }
        Ok(bytes) => Ok(Budget::Bytes(bytes)),
        Err(error) => Err(format!("{error}; or write \"host\" for what the host has free")),
    }
}

#[cfg(test)]
mod tests;
