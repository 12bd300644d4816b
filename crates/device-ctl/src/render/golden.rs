//! What people see, as it was reviewed, in `golden/`. Run the tests with `MEMTIDE_BLESS=1` to write
//! it anew, then review the difference.

use std::collections::BTreeMap;
use std::path::Path;

use memtide_api::device::*;
use memtide_units::{ByteSize, Gpa, GpaRange, PpMillion};

use crate::output::Colour;
use crate::statistics::Statistics;
use crate::text::WIDTH;

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

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).into()).collect()
}

fn region(start: u64, size: u64) -> MemoryRegion {
    let range = GpaRange::new(Gpa(start), mib(size)).unwrap();
    MemoryRegion { range, file_offset: ByteSize::ZERO, inode: 5 }
}

fn with_agent() -> DeviceStatus {
    let counters = Counters {
        stolen: mib(4096),
        returned: mib(1280),
        returns_asked: 5,
        returns_granted: 4,
        returns_held: 1,
        punches: 32,
        refused: BTreeMap::from([("not-stolen".into(), 2)]),
        ..Counters::default()
    };
    DeviceStatus {
        pid: 4711,
        vmm_connected: true,
        driver: Driver::Agent,
        features: 0x1_7000_0022,
        feature_names: names(&["stats-vq", "page-reporting", "event-idx", "version-1"]),
        memory: vec![region(0, 3072), region(4 << 30, 1024)],
        resident: mib(1100),
        target: mib(2048),
        stolen: vec![GpaRange::new(Gpa(1 << 30), mib(2816)).unwrap()],
        min: mib(512),
        local_rule: LocalRule::Target,
        pending: Some(pending()),
        telemetry: Some(guest()),
        telemetry_age_ms: Some(400),
        counters,
        ..DeviceStatus::default()
    }
}

fn with_stock_driver() -> DeviceStatus {
    let stats = [
        ("total_memory", 2_046_820_352),
        ("available_memory", 1_717_986_918),
        ("free_memory", 1_610_612_736),
        ("disk_caches", 157_286_400),
        ("swap_in", 0),
        ("major_faults", 412),
        ("minor_faults", 93_412),
        ("hugetlb_allocations", 0),
        ("oom_kill", 1),
        ("tag-17", 3),
    ];
    let all = ["must-tell-host", "stats-vq", "page-reporting", "indirect-desc", "event-idx"];
    DeviceStatus {
        pid: 4711,
        vmm_connected: true,
        driver: Driver::Stock,
        features: 0x1_3000_0023,
        feature_names: [names(&all), names(&["version-1"])].concat(),
        memory: vec![region(0, 2048)],
        resident: mib(700),
        target: mib(512),
        actual: mib(384),
        decider: Decider::Controller,
        counters: Counters { inflated: mib(384), punches: 390, ..Counters::default() },
        stats: stats.into_iter().map(|(name, value)| (name.into(), value)).collect(),
        stats_age_ms: Some(310),
        ..DeviceStatus::default()
    }
}

#[test]
fn a_status() {
    let status = |status: &DeviceStatus| super::status(status, Colour::Never);
    check("status-agent.txt", &status(&with_agent()));
    check("status-stock.txt", &status(&with_stock_driver()));
    check("status-new.txt", &status(&DeviceStatus::default()));
    let booting = DeviceStatus { driver: Driver::None, ..with_stock_driver() };
    assert!(status(&booting).contains("the guest boots"));
}

#[test]
fn a_status_in_a_line() {
    let left = DeviceStatus { driver: Driver::None, ..with_agent() };
    let of = [with_agent(), with_stock_driver(), left, DeviceStatus::default()];
    let lines: Vec<String> = of.iter().map(|status| super::brief(status) + "\n").collect();
    check("brief.txt", &lines.concat());
}

#[test]
fn who_decides() {
    let all = [
        (Decider::Controller, LocalRule::Grant),
        (Decider::AbsentController, LocalRule::Grant),
        (Decider::LocalRule, LocalRule::Grant),
        (Decider::LocalRule, LocalRule::Target),
        (Decider::LocalRule, LocalRule::Hold),
    ];
    let text = |(decider, local_rule)| {
        super::guarantees(&DeviceStatus { decider, local_rule, ..DeviceStatus::default() })
    };
    check("guarantees.txt", &all.map(text).concat());
}

#[test]
fn the_guests_statistics() {
    let stats = with_stock_driver().stats;
    let driver = Statistics::Driver { age_ms: 310, stats };
    check("stats-driver.txt", &super::statistics(&driver));
    let agent = Statistics::Agent { age_ms: 1250, telemetry: guest() };
    check("stats-agent.txt", &super::statistics(&agent));
}

#[test]
fn events() {
    let ranges = vec![GpaRange::new(Gpa(0), mib(256)).unwrap()];
    let hello = AgentHello {
        block_size: mib(128),
        present: mib(4096),
        online: mib(1280),
        stolen: ranges.clone(),
        ..AgentHello::default()
    };
    let (ticket, stolen) = (7, mib(2560));
    let events = [
        Event::DriverChanged { driver: Driver::Stock },
        Event::Hello(hello),
        Event::Stolen { ranges: ranges.clone(), stolen },
        Event::ReturnAsked(pending()),
        Event::ReturnCancelled { ticket },
        Event::Returned { ticket, ranges: ranges.clone(), by: GrantedBy::Minimum, stolen },
        Event::Taken { ranges, stolen },
        Event::Telemetry(guest()),
        Event::Balloon { actual: mib(100) },
    ];
    let lines: Vec<String> = events.iter().map(|event| super::event(event) + "\n").collect();
    check("events.txt", &lines.concat());
}
