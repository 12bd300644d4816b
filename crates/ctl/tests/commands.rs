//! The program as its users start it, against servers that only pretend.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memtide_access::{Digest, Heat, History, Limits, Region, Snapshot, WorkingSet};
use memtide_api::device::*;
use memtide_api::http::{HostStatus, VmAccess, VmStatus};
use memtide_api::line::to_line;
use memtide_units::{ByteSize, Gpa, GpaRange, Permille};

fn memtide(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memtide"));
    command.env("MEMTIDE_SOCKET", socket).args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A memtided that gives these answers, one connection each; ends with what it was asked.
fn memtided(socket: &Path, answers: Vec<String>) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || answers.into_iter().map(|body| answer(&listener, &body)).collect())
}

fn answer(listener: &UnixListener, body: &str) -> String {
    let mut reader = BufReader::new(listener.accept().unwrap().0);
    let (mut asked, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap();
        }
        if asked.is_empty() {
            asked = line.trim_end_matches(" HTTP/1.1\r\n").into();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut sent = vec![0; length];
    reader.read_exact(&mut sent).unwrap();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    reader.get_mut().write_all(head.as_bytes()).unwrap();
    format!("{asked} {}", text(&sent)).trim_end().into()
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap()
}

#[test]
fn status_is_a_table_or_json() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let answer = json(&HostStatus::default()).replacen('{', r#"{"of_a_newer_version":1,"#, 1);
    let server = memtided(&socket, vec![answer.clone(), answer]);
    let table = memtide(&socket, &["status"]);
    assert!(text(&table.stdout).starts_with("Budget  0 B"), "{table:?}");
    assert!(!text(&table.stdout).contains('\x1b'), "no colours into a pipe");
    let raw = memtide(&socket, &["status", "--json"]);
    let raw: serde_json::Value = serde_json::from_slice(&raw.stdout).unwrap();
    assert_eq!(raw["of_a_newer_version"], 1, "what is not known yet is passed on");
    assert_eq!(server.join().unwrap(), ["GET /v1/host", "GET /v1/host"]);
}

#[test]
fn changes_are_put_as_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let vm = json(&VmStatus { memory: ByteSize::from_mib(1), ..VmStatus::default() });
    let host = json(&HostStatus::default());
    let answers = vec![vm.clone(), vm.clone(), vm, host.clone(), host];
    let server = memtided(&socket, answers);
    for arguments in [
        &["vm", "web 1", "set", "--min", "1KiB", "--max", "none"][..],
        &["vm", "web1", "set", "--target", "all"],
        &["host", "set", "--budget", "2KiB"],
        &["host", "set", "--budget", "host"],
    ] {
        let output = memtide(&socket, arguments);
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(
        server.join().unwrap(),
        [
            r#"PUT /v1/vms/web%201 {"min":1024,"max":18446744073709551615}"#,
            "GET /v1/vms/web1",
            r#"PUT /v1/vms/web1 {"target":1048576}"#,
            r#"PUT /v1/host {"budget":{"bytes":2048}}"#,
            r#"PUT /v1/host {"budget":"host"}"#,
        ]
    );
}

/// A VM of 8 MiB: half of it hot, the rest stolen.
fn access(age_ms: u64) -> String {
    let memory = GpaRange::new(Gpa(0), ByteSize::from_mib(8)).unwrap();
    let mut history = History::new(Limits::HOST);
    for at in 1..=20 {
        let layout = history.layout(&[memory]).unwrap();
        let age = Duration::from_secs(40);
        let hot = GpaRange::new(Gpa(0), ByteSize::from_mib(4)).unwrap();
        let stolen = GpaRange::new(Gpa(4 << 20), ByteSize::from_mib(4)).unwrap();
        let seen = Snapshot {
            at_ms: at * 10_000,
            watched: age,
            regions: &[Region { range: hot, accessed: Permille(900), age }],
            stolen: &[stolen],
            free: ByteSize::ZERO,
            mix: None,
            touched: None,
        };
        history.observe(Digest::of(layout, &seen));
    }
    json(&VmAccess { age_ms, history })
}

#[test]
fn what_a_vm_touches_is_drawn_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, picture) = (folder.path().join("sock"), folder.path().join("heat.png"));
    let answers = vec![access(1_000), access(90_000), access(0), access(0), access(0)];
    let server = memtided(&socket, answers);
    let run = |arguments: &[&str]| {
        let output = memtide(&socket, arguments);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).to_owned()
    };
    let map = run(&["heat", "web1", "--width", "60"]);
    assert!(map.contains("0x0 |9999") && map.contains("0x700000 |////"), "{map}");
    assert!(map.lines().all(|line| line.len() <= 75) && !map.contains('\x1b'), "{map}");
    let set = run(&["wss", "web1"]);
    assert!(set.starts_with("Its agent told this 1 min 30 s ago, and nothing since."), "{set}");
    assert!(set.contains("100 %") && set.contains("4 MiB"), "{set}");
    assert_eq!(run(&["heat", "web1", "--png", picture.to_str().unwrap()]).lines().count(), 1);
    assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));
    let heat: Heat = serde_json::from_str(&run(&["heat", "web1", "--json"])).unwrap();
    assert_eq!((heat.addresses.len(), heat.columns[0].kinds.as_str()), (8, "uuuussss"));
    let set: WorkingSet = serde_json::from_str(&run(&["wss", "web1", "--json"])).unwrap();
    assert_eq!(set.now.touched, Some(ByteSize::from_mib(4)));
    assert_eq!(server.join().unwrap(), ["GET /v1/vms/web1/access"; 5]);
}

