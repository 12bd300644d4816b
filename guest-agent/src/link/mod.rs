//! The link to the host: hello first, then one request at a time (`flights`: two, where both report
//! what was stolen), and back up after every failure.
//!
//! Nothing here waits. [`Link::service`] is called whenever something may have happened; it reads
//! the answer if there is one, and sends what is next. A device that breaks the rules, or says that
//! it is broken, is reset and started again. A device that is *silent* is left alone: it may be
//! slow, and then its answer still counts; or its process has died, and then QEMU 11.1 ends the VM
//! at the next look at the device's configuration (`vhost_dev_get_config`: assertion
//! `hdev->vhost_ops` failed), as Cloud Hypervisor does. So the configuration is read only when the
//! device has just shown that it lives.
//!
//! It is the same link to any balloon. Below it a `Carrier` is either the block queue of a Memtide
//! device or, on any other balloon, the standard queues (`plain`), where the host is told, and
//! nobody is asked.
//!
//! What the agent may rely on:
//!
//! * After [`Link::settle`] the device carries out no steal and no hello that was sent before.
//! * A hello names every block that is offline, so requests that were lost need not be repeated.

mod carrier;
mod flights;
mod greeting;
mod kind;
mod look;
mod outbox;
mod plain;
mod room;

use std::io;
use std::time::Duration;

use memtide_policy::guest::DeviceState;
use memtide_units::{BlockSize, ByteSize, GpaRange, Instant};
use memtide_wire::block::{Hello, RefuseReason, Request, Response, Verdict};
use memtide_wire::stats::Stat;

pub use self::flights::ANSWER_DEADLINE;
pub use self::kind::{Coarseness, Grain, Kind, Plainness};
pub use self::look::HostConfig;

use self::carrier::{Carrier, Received};
use self::flights::Flights;
use self::outbox::{Outbox, still_true};
use crate::dma::Area;
use crate::virtio::block_queue::{QueueError, SendError};
use crate::virtio::transport::{Transport, TransportError};

/// A reset in the middle of the agent's work may hold it up for so long.
const RESET_DEADLINE: Duration = Duration::from_secs(2);
/// Pauses between two attempts to start the device: doubling from the first to the last.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(8);

/// Something that has happened on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A request was answered.
    Answered(Request, Response),
    /// The host asks for statistics ([`Link::send_statistics`]).
    StatisticsWanted,
    /// A request has not been answered for long. It still may be.
    Silent,
    /// The device was lost, and why. What had not been answered never will be.
    Lost(String),
    /// The device takes more, or less, than it did; a new link takes pieces. Nothing is in flight, and a
    /// hello comes next.
    Grain(Grain),
    /// These were to be reported stolen and have not been: they are not offline any more.
    NotOffline(Vec<GpaRange>),
}

/// What the link asks in the very moment in which it sends: what was true when a request was queued
/// need not be so any more.
pub trait Guest {
    /// The introduction that the host wants.
    fn introduction(&self, config: &HostConfig) -> Hello;
    /// Whether all of a range is offline.
    fn is_offline(&self, range: GpaRange) -> bool;
    /// The size of its memory blocks.
    fn block_size(&self) -> BlockSize;
}

/// Why the device was given up.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error("it says that it needs a reset")]
    Broken,
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the function cannot be enabled: {0}")]
    Enable(#[from] io::Error),
    #[error("it refused the hello: {0}")]
    Hello(RefuseReason),
}

#[derive(Debug)]
enum State {
    /// Not started; the area is taken out while a start is tried. Without a time to retry it stays
    /// so: a silent device had to be stopped, and starting it would read its configuration.
    Down {
        area: Option<Area>,
        retry: Option<Instant>,
        pause: Duration,
    },
    Up {
        carrier: Carrier,
        flights: Flights,
        is_greeted: bool,
    },
}

/// Enables the function (bus mastering, interrupt): what every start of the device needs.
pub type Enable = Box<dyn Fn() -> io::Result<()>>;

/// The link.
pub struct Link {
    transport: Transport,
    enable: Enable,
    state: State,
    outbox: Outbox,
    config: HostConfig,
    grain: Grain,
    /// When the device was last seen well.
    well: Instant,
    /// The last reset was seen to end.
    is_stopped: bool,
    guaranteed: ByteSize,
    /// The configuration may have changed since it was looked at, which was then.
    owes_look: bool,
    looked: Instant,
    /// What reports in flight name at most.
    drops_at_once: ByteSize,
    /// Why the last hello was refused, where it was and nobody has asked yet.
    refused_hello: Option<RefuseReason>,
}

