//! cargo xtask: the demo, the tests, the measurements, the lab that all of them run in, and fuzzing.

mod bench;
mod demo;
mod fuzz;
mod lab;
mod programs;
mod run;
mod test;
mod torture;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What developers of Memtide run.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show Memtide at work in a real guest: live, then as a summary, a picture and a report.
    Demo(demo::Demo),
    /// Run every test: format, lints, documentation, units, end to end in real guests.
    Test(test::Test),
    /// Feed the fuzz targets for long: results and a summary line for each in artifacts/fuzz.
    Fuzz(fuzz::Fuzz),
    /// Long runs that do harsh things over and over, for evidence.
    Torture(torture::Arguments),
    /// Measure how fast Memtide is, beside what else there is.
    #[command(subcommand)]
    Bench(bench::Task),
    /// Real machines to try things on: QEMU, Debian kernels, a systemd guest.
    #[command(subcommand)]
    Lab(lab::Task),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Torture(arguments) => torture::run(&arguments),
        Task::Bench(task) => bench::run(&task),
        Task::Lab(task) => lab::run(&task),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// An error and what caused it, outermost first.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!("\n  because: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_error_is_printed_with_its_causes() {
        let error = memtide_lab::Cache::at("/proc/nowhere").unwrap_err();
        let text = chain(&error);
        assert!(text.contains("/proc/nowhere\n  because: No such file"), "{text}");
    }
}
