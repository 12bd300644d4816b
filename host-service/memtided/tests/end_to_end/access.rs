//! What a guest touches, as its agent tells and clients read it.

use memtide_access::{Amounts, Cell, Digest, Kind, Layout};
use memtide_api::device::{DeviceStatus, Driver, Event, GuestTelemetry};
use memtide_api::http::VmAccess;
use memtide_units::{ByteSize, Gpa, GpaRange};

use crate::daemon::{Host, wait_for};
use crate::fake_device::FakeDevice;
use crate::{adopt, connected, device};

fn told(at_ms: u64) -> Event {
    let memory = GpaRange::new(Gpa(0), ByteSize::from_mib(8)).unwrap();
    let layout = Layout::new(&[memory], 512).unwrap();
    let cells = vec![Cell::new(Kind::Free); layout.cells()];
    let touched = Some(ByteSize::from_mib(2));
    let amounts = Amounts { present: layout.present(), touched, ..Amounts::default() };
    let heat = Digest { at_ms, watched_ms: 60_000, amounts, layout, cells };
    let heat = Some(Box::new(heat));
    Event::Telemetry(GuestTelemetry { note: "steady".into(), heat, ..GuestTelemetry::default() })
}

#[test]
fn what_an_agent_tells_is_kept_and_read() {
    let host = Host::new();
    let web = device(&host, "web1", 16, 10);
    let daemon = host.start(&adopt(&host, "web1", "256MiB"), &[]);
    connected(&daemon, "web1");
    let (status, refusal) = daemon.refused("GET", "/v1/vms/web1/access", "");
    assert_eq!((status, refusal.name.as_str()), (409, "nothing-told"));
    assert!(refusal.message.contains("the agent in web1 has not told"), "{}", refusal.message);
    web.say(told(77));
    let access: VmAccess = wait_for("the history", || daemon.access("web1"));
    let last = access.history.last().unwrap();
    assert_eq!((last.amounts.touched, last.cells.len()), (Some(ByteSize::from_mib(2)), 8));
    assert!(access.age_ms < 60_000);
    let telemetry = daemon.vm("web1").device.unwrap().telemetry.unwrap();
    assert_eq!((telemetry.note.as_str(), telemetry.heat), ("steady", None), "it is not repeated");
}

#[test]
fn whoever_tells_nothing_is_named() {
    let host = Host::new();
    let status = DeviceStatus { driver: Driver::Stock, ..DeviceStatus::default() };
    let _stock = FakeDevice::with_status(&host.path("web1.ctl"), status);
    let config = adopt(&host, "web1", "256MiB") + &adopt(&host, "web2", "256MiB");
    let daemon = host.start(&config, &[]);
    connected(&daemon, "web1");
    let said = |vm| daemon.refused("GET", &format!("/v1/vms/{vm}/access"), "").1.message;
    assert!(said("web1").contains("a standard driver does not tell"), "{}", said("web1"));
    assert!(said("web2").contains("no connection to its device"), "{}", said("web2"));
    assert!(said("web3").contains("there is no VM"), "{}", said("web3"));
    let (status, refusal) = daemon.refused("PUT", "/v1/vms/web1/access", "{}");
    assert_eq!((status, refusal.name.as_str()), (405, "no-such-method"));
}
