//! Sub-processes of the tasks: started, watched and named when they fail.

use std::process::{Command, ExitStatus, Stdio};

/// A step that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The program could not be started.
    #[error("cannot start {program}: {source}; is it installed and in PATH?")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("{command} failed ({status})")]
    Failed {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
}

/// `cargo` with `args`, the one that runs this task.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs `command` to its end with its output on ours.
pub(crate) fn run(command: &mut Command) -> Result<(), RunError> {
    let status = command.status().map_err(|source| start_error(command, source))?;
    if status.success() { Ok(()) } else { Err(failed(command, status)) }
}

/// Runs `command` to its end, shows its output and returns what it printed on stdout.
pub(crate) fn run_and_read(command: &mut Command) -> Result<(ExitStatus, String), RunError> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| start_error(command, source))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status, text))
}

fn start_error(command: &Command, source: std::io::Error) -> RunError {
    RunError::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn failed(command: &Command, status: ExitStatus) -> RunError {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    RunError::Failed { command: words.join(" "), status }
}
