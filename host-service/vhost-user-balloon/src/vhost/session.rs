//! One connection of a VMM, from its first message to its last.
//!
//! Everything here happens on one thread, one thing after another: a message is handled, or a ring
//! is worked on, never both at once. So when GET_VRING_BASE is answered, the last write to that
//! ring and the last punch for it lie before the answer, and none comes after it. A guest's driver
//! that is killed relies on this: the VMM stops the rings before the guest goes on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use memtide_balloon::{
    BLOCK_QUEUE, Balloon, ConfigNotifier, Interrupt, Left, LogLimiter, Moment, QUEUES, Ring, Rings,
};
use memtide_hostmem::Regions;
use memtide_units::Instant;
use memtide_wire::features::QueueRole;
use rustix::event::PollFlags;
use zerocopy::IntoBytes;

use super::memory::{HostMemory, MemoryTable};
use super::message::{Message, MessageReader, Received, Sent, StreamError, send_reply};
use super::notice::{Begun, NoticeChannel};
use super::protocol::{CHECK_DEVICE_STATE, Request, feature};
use super::requests::Rejected;
use super::transfer::Transfer;
use super::vring::{BrokenRing, Vring, Work};

/// A VMM that leaves its replies unread this long is not coming back for them.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages that are handled before the rings get their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// Is the VMM still there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Open,
    Closed,
}

/// One connection of a VMM.
#[derive(Debug)]
pub(crate) struct Session {
    socket: UnixStream,
    reader: MessageReader,
    pub(super) protocol_features: u64,
    pub(super) table: MemoryTable,
    pub(super) rings: [Vring; QUEUES],
    /// Where the VMM hears of changes of the configuration.
    pub(super) notices: Option<NoticeChannel>,
    notifier: ConfigNotifier,
    /// The device's state on its way to the VMM or from it, or how that ended.
    pub(super) transfer: Option<Transfer>,
    /// Whether the VMM has asked how it ended before it did.
    check: Check,
    limiter: LogLimiter,
}

/// A question that is answered once the state has gone through its channel. Until then no other
/// message is read: the VMM waits for this answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    NotAsked,
    Asked,
}