impl Link {
    /// A link over a device that has just been reset, with memory for it.
    pub fn new(now: Instant, transport: Transport, area: Area, enable: Enable) -> Self {
        Self {
            transport,
            enable,
            state: State::Down { area: Some(area), retry: Some(now), pause: RETRY_FIRST },
            outbox: Outbox::default(),
            config: HostConfig::default(),
            grain: Grain::Piece,
            well: now,
            is_stopped: true,
            guaranteed: ByteSize::ZERO,
            owes_look: false,
            looked: now,
            drops_at_once: ByteSize::ZERO,
            refused_hello: None,
        }
    }

    /// What the host said last.
    pub fn config(&self) -> HostConfig {
        self.config
    }

    /// What the host guarantees this guest: below it returns are granted always and at once.
    pub fn guaranteed(&self) -> ByteSize {
        self.guaranteed
    }

    /// Whether the device is there, has been greeted and answers.
    pub fn device_state(&self) -> DeviceState {
        match &self.state {
            State::Up { is_greeted: true, flights, .. } if !flights.is_late() => DeviceState::Ready,
            _ => DeviceState::Silent { since: self.well },
        }
    }

    /// Makes sure that the device will carry out no steal and no hello that it was given before:
    /// only then may a block that was named to it be put online without a grant. Where one is in
    /// flight, the device is stopped for that, and not started again. False where it is not sure.
    #[must_use]
    pub fn settle(&mut self) -> bool {
        match &self.state {
            State::Up { flights, .. } if flights.drop_memory() => {
                self.go_down(None);
                self.is_stopped
            }
            State::Up { .. } => true,
            State::Down { .. } => self.is_stopped,
        }
    }

    /// Queues a request; false where it is dropped, since far too many wait. Telemetry is dropped while anything else
    /// waits: there will be more.
    pub fn post(&mut self, request: Request) -> bool {
        let is_for_nobody = self.is_deaf() && matches!(request, Request::Telemetry(_));
        !is_for_nobody && self.outbox.post(request)
    }

    /// True where telemetry would be answered by nobody: the answer would be taken for a sign of life,
    /// and the configuration be read of a device that may have died.
    fn is_deaf(&self) -> bool {
        let State::Up { carrier, .. } = &self.state else { return false };
        matches!(carrier, Carrier::Plain(_, Plainness::OtherVersion))
    }

    /// Whether this is a plain balloon: the host is told, not asked, and knows of pages alone.
    pub fn is_plain(&self) -> bool {
        matches!(self.state, State::Up { carrier: Carrier::Plain(..), .. })
    }

    /// Queues a report of ranges that were taken offline, with those that wait.
    pub fn report_stolen(&mut self, ranges: Vec<GpaRange>) {
        self.outbox.report(ranges);
    }

    /// Takes back the report of a range that has not been sent in any form; false where it has.
    pub fn unreport(&mut self, range: GpaRange) -> bool {
        if matches!(&self.state, State::Up { flights, .. } if flights.say_hello()) {
            return false;
        }
        self.forget_report(range)
    }

    /// Forgets a report that waits: the range is not offline any more, whatever a hello said. True
    /// where there was one.
    pub fn forget_report(&mut self, range: GpaRange) -> bool {
        self.outbox.forget_report(range)
    }

    /// Greeted, with nothing in flight.
    fn is_up_and_idle(&self) -> bool {
        matches!(&self.state, State::Up { flights, is_greeted: true, .. } if flights.is_empty())
    }

    /// Reads and clears the interrupt status: whether there was one. What it says proves nothing more.
    pub fn acknowledge_interrupt(&self) -> bool {
        self.transport.acknowledge_interrupt() != 0
    }

    /// Does whatever is due, up to the next event; call it until no event comes back.
    pub fn service(&mut self, now: Instant, guest: &dyn Guest) -> Vec<LinkEvent> {
        let mut events = Vec::new();
        if let Err(loss) = self.step(now, guest, &mut events) {
            events.push(self.lose(now, &loss));
        }
        events
    }

