//! One step: look, decide, say why.
//!
//! * `held`: what becomes of a return that is pending.

mod held;

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{BlockId, BlockSize, ByteSize, Instant};

use super::budget::Budget;
use super::choice::Choice;
use super::cooldown::Cooldowns;
use super::figures::{Figures, Gauges};
use super::limits::Limits;
use super::next_look::{wait, while_free};
use super::observation::{DeviceState, Mode, Observation, Outcome, StealFailure, StealState};
use super::pace::Pace;
use super::plan::{Action, Decision, Plan, Urgency, WaitReason};
use super::pressure::WINDOW;
use super::quiet::{Cause, Quiet};
use super::reclaim::Reclaimer;
use super::returns::{Wanted, nearest};
use super::select::candidates;
use super::steals::chosen;

/// What is asked for because it may come back, and not because it is needed, is asked for so much at
/// once (or one block), or this part of a large guest: a gate may set aside what a ticket names,
/// and others would wait for it.
const UNHURRIED: ByteSize = ByteSize::from_mib(512);
const UNHURRIED_PART: u64 = 64;
/// Blocks of one ticket: as many as one request can name where no two of them touch
/// (docs/protocol.md).
const TICKET_BLOCKS_MOST: u64 = 2048;
/// A stall that comes so soon after a steal, two windows, is the steal's doing.
const HURTS: Duration = WINDOW.saturating_mul(2);
/// After a denial nothing is asked for this long.
const DENIED_REST: Duration = Duration::from_secs(2);

/// Whether blocks in a kernel zone may be stolen while no kernel page lies in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelZone {
    /// No: the agent has made movable what it wants.
    #[default]
    Leave,
    /// Yes: the agent was told not to convert.
    Steal,
}

/// What the guest's size follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleBy {
    /// What is used: plenty is given up without being asked, and the host's target counts besides.
    #[default]
    Use,
    /// The host's target alone, down and up, as a stock balloon driver follows it. Memory that
    /// runs short is asked back all the same.
    Target,
}

/// What a controller is told. What an operator may change while it lives has a method of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Size of a memory block.
    pub block: BlockSize,
    /// What the user grants and forbids.
    pub limits: Limits,
    /// What the guest's size follows.
    pub scale_by: ScaleBy,
    /// What may be stolen.
    pub kernel_zone: KernelZone,
    /// After this long without a decision blocks are taken back unasked; `None` for never.
    pub gate_deadline: Option<Duration>,
    /// The first ticket's number.
    pub first_ticket: u32,
}

/// The guest's policy.
#[derive(Clone, Debug)]
pub struct Controller {
    settings: Settings,
    gauges: Gauges,
    pace: Pace,
    budget: Budget,
    cooldowns: Cooldowns,
    quiet: Quiet,
    /// Tasks stall, and that counts as the last steal's doing already.
    is_hurt: bool,
    reclaimer: Reclaimer,
    denied_until: Instant,
    /// When the grant that is being carried out was first seen.
    granted: Option<Instant>,
    /// Blocks were taken unasked, and the gate has decided nothing since.
    is_unheard: bool,
    /// The blocks that are being put online were not granted.
    is_helping_itself: bool,
    /// The steal at work is larger than the pace allows: the first pressure ends it.
    is_rushing: bool,
    /// What may be online by the host's target, where the steal at work is for that; `None` where the guest
    /// gives as much unasked.
    asked_down_to: Option<ByteSize>,
    /// The steal at work was planned by a lower minimum, if there is one.
    has_raised_min: bool,
    next_ticket: u32,
}

