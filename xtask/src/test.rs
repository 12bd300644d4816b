//! `cargo xtask test`: set-up, format, lints, documentation, unit tests, end-to-end tests; one
//! count at the end.

mod guests;
mod last_lines;

use std::time::Instant;

use clap::{Args, ValueEnum};
use memtide_lab::Kernel;

use crate::lab::Result;
use crate::run::{self, RunError};

/// Arguments of `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Only this part.
    #[arg(value_enum, value_name = "PART")]
    only: Option<Part>,
    /// End-to-end tests on this kernel alone: 6.1, 6.12 or 7.3.
    #[arg(long, value_name = "VERSION")]
    kernel: Option<Kernel>,
    /// End-to-end tests whose names start so alone, such as plain-balloon; truth is played only so.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Guests at once.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Format, lints, documentation.
    Checks,
    /// Unit and property tests.
    Units,
    /// Real guests.
    E2e,
}

/// Runs the tests; the last line is the count.
pub(crate) fn run(arguments: &Test) -> Result<()> {
    let start = Instant::now();
    let wanted = |part| arguments.only.is_none_or(|only| only == part);
    let mut tally = Tally::default();
    if wanted(Part::Checks) {
        tally.join(checks());
    }
    if wanted(Part::Units) {
        tally.join(units()?);
    }
    if wanted(Part::E2e) {
        tally.join(guests::run(arguments.kernel, arguments.scenario.as_deref(), arguments.jobs)?);
    }
    println!("took {:.1} minutes", start.elapsed().as_secs_f64() / 60.0);
    tally.last_lines.iter().for_each(|lines| print!("{lines}"));
    for failure in &tally.failures {
        println!("{failure}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed());
    if tally.failed() > 0 {
        return Err(format!("{} tests failed, named above", tally.failed()).into());
    }
    Ok(())
}

/// Passed and failed, over everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Tests and checks that passed.
    passed: u64,
    /// Those that did not: the line that told so, which is shown once more at the end. Only the end
    /// of a long log may be kept.
    failures: Vec<String>,
    /// What the logs of failed scenarios end with.
    last_lines: Vec<String>,
}

impl Tally {
    /// How many failed.
    fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Adds what another tally counted.
    fn join(&mut self, other: Self) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
        self.last_lines.extend(other.last_lines);
    }
}

/// The guest without the standard library is a workspace of its own.
const HOSTILE_GUEST: &str = "--manifest-path=qemu-tests/hostile-guest/Cargo.toml";
const TARGET: &str = "--target-dir=target/qemu-tests/hostile-guest";

/// Format, lints and documentation: each counts as one test.
fn checks() -> Tally {
    let checks: [(&str, &[&str]); 5] = [
        ("format", &["fmt", "--all", "--check"]),
        ("format of the hostile guest", &["fmt", HOSTILE_GUEST, "--check"]),
        (
            "lints of the hostile guest",
            &["clippy", "--quiet", HOSTILE_GUEST, TARGET, "--", "-Dwarnings"],
        ),
        ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("documentation", &["doc", "--quiet", "--workspace", "--no-deps"]),
    ];
    let mut tally = Tally::default();
    for (name, args) in checks {
        let start = Instant::now();
        println!("checking {name} ...");
        let result = run::run(run::cargo(args).env("RUSTDOCFLAGS", "-D warnings"));
        match result {
            Ok(()) => {
                tally.passed += 1;
                println!("checking {name} ... ok ({:.0?})", start.elapsed());
            }
            Err(error) => {
                let failure = format!("checking {name} ... FAILED: {error}");
                println!("{failure}");
                tally.failures.push(failure);
            }
        }
    }
    tally
}

/// Unit and property tests of every crate.
fn units() -> std::result::Result<Tally, RunError> {
    println!("running unit tests ...");
    let mut command = run::cargo(&["test", "--workspace", "--no-fail-fast"]);
    let (status, text) = run::run_and_read(&mut command)?;
    let mut tally = count(&text);
    for line in text.lines().filter(|line| worth_showing(line)) {
        println!("{line}");
    }
    if !status.success() && tally.failed() == 0 {
        // It did not build, or a test process died before it could count.
        println!("{text}");
        tally.failures.push("unit tests ... FAILED: they did not build or did not end".into());
    }
    println!("unit tests: {} passed, {} failed", tally.passed, tally.failed());
    Ok(tally)
}

/// Lines of a failed test; the many lines of those that passed tell nobody anything.
fn worth_showing(line: &str) -> bool {
    let passed = line.starts_with("test ") && line.ends_with(" ok");
    let frame =
        line.is_empty() || line.starts_with("running ") || line.starts_with("test result: ok");
    !(passed || frame)
}

/// Sums the lines `test result: ok. 3 passed; 0 failed; ...` that libtest prints, and keeps those of
/// failed tests, `test name ... FAILED`.
fn count(text: &str) -> Tally {
    let passed = |line: &str| -> u64 {
        let before = line.split("passed").next().unwrap_or_default().trim_end();
        before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let is_failure = |line: &&str| line.starts_with("test ") && line.ends_with(" FAILED");
    Tally {
        passed: text.lines().filter(|line| line.starts_with("test result:")).map(passed).sum(),
        failures: text.lines().filter(is_failure).map(String::from).collect(),
        ..Tally::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_libtest_prints() {
        let text = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
            test result: ok. 41 passed; 0 failed; 0 ignored\n";
        let failures = vec!["test b ... FAILED".to_owned()];
        assert_eq!(count(text), Tally { passed: 42, failures, ..Tally::default() });
    }

    #[test]
    fn shows_failures_and_hides_the_rest() {
        assert!(worth_showing("test b ... FAILED"));
        assert!(worth_showing("thread 'b' panicked at src/lib.rs:1:1:"));
        assert!(!worth_showing("test a ... ok"));
        assert!(!worth_showing("test result: ok. 1 passed; 0 failed"));
    }
}
