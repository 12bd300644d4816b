//! memtided as its users meet it: a real process, real sockets, devices that only pretend.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod access;
mod daemon;
mod dishonest;
mod ejected;
mod fake_device;
mod fake_qmp;
mod started;
mod supervised;

use daemon::{Daemon, Host, wait_for};
use fake_device::{BLOCK, FakeDevice};
use memtide_api::device::{Decision, DeviceStatus, Driver, Request, Urgency};
use memtide_api::http::{BudgetSource, HostStatus, VmState, VmStatus};
use memtide_units::ByteSize;

fn blocks(count: u64) -> ByteSize {
    BLOCK.times(count)
}

/// `[[vm]]` of an adopted device.
fn adopt(host: &Host, name: &str, min: &str) -> String {
    let control = host.path(&format!("{name}.ctl"));
    format!("[[vm]]\nname = {name:?}\nmin = {min:?}\ndevice = \"adopt\"\ncontrol = {control:?}\n",)
}

fn device(host: &Host, name: &str, blocks: u64, stolen: u64) -> FakeDevice {
    FakeDevice::start(&host.path(&format!("{name}.ctl")), blocks, stolen)
}

fn connected(daemon: &Daemon, name: &str) -> VmStatus {
    wait_for("a connected VM", || Some(daemon.vm(name)).filter(|vm| vm.state == VmState::Connected))
}

