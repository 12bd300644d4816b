//! The command line.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use memtide_policy::guest::Mode;
use memtide_sysfs::Root;

use crate::check::{Probes, check};
use crate::config::{
    Config, ConfigError, DamonUse, ForTests, InterruptUse, PlainUse, ScaleWish, Wishes,
};
use crate::dma::Pin;
use crate::handback::{Stolen, hand_back};
use crate::hardware;
use crate::overcommit::OvercommitUse;
use crate::reload::Source;
use crate::run::{Purpose, RunError, run};
use crate::status::Status;
use crate::swap_space::SwapUse;
use crate::takeover::modprobe_dry;
use crate::tell::{reload, running, set_mode};
use crate::views::{self, HeatArgs, Window};

const AFTER_HELP: &str = "\
MEMTIDE_LOG sets what run and hand-back log: error, warn, info (the default), debug or trace.
Exit statuses: 0 done; 1 failed, trying again may help. The others need a person: 2 settings that cannot
be used; 3 a machine or device that cannot be scaled; 4 no balloon; 5 several balloons, or --pci names
something else; 6 the kernel is locked down; 7 uio_pci_generic is missing; 8 memory cannot be pinned;
9 a plain balloon that is to be left alone; 10 the UIO device file does not appear; 11 a device that had
stopped answering, whose configuration nobody may read; 12 a kernel that does not tell of memory pressure.";

/// Scales this guest's memory by what it really uses.
#[derive(Debug, Parser)]
#[command(name = "memtide-agent", version, about, long_about = None, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take the balloon over and scale memory until SIGTERM; then give it back. Stolen blocks stay
    /// stolen (see restore), so that a restart or an upgrade changes nothing for the host.
    Run(RunArgs),
    /// Show what the running agent does, what it may do, and what this guest lacks.
    Status {
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Show how large the working set was, what memory is now, and how long it lay idle.
    Wss {
        /// Print JSON, for programs: sizes in bytes, times in milliseconds.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        window: Window,
        #[command(flatten)]
        place: Place,
    },
    /// Show which memory was touched when: physical addresses upwards, time to the right.
    Heat {
        #[command(flatten)]
        args: HeatArgs,
        #[command(flatten)]
        place: Place,
    },
    /// Say what was decided lately, and why, newest first.
    Explain {
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
        /// The last so many decisions; 64 are remembered.
        #[arg(short, value_name = "N", default_value_t = 12)]
        n: usize,
        #[command(flatten)]
        place: Place,
    },
    /// Say what the agent would find here and what would follow, and change nothing.
    Check(CheckArgs),
    /// Have the running agent ask everything back and steal no more.
    Restore(Place),
    /// Have the running agent scale memory again after a restore.
    Resume(Place),
    /// Have the running agent read its settings anew, and say what came of it. Limits, scale_by and
    /// gate_deadline change at once and nothing of what it has learned is lost; the others do at the next
    /// start. What was said on the agent's command line stays so.
    Reload(Place),
    /// Give the balloon back to the stock driver, and the kernel its settings, when no agent runs.
    HandBack(HandBackArgs),
}

