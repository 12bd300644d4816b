//! The command line.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use memtide_sim::check::Promise;
use memtide_sim::kernel::SwapSpace;
use memtide_sim::show::{chart, json, summary};
use memtide_sim::workload::Name;
use memtide_sim::{Outcome, Scenario, run};
use serde_json::json;

/// Plays Memtide's policy on a simulated guest.
///
/// Ends with status 0 where all promises were kept, with 1 where one was broken.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One run, as a picture.
    Run(Run),
    /// Many runs, one after the other.
    Sweep(Sweep),
    /// The workloads, and what is promised.
    List,
}

#[derive(Debug, Args)]
struct Run {
    /// What all of it follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    what: What,
    /// Nothing goes wrong, in a guest of 4 GiB: the seed does not count.
    #[arg(long, conflicts_with = "seed", requires = "workload")]
    plain: bool,
    /// Also each decision.
    #[arg(long)]
    trace: bool,
}

#[derive(Debug, Args)]
struct Sweep {
    /// From A to B, both included.
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    seeds: RangeInclusive<u64>,
    #[command(flatten)]
    what: What,
}

#[derive(Debug, Args)]
struct What {
    /// In place of the one that the seed draws: see `sim list`.
    #[arg(long, value_name = "NAME", value_parser = workload)]
    workload: Option<Name>,
    /// How long; the second half is calm.
    #[arg(long, default_value_t = 30, value_name = "M", value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// In place of the swap that the seed draws: none, disk or zram.
    #[arg(long, value_name = "SPACE", value_parser = swap)]
    swap: Option<SwapSpace>,
    /// For programs.
    #[arg(long)]
    json: bool,
}

pub(crate) fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(arguments) => one(&arguments),
        Command::Sweep(arguments) => many(&arguments),
        Command::List => list(),
    }
}

fn one(arguments: &Run) -> ExitCode {
    let What { workload, minutes, swap, json: wants_json } = arguments.what;
    let scenario = match workload.filter(|_| arguments.plain) {
        Some(workload) => Scenario::plain(workload, minutes),
        None => Scenario::of(arguments.seed, workload, minutes),
    };
    let scenario = with_swap(scenario, swap);
    let outcome = run(&scenario);
    if wants_json {
        say(&format!("{:#}", json(&outcome)));
    } else {
        if arguments.trace {
            say(&outcome.story.text());
        }
        say(chart(&outcome).trim_end());
    }
    status(outcome.broken.is_empty())
}

fn many(arguments: &Sweep) -> ExitCode {
    let What { workload, minutes, swap, json: wants_json } = arguments.what;
    let mut runs: BTreeMap<Name, Tally> = BTreeMap::new();
    let mut all_kept = true;
    for seed in arguments.seeds.clone() {
        let outcome = run(&with_swap(Scenario::of(seed, workload, minutes), swap));
        all_kept &= outcome.broken.is_empty();
        if wants_json {
            let (of, workload) = (summary(&outcome), outcome.scenario.workload.name());
            let broken = &outcome.broken;
            say(&json!({"seed": seed, "workload": workload, "summary": of, "broken": broken})
                .to_string());
        } else if let Some(first) = outcome.broken.first() {
            let more = outcome.broken.len() - 1;
            say(&format!(
                "seed {seed}, at {} s: {}: {}",
                first.at_ms / 1000,
                first.promise,
                first.what
            ));
            say(&format!("  ({more} more)  {}", outcome.scenario.command()));
        }
        runs.entry(outcome.scenario.workload).or_default().add(&outcome);
    }
    if !wants_json {
        table(&runs);
    }
    status(all_kept)
}

/// What the runs of one workload came to.
#[derive(Debug, Default)]
struct Tally {
    runs: u64,
    saved_permille: u64,
    at_end_permille: u64,
    over_goal_permille: u64,
    returned: u64,
    kills: u64,
    broken_runs: u64,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        let of = summary(outcome);
        self.runs += 1;
        self.saved_permille += of.saved_permille;
        self.at_end_permille += of.saved_at_end_permille;
        self.over_goal_permille += of.over_goal_permille;
        self.returned += of.returned;
        self.kills += of.kills;
        self.broken_runs += u64::from(of.broken > 0);
    }
}

fn table(runs: &BTreeMap<Name, Tally>) {
    say("workload     runs  given up  at the end  over goal  came back  killed  broken runs");
    for (name, tally) in runs {
        let mean = |sum: u64| {
            let permille = sum / tally.runs.max(1);
            format!("{}.{} %", permille / 10, permille % 10)
        };
        say(&format!(
            "{name:<11} {:>5}  {:>8}  {:>10}  {:>9}  {:>9}  {:>6}  {:>11}",
            tally.runs,
            mean(tally.saved_permille),
            mean(tally.at_end_permille),
            mean(tally.over_goal_permille),
            tally.returned,
            tally.kills,
            tally.broken_runs,
        ));
    }
}

fn list() -> ExitCode {
    say("workloads:");
    for name in Name::ALL {
        say(&format!("  {name:<11} {}", name.about()));
    }
    say("\npromises:");
    for promise in Promise::ALL {
        say(&format!("  {promise}"));
    }
    ExitCode::SUCCESS
}

/// Whoever reads may stop reading.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn status(all_kept: bool) -> ExitCode {
    if all_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn workload(text: &str) -> Result<Name, String> {
    named(text, Name::ALL, Name::name)
}

fn swap(text: &str) -> Result<SwapSpace, String> {
    named(text, SwapSpace::ALL, SwapSpace::name)
}

fn named<T: Copy, const N: usize>(
    text: &str,
    all: [T; N],
    name: fn(T) -> &'static str,
) -> Result<T, String> {
    let known = || all.map(name).join(", ");
    all.into_iter()
        .find(|one| name(*one) == text)
        .ok_or_else(|| format!("there is none of this name; choose from {}", known()))
}

fn with_swap(scenario: Scenario, swap: Option<SwapSpace>) -> Scenario {
    Scenario { swap: swap.unwrap_or(scenario.swap), ..scenario }
}

fn seeds(text: &str) -> Result<RangeInclusive<u64>, String> {
    let parse = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let (from, to) = text.split_once("..").ok_or("write two numbers with .. between, as 1..100")?;
    let range = parse(from)?..=parse(to)?;
    if range.is_empty() { Err("the first is larger than the last".into()) } else { Ok(range) }
}