impl Controller {
    /// A controller that has seen nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            gauges: Gauges::default(),
            pace: Pace::default(),
            budget: Budget::default(),
            cooldowns: Cooldowns::default(),
            quiet: Quiet::default(),
            is_hurt: false,
            reclaimer: Reclaimer::default(),
            denied_until: Instant::default(),
            granted: None,
            is_unheard: false,
            is_helping_itself: false,
            is_rushing: false,
            asked_down_to: None,
            has_raised_min: false,
            next_ticket: settings.first_ticket,
        }
    }

    /// What it goes by now.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Other limits from now on: memory was plugged in or unplugged, or the user has changed them.
    pub fn set_limits(&mut self, limits: Limits) {
        self.has_raised_min |= limits.min() > self.settings.limits.min();
        self.settings.limits = limits;
    }

    /// The guest's size follows something else from now on.
    pub fn set_scale_by(&mut self, scale_by: ScaleBy) {
        self.settings.scale_by = scale_by;
    }

    /// Blocks are taken back unasked after another time from now on.
    pub fn set_gate_deadline(&mut self, deadline: Option<Duration>) {
        self.settings.gate_deadline = deadline;
    }

    /// Until `at` memory was what it was at the last step, as far as is known: what it has grown by at
    /// the next one it has grown by since.
    pub fn lay_still(&mut self, at: Instant) {
        self.gauges.lay_still(at);
    }

    /// Decides on what was seen at `now`.
    pub fn step(&mut self, now: Instant, seen: &Observation) -> Plan {
        self.learn(now, &seen.outcomes);
        self.budget.look(now, &seen.effort, &seen.outcomes);
        let figures = self.figures(now, seen);
        let (mut actions, report) = match (&seen.ticket, seen.mode) {
            (Some(ticket), _) => self.follow(now, seen, &figures, ticket),
            (None, Mode::Restore) => self.restore(seen, &figures),
            (None, Mode::Tune) => self.tune(now, seen, &figures),
        };
        let steals = matches!(report, Decision::Stealing | Decision::Steal { .. });
        if seen.steal == StealState::Running && !steals {
            actions.insert(0, Action::AbortSteal);
        }
        let reclaim = self.reclaimer.decide(now, figures.around(seen), &report);
        let while_free = while_free(seen, &figures, &report);
        Plan { actions, wait: wait(seen, &figures), while_free, report, reclaim }
    }

    fn learn(&mut self, now: Instant, outcomes: &[Outcome]) {
        for outcome in outcomes {
            match *outcome {
                Outcome::Stolen(block) => {
                    self.cooldowns.succeeded(block);
                    self.pace.spend(now);
                    self.quiet.stole(now);
                }
                Outcome::StealFailed(_, StealFailure::Aborted | StealFailure::NoRoom) => {}
                Outcome::StealFailed(block, failure) => {
                    self.cooldowns.failed(now, block);
                    if failure == StealFailure::HostRefused {
                        // The next block would fare no better.
                        self.quiet.returned(now);
                    }
                }
                Outcome::Returned => {
                    self.quiet.returned(now);
                    self.is_helping_itself = false;
                    if let Some(granted) = self.granted.take() {
                        self.gauges.return_took(now.since(granted));
                    }
                }
                Outcome::Denied => {
                    self.denied_until = now + DENIED_REST;
                    self.is_unheard = false;
                }
            }
        }
    }

    fn figures(&mut self, now: Instant, seen: &Observation) -> Figures {
        let figures = self.gauges.read(now, seen, &self.settings, self.quiet.learned(now));
        let some = figures.pressure.unwrap_or_default().some;
        let goal = figures.room(seen, &self.settings).goal();
        self.pace.adapt(now, some, goal, figures.steps);
        self.feel(now, seen, &figures);
        figures
    }

    /// Tasks that stall badly while a block is stolen, or right after, stall because of it.
    fn feel(&mut self, now: Instant, seen: &Observation, figures: &Figures) {
        let is_stealing = seen.steal == StealState::Running || self.quiet.stole_within(now, HURTS);
        if figures.hurts() && is_stealing && !self.is_hurt {
            self.quiet.hurt(now);
        }
        let is_over = figures.trigger_fired || figures.over_goal.is_some();
        self.is_hurt = is_over && (self.is_hurt || figures.hurts() && is_stealing);
    }

    /// No return is pending: is one needed, or can something be stolen?
    fn tune(&mut self, now: Instant, seen: &Observation, figures: &Figures) -> Next {
        if let Some(wanted) = figures.need(seen, &self.settings).wanted() {
            return self.ask(now, seen, figures, wanted);
        }
        if let Some(next) = self.ask_for_minimum(now, seen, figures) {
            return next;
        }
        let due = self.due_back(seen, figures);
        if !due.is_empty() && now >= self.denied_until {
            return self.open_ticket(due, Urgency::Comfort, seen, figures);
        }
        match self.steal(now, seen, figures) {
            Ok(next) => next,
            Err(reason) if seen.steal == StealState::Running => {
                (Vec::new(), Decision::Abort(reason))
            }
            Err(reason) => (Vec::new(), Decision::Rest(reason)),
        }
    }

    fn steal(
        &mut self,
        now: Instant,
        seen: &Observation,
        figures: &Figures,
    ) -> Result<Next, WaitReason> {
        seen.psi.ok_or(WaitReason::NoPsi)?;
        // Before all that goes over by itself: while pressure is measured, paging out goes on as before.
        if matches!(seen.device, DeviceState::Silent { .. }) {
            return Err(WaitReason::DeviceSilent);
        }
        let pressure = figures.pressure.ok_or(WaitReason::Measuring)?;
        if figures.trigger_fired {
            return Err(WaitReason::Trigger);
        }
        let room = figures.room(seen, &self.settings);
        if let Some(reason) = room.forbidding(pressure) {
            return Err(reason);
        }
        if seen.steal == StealState::Running {
            let over = room.blocks_over();
            if let Some(reason) = room.unhurrying(pressure).filter(|_| self.is_rushing) {
                return Err(reason);
            }
            let above_minimum = room.by_minimum();
            let mut actions = self.shorten(figures.ceiling.size(), over);
            actions.extend(self.heed_raised_min(above_minimum)?);
            return Ok((actions, Decision::Stealing));
        }
        self.has_raised_min = false;
        if let Some(reason) = room.at_target() {
            return Err(reason);
        }
        if let Some(left) = self.quiet.left(now).filter(|_| !room.is_over_ceiling()) {
            return Err(match left {
                (left, Cause::Return) => WaitReason::AfterReturn { left },
                (left, Cause::Stall) => WaitReason::AfterStall { left },
            });
        }
        let allowed = room.allowed()?;
        // The host's target does not wait, and what it does not ask for does.
        let count = match self.budget.left() {
            Some(left) if !room.is_over_ceiling() => return Err(WaitReason::Costly { left }),
            Some(_) => allowed.count.min(room.blocks_over()),
            None => allowed.count.min(self.budget.affords().max(room.blocks_over())),
        };
        let easy = room.easy(pressure);
        if easy == 0 && self.pace.is_proving(now) {
            return Err(WaitReason::Measuring);
        }
        let (size, zone) = (self.settings.block.size(), self.settings.kernel_zone);
        let found = candidates(now, &seen.blocks, size, &self.cooldowns, zone);
        let allowance = self.pace.allowance().min(room.gentle());
        let blocks = chosen(found, allowance.max(easy), count);
        self.is_rushing = blocks.len() as u64 > allowance;
        let is_asked = self.is_rushing || allowed.ceiling.is_some();
        self.asked_down_to = is_asked.then_some(figures.ceiling.size());
        if blocks.is_empty() {
            return Err(WaitReason::NoCandidate { cooling: self.cooldowns.count(now) });
        }
        let report = Decision::Steal {
            choice: Choice::of(&seen.blocks, &blocks),
            blocks: blocks.clone(),
            available: seen.memory.available,
            keep: allowed.keep,
            ceiling: allowed.ceiling,
        };
        Ok((Vec::from([Action::Steal { blocks, keep: figures.headroom.low }]), report))
    }

    /// Where the host asks for less than when the steal at work began, which is for its sake, the rest stays: no
    /// more than `over` go. What the guest has to spare besides is seen once they have.
    fn shorten(&mut self, ceiling: ByteSize, over: u64) -> Vec<Action> {
        if self.asked_down_to.is_none_or(|asked| ceiling <= asked) {
            return Vec::new();
        }
        self.asked_down_to = Some(ceiling);
        Vec::from([Action::ShortenSteal { to: over }])
    }

    /// No more of the steal at work than the minimum leaves, where that was raised since it was planned.
    ///
    /// # Errors
    /// It leaves none.
    fn heed_raised_min(
        &mut self,
        above_minimum: Result<u64, WaitReason>,
    ) -> Result<Option<Action>, WaitReason> {
        let is_raised = core::mem::take(&mut self.has_raised_min);
        let shorter = is_raised.then_some(above_minimum).transpose()?;
        Ok(shorter.map(|to| Action::ShortenSteal { to }))
    }

    /// Less is online than the user wants at least, and blocks are stolen: those that lack are asked back, some at a
    /// time. Nobody waits for them, and so what is needed now comes first.
    fn ask_for_minimum(
        &mut self,
        now: Instant,
        seen: &Observation,
        figures: &Figures,
    ) -> Option<Next> {
        let count = self.without_hurry(figures);
        let blocks = nearest(seen.stolen(), count, figures.lacking);
        if blocks.is_empty() {
            return None;
        }
        if now < self.denied_until {
            return Some((Vec::new(), Decision::Rest(WaitReason::Denied)));
        }
        let (ticket, urgency) = (self.take_ticket(), Urgency::Comfort);
        let (online, min) = (figures.online, self.settings.limits.min());
        let report = Decision::AskForMinimum { ticket, count: blocks.len(), online, min };
        Some((Vec::from([Action::AskReturn { ticket, blocks, urgency }]), report))
    }

    fn ask(&mut self, now: Instant, seen: &Observation, figures: &Figures, wanted: Wanted) -> Next {
        let available = seen.memory.available;
        if now < self.denied_until && wanted.urgency < Urgency::Emergency {
            return (Vec::new(), Decision::Rest(WaitReason::Denied));
        }
        let blocks = self.returnable(seen, figures, wanted);
        if blocks.is_empty() {
            let missing = self.missing(seen, figures);
            let reason = WaitReason::NothingToReturn { available, missing };
            let reason = if figures.trigger_fired { WaitReason::Trigger } else { reason };
            return (Vec::new(), Decision::Rest(reason));
        }
        self.quiet.returning(now);
        self.gauges.asked(now);
        self.open_ticket(blocks, wanted.urgency, seen, figures)
    }

    /// What is too little available, where paging that much out leads to anything: somebody tells whether
    /// tasks stall, and blocks may go one day.
    fn missing(&self, seen: &Observation, figures: &Figures) -> Option<ByteSize> {
        let Settings { limits, block, scale_by, .. } = &self.settings;
        let is_told = seen.psi.is_some() && seen.device == DeviceState::Ready;
        let may_shrink = figures.online >= limits.min() + block.size();
        let ahead = seen.memory.available - figures.hot_cache - figures.growth.ahead;
        let missing = figures.headroom.low - ahead;
        let is_useful = is_told && may_shrink && *scale_by == ScaleBy::Use && !missing.is_zero();
        is_useful.then_some(missing)
    }

    fn open_ticket(
        &mut self,
        blocks: Vec<BlockId>,
        urgency: Urgency,
        seen: &Observation,
        figures: &Figures,
    ) -> Next {
        let ticket = self.take_ticket();
        let report = Decision::Ask {
            ticket,
            count: blocks.len(),
            urgency,
            available: seen.memory.available - figures.hot_cache,
            low: figures.headroom.low,
            pressure: figures.measured,
        };
        (Vec::from([Action::AskReturn { ticket, blocks, urgency }]), report)
    }

    fn take_ticket(&mut self) -> u32 {
        let ticket = self.next_ticket;
        self.next_ticket = ticket.wrapping_add(1);
        ticket
    }

    /// Blocks that may be asked back: within the host's target, or in an emergency within the
    /// user's maximum, for then the gate shall decide what the target is worth.
    fn returnable(&self, seen: &Observation, figures: &Figures, wanted: Wanted) -> Vec<BlockId> {
        let most = match wanted.urgency {
            Urgency::Emergency => self.settings.limits.max(),
            Urgency::Comfort | Urgency::Pressure => figures.ceiling.size(),
        };
        let room = self.settings.block.count_in(most - figures.online).max(figures.lacking);
        nearest(seen.stolen(), wanted.count.min(TICKET_BLOCKS_MOST), room)
    }

    /// Blocks that the host's target lets come back, where the guest follows the target alone.
    fn due_back(&self, seen: &Observation, figures: &Figures) -> Vec<BlockId> {
        match self.settings.scale_by {
            ScaleBy::Use => Vec::new(),
            ScaleBy::Target => {
                let room = self.settings.block.count_in(figures.ceiling.size() - figures.online);
                nearest(seen.stolen(), self.without_hurry(figures), room)
            }
        }
    }

    /// How many blocks a ticket names for which nobody waits.
    fn without_hurry(&self, figures: &Figures) -> u64 {
        let part = ByteSize::from_bytes(figures.online.bytes() / UNHURRIED_PART);
        self.settings.block.count_in(UNHURRIED.max(part)).max(1)
    }

    /// How many more blocks the user's maximum lets be online.
    fn room_up_to_max(&self, figures: &Figures) -> u64 {
        self.settings.block.count_in(self.settings.limits.max() - figures.online)
    }

    fn restore(&mut self, seen: &Observation, figures: &Figures) -> Next {
        let room = self.room_up_to_max(figures);
        let blocks = nearest(seen.stolen(), self.without_hurry(figures), room);
        if blocks.is_empty() {
            return (Vec::new(), Decision::Rest(WaitReason::Restoring));
        }
        self.open_ticket(blocks, Urgency::Comfort, seen, figures)
    }
}

type Next = (Vec<Action>, Decision);