/// Where the running agent is found.
#[derive(Debug, Args)]
struct Place {
    /// The agent's runtime directory [default: what /etc/memtide/agent.toml says, or /run/memtide-agent].
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

impl Place {
    /// Settings that cannot be used are the running agent's to complain of.
    fn dir(&self) -> PathBuf {
        let set = || Wishes::read(None).ok()?.runtime_dir;
        self.runtime_dir.clone().or_else(set).unwrap_or_else(|| crate::config::RUNTIME_DIR.into())
    }
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Read settings from this file [default: /etc/memtide/agent.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct HandBackArgs {
    /// Read settings from this file [default: /etc/memtide/agent.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which PCI function is the balloon [default: the only one there is].
    #[arg(long, value_name = "ADDRESS")]
    pci: Option<String>,
    /// The killed agent's runtime directory [default: /run/memtide-agent].
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Bring stolen blocks back too, since no agent will: ask the host first, then take the rest.
    #[arg(long)]
    return_blocks: bool,
    /// How long to ask before the rest is taken.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::config::time, requires = "return_blocks")]
    within: Duration,
}

impl HandBackArgs {
    fn stolen(&self) -> Stolen {
        if self.return_blocks { Stolen::Return(self.within) } else { Stolen::Leave }
    }

    /// A file that cannot be used must not keep anybody from the way back: it is done without.
    fn settings(self) -> Result<Config, ConfigError> {
        let line = Wishes { pci: self.pci, runtime_dir: self.runtime_dir, ..Wishes::default() };
        let read = Wishes::read(self.config.as_deref());
        match read.and_then(|file| line.clone().or(file).check()) {
            Err(error) if self.config.is_none() => {
                tracing::warn!("settings are left aside: {error}");
                line.check()
            }
            settings => settings,
        }
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Read settings from this file [default: /etc/memtide/agent.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Never steal below this much online memory [default: a quarter of all, at least 256MiB].
    #[arg(long, value_name = "SIZE")]
    min: Option<String>,
    /// Never take back beyond this much online memory [default: all].
    #[arg(long, value_name = "SIZE")]
    max: Option<String>,
    /// Acceptable share of time in which some task stalls for memory [default: 0.1%].
    #[arg(long, value_name = "PERCENT")]
    psi_goal: Option<String>,
    /// Scale by what is used, or by the host's target alone [default: use].
    #[arg(long)]
    scale_by: Option<ScaleWish>,
    /// Which PCI function is the balloon [default: the only one there is].
    #[arg(long, value_name = "ADDRESS")]
    pci: Option<String>,
    /// Take blocks back unasked when nobody has decided for this long, or never [default: 10s].
    #[arg(long, value_name = "TIME")]
    gate_deadline: Option<String>,
    /// What to do about the kernel's access monitor [default: take-over].
    #[arg(long)]
    damon: Option<DamonUse>,
    /// Leave boot memory, and what is plugged in, in its zones; blocks without kernel pages are stolen from there.
    #[arg(long)]
    no_convert: bool,
    /// What to do about vm.overcommit_memory while blocks are stolen [default: allow].
    #[arg(long)]
    overcommit: Option<OvercommitUse>,
    /// Where memory that nobody uses is paged out to [default: zram].
    #[arg(long)]
    swap: Option<SwapUse>,
    /// What to do about a balloon that is no Memtide device [default: drive].
    #[arg(long)]
    plain_balloon: Option<PlainUse>,
    /// How to notice what the device has done [default: auto].
    #[arg(long)]
    interrupt: Option<InterruptUse>,
    /// Keep state in this directory, on a tmpfs [default: /run/memtide-agent].
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
}

impl RunArgs {
    fn source(self) -> Source {
        let line = Wishes {
            min: self.min,
            max: self.max,
            psi_goal: self.psi_goal,
            scale_by: self.scale_by,
            pci: self.pci,
            gate_deadline: self.gate_deadline,
            damon: self.damon,
            convert: self.no_convert.then_some(false),
            overcommit: self.overcommit,
            swap: self.swap,
            plain_balloon: self.plain_balloon,
            interrupt: self.interrupt,
            runtime_dir: self.runtime_dir,
            for_tests: ForTests::default(),
        };
        Source { file: self.config, line }
    }
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Run(args) => {
            start_log();
            let source = args.source();
            let settings = source.read().map_err(RunError::from);
            let purpose = Purpose::Serve(source);
            end(settings.and_then(|config| run(&config, &Root::default(), &purpose)))
        }
        Command::HandBack(args) => {
            start_log();
            let stolen = args.stolen();
            let done = args.settings().map_err(RunError::from);
            end(done.and_then(|config| hand_back(&config, &Root::default(), stolen)))
        }
        Command::Check(args) => {
            let settings = Wishes::read(args.config.as_deref()).and_then(Wishes::check);
            end(settings.map_err(RunError::from).and_then(|config| look(&config)))
        }
        Command::Status { json, place } => said(show(&place.dir(), json)),
        Command::Wss { json, window, place } => {
            let dir = &place.dir();
            said(running(dir).and_then(|status| views::wss(&status, dir, json, &window)))
        }
        Command::Heat { args, place } => {
            let dir = &place.dir();
            said(running(dir).and_then(|status| views::heat(&status, dir, &args)))
        }
        Command::Explain { json, n, place } => {
            let dir = &place.dir();
            said(after_all(views::explain(dir, json, n), running(dir)))
        }
        Command::Restore(place) => said(set_mode(&place.dir(), Mode::Restore)),
        Command::Resume(place) => said(set_mode(&place.dir(), Mode::Tune)),
        Command::Reload(place) => said(reload(&place.dir())),
    }
}

/// Lines without time and colour: the journal has both. The level is that of `MEMTIDE_LOG`.
fn start_log() {
    let level = std::env::var("MEMTIDE_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing::Level::INFO))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}

fn end(result: Result<(), RunError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memtide-agent: {error}");
            error.exit_status().into()
        }
    }
}

fn look(config: &Config) -> Result<(), RunError> {
    let root = Root::default();
    let is_memtide = |address| hardware::is_memtide(&root, &config.runtime_dir, address);
    let probes = Probes { can_load: &modprobe_dry, can_pin: &Pin::probe, is_memtide: &is_memtide };
    let report = check(config, &root, &probes);
    print!("{report}");
    report.obstacle().map_or(Ok(()), Err)
}

fn said(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                eprintln!("memtide-agent: the output cannot be written: {error}");
                ExitCode::FAILURE
            }
            // Or whoever reads has seen enough: `memtide-agent heat | head`.
            _ => ExitCode::SUCCESS,
        },
        Err(error) => {
            eprintln!("memtide-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(runtime_dir: &Path, json: bool) -> Result<String, String> {
    let status = running(runtime_dir)?;
    if json {
        return serde_json::to_string(&status).map(|text| text + "\n").map_err(|e| e.to_string());
    }
    Ok(status.to_string())
}

/// What an agent has decided is worth reading above all when it has ended.
fn after_all(said: Result<String, String>, runs: Result<Status, String>) -> Result<String, String> {
    match (said, runs) {
        (said, Ok(_)) => said,
        (Ok(text), Err(why)) => {
            eprintln!("memtide-agent: {why}. This is what it decided before:");
            Ok(text)
        }
        (Err(_), Err(why)) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::status_path;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_become_settings() {
        let line =
            ["memtide-agent", "run", "--min", "512MiB", "--gate-deadline", "never", "--no-convert"];
        let Command::Run(args) = Cli::parse_from(line).command else { panic!("not run") };
        let config = args.source().read().unwrap();
        assert_eq!(config.wish.min.map(|min| min.mib()), Some(512));
        assert_eq!(config.gate_deadline, None);
        assert_eq!(config.conversion, crate::config::Conversion::Leave);
    }

    #[test]
    fn what_an_agent_decided_can_be_read_after_it_has_ended() {
        let gone = || Err("no agent runs".to_owned());
        assert_eq!(after_all(Ok("took memory9".into()), gone()), Ok("took memory9".into()));
        assert_eq!(after_all(Err("nothing yet".into()), gone()), Err("no agent runs".into()));
    }

    #[test]
    fn an_agent_that_does_not_run_has_no_status() {
        let dir = tempfile::tempdir().unwrap();
        let said = show(dir.path(), false).unwrap_err();
        assert!(said.contains("systemctl start memtide-agent"), "{said}");
        std::fs::write(status_path(dir.path()), "{}").unwrap();
        let said = show(dir.path(), false).unwrap_err();
        assert!(said.contains("another version"), "{said}");
    }

    #[test]
    fn handing_back_takes_the_options_that_matter_to_it_alone() {
        let line = ["memtide-agent", "hand-back", "--pci", "0000:00:03.0", "--runtime-dir", "/x"];
        let Command::HandBack(args) = Cli::parse_from(line).command else {
            panic!("not hand-back")
        };
        assert_eq!(args.stolen(), Stolen::Leave);
        let config = args.settings().unwrap();
        assert_eq!(config.pci.unwrap().to_string(), "0000:00:03.0");
        assert_eq!(config.runtime_dir, Path::new("/x"));
        let line = ["memtide-agent", "hand-back", "--return-blocks", "--within", "5s"];
        let Command::HandBack(args) = Cli::parse_from(line).command else {
            panic!("not hand-back")
        };
        assert_eq!(args.stolen(), Stolen::Return(Duration::from_secs(5)));
        assert!(Cli::try_parse_from(["memtide-agent", "hand-back", "--min", "1GiB"]).is_err());
    }
}
