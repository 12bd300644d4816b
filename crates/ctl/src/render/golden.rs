//! The tables as they were reviewed, in `golden/`. Run the tests with `MEMTIDE_BLESS=1` to write
//! them anew, then review the difference.

use std::path::Path;

use memtide_api::device::*;
use memtide_api::http::*;
use memtide_device_ctl::output::Colour;
use memtide_device_ctl::text::WIDTH;
use memtide_units::{ByteSize, Gpa, GpaRange, PpMillion};

fn mib(n: u64) -> ByteSize {
    ByteSize::from_mib(n)
}

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("MEMTIDE_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name}");
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{name} is too wide: {line}");
    }
}

fn pending() -> PendingReturn {
    PendingReturn {
        ticket: 7,
        bytes: mib(256),
        ranges: vec![GpaRange::new(Gpa(0), mib(256)).unwrap()],
        urgency: Urgency::Pressure,
        waited_ms: 12_340,
        reason: "host-budget".into(),
    }
}

fn guest() -> GuestTelemetry {
    GuestTelemetry {
        total: mib(1229),
        free: mib(80),
        available: mib(301),
        cached: mib(150),
        working_set: mib(700),
        cold: mib(220),
        psi_some_avg10: PpMillion(3_400),
        blocks_total: 32,
        blocks_movable: 28,
        blocks_stolen: 22,
        steals_failed: 1,
        agent_rss: ByteSize::from_kib(3900),
        note: "asks for 2 blocks: pressure is 0.34 % and the goal is 0.10 %; 301 MiB available"
            .into(),
        ..GuestTelemetry::default()
    }
}

fn device_status() -> DeviceStatus {
    DeviceStatus { driver: Driver::Agent, telemetry: Some(guest()), ..DeviceStatus::default() }
}

fn web1() -> VmStatus {
    VmStatus {
        name: "web1".into(),
        state: VmState::Connected,
        driver: Driver::Agent,
        memory: mib(4096),
        committed: mib(1280),
        stolen: mib(2816),
        ejected: ByteSize::ZERO,
        resident: mib(1100),
        min: mib(512),
        max: ByteSize::MAX,
        target: ByteSize::ZERO,
        held: Some(HeldReturn {
            asked: pending(),
            explanation: "needs 256 MiB, 96 MiB of the 1.5 GiB budget are free; waits until other \
                          VMs give memory up, or raise the budget"
                .into(),
        }),
        gate: GateCounters {
            asked: 5,
            granted: 4,
            held: 1,
            held_ms_max: 12_340,
            ..GateCounters::default()
        },
        plugging: None,
        device: Some(Box::new(device_status())),
    }
}

fn db() -> VmStatus {
    VmStatus {
        name: "a-database-with-a-long-name".into(),
        state: VmState::Lost(
            "nobody listens on /run/memtide/db.sock.ctl: its device process died".into(),
        ),
        memory: mib(1023),
        committed: mib(1023),
        resident: mib(1023),
        max: mib(2048),
        target: mib(64),
        ..VmStatus::default()
    }
}

/// A VM that has ejected a DIMM, while somebody else holds the monitor.
fn ejected() -> VmStatus {
    VmStatus {
        ejected: mib(512),
        held: None,
        plugging: Some(
            "greeting over the QMP socket /run/memtide/web1.qmp failed: it sent none: a monitor \
             serves one client at a time, and another one holds this; give memtided a monitor of \
             its own: -qmp unix:PATH,server=on,wait=off"
                .into(),
        ),
        ..web1()
    }
}

fn host_status(vms: Vec<VmStatus>) -> HostStatus {
    HostStatus {
        version: "0.1.0".into(),
        budget: mib(2400),
        budget_source: BudgetSource::Given,
        committed: mib(2303),
        resident: mib(2123),
        host_available: mib(12_595),
        vms,
    }
}

#[test]
fn status() {
    check("status.txt", &super::host(&host_status(vec![web1(), db()]), Colour::Never));
}

#[test]
fn status_without_vms_says_what_to_do() {
    let status = HostStatus { budget_source: BudgetSource::Host, ..host_status(Vec::new()) };
    check("status-empty.txt", &super::host(&status, Colour::Never));
}

#[test]
fn one_vm() {
    check("vm.txt", &super::vm(&web1(), Colour::Never));
    check("vm-lost.txt", &super::vm(&db(), Colour::Never));
    check("vm-ejected.txt", &super::vm(&ejected(), Colour::Never));
}
