//! The command line below the socket's path.

use clap::{Args, Subcommand, ValueEnum};
use memtide_api::device::LocalRule;
use memtide_units::ByteSize;

/// How long `target --wait` waits unless told otherwise, in seconds.
const TARGET_WAIT: &str = "60";

/// How long `stats` waits for fresh ones unless told otherwise, in seconds.
const STATS_WAIT: u64 = 5;

/// The longest wait that can be asked for: a day, in seconds.
const WAIT_MAX: u64 = 86_400;

/// What to do with a device.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// Show how the device is: its driver, the guest's memory, the balloon, what waits and why
    Status,
    /// Set how large the balloon shall be, and perhaps wait until the guest has followed
    ///
    /// SIZE is the balloon's: what the guest shall do without. QEMU's own "balloon" command and
    /// "virsh setmem" name what the guest keeps instead; --guest takes it that way round. Refused
    /// while a controller such as memtided steers the device.
    Target(Target),
    /// Show the guest's statistics, fresh ones, and how old they are
    ///
    /// A stock driver is asked for them now; memtide-agent sends them by itself.
    Stats {
        /// Wait so long for fresh ones; 0 shows what is there
        #[arg(long, value_name = "SECONDS", default_value_t = STATS_WAIT)]
        #[arg(value_parser = clap::value_parser!(u64).range(..=WAIT_MAX))]
        wait: u64,
    },
    /// Print what happens in the device until interrupted: lines for people on a terminal, JSON lines
    /// elsewhere
    Watch,
    /// Set what the guest is guaranteed: it gets memory back below that without asking anybody
    Min {
        /// Such as 512MiB; 0 guarantees nothing
        #[arg(value_parser = size)]
        size: ByteSize,
    },
    /// Set what becomes of memory that the guest asks back while no controller is attached; until the
    /// device process ends
    Rule {
        /// The rule
        #[arg(value_enum)]
        rule: Rule,
    },
    /// Let the guest have the memory that it asks back and that is held
    Grant {
        /// Its number in "status" and "watch" [default: the one that waits]
        ticket: Option<u32>,
    },
    /// Refuse the memory that the guest asks back; it may ask again
    Deny {
        /// Its number in "status" and "watch" [default: the one that waits]
        ticket: Option<u32>,
    },
}

/// Arguments of `target`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Target {
    #[command(flatten)]
    pub(crate) balloon: Balloon,
    /// Wait until the guest has followed, showing how far it is; 60 seconds where no number is given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = TARGET_WAIT)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=WAIT_MAX))]
    pub(crate) wait: Option<u64>,
}

/// A balloon's size, one way round or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
#[group(required = true, multiple = false)]
pub struct Balloon {
    /// How large the balloon shall be, such as 512MiB or 1.5GiB; 0 gives the guest all its memory
    #[arg(value_parser = size)]
    pub(crate) size: Option<ByteSize>,
    /// How much memory the guest shall keep, instead
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) guest: Option<ByteSize>,
}

/// What becomes of returns when no controller is there to decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rule {
    /// Grant them: the guest has its memory when it needs it
    #[default]
    Grant,
    /// Grant them as long as the balloon stays as large as its target, hold the rest: the guest
    /// never passes what the operator leaves it
    Target,
    /// Hold them until somebody decides: a controller, or "ctl SOCKET grant"
    Hold,
}

impl From<Rule> for LocalRule {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Grant => Self::Grant,
            Rule::Target => Self::Target,
            Rule::Hold => Self::Hold,
        }
    }
}

/// A size as people write it. Zero needs no unit.
fn size(text: &str) -> Result<ByteSize, memtide_units::ParseSizeError> {
    if text.trim() == "0" { Ok(ByteSize::ZERO) } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        action: Action,
    }

    fn parse(words: &[&str]) -> Result<Action, String> {
        let line = Line::try_parse_from([&["ctl"], words].concat());
        line.map(|line| line.action).map_err(|error| error.to_string())
    }

    fn target(size: Option<ByteSize>, guest: Option<ByteSize>, wait: Option<u64>) -> Action {
        Action::Target(Target { balloon: Balloon { size, guest }, wait })
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Line::command().debug_assert();
    }

    #[test]
    fn a_target_is_the_balloons_or_the_guests() {
        let mib = |n| Some(ByteSize::from_mib(n));
        assert_eq!(parse(&["target", "512MiB"]), Ok(target(mib(512), None, None)));
        assert_eq!(parse(&["target", "0"]), Ok(target(mib(0), None, None)));
        let kept = target(None, mib(1536), Some(60));
        assert_eq!(parse(&["target", "--guest", "1.5GiB", "--wait"]), Ok(kept.clone()));
        assert_eq!(parse(&["target", "--wait", "--guest=1536MiB"]), Ok(kept));
        assert_eq!(parse(&["target", "--wait=9", "1MiB"]), Ok(target(mib(1), None, Some(9))));
        assert!(parse(&["target"]).unwrap_err().contains("--guest"));
        assert!(parse(&["target", "1MiB", "--guest", "1MiB"]).is_err());
        assert!(parse(&["target", "512"]).unwrap_err().contains("512MiB"));
    }
}
