//! A VMM that sends what it is told to, and looks at what comes back.
//!
//! A VMM waits for replies: one that is missing hangs it, one that nobody asked for puts it out of
//! step, and a closed socket is its end. So every reply is compared with what was sent.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use memtide_balloon::fake::{Buffer, FakeDriver};
use memtide_balloon::{BLOCK_QUEUE, QUEUES, Settings};
use memtide_units::Instant;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost_user_balloon::fuzzing::Stepper;

use super::descriptors::{Feed, Kind};
use super::guest_memory::{
    BLOCKS_LEN, BLOCKS_START, GuestMemory, LOW_LEN, ODD_PAGES_LEN, ODD_START, USER_BASE,
};

/// Numbers of messages (QEMU, docs/interop/vhost-user.rst).
pub(super) mod number {
    pub(in super::super) const GET_FEATURES: u32 = 1;
    pub(in super::super) const SET_FEATURES: u32 = 2;
    pub(in super::super) const SET_MEM_TABLE: u32 = 5;
    pub(in super::super) const SET_VRING_NUM: u32 = 8;
    pub(in super::super) const SET_VRING_ADDR: u32 = 9;
    pub(in super::super) const SET_VRING_BASE: u32 = 10;
    pub(in super::super) const GET_VRING_BASE: u32 = 11;
    pub(in super::super) const SET_VRING_KICK: u32 = 12;
    pub(in super::super) const SET_VRING_CALL: u32 = 13;
    pub(in super::super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(in super::super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(in super::super) const GET_QUEUE_NUM: u32 = 17;
    pub(in super::super) const SET_VRING_ENABLE: u32 = 18;
    pub(in super::super) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(in super::super) const GET_CONFIG: u32 = 24;
    pub(in super::super) const SET_CONFIG: u32 = 25;
    pub(in super::super) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(in super::super) const ADD_MEM_REG: u32 = 37;
    pub(in super::super) const REM_MEM_REG: u32 = 38;
    pub(in super::super) const SET_DEVICE_STATE_FD: u32 = 42;
    pub(in super::super) const CHECK_DEVICE_STATE: u32 = 43;
}
use number::*;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// Descriptors with one message that are believed.
const FDS_MAX: usize = 8;
/// The largest configuration that is read at once.
const CONFIG_MAX: usize = 4096;
const CONFIG_HEAD: usize = 12;

/// Where the rings are laid by a guest that lays them well.
pub(super) const RINGS: u64 = 0x1_0000;
/// Where requests and answers are put.
pub(super) const BUFFERS: u64 = 0x2_0000;
const SIZE: u16 = 16;
/// Messages that the device takes in one round, at least.
const MESSAGES_AT_ONCE: usize = 64;

/// What must come back for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// A reply with so many bytes.
    Reply(usize),
    /// A reply, whatever is in it.
    Any,
    /// An acknowledgement, if those were negotiated.
    Perhaps,
    /// The outcome of a transfer, once there is one; nothing else is answered before.
    Later,
    Nothing,
}

impl Due {
    fn is_certain(self) -> bool {
        matches!(self, Self::Reply(_) | Self::Any)
    }
}

/// Where a transfer of the device's state stands after all messages that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    /// There is none, or its outcome is known as soon as the message was read: to files, and from
    /// them, all goes at once, and where nothing can go at all it has failed.
    Settled,
    /// The other end of the channel may not have written all, or have no room.
    MayWait,
}

impl Transfer {
    /// One that was begun, if it was, with these descriptors.
    fn through(fds: &[Kind]) -> Self {
        match fds {
            [Kind::Kick | Kind::Call | Kind::Pipe | Kind::Channel | Kind::Feed] => Self::MayWait,
            _ => Self::Settled,
        }
    }
}

/// A message that may be answered still.
#[derive(Clone, Copy, Debug)]
struct Sent {
    request: u32,
    due: Due,
}

