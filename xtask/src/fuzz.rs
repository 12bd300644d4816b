//! `cargo xtask fuzz`: long runs of the fuzz targets under libFuzzer.
//!
//! The stable toolchain suffices: coverage instrumentation is an LLVM pass that `-C` options
//! reach, and no sanitizer is used (they need a nightly; what they would find is looked for in the
//! targets themselves: leaks of descriptors, mappings and memory, and limits on allocations).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
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

/// How libFuzzer ends where it was told to (`InterruptExitCode` in its FuzzerOptions.h).
const INTERRUPTED: i32 = 72;

/// Time between two lines of progress of a target.
const PROGRESS: Duration = Duration::from_secs(15);

/// Seconds by the clock after which an input has hung. The targets limit the processor's time
/// themselves: a machine that is suspended, for a measurement say, or busy is not to look like a hang.
const TIMEOUT: u32 = 7200;

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// Only these targets (default: all).
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Inputs that each target is given.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    runs: u64,
    /// Targets that run at the same time, each on a processor of its own.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
    /// Gives the one TARGET this one input instead: what a run that failed has left behind.
    #[arg(long, value_name = "FILE", requires = "targets")]
    input: Option<PathBuf>,
    /// Puts a few of the inputs that earlier runs found, which reach all that is new, into the corpora
    /// of the TARGETs instead.
    #[arg(long, requires = "targets", conflicts_with = "input")]
    keep: bool,
}

/// Builds the targets and runs them.
pub(crate) fn run(arguments: &Fuzz) -> Result<()> {
    let targets = targets(&arguments.targets)?;
    if arguments.input.is_some() && targets.len() != 1 {
        return Err("an input goes to one target: name that alone".into());
    }
    setup::host_programs(&Cache::of_user()?, &[("c++", "g++")], &mut Printed::on_stderr())?;
    let binaries = build(&targets)?;
    if let Some(input) = &arguments.input {
        return Ok(run::run(Command::new(&binaries[0]).arg(input))?);
    }
    let runs = targets.iter().map(String::as_str).zip(&binaries);
    if arguments.keep {
        return runs.into_iter().try_for_each(|(target, binary)| Place::of(target)?.keep(binary));
    }
    fuzz_all(runs, arguments.runs, arguments.jobs)
}

/// The names of the targets, those of the files in `fuzz/fuzz_targets`; of `only` these if it names
/// any.
fn targets(only: &[String]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("fuzz/fuzz_targets")? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    if let Some(unknown) = only.iter().find(|only| !names.contains(only)) {
        return Err(format!("there is no target {unknown}: choose of {}", names.join(", ")).into());
    }
    names.retain(|name| only.is_empty() || only.contains(name));
    Ok(names)
}

/// Runs the targets, so many at a time. One that fails does not stop the others.
fn fuzz_all<'a>(
    targets: impl Iterator<Item = (&'a str, &'a PathBuf)> + Send,
    runs: u64,
    jobs: NonZeroUsize,
) -> Result<()> {
    let (queue, ends) = (Mutex::new(targets), Mutex::new(Vec::new()));
    let next = || queue.lock().ok()?.next();
    let work = || {
        while let Some((target, binary)) = next() {
            let end = match fuzz(target, binary, runs) {
                Ok(outcome) => outcome.end.failure(target),
                Err(error) => Some(format!("{target} could not be run: {error}")),
            };
            ends.lock().map(|mut ends| ends.extend(end)).unwrap_or_default();
        }
    };
    std::thread::scope(|scope| (0..jobs.get()).for_each(|_| drop(scope.spawn(work))));
    let failures = ends.into_inner().unwrap_or_default();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
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

    /// Few inputs that reach every edge that those found do, not one for each count of a loop: a
    /// corpus in a repository is small.
    fn keep(&self, binary: &Path) -> Result<()> {
        let mut command = Command::new(binary);
        command.args(["-set_cover_merge=1", "-use_counters=0"]);
        command.arg(format!("-max_len={LEN_MAX}")).arg(&self.seeds).arg(&self.found);
        Ok(run::run(&mut command)?)
    }
}