    fn step(
        &mut self,
        now: Instant,
        guest: &dyn Guest,
        events: &mut Vec<LinkEvent>,
    ) -> Result<(), Loss> {
        if let State::Down { retry, .. } = self.state {
            if retry.is_none_or(|retry| now < retry) {
                return Ok(());
            }
            self.start()?;
        }
        if let Some(event) = self.receive(now)? {
            // Nothing is sent before the answer has been taken in: a hello that is made now would
            // name a block that has just been granted, and the host would drop it in use.
            events.push(event);
            return Ok(());
        }
        self.look_if_due(now);
        if let State::Up { carrier, .. } = &mut self.state
            && carrier.wants_statistics()?
        {
            events.push(LinkEvent::StatisticsWanted);
        }
        while self.send_next(now, guest, events)? {}
        // Some requests a plain balloon's carrier answers by itself.
        events.extend(self.receive(now)?);
        Ok(())
    }

    fn receive(&mut self, now: Instant) -> Result<Option<LinkEvent>, Loss> {
        let State::Up { carrier, flights, is_greeted } = &mut self.state else {
            return Ok(None);
        };
        let response = match carrier.receive(&self.transport)? {
            Received::Answer(response) => response,
            Received::Progress => {
                self.well = now;
                flights.go_on(now);
                return Ok(None);
            }
            Received::Nothing => {
                return Ok(flights.has_become_late(now).then_some(LinkEvent::Silent));
            }
        };
        let Some(request) = flights.answered(now) else { return Ok(None) };
        self.well = now;
        self.guaranteed = response.min;
        match (&request, response.verdict) {
            // Of another epoch: the configuration is looked at before the next one.
            (_, Verdict::Refused(RefuseReason::NoHello)) => *is_greeted = false,
            (Request::Hello(_), Verdict::Refused(reason)) => {
                self.refused_hello = Some(reason);
                return Err(Loss::Hello(reason));
            }
            (Request::Hello(_), _) => {
                *is_greeted = true;
                self.outbox.set_backlog(carrier.untold());
            }
            _ => {}
        }
        self.note_answer(&request, &response);
        Ok(Some(LinkEvent::Answered(request, response)))
    }

    /// Sends one request; false where none may go out, or none waits.
    fn send_next(
        &mut self,
        now: Instant,
        guest: &dyn Guest,
        events: &mut Vec<LinkEvent>,
    ) -> Result<bool, Loss> {
        let State::Up { flights, .. } = &self.state else { return Ok(false) };
        let next = if flights.is_empty() {
            if self.needs_hello() {
                self.look();
                if let Some(grain) = self.other_grain() {
                    events.push(LinkEvent::Grain(grain));
                    return Ok(false);
                }
            }
            self.next_alone(guest)
        } else {
            self.next_beside(now, guest.block_size())
        };
        let (next, changed) = still_true(next, guest);
        events.extend((!changed.is_empty()).then_some(LinkEvent::NotOffline(changed)));
        let State::Up { carrier, flights, .. } = &mut self.state else { return Ok(false) };
        let Some(request) = next else { return Ok(false) };
        match carrier.send(&self.transport, &request, self.config.balloon) {
            Ok(()) => {
                flights.add(now, request);
                return Ok(true);
            }
            Err(SendError::TooLong(len)) => tracing::error!("a request of {len} bytes is dropped"),
            Err(SendError::Busy) => self.outbox.put_back(request),
        }
        Ok(false)
    }

    /// What goes out while nothing is in flight.
    fn next_alone(&mut self, guest: &dyn Guest) -> Option<Request> {
        if self.needs_hello() {
            return Some(Request::Hello(guest.introduction(&self.config)));
        }
        self.outbox.next(self.report_size())
    }

    /// What goes out beside what is in flight: a report, unless something else is waiting for the device
    /// or it is silent. Of whole blocks alone: where the host refuses a piece of a block, the guest has
    /// all of that block back at once, and none of it may be on its way then.
    fn next_beside(&mut self, now: Instant, block: BlockSize) -> Option<Request> {
        let State::Up { flights, is_greeted: true, .. } = &self.state else { return None };
        let room = flights.room(self.drops_at_once, block)?;
        if flights.is_late() || self.is_look_due(now) {
            return None;
        }
        self.outbox.next_report(room.min(self.report_size()), block)
    }

