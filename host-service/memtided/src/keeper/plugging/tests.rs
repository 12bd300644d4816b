use super::*;
use crate::config::{Config, Device, VmConfig};
use crate::device::News;
use crate::keeper::Outcome;
use crate::store::Memory;
use crate::vmm::PlugOutcome;
use memtide_api::device::{Driver, Event, MemoryRegion};
use memtide_api::http::Budget;
use memtide_policy::host::{HostMemory, Limits};
use memtide_units::{ByteSize, Gpa};

fn dimm(n: u64) -> Dimm {
    let size = ByteSize::from_mib(512);
    let range = GpaRange::new(Gpa(n * 2 * size.bytes()), size).unwrap();
    Dimm { id: None, memdev: format!("mem{n}"), range, slot: 0, node: 0 }
}

#[test]
fn a_device_is_told_what_it_does_not_know_and_only_that() {
    let mut plugging = Plugging::new(true, &VmMemory::default());
    let mut status = DeviceStatus { vmm_connected: true, ..DeviceStatus::default() };
    plugging.dimms.observed(Instant::default(), &status);
    assert_eq!(plugging.pluggable(Instant::default(), &status), None, "not looked at yet");
    plugging.dimms.seen(Instant::default(), vec![dimm(0), dimm(1)]);
    let told = plugging.pluggable(Instant::default(), &status).unwrap();
    assert_eq!(told, [dimm(0).range, dimm(1).range]);
    status.pluggable = told;
    assert_eq!(plugging.pluggable(Instant::default(), &status), None);
    status.pluggable.clear();
    plugging.refused = Some("too old".into());
    assert_eq!(plugging.pluggable(Instant::default(), &status), None);
    plugging.attached();
    assert!(plugging.pluggable(Instant::default(), &status).is_some(), "perhaps a new one");
}

#[test]
fn a_monitor_that_is_gone_for_long_promises_what_is_out_and_no_more() {
    let mut plugging = Plugging::new(true, &VmMemory::default());
    let mut status = DeviceStatus { vmm_connected: true, ..DeviceStatus::default() };
    plugging.dimms.observed(Instant::default(), &status);
    plugging.dimms.seen(Instant::default(), vec![dimm(0), dimm(1)]);
    plugging.dimms.ejecting(&[dimm(1).range]);
    status.pluggable = vec![dimm(0).range, dimm(1).range];
    plugging.unusable = Some(("held".into(), Instant::default()));
    let at = |seconds| Instant::default() + Duration::from_secs(seconds);
    assert_eq!(plugging.pluggable(at(29), &status), None);
    assert_eq!(plugging.pluggable(at(30), &status), Some(vec![dimm(1).range]));
}

#[test]
fn a_promise_that_cannot_be_kept_is_withdrawn_and_no_other_is_made_unseen() {
    let at = |seconds| Instant::default() + Duration::from_secs(seconds);
    let mut status = DeviceStatus { vmm_connected: true, ..DeviceStatus::default() };
    let without = Plugging::new(false, &VmMemory::default());
    let mut unseen = Plugging::new(true, &VmMemory { out: vec![dimm(1)], ..VmMemory::default() });
    unseen.unusable = Some(("held".into(), at(0)));
    assert_eq!(without.pluggable(at(60), &status), None);
    assert_eq!(unseen.pluggable(at(60), &status), None);
    status.pluggable = vec![dimm(0).range, dimm(1).range];
    assert_eq!(without.pluggable(at(60), &status), Some(vec![]));
    assert_eq!(unseen.pluggable(at(29), &status), None);
    assert_eq!(unseen.pluggable(at(60), &status), Some(vec![dimm(1).range]));
}

const VM: VmId = VmId(0);

fn config(qmp: Option<&str>) -> Config {
    let vm = VmConfig {
        name: "web1".into(),
        limits: Limits::NONE,
        control: "/c".into(),
        device: Device::Adopt,
        qmp: qmp.map(Into::into),
    };
    Config {
        socket: "/s".into(),
        budget: Budget::Host,
        vms: vec![vm],
        device_binary: None,
        state_dir: "/d".into(),
        meminfo: "/m".into(),
    }
}

