//! The control socket: lines of several clients, whole, halved, joined and senseless, while a guest
//! asks for memory; and the JSON of all of it.
//!
//! Every line gets one reply, in order, that the protocol's own types read; a client may be dropped,
//! but only it; twelve are served at most, and one that says nothing gives way; what the device
//! keeps for one that does not read is limited.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use arbitrary::{Arbitrary, Unstructured};
use memtide_api::device::LocalRule as api;
use memtide_api::device::{Call, Decision, FromDevice, Outcome, Request, Role};
use memtide_api::http;
use memtide_api::line::{LineBuffer, LineError, to_line};
use memtide_balloon::{BLOCK_QUEUE, LocalRule, Settings};
use memtide_units::{ByteSize, GpaRange, Instant};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::session::{Ask, ranges, with_memory};
use super::vmm::Vmm;

const STEPS_MAX: usize = 24;
/// Clients that an input connects: more than the device serves.
const CLIENTS: usize = 14;
const SERVED_MAX: usize = 12;
/// Rounds in which all that a client can have asked is answered: some calls are, in each.
const ROUNDS_MAX: usize = 10_000;

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Connect(u8),
    Close(u8),
    Call {
        client: u8,
        id: u64,
        call: What,
    },
    Bytes {
        client: u8,
        bytes: &'a [u8],
    },
    EndLine(u8),
    Read(u8),
    Ask(Ask),
    /// The guest's driver starts, for the first time or again.
    Start,
    Wait(u16),
}

#[derive(Clone, Debug, Arbitrary)]
enum What {
    Attach { version: u8, controller: bool },
    Status,
    SetTarget(u64),
    SetMin(u64),
    SetLocalRule(u8),
    Decide { ticket: u8, decision: u8 },
    AskHello,
    SetPluggable(Vec<u8>),
}

impl What {
    fn request(&self) -> Request {
        match self.clone() {
            Self::SetPluggable(blocks) => Request::SetPluggable { ranges: ranges(&blocks) },
            Self::Attach { version, controller } => Request::Attach {
                version: if version > 200 { version.into() } else { 1 },
                role: if controller { Role::Controller } else { Role::Observer },
            },
            Self::Status => Request::Status,
            Self::SetTarget(bytes) => Request::SetTarget { balloon: ByteSize::from_bytes(bytes) },
            Self::SetMin(bytes) => Request::SetMin { min: ByteSize::from_bytes(bytes) },
            Self::Decide { ticket, decision } => Request::Decide {
                ticket: u32::from(ticket % 3),
                decision: match decision % 4 {
                    0 => Decision::Grant,
                    1 => Decision::Hold("host-budget".into()),
                    2 => Decision::Deny("vm-limit".into()),
                    _ => Decision::Hold("because".into()),
                },
            },
            Self::SetLocalRule(rule) => Request::SetLocalRule {
                rule: [api::Grant, api::Target, api::Hold][usize::from(rule) % 3],
            },
            Self::AskHello => Request::AskHello,
        }
    }
}

/// A client, and what it is owed.
#[derive(Default)]
struct Client {
    stream: Option<UnixStream>,
    lines: LineBuffer,
    /// Replies that must come for lines that were sent whole.
    owed: usize,
    /// Something was sent that no newline has ended.
    is_inside: bool,
}

/// Reads `data` as JSON, and carries out the steps in it.
pub fn run(data: &[u8]) {
    json(data);
    with_memory(|memory| {
        let mut input = Unstructured::new(data);
        let settings = Settings { local_rule: LocalRule::Hold, ..Settings::default() };
        let mut vmm = Vmm::connect(memory, settings);
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::default()).collect();
        for _ in 0..STEPS_MAX {
            let Ok(step) = Step::arbitrary(&mut input) else { break };
            take(&mut vmm, &mut clients, &step);
            if input.is_empty() {
                break;
            }
        }
        settle(&mut vmm, &mut clients);
    });
}