/// The VMM, its guest and the device.
pub(super) struct Vmm<'m> {
    socket: UnixStream,
    pub(super) device: Stepper,
    pub(super) memory: &'m GuestMemory,
    pub(super) drivers: Vec<FakeDriver>,
    /// Bytes and descriptors of whole messages that go out together: a VMM's messages may arrive
    /// that way.
    unsent: (Vec<u8>, Vec<Kind>),
    sent: VecDeque<Sent>,
    replies: Vec<u8>,
    transfer: Transfer,
    /// What [`Kind::Feed`] is, once there is one.
    feed: Option<Feed>,
    /// Messages end where their heads say.
    in_step: bool,
    /// The device may have looked at something already.
    has_begun: bool,
    pub(super) now: u64,
}

impl<'m> Vmm<'m> {
    pub(super) fn connect(memory: &'m GuestMemory, settings: Settings) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
        socket.set_nonblocking(true).expect("a socket");
        let device = Stepper::start(theirs, settings).expect("a socket is a connection");
        let driver = |n| FakeDriver::new(RINGS + n * FakeDriver::LEN, SIZE);
        let drivers = (0..QUEUES as u64).map(driver).collect();
        Self {
            socket,
            device,
            memory,
            drivers,
            unsent: Default::default(),
            sent: VecDeque::new(),
            replies: Vec::new(),
            transfer: Transfer::Settled,
            feed: None,
            in_step: true,
            has_begun: false,
            now: 0,
        }
    }

    /// One round of the device. False where the connection has ended, as it may once the messages
    /// are out of step.
    pub(super) fn round(&mut self) -> bool {
        self.flush();
        self.has_begun = true;
        let now = Instant::from_millis(self.now);
        // A round takes a share of what has arrived, and much arrives behind a question that waits.
        for _ in 0..=self.sent.len() / MESSAGES_AT_ONCE {
            self.device.round(&self.memory.files.ready, now).expect("poll does not fail");
        }
        self.read_replies();
        let is_connected = self.device.is_connected();
        assert!(is_connected || !self.in_step, "the connection was closed");
        is_connected
    }

