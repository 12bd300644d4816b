//! `cargo xtask fuzz`: long runs of the fuzz targets under libFuzzer, one after the other.
//!
//! The stable toolchain suffices: coverage instrumentation is an LLVM pass that `-C` options
//! reach, and no sanitizer is used (they need a nightly; what they would find is looked for in the
//! targets themselves: leaks of descriptors, mappings and memory, and limits on allocations).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use memtide_lab::Cache;
use memtide_lab::setup::{self, Printed};

use crate::lab::Result;
use crate::run::{self, RunError};

/// What cargo-fuzz gives to rustc for `--sanitizer none`.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Ccodegen-units=1 --cfg fuzzing";

/// Where results go, each target's in a directory of its own.
const RESULTS: &str = "artifacts/fuzz";

/// Longer inputs take longer and find nothing that shorter ones do not: in bytes.
const LEN_MAX: usize = 512;

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(15);

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// Only this target (default: all, one after the other).
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// Inputs that each target is given.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    runs: u64,
    /// Gives TARGET this one input instead: what a run that failed has left behind.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Puts those inputs that earlier runs found and that reach something new into TARGET's corpus.
    #[arg(long, requires = "target", conflicts_with = "input")]
    keep: bool,
}

/// Builds the targets and runs them.
pub(crate) fn run(arguments: &Fuzz) -> Result<()> {
    let targets = targets(arguments.target.as_deref())?;
    setup::host_programs(&Cache::of_user()?, &[("c++", "g++")], &mut Printed::on_stderr())?;
    let binaries = build(&targets)?;
    if let Some(input) = &arguments.input {
        return Ok(run::run(Command::new(&binaries[0]).arg(input))?);
    }
    let mut failed = Vec::new();
    for (target, binary) in targets.iter().zip(&binaries) {
        let place = Place::of(target)?;
        if arguments.keep {
            place.keep(binary)?;
            continue;
        }
        let outcome = fuzz(binary, &place, arguments.runs)?;
        let line = outcome.summary(target, arguments.runs);
        println!("{line}");
        append(Path::new(RESULTS), &line)?;
        if outcome.crash.is_some() {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("{} failed", failed.join(", ")).into()) }
}

/// The names of the targets: those of the files in `fuzz/fuzz_targets`.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("fuzz/fuzz_targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    let Some(only) = only else { return Ok(names) };
    if !names.iter().any(|name| name == only) {
        return Err(format!("there is no target {only}: choose of {}", names.join(", ")).into());
    }
    Ok(vec![only.to_owned()])
}

/// Builds the binaries of these targets, instrumented; returns where they lie.
fn build(targets: &[String]) -> Result<Vec<PathBuf>> {
    let start = Instant::now();
    eprintln!("building the fuzz targets (some minutes the first time) ...");
    // Named although it is the host's: without it build scripts would be instrumented, too.
    let triple = host_triple()?;
    let target_dir = std::path::absolute("target/fuzz")?;
    let mut command = run::cargo(&["build", "--release", "--manifest-path", "fuzz/Cargo.toml"]);
    command.args(["--target", &triple]).arg("--target-dir").arg(&target_dir);
    command.args(targets.iter().flat_map(|target| ["--bin", target.as_str()]));
    run::run(command.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    eprintln!("building the fuzz targets ... done in {:.1} s", start.elapsed().as_secs_f64());
    let dir = target_dir.join(triple).join("release");
    Ok(targets.iter().map(|target| dir.join(target)).collect())
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let (_, text) = run::run_and_read(Command::new(rustc).arg("-vV"))?;
    let triple = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(triple.ok_or("rustc -vV does not name its host")?.to_owned())
}

/// Where one target's inputs and results lie.
struct Place {
    /// Kept in the repository; read only.
    seeds: PathBuf,
    /// What runs here have found.
    found: PathBuf,
    results: PathBuf,
}

impl Place {
    fn of(target: &str) -> Result<Self> {
        let results = Path::new(RESULTS).join(target);
        let place = Self {
            seeds: Path::new("fuzz/corpus").join(target),
            found: results.join("corpus"),
            results,
        };
        std::fs::create_dir_all(&place.found)?;
        std::fs::create_dir_all(&place.seeds)?;
        Ok(place)
    }

    fn keep(&self, binary: &Path) -> Result<()> {
        let mut command = Command::new(binary);
        command.arg("-merge=1").arg(&self.seeds).arg(&self.found);
        Ok(run::run(&mut command)?)
    }
}

/// How a run ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Inputs that were tried; those before a crash where there was one.
    executions: u64,
    took: Duration,
    /// Edges of the program that were reached.
    edges: u64,
    /// The line that names the input which failed.
    crash: Option<String>,
}

