//! Running a program to its end.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memtide_lab::guest::protocol::Outcome;

use crate::output::{Collected, OUTPUT_GRACE};
use crate::wait::wait_until;

/// Runs `argv` and collects what it prints.
pub(crate) fn run(argv: &[String], timeout_ms: u64, stdin: String) -> Result<Outcome, String> {
    let until = Instant::now() + Duration::from_millis(timeout_ms);
    let mut child = start(argv, Stdio::piped())?;
    if let Some(mut pipe) = child.stdin.take() {
        // In a thread: a program may print before it has read everything, or never read.
        thread::spawn(move || pipe.write_all(stdin.as_bytes()));
    }
    let stdout = child.stdout.take().map(Collected::from);
    let stderr = child.stderr.take().map(Collected::from);
    let ending = wait_until(&mut child, until).map_err(|error| format!("wait: {error}"))?;
    let text = |collected: Option<Collected>| {
        collected.map(|collected| collected.take(OUTPUT_GRACE)).unwrap_or_default()
    };
    Ok(Outcome::Ran { ending, stdout: text(stdout), stderr: text(stderr) })
}

/// Starts a program in a process group of its own, with its output in pipes.
pub(crate) fn start(argv: &[String], stdin: Stdio) -> Result<Child, String> {
    let (program, arguments) = argv.split_first().ok_or("there is no program to run")?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    make_killable(&child);
    Ok(child)
}

/// We are the last to be killed when memory runs out; what we run for a test must not be.
fn make_killable(child: &Child) {
    // It may have ended already, and outside a guest we have no right to ask.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_lab::guest::protocol::Ending;

    fn sh(script: &str, timeout_ms: u64, stdin: &str) -> (Ending, String, String) {
        let argv = ["sh", "-c", script].map(str::to_owned);
        match run(&argv, timeout_ms, stdin.to_owned()).unwrap() {
            Outcome::Ran { ending, stdout, stderr } => (ending, stdout, stderr),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_outputs_and_the_code_come_back() {
        let (ending, stdout, stderr) = sh("cat; echo no >&2; exit 4", 60_000, "in");
        assert_eq!((ending, stdout.as_str(), stderr.as_str()), (Ending::Code(4), "in", "no\n"));
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children_and_its_words_are_kept() {
        let started = Instant::now();
        let (ending, stdout, _) = sh("echo before; sleep 600 | cat", 200, "");
        assert_eq!((ending, stdout.as_str()), (Ending::TimedOut, "before\n"));
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_daemon_left_behind_does_not_hold_the_answer_back() {
        let started = Instant::now();
        let (ending, stdout, _) = sh("setsid sleep 20 & echo done", 60_000, "");
        assert_eq!((ending, stdout.as_str()), (Ending::Code(0), "done\n"));
        assert!(started.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&["no-such-program".to_owned()], 1000, String::new()).unwrap_err();
        assert!(error.contains("no-such-program"), "{error}");
        assert!(run(&[], 1000, String::new()).is_err());
    }
}