/// A guest with two DIMMs, both stolen.
fn status() -> Box<DeviceStatus> {
    let region = |n| MemoryRegion { range: dimm(n).range, file_offset: ByteSize::ZERO, inode: n };
    Box::new(DeviceStatus {
        vmm_connected: true,
        driver: Driver::Agent,
        memory: vec![region(0), region(1)],
        stolen: vec![dimm(0).range, dimm(1).range],
        ..DeviceStatus::default()
    })
}

fn keeper(qmp: Option<&str>) -> Keeper {
    let gib = ByteSize::from_gib;
    let memory = HostMemory { total: gib(64), available: gib(60) };
    let mut keeper = Keeper::new(&config(qmp), &Memory::default(), memory);
    keeper.hear(Instant::default(), VM, News::Attached(status()));
    keeper
}

fn orders(outcome: Outcome) -> Vec<Order> {
    outcome.orders.into_iter().map(|order| order.order).collect()
}

#[test]
fn from_the_first_look_to_a_plug() {
    let now = Instant::default();
    let mut keeper = keeper(Some("/q"));
    assert_eq!(orders(keeper.step(now)), [Order::Look]);
    keeper.hear_vmm(now, VM, VmmNews::Dimms(vec![dimm(0), dimm(1)]));
    let Outcome { sends, keep, .. } = keeper.step(now);
    let ask = |send: &crate::keeper::Send| send.request == Request::Status;
    assert!(sends.iter().all(ask) && sends.len() == 1 && !keep, "the next status will tell");
    keeper.hear(now, VM, News::Status(status()));
    let told = Request::SetPluggable { ranges: vec![dimm(0).range, dimm(1).range] };
    let is_told = |outcome: Outcome| outcome.sends.iter().any(|send| send.request == told);
    assert!(is_told(keeper.step(now)));
    keeper.hear(now, VM, News::Status(status()));
    assert!(!is_told(keeper.step(now)), "this status may be older");
    let later = now + SAY_AGAIN;
    keeper.hear(later, VM, News::Status(status()));
    assert!(is_told(keeper.step(later)), "it does not know it still");

    keeper.hear(now, VM, News::Event(Event::Ejecting { ranges: vec![dimm(1).range] }));
    assert!(keeper.step(now).keep, "before it can be gone");
    assert_eq!(keeper.to_keep().vms["web1"].out, [dimm(1)]);
    keeper.hear(now, VM, News::Event(Event::PlugWanted { ranges: vec![dimm(1).range] }));
    assert_eq!(orders(keeper.step(now)), [Order::Plug(dimm(1))]);
    let memdev = dimm(1).memdev;
    keeper.hear_vmm(now, VM, VmmNews::Plug { memdev, outcome: PlugOutcome::Done });
    let stolen = vec![dimm(0)];
    assert_eq!(keeper.to_keep().vms["web1"], VmMemory { stolen, ..VmMemory::default() });
}

#[test]
fn the_books_do_not_move_when_a_region_goes() {
    let mut keeper = keeper(Some("/q"));
    let before = keeper.vm_status(VM);
    let mut without = status();
    without.memory.pop();
    keeper.hear(Instant::default(), VM, News::Status(without));
    let after = keeper.vm_status(VM);
    assert_eq!((before.ejected, after.ejected), (ByteSize::ZERO, dimm(1).range.len()));
    assert_eq!((after.memory, after.committed), (before.memory, before.committed));

    // Part of it is granted, and it is not plugged in yet.
    let mut granted = status();
    granted.memory.pop();
    granted.stolen.pop();
    granted.pluggable = vec![dimm(0).range, dimm(1).range];
    keeper.hear(Instant::default(), VM, News::Status(granted));
    let granted = keeper.vm_status(VM);
    assert_eq!((granted.memory, granted.committed), (before.memory, dimm(1).range.len()));
}

#[test]
fn what_is_kept_stays_kept_where_the_monitor_was_taken_out_of_the_configuration() {
    let mut memory = Memory::default();
    memory.vms.entry("web1".into()).or_default().out = vec![dimm(1)];
    let host = HostMemory { total: ByteSize::from_gib(64), available: ByteSize::from_gib(60) };
    let mut keeper = Keeper::new(&config(None), &memory, host);
    keeper.hear(Instant::default(), VM, News::Attached(status()));
    keeper.hear(
        Instant::default(),
        VM,
        News::Event(Event::PlugWanted { ranges: vec![dimm(1).range] }),
    );
    assert_eq!(orders(keeper.step(Instant::default())), []);
    assert_eq!(keeper.to_keep(), memory);
}
