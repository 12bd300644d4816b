//! The command line, by QEMU's conventions for vhost-user programs (docs/interop/vhost-user.rst,
//! "Backend program conventions").

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};
use memtide_balloon::{LocalRule, OomDeflate, Settings};
use tracing::level_filters::LevelFilter;

use crate::service::{Options, VmmSource};

/// What `--print-capabilities` prints: the type by QEMU's schema (vhost-user.json) and no optional
/// features, since that schema defines none for a balloon.
pub const CAPABILITIES: &str = r#"{
  "type": "balloon",
  "features": []
}"#;

/// The virtio-balloon device of one VM, as a vhost-user process.
///
/// The VMM connects to --socket-path and drives the device; a controller such as memtided connects
/// to the control socket and steers it. Without a controller the device stands on its own.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-balloon", version, max_term_width = 100)]
#[command(group(ArgGroup::new("vmm").args(["socket_path", "fd"]).required(true)))]
pub struct Args {
    /// Listen for the VMM on this socket
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Use this open file descriptor, a socket that is connected to the VMM, and end with it
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<RawFd>,

    /// Print what this program can do, as JSON, and exit; all other options are ignored
    // Looked for before the command line is parsed; here for its help.
    #[arg(long)]
    pub print_capabilities: bool,

    /// Listen for a controller on this socket [default: SOCKET-PATH.ctl; none with --fd]
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,

    /// Seconds between two requests for a stock driver's statistics while somebody reads them; 0
    /// never asks
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    pub stats_interval: u32,

    /// Let a stock driver take pages back by itself before its guest kills a task for memory
    #[arg(long)]
    pub deflate_on_oom: bool,

    /// What becomes of returns when no controller is there to decide
    #[arg(long, value_enum, default_value_t = Rule::Grant)]
    pub local_rule: Rule,

    /// Seconds to wait for a controller that left before the local rule decides
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub controller_grace: u32,

    /// How much to write to standard error: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    pub log: LevelFilter,
}

/// The local rule, as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rule {
    /// Grant them: the guest has its memory
    Grant,
    /// Hold them until a controller comes
    Hold,
}

/// Why the command line cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Neither a path nor a descriptor.
    #[error("no VMM to serve: give --socket-path PATH, or --fd FDNUM")]
    NoVmm,
    /// Both sockets in one place.
    #[error(
        "--socket-path and --control-path are both {0}: give the control socket a path of its own"
    )]
    SamePath(PathBuf),
    /// The descriptor is not usable.
    #[error(
        "--fd {0} is not an open socket: {1}; give the number of one that the parent left open, 3 or more"
    )]
    BadFd(RawFd, io::Error),
}

impl Args {
    /// What to start.
    ///
    /// # Errors
    /// [`ArgsError`] where there is no VMM to serve.
    pub fn options(self) -> Result<Options, ArgsError> {
        let settings = self.settings();
        let default_control = self.socket_path.as_ref().map(|path| {
            let mut name = path.clone().into_os_string();
            name.push(".ctl");
            PathBuf::from(name)
        });
        if let Some(path) =
            self.socket_path.as_ref().filter(|p| Some(*p) == self.control_path.as_ref())
        {
            return Err(ArgsError::SamePath(path.clone()));
        }
        let vmm = match (self.socket_path, self.fd) {
            (Some(path), _) => VmmSource::Listen(path),
            (None, Some(fd)) => VmmSource::Connected(adopt(fd)?),
            (None, None) => return Err(ArgsError::NoVmm),
        };
        Ok(Options { vmm, control: self.control_path.or(default_control), settings })
    }

    fn settings(&self) -> Settings {
        let seconds = |n: u32| Duration::from_secs(n.into());
        Settings {
            oom_deflate: match self.deflate_on_oom {
                true => OomDeflate::Offered,
                false => OomDeflate::NotOffered,
            },
            local_rule: match self.local_rule {
                Rule::Grant => LocalRule::Grant,
                Rule::Hold => LocalRule::Hold,
            },
            controller_grace: seconds(self.controller_grace),
            stats_interval: (self.stats_interval > 0).then(|| seconds(self.stats_interval)),
        }
    }
}

/// Takes over a socket that whoever started this process left open for it.
fn adopt(fd: RawFd) -> Result<UnixStream, ArgsError> {
    let bad = |error: io::Error| ArgsError::BadFd(fd, error);
    if fd < 3 {
        let text = "the first three descriptors are the standard streams";
        return Err(bad(io::Error::new(io::ErrorKind::InvalidInput, text)));
    }
    // SAFETY: called once, before this process has opened anything that could have this number
    // except by inheritance (it is above the standard streams); the caller of the program gave it
    // away by naming it. A number that is not open fails the check below before it is used, and
    // closing it then is an error that nobody minds.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Err(error) = rustix::net::sockopt::socket_type(socket.as_fd()) {
        // Not ours, or not there: leave it as it is.
        std::mem::forget(socket);
        return Err(bad(error.into()));
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vhost-user-balloon"], words].concat())
    }

    #[test]
    fn path_and_descriptor_exclude_each_other_and_one_is_needed() {
        assert!(parse(&["--socket-path", "/a", "--fd", "5"]).is_err());
        assert!(parse(&[]).is_err());
        assert!(parse(&["--log", "debug"]).is_err());
    }

    #[test]
    fn the_capabilities_are_those_of_a_balloon() {
        let json: serde_json::Value = serde_json::from_str(CAPABILITIES).unwrap();
        assert_eq!(json["type"], "balloon");
        assert!(json["features"].is_array());
    }

    #[test]
    fn the_control_socket_stands_beside_the_vmms() {
        let options = parse(&["--socket-path", "/run/vm1.sock"]).unwrap().options().unwrap();
        assert_eq!(options.control, Some("/run/vm1.sock.ctl".into()));
        assert_eq!(options.settings.local_rule, LocalRule::Grant);
        let words = ["--socket-path", "/a", "--control-path", "/b", "--stats-interval", "0"];
        let options = parse(&words).unwrap().options().unwrap();
        assert_eq!(options.control, Some("/b".into()));
        assert_eq!(options.settings.stats_interval, None);
    }

    #[test]
    fn one_path_cannot_be_both_sockets() {
        let words = ["--socket-path", "/a", "--control-path", "/a"];
        let said = parse(&words).unwrap().options().unwrap_err().to_string();
        assert!(said.contains("a path of its own"), "{said}");
    }

    #[test]
    fn a_descriptor_must_be_an_open_socket() {
        for fd in ["1", "999"] {
            let error = parse(&["--fd", fd]).unwrap().options().unwrap_err();
            assert!(matches!(error, ArgsError::BadFd(..)), "{error}");
        }
    }
}
