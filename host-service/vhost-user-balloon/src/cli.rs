//! The command line, by QEMU's conventions for vhost-user programs (docs/interop/vhost-user.rst,
//! "Backend program conventions").

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand};
use memtide_balloon::{FreePageReporting, OomDeflate, Settings};
use memtide_device_ctl::{Action, Rule};
use tracing::level_filters::LevelFilter;

use crate::control::wanted_rule;
use crate::inherited::{Activated, Inherited, adopt};
use crate::service::{Options, VmmSource};
use crate::sockets::Endpoint;

/// What `--print-capabilities` prints: the type by QEMU's schema (vhost-user.json). That has no
/// further members for a balloon.
pub const CAPABILITIES: &str = r#"{
  "type": "balloon"
}"#;

/// The virtio-balloon device of one VM, as a vhost-user process
///
/// The VMM connects to --socket-path and drives the device. "ctl" shows and steers a device that
/// runs, over its control socket; so does a controller such as memtided. Without a controller the
/// device stands on its own.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-balloon", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
#[command(override_usage = "\
    vhost-user-balloon --socket-path PATH [OPTIONS]
       vhost-user-balloon --fd FDNUM [OPTIONS]
       vhost-user-balloon ctl SOCKET COMMAND")]
#[command(group(ArgGroup::new("vmm").args(["socket_path", "fd"])))]
pub struct Args {
    /// Listen for the VMM on this socket
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Use this open file descriptor: a socket that listens for the VMM, or one that is connected to
    /// it, with which the device ends
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<RawFd>,

    /// Print what this program can do, as JSON, and exit; all other options are ignored
    // Looked for before the command line is parsed; here for its help.
    #[arg(long)]
    pub print_capabilities: bool,

    /// Listen for "ctl" and controllers on this socket [default: SOCKET-PATH.ctl; none with --fd]
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,

    /// Seconds between two requests for a stock driver's statistics while somebody reads them; 0
    /// never asks
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    pub stats_interval: u32,

    /// Let a stock driver take pages back by itself before its guest kills a task for memory
    #[arg(long)]
    pub deflate_on_oom: bool,

    /// Do not offer free page reporting: for a VM with a balloon of the VMM's own that does it, since
    /// Linux starts the stock driver of one such device only
    #[arg(long)]
    pub no_free_page_reporting: bool,

    /// What becomes of memory that the guest's agent asks back when no controller is there to decide;
    /// "ctl SOCKET rule" changes it
    #[arg(long, value_name = "RULE", value_enum, default_value_t)]
    pub local_rule: Rule,

    /// Seconds to wait for a controller that left before the local rule decides
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub controller_grace: u32,

    /// How much to write to standard error: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    pub log: LevelFilter,

    /// What to do instead of being a device.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does beside being a device.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show and steer a device that runs
    Ctl(Ctl),
}

/// Arguments of `ctl`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Sizes are written as 512MiB or 1.5GiB (B, KiB, MiB, GiB, TiB).
Exit status: 0 done, 2 the command line is wrong, 3 no device could be spoken to, 4 the device
refused or the command makes no sense for it now, 5 the time is up, 1 anything else.")]
pub struct Ctl {
    /// The device's control socket: its VMM socket's path with ".ctl" behind it, unless
    /// --control-path said otherwise
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// Print JSON lines; sizes are bytes
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// Why the command line cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Neither a path nor a descriptor.
    #[error(
        "no VMM to serve: give --socket-path PATH, or --fd FDNUM, or start it by a socket of systemd"
    )]
    NoVmm,
    /// A socket by the command line and by systemd.
    #[error(
        "systemd hands over a socket and {0} names another: leave the option out, or start the \
         program without the socket unit"
    )]
    Twice(&'static str),
    /// Both sockets in one place.
    #[error(
        "--socket-path and --control-path are both {0}: give the control socket a path of its own"
    )]
    SamePath(PathBuf),
    /// The descriptor is not usable.
    #[error(
        "--fd {0} is not an open unix socket: {1}; give the number of one that the parent left open, 3 or more"
    )]
    BadFd(RawFd, io::Error),
}

impl Args {
    /// What to start, with what systemd handed over.
    ///
    /// # Errors
    /// [`ArgsError`] where there is no VMM to serve, or there are two ways to it.
    pub fn options(self, activated: Activated) -> Result<Options, ArgsError> {
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
        let vmm = match (self.socket_path, self.fd, activated.vmm) {
            (Some(_), _, Some(_)) => return Err(ArgsError::Twice("--socket-path")),
            (_, Some(_), Some(_)) => return Err(ArgsError::Twice("--fd")),
            (Some(path), _, None) => VmmSource::Listen(path.into()),
            (None, Some(fd), None) => {
                source(adopt(fd).map_err(|error| ArgsError::BadFd(fd, error))?)
            }
            (None, None, Some(socket)) => source(socket),
            (None, None, None) => return Err(ArgsError::NoVmm),
        };
        let control = match (self.control_path, activated.control) {
            (Some(_), Some(_)) => return Err(ArgsError::Twice("--control-path")),
            (None, Some(listener)) => Some(Endpoint::Inherited(listener)),
            (path, None) => path.or(default_control).map(Endpoint::Path),
        };
        Ok(Options { vmm, control, settings })
    }