/// What came of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Inputs that were tried; those before a crash where there was one.
    executions: u64,
    took: Duration,
    /// Edges of the program that were reached.
    edges: u64,
    end: End,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    NoCrash,
    /// On the input in this file.
    Crash(String),
    /// It was stopped, or libFuzzer itself failed: with this status.
    Other(String),
}

impl End {
    /// What somebody is told who has to do something about it.
    fn failure(&self, target: &str) -> Option<String> {
        match self {
            Self::NoCrash => None,
            Self::Crash(input) => Some(format!(
                "{target} failed: why stands in {RESULTS}/{target}/run.log, and \
                 `cargo xtask fuzz {target} --input {input}` does it again"
            )),
            Self::Other(status) => {
                Some(format!("{target} {status}: why stands in {RESULTS}/{target}/run.log"))
            }
        }
    }
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
        if let Some((_, input)) = line.split_once("Test unit written to ") {
            self.end = End::Crash(input.trim().to_owned());
        }
    }

    fn progress(&self, target: &str, wanted: u64, elapsed: Duration) -> String {
        let Self { executions, edges, .. } = self;
        let rate = *executions as f64 / elapsed.as_secs_f64().max(0.001);
        let left =
            Duration::from_secs_f64(wanted.saturating_sub(*executions) as f64 / rate.max(1.0));
        let minutes = left.as_secs().div_ceil(60);
        format!("{target}: {executions} inputs, {edges} edges, about {minutes} min to go")
    }

    fn summary(&self, target: &str, wanted: u64) -> String {
        let seconds = self.took.as_secs_f64();
        let rate = self.executions as f64 / seconds.max(0.001);
        let Self { executions, edges, .. } = self;
        let end = match &self.end {
            End::NoCrash => "no crash",
            End::Crash(input) => &format!("crash on {input}"),
            End::Other(status) => status,
        };
        format!(
            "{target}: {executions} inputs of {wanted} in {seconds:.0} s ({rate:.0}/s), {edges} edges, {end}"
        )
    }
}

/// Runs a target, and tells how it went.
fn fuzz(target: &str, binary: &Path, runs: u64) -> Result<Outcome> {
    let (start, place) = (Instant::now(), Place::of(target)?);
    let mut command = Command::new(binary);
    command
        .arg(format!("-runs={runs}"))
        .arg(format!("-artifact_prefix={}/", place.results.display()))
        .args([format!("-timeout={TIMEOUT}"), format!("-report_slow_units={TIMEOUT}")])
        // Slow inputs are tried less often: a few of them took two thirds of the time of `rings`.
        .args(["-print_final_stats=1", "-entropic_scale_per_exec_time=1"])
        .arg(format!("-max_len={LEN_MAX}"))
        .args([&place.found, &place.seeds])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let program = binary.to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|source| RunError::Start { program, source })?;
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
            eprintln!("  {}", outcome.progress(target, runs, start.elapsed()));
        }
    }
    let status = child.wait()?;
    outcome.took = start.elapsed();
    if !status.success() && outcome.end == End::NoCrash {
        outcome.end = End::Other(match status.code() {
            Some(INTERRUPTED) => "was stopped".into(),
            _ => format!("ended with {status}"),
        });
    }
    let line = outcome.summary(target, runs);
    println!("{line}");
    append(Path::new(RESULTS), &line)?;
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
        assert_eq!(outcome.end, End::NoCrash);
        assert!(outcome.summary("wire", 65_536).ends_with("701 edges, no crash"));
    }

    #[test]
    fn whoever_has_to_look_is_told_at_what() {
        let mut outcome = Outcome::default();
        outcome.read("artifact_prefix='a/'; Test unit written to a/crash-43994ded");
        assert!(outcome.summary("wire", 9).ends_with("crash on a/crash-43994ded"));
        let failure = outcome.end.failure("wire").unwrap_or_default();
        assert!(failure.contains("`cargo xtask fuzz wire --input a/crash-43994ded`"), "{failure}");
    }

    #[test]
    fn what_is_left_is_told_in_minutes() {
        let outcome = Outcome { executions: 1000, ..Outcome::default() };
        let line = outcome.progress("wire", 10_000, Duration::from_secs(20));
        assert_eq!(line, "wire: 1000 inputs, 0 edges, about 3 min to go");
    }
}