fn budget(daemon: &Daemon, bytes: ByteSize) -> HostStatus {
    let body = format!(r#"{{"budget":{{"bytes":{}}}}}"#, bytes.bytes());
    daemon.put("/v1/host", &body)
}

#[test]
fn a_held_return_is_explained_and_granted_when_the_budget_grows() {
    let host = Host::new();
    let web = device(&host, "web1", 16, 10);
    let daemon = host.start(&adopt(&host, "web1", "256MiB"), &["--budget", "896MiB"]);
    assert_eq!(connected(&daemon, "web1").committed, blocks(6));

    web.ask(7, 2, Urgency::Pressure);
    wait_for("a word about the ticket", || web.decisions().pop());
    assert_eq!(web.decisions(), [(7, Decision::Hold("host-budget".into()))]);
    let vm = daemon.vm("web1");
    let held = vm.held.expect("it is held");
    assert_eq!((held.asked.ticket, held.asked.bytes), (7, blocks(2)));
    assert_eq!(held.asked.ranges.len(), 1, "which blocks are asked for is shown");
    assert!(held.explanation.contains("needs 256 MiB, 128 MiB of the 896 MiB budget are free"));

    let status = budget(&daemon, ByteSize::from_gib(1));
    assert_eq!(status.budget, ByteSize::from_gib(1));
    assert_eq!(status.budget_source, BudgetSource::Given);
    wait_for("the grant", || (daemon.vm("web1").committed == blocks(8)).then_some(()));
    assert_eq!(web.decisions().pop(), Some((7, Decision::Grant)));
    let vm = daemon.vm("web1");
    assert_eq!(vm.held, None);
    assert_eq!((vm.gate.asked, vm.gate.held, vm.gate.granted, vm.gate.taken), (1, 1, 1, 0));
}

#[test]
fn what_a_vm_is_guaranteed_is_granted_whatever_the_budget() {
    let host = Host::new();
    let web = device(&host, "web1", 16, 14);
    let daemon = host.start(&adopt(&host, "web1", "512MiB"), &["--budget", "1MiB"]);
    connected(&daemon, "web1");
    wait_for("the guarantee at the device", || (web.status().min == blocks(4)).then_some(()));
    web.ask(1, 2, Urgency::Comfort);
    wait_for("the grant", || (daemon.vm("web1").committed == blocks(4)).then_some(()));
    web.ask(2, 1, Urgency::Emergency);
    wait_for("the hold", || daemon.vm("web1").held);
}

#[test]
fn two_vms_compete_and_what_one_gives_the_other_gets() {
    let host = Host::new();
    let (web, db) = (device(&host, "web1", 16, 8), device(&host, "db1", 16, 8));
    let config = adopt(&host, "web1", "128MiB") + &adopt(&host, "db1", "128MiB");
    let daemon = host.start(&config, &["--budget", "2304MiB"]);
    connected(&daemon, "web1");
    connected(&daemon, "db1");

    web.ask(1, 2, Urgency::Pressure);
    wait_for("the first grant", || (daemon.vm("web1").committed == blocks(10)).then_some(()));
    db.ask(1, 2, Urgency::Pressure);
    wait_for("the hold", || daemon.vm("db1").held);
    assert_eq!(daemon.host().committed, blocks(18));

    web.steal(2);
    wait_for("the second grant", || (daemon.vm("db1").committed == blocks(10)).then_some(()));
    assert_eq!(db.decisions().len(), 2, "held once, granted once");
}

#[test]
fn a_memtided_that_was_killed_comes_back_to_the_truth() {
    let host = Host::new();
    let web = device(&host, "web1", 16, 8);
    let config = adopt(&host, "web1", "128MiB");
    let arguments = ["--budget", "1GiB"];
    let daemon = host.start(&config, &arguments);
    connected(&daemon, "web1");
    web.ask(3, 2, Urgency::Pressure);
    wait_for("the hold", || daemon.vm("web1").held);
    drop(daemon);
    wait_for("the end of the connection", || (!web.has_controller()).then_some(()));

    // Meanwhile the guest has gone on: the agent knows of three more stolen blocks.
    web.set_truth(11);
    let daemon = host.start(&config, &arguments);
    wait_for("the books and the grant", || {
        (daemon.vm("web1").committed == blocks(7)).then_some(())
    });
    assert!(web.heard().contains(&Request::AskHello));
    assert_eq!(web.decisions().pop(), Some((3, Decision::Grant)));
}

#[test]
fn a_device_that_crashed_counts_on_and_one_that_ended_does_not() {
    let host = Host::new();
    let config = adopt(&host, "web1", "128MiB");
    let web = device(&host, "web1", 16, 8);
    let daemon = host.start(&config, &[]);
    connected(&daemon, "web1");

    web.crash();
    let vm = wait_for("the loss", || {
        Some(daemon.vm("web1")).filter(|vm| matches!(&vm.state, VmState::Lost(_)))
    });
    assert_eq!(vm.committed, blocks(8), "its guest may live");

    let web = device(&host, "web1", 16, 12);
    assert_eq!(connected(&daemon, "web1").committed, blocks(4));
    web.end();
    wait_for("empty books", || daemon.vm("web1").committed.is_zero().then_some(()));
}

#[test]
fn nobody_is_granted_more_before_every_device_was_tried() {
    let host = Host::new();
    // A listener that never answers keeps memtided waiting for its attempt to fail.
    let _silent = std::os::unix::net::UnixListener::bind(host.path("db1.ctl")).unwrap();
    let web = device(&host, "web1", 16, 8);
    let config = adopt(&host, "web1", "128MiB") + &adopt(&host, "db1", "128MiB");
    let daemon = host.start(&config, &["--budget", "4GiB"]);
    connected(&daemon, "web1");
    web.ask(1, 1, Urgency::Pressure);
    let held = wait_for("the hold", || daemon.vm("web1").held);
    assert_eq!(held.asked.reason, "asking");
    wait_for("the grant", || (web.decisions().pop()?.1 == Decision::Grant).then_some(()));
    assert!(matches!(daemon.vm("db1").state, VmState::Lost(why) if why.contains("answered")));
}

#[test]
fn taken_cancelled_and_changed_returns_are_seen() {
    let host = Host::new();
    let web = device(&host, "web1", 16, 8);
    let daemon = host.start(&adopt(&host, "web1", "128MiB"), &["--budget", "1GiB"]);
    connected(&daemon, "web1");
    web.ask(1, 1, Urgency::Comfort);
    wait_for("the hold", || daemon.vm("web1").held);
    web.cancel();
    wait_for("the end of the hold", || daemon.vm("web1").held.is_none().then_some(()));
    web.take(1);
    let vm = wait_for("the taking", || Some(daemon.vm("web1")).filter(|vm| vm.gate.taken == 1));
    assert_eq!(vm.committed, blocks(9));
}

#[test]
fn changes_act_at_once_and_outlive_a_restart_until_the_configuration_is_edited() {
    let host = Host::new();
    let web = device(&host, "web1", 16, 4);
    let config = adopt(&host, "web1", "128MiB");
    let daemon = host.start(&config, &[]);
    connected(&daemon, "web1");
    let change = format!(
        r#"{{"min":{},"max":{},"target":{}}}"#,
        blocks(2).bytes(),
        blocks(14).bytes(),
        blocks(10).bytes()
    );
    let vm: VmStatus = daemon.put("/v1/vms/web1", &change);
    assert_eq!((vm.min, vm.max, vm.target), (blocks(2), blocks(14), blocks(6)));
    wait_for("the target at the device", || (web.status().target == blocks(6)).then_some(()));
    wait_for("the guarantee at the device", || (web.status().min == blocks(2)).then_some(()));
    budget(&daemon, blocks(20));
    daemon.terminate();

    let daemon = host.start(&config, &[]);
    let vm = connected(&daemon, "web1");
    assert_eq!((vm.min, vm.max, vm.target), (blocks(2), blocks(14), blocks(6)));
    assert_eq!(daemon.host().budget, blocks(20));
    daemon.terminate();

    let daemon = host.start(&adopt(&host, "web1", "384MiB"), &["--budget", "1GiB"]);
    assert_eq!(connected(&daemon, "web1").min, blocks(3), "the edited file wins");
    assert_eq!(daemon.host().budget, blocks(8));
}

#[test]
fn a_host_that_runs_short_squeezes_stock_guests_and_lets_go_again() {
    let host = Host::new();
    let status = FakeDevice::start(&host.path("other.ctl"), 64, 0).status();
    let status = DeviceStatus { driver: Driver::Stock, ..status };
    let web = FakeDevice::with_status(&host.path("web1.ctl"), status);
    let daemon = host.start(&adopt(&host, "web1", "512MiB"), &[]);
    assert_eq!(connected(&daemon, "web1").driver, Driver::Stock);
    assert!(!web.heard().contains(&Request::AskHello), "a stock driver has nothing to say");
    host.set_available(1);
    wait_for("a squeeze", || (!web.status().target.is_zero()).then_some(()));
    host.set_available(60);
    wait_for("its end", || web.status().target.is_zero().then_some(()));
}

#[test]
fn bad_requests_are_refused_by_name_with_a_remedy() {
    let host = Host::new();
    let _web = device(&host, "web1", 16, 4);
    let config = adopt(&host, "web1", "128MiB") + &adopt(&host, "off", "128MiB");
    let daemon = host.start(&config, &[]);
    connected(&daemon, "web1");
    let before = daemon.vm("web1");
    let too_long = format!(r#"{{"x":"{}"}}"#, "x".repeat(70 << 10));
    let cases: &[(&str, &str, &str, u16, &str, &str)] = &[
        ("GET", "/v1/vms/web2", "", 404, "unknown-vm", "web1, off"),
        ("PUT", "/v1/vms/web2", "{}", 404, "unknown-vm", "web1, off"),
        ("GET", "/v2/host", "", 404, "no-such-path", "/v1/host"),
        ("DELETE", "/v1/host", "", 405, "no-such-method", "PUT"),
        ("PUT", "/v1/host", "{", 400, "bad-request", "bytes"),
        ("PUT", "/v1/host", r#"{"budgt":"host"}"#, 400, "bad-request", "budget"),
        ("PUT", "/v1/host", r#"{"budget":{"bytes":0}}"#, 400, "budget-zero", "more"),
        ("PUT", "/v1/host", &too_long, 400, "bad-body", "65536"),
        ("PUT", "/v1/vms/web1", r#"{"min":0}"#, 400, "min-zero", "512MiB"),
        ("PUT", "/v1/vms/web1", r#"{"max":1}"#, 400, "min-above-max", "lower min"),
        (
            "PUT",
            "/v1/vms/web1",
            r#"{"min":1,"target":2199023255552}"#,
            400,
            "target-above-memory",
            "2 GiB",
        ),
        ("PUT", "/v1/vms/web1", r#"{"target":4096}"#, 400, "target-below-min", "128 MiB"),
        ("PUT", "/v1/vms/web1", r#"{"min":"1GiB"}"#, 400, "bad-request", "numbers of bytes"),
        ("PUT", "/v1/vms/off", r#"{"target":1073741824}"#, 409, "not-connected", "off"),
    ];
    for (method, path, body, status, name, word) in cases {
        let (got, refusal) = daemon.refused(method, path, body);
        assert_eq!((got, refusal.name.as_str()), (*status, *name), "{method} {path}: {refusal}");
        assert!(refusal.message.contains(word), "{word:?} is missing from: {refusal}");
    }
    let after = daemon.vm("web1");
    assert_eq!((before.min, before.max, before.target), (after.min, after.max, after.target));
}

#[test]
fn a_start_that_cannot_succeed_says_why() {
    let host = Host::new();
    let _first = host.start("", &[]);
    let said = host.fails("", &[]);
    assert!(said.contains("another memtided") && said.contains("--socket"), "{said}");
    let said = Host::new().fails("budget = 4", &[]);
    assert!(said.contains("line 1"), "{said}");
}

#[test]
fn a_start_without_a_device_program_says_where_it_was_looked_for() {
    let start = "[[vm]]\nname=\"a\"\nmin=\"1GiB\"\ndevice=\"start\"\nvhost_socket=\"/nowhere/a\"\n";
    let host = Host::new();
    // Beside memtided in the build directory there may be a device program: not beside its copy.
    let alone = host.path("memtided");
    std::fs::copy(env!("CARGO_BIN_EXE_memtided"), &alone).unwrap();
    let usual = host.command(start, &[]);
    let mut command = std::process::Command::new(&alone);
    command.args(usual.get_args()).stdin(std::process::Stdio::null()).env("PATH", "");
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--device-binary"), "{said}");
}
