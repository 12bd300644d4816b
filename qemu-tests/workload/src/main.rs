//! memtide-workload: plays memory phases in a guest and verifies every page it owns.
//!
//! The other end of every test of Memtide: whatever is stolen, reclaimed, migrated or returned
//! beneath it, each page must hold what was last written into it. It prints one JSON object per
//! event, so that a runner on the host can follow, and says at the end how many pages it verified,
//! how many were wrong, and how long the slowest touch took.

mod audit;
mod census;
mod cli;
mod control;
mod event;
mod extent;
mod journal;
mod mapping;
mod neighbour;
mod pagefile;
mod pagemap;
mod pattern;
mod player;
mod script;
mod tcg;
mod touches;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

use audit::Audit;
use census::Register;
use cli::{Action, Cli, Play};
use control::{Controls, Stdin};
use event::{Event, Outcome, Summary};
use journal::Journal;
use neighbour::{Neighbours, TlbNeighbour};
use pattern::{PAGE_BYTES, Salt};
use player::{Player, Settings};
use script::Script;

/// Exit code where a page was bad.
const BAD_PAGES: u8 = 1;

/// Exit code for a wrong script, as clap's for wrong options.
const BAD_INPUT: u8 = 2;

/// Exit code where the kernel refused something or the output is closed.
const CANNOT_GO_ON: u8 = 3;

fn main() -> ExitCode {
    match Cli::parse().action {
        Action::Play(play) => run(&play),
        Action::Neighbour { cpu, parent } => match neighbour::run(cpu, parent) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(CANNOT_GO_ON, &format!("neighbour on CPU {cpu}: {error}")),
        },
    }
}

fn run(play: &Play) -> ExitCode {
    let script = match play.script_text().map(|text| Script::parse(&text)) {
        Ok(Ok(script)) => script,
        Ok(Err(error)) => return complain(BAD_INPUT, &format!("the script, {error}")),
        Err(error) => return complain(BAD_INPUT, &error.to_string()),
    };
    if rustix::param::page_size() != PAGE_BYTES {
        return complain(
            CANNOT_GO_ON,
            "this kernel's pages are not of 4 KiB; use one that has them",
        );
    }
    match perform(play, &script) {
        Ok(summary) => exit_code(summary),
        Err(error) => complain(CANNOT_GO_ON, &error.to_string()),
    }
}

fn perform(play: &Play, script: &Script) -> io::Result<Summary> {
    let controls = controls(play, script)?;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let pid = std::process::id();
    let mut journal = Journal::new(io::stdout());
    journal.say(Event::Start {
        pid,
        unix_ms: u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX),
        steps: script.steps.len(),
    })?;
    let _neighbours = start_neighbours(play.tlb_neighbour, &mut journal)?;
    let salt = Salt::of_run(pid, since_1970.as_nanos());
    let register = Register::default();
    if let Some(every) = play.census {
        census::start(register.clone(), every, (io::stdout(), journal.started()))?;
    }
    let settings = Settings { dir: play.dir.clone(), thp: play.thp, salt, register };
    Player::new(settings, Audit { journal, controls, keep_going: play.keep_going }).play(script)
}

fn controls(play: &Play, script: &Script) -> io::Result<Controls> {
    let reads_lines = script.waits() && !play.script_is_stdin();
    let controls = control::listen(if reads_lines { Stdin::Lines } else { Stdin::Unread })?;
    Ok(match play.go_file.clone() {
        Some(path) => controls.with_go_file(path),
        None => controls,
    })
}

fn start_neighbours<W: Write>(
    wanted: TlbNeighbour,
    journal: &mut Journal<W>,
) -> io::Result<Option<Neighbours>> {
    let Some(why) = wanted.reason() else { return Ok(None) };
    let neighbours = Neighbours::start()?;
    journal.say(Event::TlbNeighbours { why, cpus: &neighbours.cpus, pids: &neighbours.pids() })?;
    Ok(Some(neighbours))
}

fn exit_code(summary: Summary) -> ExitCode {
    match summary.outcome {
        _ if summary.pages_bad > 0 => BAD_PAGES.into(),
        Outcome::Failed => CANNOT_GO_ON.into(),
        Outcome::Finished | Outcome::Interrupted | Outcome::StoppedAtBadPage => ExitCode::SUCCESS,
    }
}

fn complain(code: u8, message: &str) -> ExitCode {
    // Where standard error is closed as well, the exit code has to do.
    let _ = writeln!(io::stderr(), "memtide-workload: {message}");
    code.into()
}