    /// Sends a whole message, and lets the device look at it.
    pub(super) fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[Kind]) -> bool {
        self.post(request, flags, payload, fds);
        self.round()
    }

    /// Sends a whole message, at the next round at the latest.
    fn post(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[Kind]) {
        let flags = VERSION | flags & !3;
        if self.in_step {
            let due = self.due(request, flags, payload, fds);
            self.sent.push_back(Sent { request, due });
        }
        // Descriptors arrive with the first byte of those that they were sent with.
        if !fds.is_empty() {
            self.flush();
        }
        let (bytes, kinds) = &mut self.unsent;
        for word in [request, flags, payload.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(payload);
        kinds.extend(fds);
    }

    /// Sends bytes that are not known to be a message, or half of one.
    pub(super) fn send_raw(&mut self, bytes: &[u8], fds: &[Kind]) -> bool {
        // Descriptors travel with a byte at least.
        if !bytes.is_empty() {
            self.in_step = false;
            self.flush();
            self.send_bytes(bytes, fds);
        }
        self.round()
    }

    fn flush(&mut self) {
        let (bytes, fds) = std::mem::take(&mut self.unsent);
        if !bytes.is_empty() {
            self.send_bytes(&bytes, &fds);
        }
    }

    fn send_bytes(&mut self, bytes: &[u8], fds: &[Kind]) {
        if fds.contains(&Kind::Feed) {
            self.feed.get_or_insert_with(Feed::new);
        }
        let feed = self.feed.as_ref().map(|feed| feed.reader.as_fd());
        let fds: Vec<_> = fds.iter().map(|kind| self.memory.files.get(*kind).or(feed)).collect();
        let fds: Vec<_> = fds.into_iter().flatten().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "32 are enough");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // A device that has closed the connection, or that waits for the rest of a message which is
        // longer than the socket's buffer, takes no more.
        _ = rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags);
    }

    /// Puts bytes into the pipe, the last ones where it `ends`.
    pub(super) fn feed(&mut self, bytes: &[u8], ends: bool) -> bool {
        self.feed.get_or_insert_with(Feed::new).write(bytes, ends);
        self.round()
    }

    /// Puts so many more bytes of the device's own state into it.
    pub(super) fn feed_state(&mut self, len: usize, ends: bool) -> bool {
        let state = self.device.balloon().save_state();
        let from = self.feed.as_ref().map_or(0, |feed| feed.written).min(state.len());
        self.feed(&state[from..state.len().min(from + len)], ends)
    }

    /// What must come back for a message that goes out now.
    fn due(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[Kind]) -> Due {
        let is_believed =
            flags & REPLY == 0 && fds.len() <= FDS_MAX && payload.len() <= CONFIG_HEAD + CONFIG_MAX;
        match request {
            GET_FEATURES
            | GET_PROTOCOL_FEATURES
            | GET_QUEUE_NUM
            | GET_MAX_MEM_SLOTS
            | GET_VRING_BASE => Due::Reply(8),
            SET_DEVICE_STATE_FD => {
                if is_believed {
                    self.transfer = Transfer::through(fds);
                }
                Due::Reply(8)
            }
            CHECK_DEVICE_STATE if is_believed => {
                match std::mem::replace(&mut self.transfer, Transfer::Settled) {
                    Transfer::Settled => Due::Reply(8),
                    Transfer::MayWait => Due::Later,
                }
            }
            CHECK_DEVICE_STATE => Due::Reply(8),
            GET_CONFIG => {
                let size = payload.get(4..8).and_then(|size| size.try_into().ok());
                let size = size.map_or(0, u32::from_ne_bytes) as usize;
                // Short of its whole head it is refused by an empty reply.
                if is_believed && payload.len() >= CONFIG_HEAD && size <= CONFIG_MAX {
                    Due::Reply(CONFIG_HEAD + size)
                } else {
                    Due::Any
                }
            }
            _ if flags & NEED_REPLY != 0 => Due::Perhaps,
            _ => Due::Nothing,
        }
    }

    fn read_replies(&mut self) {
        let mut bytes = [0; 8192];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(len) => {
                    self.replies.extend(&bytes[..len]);
                    // There is no more.
                    if len < bytes.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("the socket fails: {error}"),
            }
        }
        if !self.in_step {
            self.replies.clear();
            return;
        }
        let replies = std::mem::take(&mut self.replies);
        let mut rest = &replies[..];
        let questions = self.questions();
        while !rest.is_empty() {
            let word = |n: usize| u32::from_ne_bytes(rest[4 * n..4 * n + 4].try_into().expect("4"));
            assert!(rest.len() >= 12, "half a head: {rest:x?}");
            let (request, flags, len) = (word(0), word(1), word(2) as usize);
            assert_eq!(flags, VERSION | REPLY, "flags of a reply to {request}");
            assert!(rest.len() >= 12 + len, "half a reply to {request}");
            self.take_reply(request, len);
            rest = &rest[12 + len..];
        }
        if self.questions() < questions {
            // What was sent behind the question is looked at in the next round.
            return;
        }
        // Each round looks at all that was sent: what is due is there, as far as nothing is waited
        // for first.
        let looked_at = self.sent.iter().position(|sent| sent.due == Due::Later);
        let looked_at = looked_at.unwrap_or(self.sent.len());
        let missing = self.sent.drain(..looked_at).find(|sent| sent.due.is_certain());
        assert!(missing.is_none(), "no reply to {missing:?}");
    }

    /// Questions after the outcome of a transfer that are not answered yet.
    fn questions(&self) -> usize {
        self.sent.iter().filter(|sent| sent.due == Due::Later).count()
    }

    /// In the end a transfer has taken too long, and that is said.
    pub(super) fn settle(&mut self) {
        if !self.in_step {
            return;
        }
        // One question after the other, and what was sent behind the last one. A transfer that begins
        // behind a question begins when that is answered, and takes too long a round later.
        for _ in 0..=2 * self.questions() {
            self.now += 20_000;
            self.round();
        }
        assert!(self.sent.is_empty(), "no reply to {:?}", self.sent.front());
    }

    fn take_reply(&mut self, request: u32, len: usize) {
        let sent =
            self.sent.iter().position(|sent| sent.request == request && sent.due != Due::Nothing);
        let sent = sent.and_then(|at| self.sent.remove(at));
        let Some(sent) = sent else { panic!("nobody waits for a reply to {request}") };
        match sent.due {
            Due::Reply(due) => assert_eq!(len, due, "bytes of the reply to {request}"),
            Due::Perhaps => assert_eq!(len, 8, "bytes of the acknowledgement of {request}"),
            Due::Later => assert_eq!(len, 8, "bytes of the outcome of a transfer"),
            Due::Any | Due::Nothing => {}
        }
    }

    /// Everything as a VMM does it when its guest's driver starts; of the rings those whose bits
    /// are set.
    pub(super) fn set_up(&mut self, acked: u64, rings: u8) -> bool {
        self.post(SET_FEATURES, 0, &words(&[acked | 1 << 30]), &[]);
        self.post(SET_PROTOCOL_FEATURES, 0, &words(&[u64::MAX]), &[]);
        self.post(SET_BACKEND_REQ_FD, NEED_REPLY, &[], &[Kind::Channel]);
        let regions = [(0, LOW_LEN), (ODD_START, ODD_PAGES_LEN), (BLOCKS_START, BLOCKS_LEN)];
        let regions = regions.map(|(start, len)| region((start, len, USER_BASE + start, 0)));
        let table = [halves(&[3, 0]), regions.concat()].concat();
        self.post(SET_MEM_TABLE, NEED_REPLY, &table, &[Kind::Low, Kind::Odd, Kind::Blocks]);
        for ring in (0..QUEUES).filter(|ring| rings >> ring & 1 != 0) {
            self.post_ring(ring);
        }
        self.round()
    }

    /// A fresh ring, laid well and started.
    pub(super) fn set_up_ring(&mut self, ring: usize) -> bool {
        self.post_ring(ring);
        self.round()
    }

    fn post_ring(&mut self, ring: usize) {
        let n = ring as u32;
        self.drivers[ring] = FakeDriver::new(RINGS + u64::from(n) * FakeDriver::LEN, SIZE);
        self.drivers[ring].clear(self.memory.map());
        // A ring that runs cannot be laid anew; before the first round none does.
        if self.has_begun {
            self.post(GET_VRING_BASE, 0, &halves(&[n, 0]), &[]);
        }
        self.post(SET_VRING_NUM, 0, &halves(&[n, SIZE.into()]), &[]);
        self.post(SET_VRING_BASE, 0, &halves(&[n, 0]), &[]);
        let driver = &self.drivers[ring];
        let parts = [driver.descriptors(), driver.used_ring(), driver.available_ring()];
        let addresses = addresses(n, parts.map(|at| USER_BASE + at));
        self.post(SET_VRING_ADDR, 0, &addresses, &[]);
        self.post(SET_VRING_CALL, 0, &words(&[n.into()]), &[Kind::Call]);
        self.post(SET_VRING_KICK, 0, &words(&[n.into()]), &[Kind::Kick]);
        self.post(SET_VRING_ENABLE, 0, &halves(&[n, 1]), &[]);
    }

    /// Descriptors, used ring, available ring, by the VMM's own addresses.
    pub(super) fn lay(&mut self, ring: u32, parts: [u64; 3]) -> bool {
        self.send(SET_VRING_ADDR, 0, &addresses(ring, parts), &[])
    }

    /// The guest kicks: all rings share one descriptor, so all of them are looked at.
    pub(super) fn kick(&mut self) -> bool {
        self.memory.files.kick();
        self.round()
    }

    /// A request on the block queue, with room for the answer.
    pub(super) fn ask(&mut self, request: &[u8], room: u32) -> bool {
        self.memory.write(BUFFERS, request);
        let buffers = [
            Buffer::Readable(BUFFERS, request.len() as u32),
            Buffer::Writable(BUFFERS + 0x8000, room),
        ];
        self.drivers[BLOCK_QUEUE].add(self.memory.map(), &buffers);
        self.kick()
    }
}

fn addresses(ring: u32, parts: [u64; 3]) -> Vec<u8> {
    [halves(&[ring, 0]), words(&parts), words(&[0])].concat()
}

/// A region as it stands in a message: guest address, size, VMM's address, offset in the file.
pub(super) fn region((guest, size, user, offset): (u64, u64, u64, u64)) -> Vec<u8> {
    words(&[guest, size, user, offset])
}

pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn halves(halves: &[u32]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_ne_bytes()).collect()
}
