//! Whoever uses the control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use memtide_api::device::{Answer, Call, DeviceStatus, Event, FromDevice, Outcome, Request, Role};

use super::{DEADLINE, Device};

/// A client of the control socket.
pub struct Client {
    reader: BufReader<UnixStream>,
    next: u64,
    events: Vec<Event>,
}

impl Client {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { reader: BufReader::new(stream), next: 1, events: Vec::new() }
    }

    pub fn controller(path: &Device) -> Self {
        let mut client = path.control();
        client.ok(Request::Attach { version: 1, role: Role::Controller });
        client
    }

    pub fn call(&mut self, request: Request) -> Outcome {
        let call = Call { id: self.next, call: request };
        self.next += 1;
        let line = memtide_api::line::to_line(&call).unwrap();
        self.reader.get_mut().write_all(&line).unwrap();
        loop {
            match self.line() {
                FromDevice::Reply(reply) => {
                    assert_eq!(reply.id, call.id);
                    return reply.result;
                }
                FromDevice::Event { event } => self.events.push(event),
            }
        }
    }

    pub fn ok(&mut self, request: Request) -> Answer {
        match self.call(request) {
            Outcome::Ok(answer) => answer,
            Outcome::Error(refusal) => panic!("{refusal}"),
        }
    }

    pub fn refused(&mut self, request: Request) -> String {
        match self.call(request) {
            Outcome::Ok(answer) => panic!("a refusal was expected, not {answer:?}"),
            Outcome::Error(refusal) => refusal.name,
        }
    }

    pub fn status(&mut self) -> DeviceStatus {
        match self.ok(Request::Status) {
            Answer::Status(status) => *status,
            Answer::Done => panic!("a status was asked for"),
        }
    }

    /// Asks for the status until it is as wanted. Each answer is a round through the device's loop.
    pub fn status_when(&mut self, wanted: impl Fn(&DeviceStatus) -> bool) -> DeviceStatus {
        let start = std::time::Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the status stays {status:?}");
            std::thread::yield_now();
        }
    }

    /// The next event that `pick` wants; others are passed over.
    pub fn event<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        for event in self.events.drain(..) {
            if let Some(found) = pick(event) {
                return found;
            }
        }
        loop {
            if let FromDevice::Event { event } = self.line()
                && let Some(found) = pick(event)
            {
                return found;
            }
        }
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    pub fn line(&mut self) -> FromDevice {
        let mut line = String::new();
        assert!(self.reader.read_line(&mut line).unwrap() > 0, "the device closed the connection");
        serde_json::from_str(&line).unwrap()
    }

    /// True where the device answers, false where it has turned the client away.
    pub fn is_served(&mut self) -> bool {
        let _ = self.reader.get_mut().write_all(b"{\"id\":1,\"call\":\"status\"}\n");
        let mut line = String::new();
        self.reader.read_line(&mut line).is_ok() && line.starts_with("{\"id\":1,\"ok\":")
    }

    /// What comes until the device hangs up.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A connection that was reset has ended too.
        let _ = std::io::Read::read_to_end(&mut self.reader, &mut bytes);
        bytes
    }
}