    fn settings(&self) -> Settings {
        let seconds = |n: u32| Duration::from_secs(n.into());
        Settings {
            oom_deflate: match self.deflate_on_oom {
                true => OomDeflate::Offered,
                false => OomDeflate::NotOffered,
            },
            free_page_reporting: match self.no_free_page_reporting {
                true => FreePageReporting::NotOffered,
                false => FreePageReporting::Offered,
            },
            local_rule: wanted_rule(self.local_rule.into()),
            controller_grace: seconds(self.controller_grace),
            stats_interval: (self.stats_interval > 0).then(|| seconds(self.stats_interval)),
        }
    }
}

/// Where the VMM comes from by way of a socket that was left open.
fn source(socket: Inherited) -> VmmSource {
    match socket {
        Inherited::Listening(listener) => VmmSource::Listen(Endpoint::Inherited(listener)),
        Inherited::Connected(stream) => VmmSource::Connected(stream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use memtide_balloon::LocalRule;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vhost-user-balloon"], words].concat())
    }

    /// What is to be started without systemd.
    fn options(words: &[&str]) -> Result<Options, ArgsError> {
        parse(words).unwrap().options(Activated::default())
    }

    /// The path of the control socket.
    fn control(options: &Options) -> Option<&str> {
        match &options.control {
            Some(Endpoint::Path(path)) => path.to_str(),
            _ => None,
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn path_and_descriptor_exclude_each_other_and_one_is_needed() {
        assert!(parse(&["--socket-path", "/a", "--fd", "5"]).is_err());
        assert!(matches!(options(&[]), Err(ArgsError::NoVmm)));
        assert!(matches!(options(&["--log", "debug"]), Err(ArgsError::NoVmm)));
    }

    #[test]
    fn who_steers_a_device_is_none() {
        let words = ["ctl", "/run/vm.ctl", "target", "1GiB", "--json"];
        let Some(Command::Ctl(ctl)) = parse(&words).unwrap().command else { panic!("ctl") };
        assert!(ctl.json && ctl.socket == Path::new("/run/vm.ctl"));
        assert!(parse(&["--socket-path", "/a", "ctl", "/run/vm.ctl", "status"]).is_err());
        assert!(parse(&["ctl", "/run/vm.ctl"]).is_err());
    }

    #[test]
    fn the_capabilities_are_those_of_a_balloon() {
        let json: serde_json::Value = serde_json::from_str(CAPABILITIES).unwrap();
        assert_eq!(json, serde_json::json!({"type": "balloon"}));
    }

    #[test]
    fn the_control_socket_stands_beside_the_vmms() {
        let beside = options(&["--socket-path", "/run/vm1.sock"]).unwrap();
        assert_eq!(control(&beside), Some("/run/vm1.sock.ctl"));
        assert_eq!(beside.settings.local_rule, LocalRule::Grant);
        let words = ["--socket-path", "/a", "--control-path", "/b", "--stats-interval", "0"];
        let named = options(&[&words[..], &["--local-rule", "target"]].concat()).unwrap();
        assert_eq!(control(&named), Some("/b"));
        assert_eq!(named.settings.stats_interval, None);
        assert_eq!(named.settings.local_rule, LocalRule::Target);
    }

    #[test]
    fn one_path_cannot_be_both_sockets() {
        let words = ["--socket-path", "/a", "--control-path", "/a"];
        let said = options(&words).unwrap_err().to_string();
        assert!(said.contains("a path of its own"), "{said}");
    }

    #[test]
    fn a_descriptor_must_be_an_open_socket() {
        for fd in ["1", "999"] {
            let error = options(&["--fd", fd]).unwrap_err();
            assert!(matches!(error, ArgsError::BadFd(..)), "{error}");
        }
    }

    #[test]
    fn what_systemd_hands_over_takes_the_place_of_paths() {
        let directory = tempfile::tempdir().unwrap();
        let listen = |name| UnixListener::bind(directory.path().join(name)).unwrap();
        let vmm = || Some(Inherited::Listening(listen("vm")));
        let options = |words: &[&str], activated| parse(words).unwrap().options(activated);
        let both = Activated { vmm: vmm(), control: Some(listen("ctl")) };
        let got = options(&[], both).unwrap();
        assert!(matches!(got.vmm, VmmSource::Listen(Endpoint::Inherited(_))));
        assert!(matches!(got.control, Some(Endpoint::Inherited(_))));
        std::fs::remove_file(directory.path().join("vm")).unwrap();
        let activated = Activated { vmm: vmm(), control: None };
        let error = options(&["--socket-path", "/a"], activated).unwrap_err().to_string();
        assert!(error.contains("--socket-path names another"), "{error}");
    }
}
