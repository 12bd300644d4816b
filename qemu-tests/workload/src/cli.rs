//! The command line.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::audit::KeepGoing;
use crate::mapping::Thp;
use crate::neighbour::TlbNeighbour;
use crate::script::time;

/// Plays memory phases in a guest and verifies every page it owns.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) action: Action,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Play a script, printing one JSON object per event.
    #[command(after_help = LANGUAGE)]
    Play(Play),
    /// What `--tlb-neighbour` starts.
    #[command(hide = true)]
    Neighbour {
        /// The processor to wake on.
        cpu: usize,
        /// The process to end with.
        parent: i32,
    },
}

/// Options of `play`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true))]
pub(crate) struct Play {
    /// The script; several arguments are joined by spaces.
    #[arg(group = "source", value_name = "SCRIPT")]
    words: Vec<String>,
    /// Read the script from a file ("-" is standard input, which then is no "go").
    #[arg(long, group = "source", value_name = "FILE")]
    script: Option<PathBuf>,
    /// Where `files` makes its (nameless) files.
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// A file whose every change ends a `wait`, beside SIGUSR1 and a line on standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) go_file: Option<PathBuf>,
    /// Huge pages for the memory that is allocated.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) thp: Thp,
    /// A neighbour on each processor that makes accesses visible to DAMON under TCG.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) tlb_neighbour: TlbNeighbour,
    /// Say this often where the pages lie: how many in each memory block of the guest, and how many of
    /// them were touched in the last minute.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) census: Option<Duration>,
    /// Whether a bad page is only counted, or ends the script.
    #[arg(
        long,
        value_enum,
        default_value = "yes",
        default_missing_value = "yes",
        num_args = 0..=1,
        require_equals = true
    )]
    pub(crate) keep_going: KeepGoing,
}

impl Play {
    /// The text of the script.
    ///
    /// # Errors
    /// Where the script's file cannot be read.
    pub(crate) fn script_text(&self) -> io::Result<String> {
        match &self.script {
            Some(path) if self.script_is_stdin() => {
                io::read_to_string(io::stdin()).map_err(|error| named(path, &error))
            }
            Some(path) => std::fs::read_to_string(path).map_err(|error| named(path, &error)),
            None => Ok(self.words.join(" ")),
        }
    }

    /// True where standard input is the script, and so cannot say "go".
    pub(crate) fn script_is_stdin(&self) -> bool {
        self.script.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }
}

fn named(path: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read the script {}: {error}", path.display()))
}

const LANGUAGE: &str = "\
The script's commands, separated by semicolons or new lines; # begins a comment:
  alloc NAME SIZE        map memory, write a pattern into every page
  grow NAME SIZE         map more of it
  hot NAME SIZE TIME     touch, verify and rewrite the first SIZE of it for TIME
  free NAME [SIZE]       unmap SIZE from its end, or all
  verify [NAME]          verify every page owned
  files SIZE TIME        make a file, read and verify it for TIME, remove it
  read NAME SIZE         read and verify a file once; the first time it is made, and it stays
  idle TIME              do nothing
  wait                   until SIGUSR1, a line on standard input, or a change of --go-file
  repeat N { ... }       play what is in braces N times
SIZE is like 64MiB, TIME like 500ms, 10s or 2min.

Exit code: 0 when no page was bad, 1 when one was, 2 for a script or option that is wrong, 3 when
the kernel refused something or nobody reads the output. SIGTERM ends the script with its summary.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_script_may_follow_a_bare_keep_going() {
        let cli = Cli::parse_from(["w", "play", "--keep-going", "alloc a 4KiB;", "verify"]);
        let Action::Play(play) = cli.action else { panic!("{cli:?}") };
        assert_eq!(play.keep_going, KeepGoing::Yes);
        assert_eq!(play.script_text().unwrap(), "alloc a 4KiB; verify");
    }

    #[test]
    fn a_time_is_written_as_in_scripts() {
        let cli = Cli::parse_from(["w", "play", "--census", "1.5s", "wait"]);
        let Action::Play(play) = cli.action else { panic!("{cli:?}") };
        assert_eq!(play.census, Some(Duration::from_millis(1500)));
        let error = Cli::try_parse_from(["w", "play", "--census", "5", "wait"]).unwrap_err();
        assert!(error.to_string().contains("500ms"), "{error}");
    }

    #[test]
    fn a_script_is_given_once() {
        assert!(Cli::try_parse_from(["w", "play"]).is_err());
        assert!(Cli::try_parse_from(["w", "play", "wait", "--script", "x"]).is_err());
    }
}
