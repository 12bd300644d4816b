//! DIMMs that a guest ejects, between a device and a VMM's monitor that only pretend.

use std::time::{Duration, Instant};

use memtide_api::device::{DeviceStatus, Driver, Event, MemoryRegion, Request};
use memtide_api::http::VmStatus;
use memtide_units::{ByteSize, Gpa, GpaRange};
use serde_json::{Value, json};

use super::daemon::{Daemon, Host, wait_for};
use super::fake_device::FakeDevice;
use super::fake_qmp::FakeQmp;
use super::{BLOCK, adopt, blocks, connected, device};

/// Two DIMMs of four blocks beside each other, above sixteen blocks of boot memory.
fn dimm(n: u64) -> GpaRange {
    GpaRange::new(Gpa((4 << 30) + n * blocks(4).bytes()), blocks(4)).unwrap()
}

fn region(range: GpaRange) -> MemoryRegion {
    MemoryRegion { range, file_offset: ByteSize::ZERO, inode: range.start().0 }
}

/// A VM whose agent holds both DIMMs stolen.
struct Vm {
    host: Host,
    qmp: FakeQmp,
    device: FakeDevice,
}

impl Vm {
    fn new() -> Self {
        let host = Host::new();
        let qmp = FakeQmp::start(&host.path("web1.qmp"));
        let device = device(&host, "web1", 16, 0);
        for n in [0, 1] {
            qmp.plug(n, dimm(n));
            device.change(|status| {
                status.memory.push(region(dimm(n)));
                status.stolen.push(dimm(n));
            });
        }
        Self { host, qmp, device }
    }

    fn start(&self) -> Daemon {
        let qmp = self.host.path("web1.qmp");
        let config = adopt(&self.host, "web1", "128MiB") + &format!("qmp = {qmp:?}\n");
        let daemon = self.host.start(&config, &[]);
        connected(&daemon, "web1");
        daemon
    }

    /// Waits until the device was told what its guest may eject.
    fn told(&self, pluggable: &[GpaRange]) {
        wait_for("the word", || (self.device.status().pluggable == pluggable).then_some(()));
    }

    /// It vanishes from the VM.
    fn lose(&self, n: u64) {
        self.qmp.eject(&format!("mem{n}"));
        self.device.change(|status| status.memory.retain(|region| region.range != dimm(n)));
    }

    /// Part of it is granted, and the agent waits for it.
    fn want(&self, n: u64) {
        self.device.change(|status| status.stolen.retain(|range| *range != dimm(n)));
        self.device.say(Event::PlugWanted { ranges: vec![dimm(n)] });
    }

    /// DIMMs on file, by the name of their memory.
    fn on_file(&self, list: &str) -> Vec<String> {
        let text = std::fs::read(self.host.path("state/state.json")).unwrap_or_default();
        let file: Value = serde_json::from_slice(&text).unwrap_or_default();
        let dimms = file["vms"]["web1"][list].as_array().into_iter().flatten();
        dimms.map(|dimm| dimm["memdev"].as_str().unwrap().to_owned()).collect()
    }
}

fn both() -> GpaRange {
    dimm(0).joined_with(dimm(1)).unwrap()
}

fn figures(vm: &VmStatus) -> (ByteSize, ByteSize, ByteSize, ByteSize) {
    (vm.memory, vm.stolen, vm.committed, vm.ejected)
}

#[test]
fn what_a_guest_ejects_is_plugged_in_when_it_waits_for_it_also_by_the_next_memtided() {
    let vm = Vm::new();
    let daemon = vm.start();
    vm.told(&[both()]);
    assert_eq!(figures(&daemon.vm("web1")), (blocks(24), blocks(8), blocks(16), blocks(0)));

    wait_for("what may go", || (vm.on_file("stolen") == ["mem0", "mem1"]).then_some(()));
    vm.device.say(Event::Ejecting { ranges: vec![dimm(1)] });
    wait_for("the file", || (vm.on_file("out") == ["mem1"]).then_some(()));
    vm.lose(1);
    let books = wait_for("the ejected part", || {
        let books = figures(&daemon.vm("web1"));
        (!books.3.is_zero()).then_some(books)
    });
    assert_eq!(books, (blocks(24), blocks(8), blocks(16), blocks(4)), "no other figure moves");
    drop(daemon);
    wait_for("the end of the connection", || (!vm.device.has_controller()).then_some(()));

    let daemon = vm.start();
    vm.want(1);
    let plugged = wait_for("the plug", || vm.qmp.device_adds().pop());
    assert_eq!(
        plugged,
        json!({"driver": "pc-dimm", "id": "dimm1", "memdev": "mem1", "addr": dimm(1).start().0,
               "slot": 1, "node": 0})
    );
    vm.device.change(|status| status.memory.push(region(dimm(1))));
    wait_for("an empty record", || vm.on_file("out").is_empty().then_some(()));
    vm.want(1);
    let vm_now =
        wait_for("the books", || Some(daemon.vm("web1")).filter(|vm| vm.committed == blocks(20)));
    assert_eq!(figures(&vm_now), (blocks(24), blocks(4), blocks(20), blocks(0)));
    assert_eq!((vm.qmp.device_adds().len(), vm_now.plugging), (1, None));
    vm.told(&[both()]);
    let told = |request: &Request| matches!(request, Request::SetPluggable { .. });
    let count = vm.device.heard().into_iter().filter(told).count();
    assert_eq!(count, 1, "what is out stays promised");
}

