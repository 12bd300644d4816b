//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use memtide_api::http::{Budget, DEFAULT_SOCKET};
use memtide_units::ByteSize;

/// Names the socket where the option does not.
const SOCKET_VARIABLE: &str = "MEMTIDE_SOCKET";

/// Shows and steers the memory of virtual machines.
#[derive(Debug, Parser)]
#[command(name = "memtide", version, infer_subcommands = true)]
pub(crate) struct Args {
    /// memtided's socket [default: $MEMTIDE_SOCKET, or /run/memtide/memtided.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Print JSON, as memtided and the devices speak it: sizes are bytes
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// Where memtided listens.
    pub(crate) fn socket(&self) -> PathBuf {
        let variable = || std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from);
        self.socket.clone().or_else(variable).unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the host and all its VMs
    Status {
        /// Show it again every so many seconds, 1 to 3600; 2 where no number is given
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
        #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
        watch: Option<u64>,
    },
    /// Show one VM, or change it
    Vm {
        /// Its name in memtided's configuration
        name: String,
        #[command(subcommand)]
        action: Option<VmAction>,
    },
    /// Show how large a VM's working set was, what its memory is now, and how long it lay idle
    Wss {
        /// Its name in memtided's configuration
        name: String,
        #[command(flatten)]
        window: Window,
    },
    /// Show which memory of a VM was touched when: physical addresses upwards, time to the right
    Heat {
        /// Its name in memtided's configuration
        name: String,
        #[command(flatten)]
        drawing: Drawing,
        #[command(flatten)]
        window: Window,
    },
    /// Change the host
    Host {
        #[command(subcommand)]
        action: HostAction,
    },
    /// Talk to a device process directly, with or without memtided
    Device {
        /// Its control socket: the path of its VMM's socket with ".ctl" behind it, usually
        socket: PathBuf,
        #[command(subcommand)]
        action: memtide_device_ctl::Action,
    },
}

/// How much of the past is shown.
#[derive(Debug, ClapArgs)]
pub(crate) struct Window {
    /// Show only so much of the past, such as 10min [default: all that is kept, up to a day]
    #[arg(long, value_name = "TIME", value_parser = time)]
    last: Option<Duration>,
}

impl Window {
    pub(crate) fn ms(&self) -> Option<u64> {
        self.last.map(|last| u64::try_from(last.as_millis()).unwrap_or(u64::MAX))
    }
}

/// How a heat map is drawn.
#[derive(Debug, ClapArgs)]
pub(crate) struct Drawing {
    /// Write the map as an SVG picture
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the map as a PNG picture
    #[arg(long, value_name = "FILE")]
    pub(crate) png: Option<PathBuf>,
    /// Draw the map for so many columns, 40 to 400
    #[arg(long, value_name = "N", default_value_t = 80, value_parser = clap::value_parser!(u16).range(40..=400))]
    pub(crate) width: u16,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmAction {
    /// Change it, at once and over restarts of memtided
    Set(VmSet),
}

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = true)]
pub(crate) struct VmSet {
    /// What the VM is guaranteed, such as 512MiB
    #[arg(long, value_name = "SIZE")]
    pub(crate) min: Option<ByteSize>,
    /// What it may never pass, or "none"
    #[arg(long, value_name = "SIZE|none", value_parser = max)]
    pub(crate) max: Option<ByteSize>,
    /// How much memory it shall keep (the rest goes to the balloon), or "all"
    #[arg(long, value_name = "SIZE|all", value_parser = target)]
    pub(crate) target: Option<Keep>,
}

/// What a VM shall keep of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    All,
    Bytes(ByteSize),
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostAction {
    /// Change it, at once and over restarts of memtided
    Set {
        /// What all VMs together may have, or "host" for what the host has free
        #[arg(long, value_name = "SIZE|host", value_parser = budget)]
        budget: Budget,
    },
}

fn size(text: &str, other: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error| format!("{error}; or write {other:?}"))
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write for example 90s, 10min or 6h");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

fn max(text: &str) -> Result<ByteSize, String> {
    if text == "none" { Ok(ByteSize::MAX) } else { size(text, "none") }
}

fn target(text: &str) -> Result<Keep, String> {
    if text == "all" { Ok(Keep::All) } else { size(text, "all").map(Keep::Bytes) }
}

fn budget(text: &str) -> Result<Budget, String> {
    if text == "host" { Ok(Budget::Host) } else { size(text, "host").map(Budget::Bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn error(arguments: &[&str]) -> String {
        Args::try_parse_from(arguments).unwrap_err().to_string()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_without_a_unit_are_refused_with_a_remedy() {
        let said = error(&["memtide", "vm", "web1", "set", "--min", "512"]);
        assert!(said.contains("512MiB"), "{said}");
        let said = error(&["memtide", "host", "set", "--budget", "all"]);
        assert!(said.contains("\"host\""), "{said}");
    }

    #[test]
    fn times_have_units() {
        let seconds = ["90s", "10min", "6h"].map(|text| time(text).map(|time| time.as_secs()));
        assert_eq!(seconds, [Ok(90), Ok(600), Ok(21_600)]);
        for bad in ["", "10", "min", "3d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(time(bad).is_err_and(|said| said.contains("10min")), "{bad}");
        }
    }

    #[test]
    fn a_change_of_nothing_is_refused() {
        let said = error(&["memtide", "vm", "web1", "set"]);
        assert!(said.contains("--min"), "{said}");
    }
}
