//! The device as a whole: its configuration, its driver, and what it remembers.

use std::time::Duration;

use memtide_units::{ByteSize, GpaRange, Instant, Pfn};
use memtide_wire::block::{Hello, HoldReason, Telemetry};
use memtide_wire::config::{BalloonConfig, ConfigSpace, Extension};
use memtide_wire::features;
use memtide_wire::stats::Stat;
use zerocopy::little_endian::U32;

use crate::counters::Counters;
use crate::event::{Driver, Event, PendingReturn};
use crate::gate::{Decider, Decision, Gate, LocalRule, NoSuchTicket};
use crate::host_pages::HostPages;
use crate::layout::{Layout, MemoryPart};
use crate::limiter::LogLimiter;
use crate::pace::Pace;
use crate::range_set::RangeSet;
use crate::said::{Poison, Said};
use crate::stats::Stats;
use crate::under_way::UnderWays;

/// Virtqueues of the device: inflate, deflate, statistics, reporting, one that stays unused (with
/// free page hinting, which is not offered, reporting would be the fifth), and the block queue.
pub const QUEUES: usize = 6;

/// Index of the block queue: the last.
pub const BLOCK_QUEUE: usize = QUEUES - 1;

/// Is `VIRTIO_BALLOON_F_DEFLATE_ON_OOM` offered?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OomDeflate {
    /// Yes: a stock driver may take its pages back, unasked, before its guest kills a task.
    Offered,
    /// No: what the balloon holds, it holds.
    #[default]
    NotOffered,
}

/// Is `VIRTIO_BALLOON_F_REPORTING` offered?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreePageReporting {
    /// Yes: a stock driver may tell which pages are free.
    #[default]
    Offered,
    /// No: another balloon of the same guest does it, and Linux has one reporter at a time.
    NotOffered,
}

/// How one device shall behave.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether deflate on OOM is offered.
    pub oom_deflate: OomDeflate,
    /// Whether free page reporting is offered.
    pub free_page_reporting: FreePageReporting,
    /// What happens to returns without a controller.
    pub local_rule: LocalRule,
    /// How long a controller that left is waited for.
    pub controller_grace: Duration,
    /// How often a stock driver's statistics are asked for while somebody reads them; `None` never.
    pub stats_interval: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            oom_deflate: OomDeflate::default(),
            free_page_reporting: FreePageReporting::default(),
            local_rule: LocalRule::default(),
            controller_grace: Duration::from_secs(60),
            stats_interval: Some(Duration::from_secs(1)),
        }
    }
}

/// Which rings run. Whoever runs the block queue knows the extension: that is no stock driver, also
/// before it has said hello.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rings {
    /// None.
    #[default]
    Stopped,
    /// The inflate queue, and perhaps others, but not the block queue.
    Standard,
    /// The block queue at least.
    WithBlock,
}

/// The device model: virtqueues in, requests and events out.
#[derive(Debug)]
pub struct Balloon {
    pub(crate) settings: Settings,
    pub(crate) config: ConfigSpace,
    pub(crate) said: Said,
    acked: u64,
    rings: Rings,
    driver: Driver,
    pub(crate) memory: Layout,
    pub(crate) host_pages: HostPages,
    pub(crate) agent: Option<Hello>,
    pub(crate) stolen: RangeSet,
    /// What a controller plugs in again when the guest has ejected it.
    pub(crate) pluggable: RangeSet,
    pub(crate) gate: Gate,
    min: ByteSize,
    pub(crate) stats: Stats,
    pub(crate) under_way: UnderWays,
    pub(crate) telemetry: Option<Telemetry>,
    pub(crate) telemetry_heard: Option<Instant>,
    pub(crate) telemetry_told: Option<Instant>,
    pub(crate) counters: Counters,
    pub(crate) pace: Pace,
    limiter: LogLimiter,
    pub(crate) events: Vec<Event>,
    look_again: bool,
}