impl Session {
    /// Begins with nothing negotiated, no memory and no ring.
    ///
    /// What it logs goes through `limiter`: a VMM may come and go as often as it likes.
    ///
    /// # Errors
    /// Of `fcntl` and `setsockopt` on the socket.
    pub(crate) fn new(socket: UnixStream, limiter: LogLimiter) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self {
            socket,
            reader: MessageReader::default(),
            protocol_features: 0,
            table: MemoryTable::default(),
            rings: Default::default(),
            notices: None,
            notifier: ConfigNotifier::default(),
            transfer: None,
            check: Check::NotAsked,
            limiter,
        })
    }

    /// What the next session may still log.
    pub(crate) fn limiter(&self) -> LogLimiter {
        self.limiter
    }

    /// Writes down what a VMM can make happen, at a limited rate.
    fn warn(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if let Some(suppressed) = self.limiter.admit(now) {
            tracing::warn!(suppressed, "{}", text());
        }
    }

    /// The socket, to wait for messages on, while any are read.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        (self.check == Check::NotAsked).then(|| self.socket.as_fd())
    }

    /// The channel that the device's state goes through, and for what to wait on it.
    pub(crate) fn transfer_channel(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.transfer.as_ref()?.waits_for()
    }

    /// When that has taken too long.
    pub(crate) fn transfer_due(&self) -> Option<Instant> {
        self.transfer.as_ref()?.due()
    }

    /// Goes on with it, and tells a VMM that has asked how it ended.
    ///
    /// # Errors
    /// As [`Session::receive`].
    pub(crate) fn transfer_state(
        &mut self,
        balloon: &mut Balloon,
        now: Instant,
    ) -> Result<(), StreamError> {
        if let Some(transfer) = &mut self.transfer {
            transfer.proceed(balloon, now);
        }
        if self.check == Check::NotAsked {
            return Ok(());
        }
        let failed = match self.transfer.as_ref().map(Transfer::outcome) {
            Some(None) => return Ok(()),
            Some(Some(Ok(()))) => 0_u64,
            Some(Some(Err(error))) => {
                let text = format!("the device's state did not go through: {error}");
                self.warn(now, || text);
                1
            }
            None => {
                self.warn(now, || {
                    "the VMM asks for the outcome of a transfer that it did not begin".into()
                });
                1
            }
        };
        self.transfer = None;
        self.check = Check::NotAsked;
        send_reply(&self.socket, CHECK_DEVICE_STATE, failed.as_bytes()).map(drop)
    }

    /// The descriptors that kicks arrive on, with the numbers of their rings.
    pub(crate) fn kicks(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.rings
            .iter()
            .enumerate()
            .filter_map(|(index, ring)| Some((index, ring.kick_fd()?.as_fd())))
    }

    /// Guest memory as files.
    pub(crate) fn regions(&self) -> &Regions {
        self.table.regions()
    }

    /// Handles the messages that have arrived, up to a share.
    ///
    /// # Errors
    /// [`StreamError`] where the connection cannot go on. Nothing that a guest can cause does that.
    pub(crate) fn receive(
        &mut self,
        balloon: &mut Balloon,
        now: Instant,
    ) -> Result<Connection, StreamError> {
        for _ in 0..MESSAGES_AT_ONCE {
            if self.check == Check::Asked {
                break;
            }
            match self.reader.receive(&self.socket)? {
                Received::Message(message) => {
                    // A VMM that reads slowly is waited for once, and others get their turn.
                    if self.answer(message, balloon, now)? == Sent::Late {
                        break;
                    }
                }
                Received::NotYet => return Ok(Connection::Open),
                Received::Closed => return Ok(Connection::Closed),
            }
        }
        Ok(Connection::Open)
    }

    fn answer(
        &mut self,
        message: Message,
        balloon: &mut Balloon,
        now: Instant,
    ) -> Result<Sent, StreamError> {
        let number = message.request;
        let wants_ack = message.needs_reply() && self.protocol_features & feature::REPLY_ACK != 0;
        let known = Request::from_number(number);
        if known.is_none_or(Request::may_stop) {
            self.call_notice_off(balloon, now);
        }
        if known == Some(Request::CheckDeviceState) && message.defect.is_none() {
            self.check = Check::Asked;
            return self.transfer_state(balloon, now).map(|()| Sent::AtOnce);
        }
        let outcome = match known {
            Some(request) => self.handle(request, message, balloon, now),
            None => Err(Rejected::Unsupported(number)),
        };
        self.note_rings(balloon, now);
        let reply = match outcome {
            Ok(Some(payload)) => Some(payload),
            Ok(None) => wants_ack.then(|| 0_u64.as_bytes().to_vec()),
            Err(rejected) => {
                self.log_rejected(&rejected, number, now);
                let due = known.and_then(Request::refusal);
                due.or_else(|| wants_ack.then(|| 1_u64.as_bytes().to_vec()))
            }
        };
        reply.map_or(Ok(Sent::AtOnce), |payload| send_reply(&self.socket, number, &payload))
    }

    fn log_rejected(&mut self, rejected: &Rejected, number: u32, now: Instant) {
        if let Some(suppressed) = self.limiter.admit(now) {
            let request = Request::from_number(number);
            tracing::warn!(
                number,
                ?request,
                suppressed,
                "a message of the VMM is rejected: {rejected}"
            );
        }
    }

    /// Tells the model which rings run. After every message, since a stop and a start that follow
    /// each other closely must be seen as two.
    fn note_rings(&mut self, balloon: &mut Balloon, now: Instant) {
        let running = if self.rings[BLOCK_QUEUE].is_running() {
            Rings::WithBlock
        } else if self.rings.iter().any(Vring::is_running) {
            Rings::Standard
        } else {
            Rings::Stopped
        };
        let before = balloon.rings();
        if running != before {
            balloon.set_rings(running);
        }
        if before == Rings::Stopped && running != Rings::Stopped && self.is_at_start() {
            balloon.driver_begins();
        }
        match running {
            Rings::Standard if self.is_stopping() => self.notifier.disturbed(now),
            Rings::Standard => self.notifier.started(now),
            Rings::WithBlock | Rings::Stopped => self.notifier.stopped(),
        }
    }

    /// True where no ring was used yet: its driver has just begun, and does not go on after a pause.
    fn is_at_start(&self) -> bool {
        self.rings.iter().all(|ring| ring.place().is_none_or(|place| place == 0))
    }

    /// True from the first ring that the VMM disables to the last that it stops; also in a start.
    fn is_stopping(&self) -> bool {
        self.rings.iter().any(Vring::is_halted)
    }

    /// True while rings run and none is being started or stopped. In between it is not known who
    /// drives the device: rings are enabled one by one, and the block queue's turn comes last.
    pub(crate) fn has_driver(&self) -> bool {
        !self.is_stopping() && self.rings.iter().any(Vring::is_running)
    }

    /// A kick has arrived on this ring.
    pub(crate) fn kicked(&mut self, index: usize, now: Instant) {
        if let Err(error) = self.rings[index].kicked() {
            self.warn(now, || {
                format!("the kick descriptor of queue {index} fails and is dropped: {error}")
            });
        }
    }

    /// When there is a ring to work on.
    pub(crate) fn work_due(&self, now: Instant) -> Option<Instant> {
        let running = self.rings.iter().filter(|ring| ring.is_running());
        running.filter_map(|ring| ring.work_due(now)).min()
    }

    /// Works on every ring that was kicked, or whose time has come.
    pub(crate) fn work(&mut self, balloon: &mut Balloon, now: Instant) {
        for index in 0..QUEUES {
            if self.rings[index].work_due(now).is_some_and(|due| due <= now) {
                self.work_on(index, balloon, now);
            }
        }
    }

    fn work_on(&mut self, index: usize, balloon: &mut Balloon, now: Instant) {
        // A queue of a feature that was not acked: its driver gets its buffers back unread, as it
        // does from the queue of a feature that was never offered.
        let role = QueueRole::of(index, balloon.features(), BLOCK_QUEUE);
        let role = role.unwrap_or(QueueRole::Hinting);
        let ring = &mut self.rings[index];
        let Some(queue) = ring.running() else { return };
        let mut host = HostMemory::new(&self.table);
        let mut moment = Moment { now, host: &mut host };
        let memory = self.table.memory();
        let done = balloon.process(role, &mut Ring { queue, memory: &memory }, &mut moment);
        if let Err(lost) = self.table.restore_lost() {
            return self.give_up(index, &lost, balloon, now);
        }
        match done {
            Ok(pass) => {
                ring.work = match pass.left {
                    Left::Nothing => Work::None,
                    Left::More => Work::Waiting,
                    Left::Until(when) => Work::Later(when),
                };
                if pass.interrupt == Interrupt::Wanted {
                    call(ring, index);
                }
            }
            Err(error) => self.give_up(index, &error, balloon, now),
        }
    }

    fn give_up(
        &mut self,
        index: usize,
        error: &dyn std::error::Error,
        balloon: &mut Balloon,
        now: Instant,
    ) {
        self.untake(index, balloon);
        self.rings[index].give_up();
        balloon.note_bad_ring(now, || format!("queue {index}: {error}"));
        self.note_rings(balloon, now);
    }

    /// Before a ring is stopped or set up anew: a chain that the device has taken and not answered
    /// goes back to where a ring that starts again finds it.
    pub(super) fn untake(&mut self, index: usize, balloon: &mut Balloon) {
        let role = QueueRole::of(index, balloon.features(), BLOCK_QUEUE);
        if let (Some(role), Some(queue)) = (role, self.rings[index].queue()) {
            balloon.ring_stops(role, queue);
        }
    }

    /// Sets a ring up anew after its addresses or guest memory have changed.
    pub(super) fn rebind(&mut self, index: usize, balloon: &mut Balloon, now: Instant) {
        self.untake(index, balloon);
        let bound = self.rings[index].rebind(&self.table, balloon.features());
        note_bound(bound, index, balloon, now);
    }

    /// When the stock driver is to be asked for statistics.
    pub(crate) fn statistics_due(&self, balloon: &Balloon, now: Instant) -> Option<Instant> {
        let running = self.rings[statistics_queue(balloon)?].is_running();
        running.then(|| balloon.stats_due(now)).flatten()
    }

    /// Asks the stock driver for statistics if it is time to.
    pub(crate) fn ask_statistics(&mut self, balloon: &mut Balloon, now: Instant) {
        let Some(index) = statistics_queue(balloon) else { return };
        let ring = &mut self.rings[index];
        let Some(queue) = ring.running() else { return };
        let done = balloon.ask_stats(&mut Ring { queue, memory: &self.table.memory() }, now);
        if let Err(lost) = self.table.restore_lost() {
            return self.give_up(index, &lost, balloon, now);
        }
        match done {
            Ok(Interrupt::Wanted) => call(ring, index),
            Ok(Interrupt::NotWanted) => {}
            Err(error) => self.give_up(index, &error, balloon, now),
        }
    }

    /// The driver is to look at the configuration again. Whoever runs the block queue is told by an
    /// interrupt on it, which no VMM ever minds; a stock driver by a message, in its time.
    pub(crate) fn look_again(&mut self) {
        let ring = &mut self.rings[BLOCK_QUEUE];
        if ring.is_running() {
            call(ring, BLOCK_QUEUE);
        } else {
            self.notifier.changed();
        }
    }

    /// When the message to a stock driver is due, or is to be looked after. A stop that has begun
    /// is not crossed, however long it takes.
    pub(crate) fn notice_due(&self, now: Instant) -> Option<Instant> {
        let look = self.notices.as_ref().and_then(|channel| channel.look_due(now));
        look.or_else(|| self.notifier.due().filter(|_| !self.is_stopping()))
    }

    /// Sends that message if it is due, or its other half if the VMM has read the first.
    pub(crate) fn send_notice(&mut self, balloon: &mut Balloon, now: Instant) {
        let is_stopping = self.is_stopping();
        let Some(channel) = &mut self.notices else {
            if self.notifier.take(now) {
                self.warn(now, || {
                    "the VMM has opened no channel to hear of a new balloon size on".into()
                });
            }
            return;
        };
        let done = match channel.begun() {
            Ok(Begun::Unread) => Ok(()),
            Ok(Begun::Read) => channel.finish().inspect(|()| balloon.count_notice()),
            Ok(Begun::No) if !is_stopping && self.notifier.take(now) => channel.begin(now),
            Ok(Begun::No) => Ok(()),
            Err(error) => Err(error),
        };
        self.keep_channel_if(done, now);
    }

    /// A message that may belong to a stop is about to be answered: a notice whose first half waits
    /// in the socket would reach a device that is stopped. It is due again if the device runs on.
    fn call_notice_off(&mut self, balloon: &mut Balloon, now: Instant) {
        let Some(channel) = &mut self.notices else { return };
        let done = channel.call_off().map(|was_begun| {
            if was_begun {
                balloon.count_notice_called_off();
                self.notifier.changed();
            }
        });
        self.keep_channel_if(done, now);
    }

    /// A channel with half a message in it is of no use to either side: it is closed.
    fn keep_channel_if(&mut self, done: io::Result<()>, now: Instant) {
        if let Err(error) = done {
            self.warn(now, || {
                format!("the VMM does not hear that the configuration changed: {error}")
            });
            self.notices = None;
        }
    }
}

fn statistics_queue(balloon: &Balloon) -> Option<usize> {
    let role = |index| QueueRole::of(index, balloon.features(), BLOCK_QUEUE);
    (0..QUEUES).find(|index| role(*index) == Some(QueueRole::Stats))
}

/// Counts and logs a ring that could not be set up. The session goes on.
pub(super) fn note_bound(
    bound: Result<(), BrokenRing>,
    index: usize,
    balloon: &mut Balloon,
    now: Instant,
) {
    if let Err(error) = bound {
        balloon.note_bad_ring(now, || {
            format!("queue {index} is ignored until it is set up anew: {error}")
        });
    }
}

fn call(ring: &mut Vring, index: usize) {
    if let Err(error) = ring.call() {
        tracing::debug!(ring = index, "the driver could not be interrupted: {error}");
    }
}
