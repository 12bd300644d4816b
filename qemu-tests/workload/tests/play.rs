//! The program as a runner meets it: started, signalled, and read line by line.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as the tests themselves")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Far more than any step here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn workload() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memtide-workload"));
    command.arg("play").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    workload().args(arguments).output().unwrap()
}

fn events(output: &Output) -> Vec<Value> {
    let text = str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A running program whose lines are read one by one.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // A thread reads, so that a program that says nothing more fails the test in time.
        thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap())));
        Self { child, lines }
    }

    /// Reads on until a line of this kind.
    fn until(&mut self, event: &str) -> Value {
        loop {
            let line = self.lines.recv_timeout(DEADLINE);
            let line = line.unwrap_or_else(|error| panic!("no line {event}: {error}"));
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["event"] == event {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::yield_now();
    }
}

#[test]
fn a_good_run_says_what_it_did_and_exits_with_zero() {
    let script = "alloc heap 4MiB; hot heap 1MiB 20ms; free heap 2MiB; grow heap 1MiB; verify";
    let output = run(&["--tlb-neighbour", "off", script]);
    assert_eq!(output.status.code(), Some(0));
    let events = events(&output);
    assert_eq!((&events[0]["event"], &events[0]["steps"]), (&"start".into(), &5.into()));
    let summary = events.last().unwrap();
    assert_eq!((&summary["event"], &summary["pages_bad"]), (&"summary".into(), &0.into()));
    assert!(summary["pages_checked"].as_u64().unwrap() >= 768, "{summary}");
    assert!(summary["max_stall_us"].is_u64() && summary["seconds"].is_f64(), "{summary}");
}

/// Only root learns where pages lie, and only a kernel with memory hotplug has blocks; whoever cannot be
/// told hears so, and the script goes on.
#[test]
fn a_census_has_every_page_in_a_block_or_says_why_not() {
    let script = "alloc heap 4MiB; hot heap 1MiB 60min";
    let mut running = Running::start(workload().args(["--census", "100ms", script]));
    running.until("progress");
    let has_blocks = Path::new("/sys/devices/system/memory/block_size_bytes").exists();
    if rustix::process::geteuid().is_root() && has_blocks {
        let census = running.until("census");
        let blocks = census["blocks"].as_array().unwrap();
        let sum = |name: &str| blocks.iter().map(|block| block[name].as_u64().unwrap()).sum();
        let (pages, hot): (u64, u64) = (sum("pages"), sum("hot"));
        assert_eq!((pages, hot), (1024, 1024), "all was written within the minute: {census}");
    } else {
        let error = running.until("error");
        assert!(error["message"].as_str().unwrap().contains("cannot count pages"), "{error}");
    }
    running.signal(Signal::TERM);
    running.until("summary");
    let next = running.lines.recv_timeout(DEADLINE);
    assert!(next.is_err(), "the summary is the last line: {next:?}");
}

#[test]
fn a_wrong_script_is_refused_before_anything_is_played() {
    let output = run(&["alloc heap 4MiB; free heap 8MiB"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("column 28, \"8MiB\""), "{message}");
    assert_eq!(run(&["--script", "/nowhere/script"]).status.code(), Some(2));
}

#[test]
fn what_the_kernel_refuses_ends_with_a_summary_and_code_three() {
    let output = run(&["--dir", "/proc/nothing", "files 64KiB 1ms"]);
    assert_eq!(output.status.code(), Some(3));
    let events = events(&output);
    let kinds: Vec<_> = events.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "phase", "error", "summary"]);
}

#[test]
fn a_page_that_something_else_zeroes_is_found_and_ends_in_code_one() {
    let mut running = Running::start(workload().arg("alloc heap 16MiB; wait; verify"));
    running.until("waiting");
    let address = middle_of_memory(running.child.id());
    let memory = format!("/proc/{}/mem", running.child.id());
    let memory = fs::OpenOptions::new().write(true).open(memory).unwrap();
    memory.write_all_at(&[0; 4096], address).unwrap();
    running.signal(Signal::USR1);
    let bad = running.until("bad_page");
    assert_eq!((&bad["kind"], &bad["region"]), (&"zeroed".into(), &"heap".into()));
    assert_eq!(bad["address"], format!("{address:#x}").as_str());
    assert_eq!(running.until("summary")["pages_bad"], 1);
    assert_eq!(running.child.wait().unwrap().code(), Some(1));
}

/// An address well inside the 16 MiB of a workload: its only writable memory that is so large.
fn middle_of_memory(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let end = maps.lines().find_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let (end, rest) = rest.split_once(' ')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        (rest.starts_with("rw") && end - start >= 16 << 20).then_some(end)
    });
    end.unwrap_or_else(|| panic!("no such mapping:\n{maps}")) - (8 << 20)
}

#[test]
fn a_termination_ends_any_phase_with_its_summary() {
    let mut running = Running::start(workload().arg("alloc heap 1MiB; hot heap 1MiB 60min"));
    running.until("progress");
    running.signal(Signal::TERM);
    let summary = running.until("summary");
    assert_eq!((&summary["outcome"], &summary["pages_bad"]), (&"interrupted".into(), &0.into()));
    assert!(summary["pages_checked"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_host_steps_phases_by_signal_by_line_and_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let (script, go_file) = (dir.path().join("script"), dir.path().join("go"));
    fs::write(&script, "repeat 3 {\n  wait\n}\nidle 0s").unwrap();
    let mut command = workload();
    command.arg("--script").arg(&script).arg("--go-file").arg(&go_file).stdin(Stdio::piped());
    let mut running = Running::start(&mut command);
    running.until("waiting");
    running.signal(Signal::USR1);
    assert_eq!(running.until("go")["by"], "signal");
    running.until("waiting");
    running.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(running.until("go")["by"], "stdin");
    running.until("waiting");
    fs::write(&go_file, "now").unwrap();
    assert_eq!(running.until("go")["by"], "file");
    assert_eq!(running.until("summary")["outcome"], "finished");
}

#[test]
fn neighbours_keep_to_their_processor_and_end_with_the_workload_however_it_ends() {
    let mut running = Running::start(workload().args(["--tlb-neighbour", "on", "idle 60min"]));
    let said = running.until("tlb_neighbours");
    let numbers = |key: &str| said[key].as_array().unwrap().iter().map(Value::to_string).collect();
    let (cpus, pids): (Vec<String>, Vec<String>) = (numbers("cpus"), numbers("pids"));
    assert!(!cpus.is_empty());
    assert_eq!(cpus.len(), pids.len());
    for (cpu, pid) in cpus.iter().zip(&pids) {
        let pinned = format!("Cpus_allowed_list:\t{cpu}\n");
        let status = Path::new("/proc").join(pid).join("status");
        let is_pinned = || fs::read_to_string(&status).is_ok_and(|text| text.contains(&pinned));
        eventually("the neighbour is pinned", is_pinned);
    }
    running.signal(Signal::KILL);
    running.child.wait().unwrap();
    for pid in pids {
        eventually("the neighbour is gone", || !is_alive(&pid));
    }
}

/// False for a process that ended, also where nobody has asked for its exit code yet.
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest.trim_start());
    !(state.is_empty() || state.starts_with(['Z', 'X']))
}
