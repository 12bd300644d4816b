//! Clients of the control socket that are slow, loud, rude, or too many.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Client, DEADLINE, Device, Vm};
use memtide_api::device::{Event, FromDevice, Outcome, Request, Role};
use memtide_api::line::CALL_MAX;
use memtide_balloon::Settings;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost::vhost_user::VhostUserFrontend;

fn served() -> (Device, Vm) {
    let (device, socket) = Device::connected(Settings::default());
    let vm = Vm::start(socket, 0, &[0]);
    (device, vm)
}

fn connect(device: &Device) -> UnixStream {
    let stream = UnixStream::connect(device.control_path()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

fn call(id: u64) -> String {
    format!("{{\"id\":{id},\"call\":\"status\"}}\n")
}

/// The id of the next reply.
fn reply(reader: &mut impl BufRead) -> u64 {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    match serde_json::from_str(&line).unwrap() {
        FromDevice::Reply(reply) => reply.id,
        FromDevice::Event { event } => panic!("no event is awaited: {event:?}"),
    }
}

#[test]
fn a_line_without_an_end_ends_its_client_and_nobody_else() {
    let (device, _vm) = served();
    let mut other = device.control();
    let mut endless = connect(&device);
    // It may be told no more than that its line is too long, or find the socket closed under it.
    let _ = endless.write_all(&vec![b' '; CALL_MAX + 1]);
    let mut said = Vec::new();
    let _ = endless.read_to_end(&mut said);
    assert!(said.is_empty());
    // The longest line that is one is answered.
    let padded = format!("{}{}", " ".repeat(CALL_MAX - 24), call(7).trim_end());
    other.send_raw(format!("{padded}\n").as_bytes());
    assert!(matches!(other.line(), FromDevice::Reply(reply) if reply.id == 7));
}

#[test]
fn a_call_in_pieces_is_a_call() {
    let (device, _vm) = served();
    let mut slow = connect(&device);
    let mut other = device.control();
    for byte in call(3).bytes() {
        slow.write_all(&[byte]).unwrap();
        other.status();
    }
    assert_eq!(reply(&mut BufReader::new(slow)), 3);
}

#[test]
fn nonsense_is_answered_line_by_line() {
    let (device, _vm) = served();
    let mut client = connect(&device);
    let nested = "[".repeat(4000);
    let long_name = format!("{{\"id\":1,\"call\":{{\"{}\":1}}}}", "x".repeat(3000));
    let nonsense: [&[u8]; 9] = [
        b"",
        b"\0\0\0",
        b"\xff\xfe{}",
        nested.as_bytes(),
        long_name.as_bytes(),
        b"{\"id\":-1,\"call\":\"status\"}",
        b"{\"id\":1,\"id\":2,\"call\":\"status\"}",
        b"{\"id\":1,\"call\":{\"set_target\":{\"balloon\":99999999999999999999}}}",
        b"GET / HTTP/1.1\r",
    ];
    for line in nonsense {
        client.write_all(&[line, b"\n"].concat()).unwrap();
    }
    client.write_all(call(9).as_bytes()).unwrap();
    let mut reader = BufReader::new(client);
    for _ in nonsense {
        assert_eq!(reply(&mut reader), 0);
    }
    assert_eq!(reply(&mut reader), 9, "and the next call as if nothing had been");
    assert_eq!(device.control().status().target.bytes(), 0);
}

#[test]
fn a_flood_of_calls_is_answered_in_order_and_keeps_nobody_waiting() {
    const CALLS: u64 = 20_000;
    let (device, mut vm) = served();
    let flood = connect(&device);
    let mut writer = flood.try_clone().unwrap();
    let sent = std::thread::spawn(move || {
        // More than the sockets hold: it waits until the device reads on, which it does when it is
        // read from itself.
        (1..=CALLS).for_each(|id| writer.write_all(call(id).as_bytes()).unwrap());
    });
    let mut other = device.control();
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let asked = Instant::now();
        other.status();
        vm.config(0, 64);
        longest = longest.max(asked.elapsed());
    }
    eprintln!("the longest wait beside a deaf flood: {longest:?}");
    let mut reader = BufReader::new(flood);
    for id in 1..=CALLS {
        if id % 100 == 0 {
            let asked = Instant::now();
            vm.config(0, 64);
            longest = longest.max(asked.elapsed());
        }
        assert_eq!(reply(&mut reader), id);
    }
    sent.join().unwrap();
    eprintln!("the longest wait: {longest:?}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
}

#[test]
fn who_stops_asking_is_still_answered() {
    let (device, _vm) = served();
    let mut script = connect(&device);
    let calls: String = (1..=100).map(call).collect();
    script.write_all(calls.as_bytes()).unwrap();
    script.shutdown(Shutdown::Write).unwrap();
    let lines: Vec<String> = BufReader::new(script).lines().map(Result::unwrap).collect();
    assert_eq!(lines.len(), 100);
}

#[test]
fn a_guest_that_says_a_new_size_all_the_time_does_not_flood_who_watches() {
    const SIZES: u32 = 3000;
    let (device, mut vm) = served();
    let mut watcher = device.control();
    watcher.ok(Request::Attach { version: 1, role: Role::Observer });
    let started = Instant::now();
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    for pages in 1..=SIZES {
        vm.frontend.set_config(4, flags, &pages.to_le_bytes()).unwrap();
    }
    let mut heard = 0;
    watcher.event(|event| {
        let Event::Balloon { actual } = event else { return None };
        heard += 1;
        (actual.bytes() == 4096 * u64::from(SIZES)).then_some(())
    });
    // Ten a second and the first; the last one is never lost.
    let at_most = 2 + started.elapsed().as_millis() / 100;
    assert!(heard <= at_most, "{heard} in {:?}", started.elapsed());
}

#[test]
fn places_are_kept_for_those_who_use_them() {
    let (device, _vm) = served();
    let attach = |role| Request::Attach { version: 1, role };
    let mut watchers: Vec<Client> = (0..8).map(|_| device.control()).collect();
    watchers.iter_mut().for_each(|watcher| _ = watcher.ok(attach(Role::Observer)));
    let mut ninth = device.control();
    assert_eq!(ninth.refused(attach(Role::Observer)), "too-many-clients");
    watchers[0].ok(attach(Role::Observer));
    // Whoever decides still finds a place, and those who fill the rest are told why they do not.
    ninth.ok(attach(Role::Controller));
    let idle: Vec<UnixStream> = (0..3).map(|_| connect(&device)).collect();
    let mut line = String::new();
    let refused = BufReader::new(connect(&device)).read_line(&mut line).unwrap();
    assert!(refused > 0 && line.contains("too-many-clients"), "{line}");
    // Those who say nothing make room after some seconds.
    let start = Instant::now();
    while !device.control().is_served() {
        assert!(start.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(idle);
    assert!(matches!(watchers[7].call(Request::Status), Outcome::Ok(_)), "who watches is not idle");
}

#[test]
fn descriptors_that_come_with_a_call_are_not_kept() {
    let (device, _vm) = served();
    let mut client = connect(&device);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let file = std::fs::File::open("/dev/null").unwrap();
    for id in 1..=100 {
        let fds = [file.as_fd(); 4];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let line = call(id);
        let data = [std::io::IoSlice::new(line.as_bytes())];
        rustix::net::sendmsg(&client, &data, &mut control, SendFlags::empty()).unwrap();
        let mut answer = BufReader::with_capacity(1 << 16, &mut client);
        assert_eq!(reply(&mut answer), id);
    }
    // Other tests of this program come and go meanwhile: 400 would be seen all the same.
    assert!(open() < before + 200);
}