impl Balloon {
    /// A device that no VMM is connected to.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            config: fresh_config(1),
            said: Said::default(),
            acked: 0,
            rings: Rings::Stopped,
            driver: Driver::None,
            memory: Layout::default(),
            host_pages: HostPages::default(),
            agent: None,
            stolen: RangeSet::default(),
            pluggable: RangeSet::default(),
            gate: Gate::new(settings.local_rule, settings.controller_grace),
            min: ByteSize::ZERO,
            stats: Stats::default(),
            under_way: UnderWays::default(),
            telemetry: None,
            telemetry_heard: None,
            telemetry_told: None,
            counters: Counters::default(),
            pace: Pace::default(),
            limiter: LogLimiter::new(now),
            events: Vec::new(),
            look_again: false,
        }
    }

    /// Feature bits that the device offers to a guest. Why not free page hinting, packed rings and
    /// ring reset: docs/adr/0009-what-is-not-offered.md.
    ///
    /// `IN_ORDER` is true of every queue: chains are answered one after the other, and the one
    /// statistics buffer that is kept is given back before the next is. It lets a VMM start a ring
    /// again at the used index where the device's process was replaced.
    pub fn offered_features(&self) -> u64 {
        let always = features::VERSION_1
            | features::RING_EVENT_IDX
            | features::RING_INDIRECT_DESC
            | features::IN_ORDER
            | features::MUST_TELL_HOST
            | features::STATS_VQ
            | features::PAGE_POISON;
        let oom_deflate = match self.settings.oom_deflate {
            OomDeflate::Offered => features::DEFLATE_ON_OOM,
            OomDeflate::NotOffered => 0,
        };
        let reporting = match self.settings.free_page_reporting {
            FreePageReporting::Offered => features::REPORTING,
            FreePageReporting::NotOffered => 0,
        };
        always | oom_deflate | reporting
    }

    /// Takes what the driver acked. Without `PAGE_POISON` there is no poison value: what stands
    /// there is another driver's.
    pub fn set_features(&mut self, acked: u64) {
        self.acked = acked;
        self.host_pages.clear();
        if acked & features::PAGE_POISON == 0 {
            self.set_poison(0, Poison::Unknown);
        }
    }

    /// Feature bits that the driver acked.
    pub fn features(&self) -> u64 {
        self.acked
    }

    /// Takes the guest's memory, all of it reclaimed in pieces of `unit`: as
    /// [`Balloon::set_memory_parts`] for memory whose files begin at guest-physical address 0.
    pub fn set_memory(&mut self, ranges: impl IntoIterator<Item = GpaRange>, unit: ByteSize) {
        self.set_memory_parts(ranges.into_iter().map(|range| MemoryPart::new(range, unit)));
    }

    /// Takes the guest's memory and in what pieces the host can reclaim each part of it. The stolen
    /// map stays as it is: a VMM replaces regions one by one, and a block is no less stolen while
    /// its region is away for a message or two. Of inflated pages that wait for the rest of their
    /// host page those are forgotten whose host page is gone.
    ///
    /// Pieces are offered while the host can drop one wherever it lies. Where that has changed an agent
    /// that knows this guest is asked for a new hello: it looks before that, and gives back what it holds
    /// in vain. Without any memory, which is for a moment, nothing changes.
    pub fn set_memory_parts(&mut self, parts: impl IntoIterator<Item = MemoryPart>) {
        self.memory = Layout::new(parts);
        self.host_pages.keep_within(&self.memory);
        if self.memory.total().is_zero() {
            return;
        }
        let before = self.config.extension.piece;
        self.config.extension.set_reclaim_unit(self.memory.largest_unit());
        if self.config.extension.piece != before && self.agent.is_some() {
            self.ask_hello();
        }
    }

    /// Fills `out` with configuration space from `offset` on, zeros past its end.
    pub fn read_config(&self, offset: usize, out: &mut [u8]) {
        self.config.read(offset, out);
    }

    /// Takes which rings run now. When all have stopped, the driver is gone: its question and its
    /// hello go with it. The stolen map does not, since the guest's kernel still holds the blocks
    /// offline; the next hello replaces it. (A guest that reboots into a stock driver leaves a map
    /// that is no longer true. It does nothing by itself: nothing is punched without a request.)
    ///
    /// Inflated pages that wait for the rest of their host page are forgotten with any change: a
    /// driver that starts anew has no balloon.
    pub fn set_rings(&mut self, rings: Rings) {
        if rings != self.rings {
            self.host_pages.clear();
        }
        self.rings = rings;
        if rings == Rings::Stopped {
            self.said.driver_stopped();
            self.forget_agent();
            self.stats.forget_driver();
            self.under_way = UnderWays::default();
        }
        self.note_driver();
    }

    /// Which rings run.
    pub fn rings(&self) -> Rings {
        self.rings
    }

    /// The agent is gone, or has to introduce itself again.
    pub(crate) fn forget_agent(&mut self) {
        self.agent = None;
        if let Some(ticket) = self.gate.cancel() {
            self.events.push(Event::ReturnCancelled { ticket });
        }
    }

    pub(crate) fn note_driver(&mut self) {
        let driver = match (&self.agent, self.rings) {
            (Some(_), _) => Driver::Agent,
            (None, Rings::Standard) => Driver::Stock,
            (None, Rings::Stopped | Rings::WithBlock) => Driver::None,
        };
        if driver != self.driver {
            self.driver = driver;
            self.events.push(Event::DriverChanged(driver));
        }
    }

    /// The VMM is gone, and with it its guest: all that was known of either is forgotten. What the
    /// host guarantees stays, as the word of somebody else.
    pub fn vmm_left(&mut self) {
        self.set_rings(Rings::Stopped);
        self.acked = 0;
        self.memory = Layout::default();
        self.host_pages.clear();
        self.stolen = RangeSet::default();
        self.pluggable = RangeSet::default();
        self.telemetry = None;
        self.telemetry_heard = None;
        // A new epoch: the next guest's agent must not answer for this one's.
        let epoch = self.config.extension.hello_epoch.get().wrapping_add(1);
        self.config = fresh_config(epoch);
        self.said = Said::default();
    }

    /// Sets how large the balloon shall be, rounded down to 4 KiB pages.
    pub fn set_target(&mut self, balloon: ByteSize) {
        let pages = u32::try_from(balloon.bytes() / Pfn::SIZE.bytes()).unwrap_or(u32::MAX);
        if pages != self.config.balloon.num_pages.get() {
            self.config.balloon.num_pages = U32::new(pages);
            self.ask_to_look_again();
        }
    }

    /// Sets what the guest is guaranteed. A return that waits may lie within it now.
    pub fn set_min(&mut self, min: ByteSize) {
        self.min = min;
        if self.gate.ticket().is_some() {
            self.ask_to_look_again();
        }
    }

    /// Sets what becomes of returns when no controller is there.
    pub fn set_local_rule(&mut self, rule: LocalRule) {
        self.gate.set_rule(rule);
        if self.gate.ticket().is_some() {
            self.ask_to_look_again();
        }
    }

    /// What becomes of returns when no controller is there.
    pub fn local_rule(&self) -> LocalRule {
        self.gate.rule()
    }

    /// Who answers a return above the guaranteed minimum now.
    pub fn decider(&self, now: Instant) -> Decider {
        self.gate.decider(now)
    }

    /// Takes a controller's word on a return.
    ///
    /// # Errors
    /// [`NoSuchTicket`] where nobody waits under that number.
    pub fn decide(
        &mut self,
        ticket: u32,
        decision: Decision,
        now: Instant,
    ) -> Result<(), NoSuchTicket> {
        let before = self.gate.open_question(now).map(|open| open.reason);
        self.gate.decide(ticket, decision)?;
        if let (Some(HoldReason::Asking), Decision::Hold(_)) = (before, decision) {
            self.counters.returns_held += 1;
        }
        if Some(decision) != before.map(Decision::Hold) {
            self.ask_to_look_again();
        }
        Ok(())
    }

    /// Asks the agent for a new hello; until it comes, every other request of it is refused.
    pub fn ask_hello(&mut self) {
        let epoch = self.config.extension.hello_epoch.get().wrapping_add(1);
        self.config.extension.hello_epoch = U32::new(epoch);
        self.ask_to_look_again();
    }

    /// A controller is there.
    pub fn controller_attached(&mut self) {
        self.gate.controller_attached();
        self.note_plugging();
    }

    /// It is there no longer.
    pub fn controller_left(&mut self, now: Instant) {
        self.gate.controller_left(now);
        self.note_plugging();
    }

    pub(crate) fn ask_to_look_again(&mut self) {
        // Never 0, which says nothing in an answer.
        let generation = self.config.extension.generation.get().wrapping_add(1).max(1);
        self.config.extension.generation = U32::new(generation);
        self.look_again = true;
    }

    /// True where the driver is to be told to read the configuration again; false from then on.
    pub fn take_look_again(&mut self) -> bool {
        std::mem::take(&mut self.look_again)
    }

    /// What has happened since this was last asked.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Counts a refusal, and tells of it unless that was done too often lately.
    pub(crate) fn refuse(
        &mut self,
        reason: &'static str,
        now: Instant,
        text: impl FnOnce() -> String,
    ) {
        self.counters.count_refusal(reason);
        if let Some(suppressed) = self.limiter.admit(now) {
            self.events.push(Event::Refused { reason, text: text(), suppressed });
        }
    }

    /// Counts a ring that makes no sense, and tells of it at a limited rate: its addresses and
    /// indices come from the guest.
    ///
    /// Inflated pages that wait for the rest of their host page are forgotten: where a ring is given
    /// up, what was read through it may not have been what the guest wrote, a deflate as well.
    pub fn note_bad_ring(&mut self, now: Instant, text: impl FnOnce() -> String) {
        self.host_pages.clear();
        self.refuse("bad-ring", now, text);
    }

    /// The epoch that a hello must carry.
    pub fn hello_epoch(&self) -> u32 {
        self.config.extension.hello_epoch.get()
    }

    /// Who drives the device.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// How large the balloon shall be.
    pub fn target(&self) -> ByteSize {
        of_pages(self.config.balloon.num_pages.get())
    }

    /// How large a stock driver says it is.
    pub fn actual(&self) -> ByteSize {
        of_pages(self.config.balloon.actual.get())
    }

    /// What the guest is guaranteed.
    pub fn min(&self) -> ByteSize {
        self.min
    }

    /// What is stolen.
    pub fn stolen(&self) -> &RangeSet {
        &self.stolen
    }

    /// The last hello, while its agent drives the device.
    pub fn hello(&self) -> Option<&Hello> {
        self.agent.as_ref()
    }

    /// The return that waits for a decision.
    pub fn pending(&self, now: Instant) -> Option<PendingReturn> {
        self.gate.open_question(now)
    }

    /// The agent's last telemetry.
    pub fn telemetry(&self) -> Option<&Telemetry> {
        self.telemetry.as_ref()
    }

    /// How old that is; `None` where there is none.
    pub fn telemetry_age(&self, now: Instant) -> Option<Duration> {
        self.telemetry_heard.map(|heard| now.since(heard))
    }

    /// A stock driver's last statistics.
    pub fn statistics(&self) -> &[Stat] {
        &self.stats.latest
    }

    /// What was done since the process started.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A stock driver was told of a new balloon size.
    pub fn count_notice(&mut self) {
        self.counters.notices += 1;
    }

    /// It was about to be told, and was not.
    pub fn count_notice_called_off(&mut self) {
        self.counters.notices_called_off += 1;
    }
}

fn fresh_config(epoch: u32) -> ConfigSpace {
    let mut extension = Extension::new(BLOCK_QUEUE as u16, Pfn::SIZE);
    extension.hello_epoch = U32::new(epoch);
    ConfigSpace { balloon: BalloonConfig::default(), extension }
}

pub(crate) fn of_pages(pages: u32) -> ByteSize {
    Pfn::SIZE.times(u64::from(pages))
}