/// In the end everybody who is still connected has all replies, if it reads them.
fn settle(vmm: &mut Vmm<'_>, clients: &mut [Client]) {
    for _ in 0..ROUNDS_MAX {
        vmm.round();
        clients.iter_mut().for_each(Client::read);
        if clients.iter().all(|client| client.stream.is_none() || client.owed == 0) {
            return;
        }
    }
    let owed: Vec<usize> = clients.iter().map(|client| client.owed).collect();
    panic!("replies are missing: {owed:?}");
}

fn take(vmm: &mut Vmm<'_>, clients: &mut [Client], step: &Step<'_>) {
    match step {
        Step::Connect(client) => {
            let served = clients.iter().filter(|client| client.stream.is_some()).count();
            let client = &mut clients[usize::from(*client) % CLIENTS];
            if client.stream.is_none() {
                client.connect(vmm);
            }
            if served >= SERVED_MAX {
                clients.iter_mut().for_each(Client::read);
                let served = clients.iter().filter(|client| client.stream.is_some()).count();
                assert!(served <= SERVED_MAX, "{served} are served");
            }
        }
        Step::Close(client) => clients[usize::from(*client) % CLIENTS] = Client::default(),
        Step::Call { client, id, call } => {
            let line = to_line(&Call { id: *id, call: call.request() }).expect("it is JSON");
            clients[usize::from(*client) % CLIENTS].send(&line);
        }
        Step::Bytes { client, bytes } => clients[usize::from(*client) % CLIENTS].send(bytes),
        Step::EndLine(client) => clients[usize::from(*client) % CLIENTS].send(b"\n"),
        Step::Read(client) => clients[usize::from(*client) % CLIENTS].read(),
        Step::Ask(ask) => _ = vmm.ask(&ask.bytes(vmm.device.balloon().hello_epoch()), 32),
        Step::Start => _ = vmm.set_up(u64::MAX, 1 << BLOCK_QUEUE),
        Step::Wait(ms) => vmm.now += u64::from(*ms),
    }
    vmm.round();
}

impl Client {
    fn connect(&mut self, vmm: &mut Vmm<'_>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket");
        vmm.device.admit(theirs, Instant::from_millis(vmm.now));
        *self = Self { stream: Some(ours), ..Self::default() };
    }

    fn send(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        match stream.write_all(bytes) {
            Ok(()) => {
                self.owed += bytes.iter().filter(|byte| **byte == b'\n').count();
                self.is_inside = bytes.last().map_or(self.is_inside, |byte| *byte != b'\n');
            }
            // It was dropped.
            Err(_) => self.stream = None,
        }
    }

    /// Reads what has come: replies and events, and nothing else.
    fn read(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut bytes = [0; 8192];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => {
                    self.stream = None;
                    return;
                }
                Ok(len) => self.lines.extend(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.stream = None;
                    return;
                }
            }
        }
        while let Some(line) = self.lines.next_message().expect("the device sends its protocol") {
            if let FromDevice::Reply(reply) = &line {
                let is_turned_away = matches!(&reply.result,
                    Outcome::Error(refusal) if refusal.name == "too-many-clients");
                if is_turned_away && self.owed == 0 {
                    continue;
                }
                assert!(self.owed > 0, "a reply that nobody waits for: {line:?}");
                self.owed -= 1;
            }
        }
    }
}

/// What reads the bytes writes them so that it reads the same again.
fn json(data: &[u8]) {
    again::<Call>(data);
    again::<FromDevice>(data);
    again::<http::HostStatus>(data);
    again::<http::VmStatus>(data);
    again::<http::VmChange>(data);
    again::<http::HostChange>(data);
    again::<GpaRange>(data);
}

fn again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let read = |bytes: &[u8]| -> Result<Option<T>, LineError> {
        let mut lines = LineBuffer::default();
        lines.extend(bytes);
        lines.extend(b"\n");
        lines.next_message()
    };
    if let Ok(Some(message)) = read(data) {
        let line = to_line(&message).expect("it is JSON");
        let same = read(&line[..line.len() - 1]).expect("what was written is read");
        assert_eq!(same, Some(message));
    }
}