    /// Hands statistics over after [`LinkEvent::StatisticsWanted`].
    pub fn send_statistics(&mut self, stats: &[Stat]) {
        if let State::Up { carrier, .. } = &mut self.state {
            carrier.send_statistics(&self.transport, stats);
        }
    }

    /// True where the device has done something that [`Self::service`] would take in: a look at
    /// memory alone, for who has no interrupt.
    pub fn has_news(&self) -> bool {
        matches!(&self.state, State::Up { carrier, .. } if carrier.has_news())
    }

    /// Forgets questions that have not been sent: they were answered in another way.
    pub fn forget_returns(&mut self) {
        self.outbox.forget_returns();
    }

    /// Looks whether the device still says that it is well; a register read.
    pub fn check(&mut self, now: Instant) -> Option<LinkEvent> {
        let is_broken = matches!(self.state, State::Up { .. }) && self.transport.is_broken();
        is_broken.then(|| self.lose(now, &Loss::Broken))
    }

    /// Reset, features, queue: from nothing to `DRIVER_OK`.
    fn start(&mut self) -> Result<(), Loss> {
        self.transport.reset(RESET_DEADLINE)?;
        self.is_stopped = true;
        let kind = Kind::of(&self.transport.config()?);
        self.drops_at_once = kind.drops_at_once();
        (self.enable)()?;
        let State::Down { area, .. } = &mut self.state else { return Ok(()) };
        let Some(memory) = area.take() else { return Err(Loss::Broken) };
        let carrier = match Carrier::start(kind, &self.transport, memory) {
            Ok(carrier) => carrier,
            Err((error, unused)) => {
                *area = Some(unused);
                return Err(error.into());
            }
        };
        self.transport.driver_ok();
        self.state = State::Up { carrier, flights: Flights::default(), is_greeted: false };
        Ok(())
    }

    /// Stops the device, and tries again a little later; not where it was silent before, and this is
    /// no sign of life: the status is the VMM's word.
    fn lose(&mut self, now: Instant, loss: &Loss) -> LinkEvent {
        let is_dead = matches!(loss, Loss::Broken) && self.is_given_up();
        self.go_down((!is_dead).then_some(now));
        LinkEvent::Lost(loss.to_string())
    }

    /// Stops the device, so that it does nothing any more. With the time of now, it will be started
    /// again some time after.
    fn go_down(&mut self, now: Option<Instant>) {
        self.is_stopped = match self.transport.reset(RESET_DEADLINE) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!("{error}: no stolen block can be taken back safely now");
                false
            }
        };
        // What was stolen or asked for is told again by hello and by the policy.
        self.outbox.keep_only_news();
        let down = State::Down { area: None, retry: None, pause: RETRY_FIRST };
        let (area, pause) = match std::mem::replace(&mut self.state, down) {
            State::Up { carrier, .. } => (Some(carrier.into_area()), RETRY_FIRST),
            State::Down { area, pause, .. } => (area, (pause * 2).min(RETRY_LAST)),
        };
        self.state = State::Down { area, retry: now.map(|now| now + pause), pause };
    }

    /// When [`Self::service`] has something to do at the latest, if anything.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Down { retry, .. } => *retry,
            State::Up { flights, .. } => flights.due(),
        }
    }

    /// True while an answer is awaited that may come any moment: without an interrupt somebody has
    /// to look often.
    pub fn awaits_answer(&self) -> bool {
        matches!(&self.state, State::Up { flights, .. } if flights.due().is_some())
    }

    /// True where the device is better left alone: it is silent, or was stopped for being so.
    pub fn is_given_up(&self) -> bool {
        match &self.state {
            State::Up { flights, .. } => flights.is_late(),
            State::Down { retry, .. } => retry.is_none(),
        }
    }

    /// True where nothing waits to be sent or answered.
    pub fn is_idle(&self) -> bool {
        self.outbox.is_empty() && self.is_up_and_idle()
    }

    /// What the host may have been told of already is not told again: there is no time for it.
    pub fn forget_backlog(&mut self) {
        self.outbox.set_backlog(Vec::new());
    }

    /// Stops the device for good.
    ///
    /// # Errors
    /// [`TransportError::ResetStuck`].
    pub fn stop(&self) -> Result<(), TransportError> {
        self.transport.reset(RESET_DEADLINE)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("state", &self.state).field("outbox", &self.outbox).finish()
    }
}

#[cfg(test)]
mod tests;