impl Outcome {
    /// Takes in a line of libFuzzer's, such as `#1024 pulse cov: 512 ft: 900 corp: 60/2Kb ...`.
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let count = words.first().and_then(|word| word.strip_prefix('#')?.parse().ok());
        if let Some(executions) = count {
            self.executions = self.executions.max(executions);
        }
        let edges = words.iter().position(|word| *word == "cov:").and_then(|at| words.get(at + 1));
        if let Some(edges) = edges.and_then(|edges| edges.parse().ok()) {
            self.edges = edges;
        }
        if line.contains("Test unit written to") {
            self.crash = Some(line.trim().to_owned());
        }
    }

    fn summary(&self, target: &str, wanted: u64) -> String {
        let seconds = self.took.as_secs_f64();
        let rate = self.executions as f64 / seconds.max(0.001);
        let Self { executions, edges, .. } = self;
        let end = self.crash.as_deref().unwrap_or("no crash");
        format!(
            "{target}: {executions} executions of {wanted} in {seconds:.0} s ({rate:.0}/s), {edges} edges, {end}"
        )
    }
}

fn fuzz(binary: &Path, place: &Place, runs: u64) -> Result<Outcome> {
    let start = Instant::now();
    let mut command = Command::new(binary);
    command
        .arg(format!("-runs={runs}"))
        .arg(format!("-artifact_prefix={}/", place.results.display()))
        .args(["-timeout=10", "-print_final_stats=1"])
        .arg(format!("-max_len={LEN_MAX}"))
        .args([&place.found, &place.seeds])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let program = binary.to_string_lossy().into_owned();
    let mut child =
        command.spawn().map_err(|source| RunError::Start { program: program.clone(), source })?;
    let mut log = File::create(place.results.join("run.log"))?;
    let (mut outcome, mut told) = (Outcome::default(), start);
    for line in
        child.stderr.take().into_iter().flat_map(|stderr| BufReader::new(stderr).split(b'\n'))
    {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        outcome.read(&line);
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("  {}", line.trim());
        }
    }
    let status = child.wait()?;
    outcome.took = start.elapsed();
    if !status.success() && outcome.crash.is_none() {
        outcome.crash = Some(format!("it ended with {status}: see run.log"));
    }
    Ok(outcome)
}

/// One line more in the list of all runs.
fn append(results: &Path, line: &str) -> Result<()> {
    let path = results.join("summary.txt");
    let mut file = File::options().append(true).create(true).open(path)?;
    Ok(writeln!(file, "{line}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_prints_is_understood() {
        let mut outcome = Outcome::default();
        for line in [
            "INFO: Seed: 3286226121",
            "#2\tINITED cov: 13 ft: 13 corp: 1/1b exec/s: 0 rss: 42Mb",
            "#65536\tpulse  cov: 700 ft: 2000 corp: 90/4Kb lim: 652 exec/s: 32768 rss: 60Mb",
            "#65536\tDONE   cov: 701 ft: 2000 corp: 90/4Kb lim: 652 exec/s: 32768 rss: 60Mb",
            "Done 65536 runs in 2 second(s)",
        ] {
            outcome.read(line);
        }
        assert_eq!((outcome.executions, outcome.edges), (65_536, 701));
        assert_eq!(outcome.crash, None);
        outcome.read("artifact_prefix='./'; Test unit written to ./crash-43994ded");
        assert!(outcome.summary("wire", 100_000).ends_with("crash-43994ded"));
    }
}
