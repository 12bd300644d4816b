//! Programs that the lab calls: apt, dpkg, debootstrap, mke2fs and friends.
//!
//! What they print goes to a log, not to the terminal; when one fails, the error shows the end of
//! what it printed. A program that needs root is called through `sudo` when we are not root.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::error::{Error, IoContext, Result};
use crate::text::{file_tail, shell_line};

/// Lines of a failed program's output in the error: enough for apt's explanation.
const TAIL_LINES: usize = 15;

/// Where the output of called programs is kept.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// A log that is appended to; the file is made on first use.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self) -> Result<(File, u64)> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .on("append to the log", &self.path)?;
        let length = file.metadata().on("look at the log", &self.path)?.len();
        Ok((file, length))
    }
}

/// One call of a program, built word by word.
#[derive(Debug)]
pub(crate) struct Tool {
    words: Vec<OsString>,
    directory: Option<PathBuf>,
    advice: &'static str,
}

impl Tool {
    /// Starts a command line; `advice` is what its error tells the user to do.
    pub(crate) fn new(program: impl Into<OsString>, advice: &'static str) -> Self {
        Self { words: vec![program.into()], directory: None, advice }
    }

    /// The same, but run as root: through `sudo` unless we are.
    pub(crate) fn as_root(program: impl Into<OsString>, advice: &'static str) -> Self {
        if rustix::process::geteuid().is_root() {
            return Self::new(program, advice);
        }
        Self::new("sudo", advice).arg("--").arg(program)
    }

    /// Adds a word.
    pub(crate) fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Adds words.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Runs it in this directory.
    pub(crate) fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs it to its end with all output in the log.
    pub(crate) fn run(self, log: &Log) -> Result<()> {
        let (file, start) = self.announce(log)?;
        let errors = file.try_clone().on("share the log", log.path())?;
        let status = self.command().stdout(file).stderr(errors).status();
        self.judge(status, log, start)
    }

    /// Runs it to its end and returns what it wrote to standard output.
    pub(crate) fn output(self, log: &Log) -> Result<String> {
        let (file, start) = self.announce(log)?;
        let output = self.command().stdout(Stdio::piped()).stderr(file).output();
        let (status, text) = match output {
            Ok(output) => (Ok(output.status), output.stdout),
            Err(error) => (Err(error), Vec::new()),
        };
        self.judge(status, log, start)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Runs it with standard output in a file.
    pub(crate) fn output_to(self, target: &Path, log: &Log) -> Result<()> {
        let (file, start) = self.announce(log)?;
        let output = File::create(target).on("create", target)?;
        let status = self.command().stdout(output).stderr(file).status();
        self.judge(status, log, start)
    }

    fn announce(&self, log: &Log) -> Result<(File, u64)> {
        let (mut file, start) = log.open()?;
        writeln!(file, "\n+ {}", shell_line(&self.words)).on("append to the log", log.path())?;
        Ok((file, start))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command
            .args(&self.words[1..])
            // apt's answers are parsed, and logs are for everybody.
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        // Debian keeps mke2fs, depmod and debootstrap where a user's PATH does not look.
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/sbin:/sbin");
        command.env("PATH", path);
        command
    }

    fn judge(self, status: std::io::Result<ExitStatus>, log: &Log, start: u64) -> Result<()> {
        let command = shell_line(&self.words);
        let status = status.map_err(|source| Error::Spawn {
            command: command.clone(),
            advice: self.advice,
            source,
        })?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Command {
            command,
            outcome: outcome(status),
            advice: self.advice,
            tail: file_tail(log.path(), start, TAIL_LINES),
        })
    }
}

/// An exit status in words: "exit status 100", "signal 9".
pub(crate) fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Where a program is, looking where [`Tool`] looks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory: PathBuf| directory.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("log"));
        (dir, log)
    }

    #[test]
    fn a_failure_shows_the_command_its_last_words_and_the_advice() {
        let (_dir, log) = log();
        let error = Tool::new("sh", "ask an adult")
            .args(["-c", "echo out of luck >&2; exit 3"])
            .run(&log)
            .unwrap_err()
            .to_string();
        for part in ["sh -c", "exit status 3", "ask an adult", "out of luck"] {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn a_missing_program_says_what_to_do() {
        let (_dir, log) = log();
        let error = Tool::new("no-such-program", "install it").run(&log).unwrap_err();
        assert!(matches!(error, Error::Spawn { advice: "install it", .. }), "{error}");
    }

    #[test]
    fn the_log_keeps_commands_and_errors_but_not_asked_for_output() {
        let (_dir, log) = log();
        let output = Tool::new("sh", "").args(["-c", "echo yes; echo aside >&2"]).output(&log);
        assert_eq!(output.unwrap(), "yes\n");
        let kept = std::fs::read_to_string(log.path()).unwrap();
        assert!(kept.contains("+ sh -c") && kept.contains("aside\n"), "{kept}");
    }
}