#[test]
fn a_plug_that_fails_is_tried_again_until_its_backend_is_gone() {
    let vm = Vm::new();
    let _daemon = vm.start();
    vm.told(&[both()]);
    vm.device.say(Event::Ejecting { ranges: vec![dimm(1)] });
    vm.lose(1);
    vm.qmp.refuse_plugs("no slot is free");
    vm.want(1);
    wait_for("another attempt", || (vm.qmp.device_adds().len() > 1).then_some(()));
    vm.qmp.remove_backend("mem1");
    vm.told(&[dimm(0)]);
    let attempts = vm.qmp.device_adds().len();
    vm.want(1);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(vm.qmp.device_adds().len(), attempts, "it is forgotten");
}

#[test]
fn what_an_operator_unplugs_is_not_plugged_in_and_no_longer_promised() {
    let vm = Vm::new();
    let _daemon = vm.start();
    vm.told(&[both()]);
    vm.lose(1);
    vm.want(1);
    vm.told(&[dimm(0)]);
    vm.want(1);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(vm.qmp.device_adds(), Vec::<Value>::new());
}

#[test]
fn a_device_that_is_too_old_is_asked_once_and_keeps_its_connection() {
    let vm = Vm::new();
    vm.device.is_old();
    let daemon = vm.start();
    let why = wait_for("a word to the operator", || daemon.vm("web1").plugging);
    assert!(why.contains("set_pluggable"), "{why}");
    // An unanswered call would end the connection after five seconds.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(7) {
        connected(&daemon, "web1");
        std::thread::sleep(Duration::from_millis(200));
    }
    let count = |wanted: fn(&Request) -> bool| vm.device.heard().into_iter().filter(wanted).count();
    assert_eq!(count(|request| matches!(request, Request::SetPluggable { .. })), 1);
    assert_eq!(count(|request| matches!(request, Request::Attach { .. })), 1);
}

#[test]
fn a_monitor_that_cannot_be_used_is_told_and_nothing_is_promised() {
    let vm = Vm::new();
    vm.qmp.stop();
    let daemon = vm.start();
    let why = wait_for("a word to the operator", || daemon.vm("web1").plugging);
    assert!(why.contains("web1.qmp") && why.contains("is the VM running"), "{why}");
    let told = |request: &Request| matches!(request, Request::SetPluggable { .. });
    assert!(!vm.device.heard().iter().any(told));
}

#[test]
fn without_a_monitor_nothing_is_promised() {
    let host = Host::new();
    let status = DeviceStatus { driver: Driver::Agent, ..device(&host, "x", 16, 8).status() };
    let web = FakeDevice::with_status(&host.path("web1.ctl"), status);
    let daemon = host.start(&adopt(&host, "web1", "128MiB"), &[]);
    connected(&daemon, "web1");
    web.say(Event::Ejecting { ranges: vec![GpaRange::new(Gpa(0), BLOCK).unwrap()] });
    web.say(Event::PlugWanted { ranges: vec![GpaRange::new(Gpa(0), BLOCK).unwrap()] });
    let polls = |web: &FakeDevice| web.heard().iter().filter(|r| **r == Request::Status).count();
    wait_for("some statuses", || (polls(&web) > 2).then_some(()));
    let told = |request: &Request| matches!(request, Request::SetPluggable { .. });
    assert!(!web.heard().iter().any(told));
    assert_eq!(daemon.vm("web1").plugging, None);
}