#[test]
fn a_missing_memtided_is_an_error_with_a_remedy() {
    let output = memtide(Path::new("/nowhere/sock"), &["status"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("/nowhere/sock") && said.contains("--socket PATH"), "{said}");
}

/// A device that answers calls, takes a target, and hangs up on who does not ask any more: on one
/// who only watches after the event that it sends to all.
fn device(socket: &Path, clients: usize) -> JoinHandle<Vec<Request>> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let mut heard = Vec::new();
        let mut status = DeviceStatus::default();
        for _ in 0..clients {
            let stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            serve(&stream, &mut status, &mut heard);
        }
        heard
    })
}

fn serve(mut stream: &UnixStream, status: &mut DeviceStatus, heard: &mut Vec<Request>) {
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let Ok(line) = line else { return };
        let Call { id, call } = serde_json::from_str(&line).unwrap();
        if let Request::SetTarget { balloon } = call {
            status.target = balloon;
        }
        let answer = match call {
            Request::SetTarget { .. } => Answer::Done,
            _ => Answer::Status(Box::new(status.clone())),
        };
        let reply = FromDevice::Reply(Reply { id, result: Outcome::Ok(answer) });
        let _ = stream.write_all(&to_line(&reply).unwrap());
        if matches!(call, Request::Attach { .. }) {
            let event = Event::ReturnCancelled { ticket: 3 };
            let _ = stream.write_all(&to_line(&FromDevice::Event { event }).unwrap());
        }
        heard.push(call);
    }
}

#[test]
fn a_device_is_shown_watched_and_given_a_target() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sock");
    let path = socket.to_str().unwrap();
    let server = device(&socket, 4);
    let none = Path::new("/nowhere");
    let shown = memtide(none, &["device", path, "status"]);
    assert!(text(&shown.stdout).starts_with("Device process 0\n"), "{shown:?}");
    let target = memtide(none, &["device", path, "target", "1GiB"]);
    assert!(text(&target.stdout).contains("shall be 1 GiB; it is 0 B"), "{target:?}");
    let json = memtide(none, &["--json", "device", path, "status"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["target"], 1 << 30);
    // No terminal takes the output: lines for programs.
    let watched = memtide(none, &["device", path, "watch"]);
    let lines: Vec<&str> = text(&watched.stdout).lines().collect();
    assert!(lines[0].contains(r#""status":{"pid":0"#), "{watched:?}");
    assert!(lines[1].ends_with(r#""event":{"return_cancelled":{"ticket":3}}}"#), "{watched:?}");
    assert!(text(&watched.stderr).contains("closed the connection"));
    assert_eq!(watched.status.code(), Some(3));
    let heard = server.join().unwrap();
    assert!(heard.contains(&Request::Attach { version: VERSION, role: Role::Observer }));
    assert!(heard.contains(&Request::SetTarget { balloon: ByteSize::from_gib(1) }));
}

#[test]
fn a_missing_device_is_an_error_with_a_remedy() {
    let output = memtide(Path::new("/nowhere"), &["device", "/nowhere/ctl", "status"]);
    let said = text(&output.stderr);
    assert!(said.contains("/nowhere/ctl") && said.contains(".ctl"), "{said}");
}
