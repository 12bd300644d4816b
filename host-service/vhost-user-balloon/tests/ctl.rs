//! `vhost-user-balloon ctl` against a device that runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{BLOCK, Client, Device, STATS_VQ, Vm, block, hello, wait_readable};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{BLOCK_QUEUE, LocalRule, Settings};
use memtide_units::ByteSize;
use memtide_wire::block::{HoldReason, Request as BlockRequest, ReturnRequest, Urgency, Verdict};
use serde_json::Value;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

fn command(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-balloon"));
    command.arg("ctl").arg(socket).args(words).stdin(Stdio::null());
    command
}

fn ctl(device: &Device, words: &[&str]) -> Output {
    command(&device.control_path(), words).output().unwrap()
}

/// What it prints where it succeeds.
fn told(device: &Device, words: &[&str]) -> String {
    let output = ctl(device, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(device: &Device, words: &[&str]) -> Value {
    serde_json::from_str(&told(device, &[words, &["--json"]].concat())).unwrap()
}

/// With which status it fails, and what it says.
fn failed(device: &Device, words: &[&str]) -> (i32, String) {
    let output = ctl(device, words);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn stock(settings: Settings) -> (Device, Vm) {
    let (device, socket) = Device::connected(settings);
    let vm = Vm::start(socket, STATS_VQ, &[0, 1, 2]);
    (device, vm)
}

/// The guest's driver says how large its balloon is.
fn write_actual(vm: &mut Vm, size: ByteSize) {
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    let pages = u32::try_from(size.bytes() >> 12).unwrap();
    vm.frontend.set_config(4, flags, &pages.to_le_bytes()).unwrap();
}

#[test]
fn a_status_names_what_was_negotiated() {
    let (device, _vm) = stock(Settings::default());
    let text = told(&device, &["status"]);
    assert!(text.contains("stock (stats-vq, version-1)"), "{text}");
    assert!(text.contains("memory      63.8 MiB in 2 regions, 63.8 MiB resident"), "{text}");
    let json = json(&device, &["status"]);
    assert_eq!(json["feature_names"], serde_json::json!(["stats-vq", "version-1"]));
    assert_eq!((&json["decider"], &json["local_rule"]), (&"local_rule".into(), &"grant".into()));
}

#[test]
fn a_target_is_set_either_way_round() {
    let (device, mut vm) = stock(Settings::default());
    let text = told(&device, &["target", "16MiB"]);
    assert_eq!(text, "The balloon shall be 16 MiB; it is 0 B.\n");
    assert_eq!(vm.config(0, 4), (16_u32 << 8).to_le_bytes());
    let json = json(&device, &["target", "--guest", "32MiB"]);
    let memory = ByteSize::from_mib(64) - ByteSize::from_kib(128);
    assert_eq!(json["target"], (memory - ByteSize::from_mib(32)).bytes());
    assert_eq!(json["reached"], false);
    let (status, said) = failed(&device, &["target", "1GiB"]);
    assert!(status == 4 && said.contains("leaves nothing to a guest of 63.8 MiB"), "{said}");
    assert_eq!(vm.config(0, 4)[..], u32::to_le_bytes((32 << 8) - 32), "as it was");
    assert_eq!(failed(&device, &["target", "16"]).0, 2);
}

#[test]
fn a_target_is_waited_for_and_its_progress_is_shown() {
    let (device, mut vm) = stock(Settings::default());
    write_actual(&mut vm, ByteSize::from_mib(1));
    let mut waiting = command(&device.control_path(), &["target", "3MiB", "--wait=20", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(waiting.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in lines {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        seen.push((line["balloon"].as_u64().unwrap() >> 20, line["reached"] == true));
        write_actual(&mut vm, ByteSize::from_mib(seen.len() as u64 + 1));
    }
    assert!(waiting.wait().unwrap().success());
    assert_eq!(seen, [(1, false), (2, false), (3, true)]);
    let (status, said) = failed(&device, &["target", "0", "--wait=1"]);
    assert!(status == 5 && said.contains("the balloon is") && said.contains("not 0 B"), "{said}");
}

/// Answers the device's questions for statistics, until it is told to stop.
fn keep_telling(vm: &mut Vm, stop: &AtomicBool) {
    let mut value = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        value += 1;
        let bytes = [&4_u16.to_le_bytes()[..], &(value << 20).to_le_bytes()].concat();
        vm.memory.map.write_slice(&bytes, GuestAddress(8 << 20)).unwrap();
        vm.drivers[2].add(&vm.memory.map, &[Buffer::Readable(8 << 20, bytes.len() as u32)]);
        vm.kicks[2].write(1).unwrap();
        while !stop.load(Ordering::Relaxed)
            && !common::is_readable_within(&vm.calls[2], Duration::from_millis(20))
        {}
        let _ = vm.calls[2].read();
        vm.drivers[2].take_used(&vm.memory.map);
    }
}

#[test]
fn statistics_are_fresh_or_it_says_that_they_are_not() {
    let settings =
        Settings { stats_interval: Some(Duration::from_millis(50)), ..Settings::default() };
    let (device, mut vm) = stock(settings);
    let (status, said) = failed(&device, &["stats", "--wait", "0"]);
    assert!(status == 5 && said.contains("there are none"), "{said}");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| keep_telling(&mut vm, &stop));
        let first = json(&device, &["stats"]);
        let second = json(&device, &["stats"]);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(first["source"], "driver");
        assert!(first["age_ms"].as_u64().unwrap() < 5000);
        let free = |stats: &Value| stats["stats"]["free_memory"].as_u64().unwrap();
        assert!(free(&first) < free(&second), "each is newer than its question");
    });
    // The driver is silent now: the old ones are shown, and are no success.
    let output = ctl(&device, &["stats", "--wait", "1"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("free_memory"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no fresh statistics in 1 s"));
}

fn wants(ticket: u32, number: u64) -> BlockRequest {
    let ranges = vec![block(number)];
    BlockRequest::Return(ReturnRequest { ticket, urgency: Urgency::Pressure, ranges })
}

#[test]
fn a_person_rules_and_decides() {
    let settings = Settings { local_rule: LocalRule::Hold, ..Settings::default() };
    let (device, socket) = Device::connected(settings);
    let mut vm = Vm::start(socket, 0, &[0, BLOCK_QUEUE]);
    let epoch = u32::from_le_bytes(vm.config(32, 4).try_into().unwrap());
    assert_eq!(vm.ask(&hello(epoch, vec![block(4), block(5), block(6)])).verdict, Verdict::Ok);
    assert_eq!(failed(&device, &["grant"]).0, 4, "nothing waits");
    assert_eq!(vm.ask(&wants(7, 4)).verdict, Verdict::Held(HoldReason::Asking));
    let text = told(&device, &["status"]);
    assert!(text.contains("waits for   2 MiB (ticket 7, pressure)"), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.join(" ").contains("decide it with \"grant\" or \"deny\""), "{text}");
    let (status, said) = failed(&device, &["grant", "8"]);
    assert!(status == 4 && said.contains("no return with the ticket 8"), "{said}");
    assert!(told(&device, &["grant", "7"]).contains("Return 7 is granted: 2 MiB"));
    wait_readable(&vm.calls[BLOCK_QUEUE]);
    assert_eq!(vm.ask(&wants(7, 4)).verdict, Verdict::Ok);
    vm.ask(&wants(8, 5));
    assert_eq!(json(&device, &["deny"])["ticket"], 8);
    assert_eq!(vm.ask(&wants(8, 5)).verdict, Verdict::Denied(HoldReason::VmLimit));
    assert!(told(&device, &["min", "1GiB"]).contains("guaranteed  1 GiB"));
    assert_eq!(vm.ask(&wants(9, 5)).verdict, Verdict::Ok, "below the guarantee");
    told(&device, &["min", "0"]);
    assert_eq!(json(&device, &["rule", "grant"])["local_rule"], "grant");
    assert_eq!(vm.ask(&wants(10, 6)).verdict, Verdict::Ok);
    assert_eq!(device.control().status().stolen, []);
    assert!(BLOCK < ByteSize::from_gib(1));
}

#[test]
fn beside_a_controller_it_only_looks() {
    let (device, _vm) = stock(Settings::default());
    let _controller = Client::controller(&device);
    let text = told(&device, &["status"]);
    assert!(text.contains("decided by the controller that is attached"), "{text}");
    for words in [&["target", "1MiB"][..], &["min", "1MiB"], &["rule", "hold"], &["grant", "1"]] {
        let (status, said) = failed(&device, words);
        assert!(status == 4 && said.contains("memtide vm NAME set"), "{words:?}: {said}");
    }
}

#[test]
fn what_happens_is_told_in_lines_of_json() {
    let (device, mut vm) = stock(Settings::default());
    let mut watching =
        command(&device.control_path(), &["watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["status"]["driver"], "stock");
    write_actual(&mut vm, ByteSize::from_mib(2));
    let line = next();
    assert_eq!(line["event"]["balloon"]["actual"], 2 << 20);
    assert!(line["unix_ms"].as_u64().unwrap() > 1_600_000_000_000);
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[test]
fn without_a_vmm_or_a_device_it_says_what_to_do() {
    let device = Device::listening(Settings::default());
    let text = told(&device, &["status"]);
    assert!(text.contains("not connected: start the VM"), "{text}");
    let text = told(&device, &["target", "1GiB"]);
    assert!(text.contains("it holds for the next one"), "{text}");
    for words in [&["stats"][..], &["target", "--guest", "1GiB"], &["target", "1MiB", "--wait"]] {
        let (status, said) = failed(&device, words);
        assert!(status == 4 && said.contains("start the VM"), "{words:?}: {said}");
    }
    // The VMM's socket instead of the control socket.
    let output = command(&device.socket(), &["status"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && said.contains(".ctl"), "{said}");
    let output = command(Path::new("/nowhere/vm.ctl"), &["status"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && said.contains("is the device running?"), "{said}");
}
