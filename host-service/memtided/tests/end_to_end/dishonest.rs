//! Guests that say one thing and do another: nobody else's memory pays for it.

use memtide_api::device::{DeviceStatus, Driver, Event, Urgency};

use super::daemon::{Host, wait_for};
use super::fake_device::FakeDevice;
use super::{adopt, blocks, connected, device};

/// A device whose guest has given up so many of its 16 blocks, by its own word, and uses 15.
fn greedy(host: &Host, driver: Driver, given_up: u64) -> FakeDevice {
    let path = host.path("greedy.ctl");
    let honest = FakeDevice::start(&path, 16, 0).status();
    let mut status = DeviceStatus { driver, resident: blocks(15), ..honest };
    match driver {
        Driver::Stock => status.actual = blocks(given_up),
        _ => status.stolen = FakeDevice::start(&path, 16, given_up).status().stolen,
    }
    FakeDevice::with_status(&path, status)
}

#[test]
fn what_a_guest_uses_is_booked_whatever_its_agent_says() {
    let host = Host::new();
    let greedy = greedy(&host, Driver::Agent, 10);
    let web = device(&host, "web1", 16, 12);
    let config = adopt(&host, "greedy", "128MiB") + &adopt(&host, "web1", "128MiB");
    let daemon = host.start(&config, &["--budget", "2560MiB"]);
    assert_eq!(connected(&daemon, "greedy").committed, blocks(15));
    connected(&daemon, "web1");

    // It says more, again and again, and its word is newer than what the host has seen.
    for given_up in [11, 12, 13] {
        greedy.say(Event::Stolen { ranges: Vec::new(), stolen: blocks(given_up) });
        wait_for("the word", || (daemon.vm("greedy").stolen == blocks(given_up)).then_some(()));
        assert_eq!(daemon.vm("greedy").committed, blocks(15), "it is used all the same");
    }
    web.ask(1, 3, Urgency::Emergency);
    let held = wait_for("the hold", || daemon.vm("web1").held);
    assert_eq!(held.asked.reason, "host-budget", "there is one block of room, not fourteen");
}

#[test]
fn a_balloon_counts_when_the_host_has_its_pages() {
    let host = Host::new();
    let greedy = greedy(&host, Driver::Stock, 0);
    let daemon = host.start(&adopt(&host, "greedy", "128MiB"), &["--budget", "4GiB"]);
    assert_eq!(connected(&daemon, "greedy").committed, blocks(16));
    for round in 0..50 {
        greedy.say(Event::Balloon { actual: blocks(11 + round % 2) });
        assert!(daemon.vm("greedy").committed >= blocks(15), "its pages are there");
    }
    greedy.set_resident(blocks(4));
    wait_for("the pages", || (daemon.vm("greedy").committed == blocks(4)).then_some(()));
}
