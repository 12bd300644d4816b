//! The agent: the production policy, and an executor that does what guest-agent's does.
//!
//! * `hands`: the thread that changes blocks, one after the other.
//! * `ticket`: the one return that may be pending.
//! * `pager`: who pages out what is cold.
//!
//! What is left out of the real one is how it talks to a device (virtqueues, resets): a request
//! arrives, and an answer comes, or the device is silent.

mod hands;
mod pager;
mod ticket;

use std::collections::BTreeSet;
use std::time::Duration;

use memtide_policy::guest::{
    Action, BlockState, BlockView, Controller, Conversions, DeviceState, Effort, FixedReason,
    FreeMemory, HeatMap, Limits, Mode, Observation, Outcome, Plan, Settings, SpareTime,
    StealFailure, StealState, conversions,
};
use memtide_units::{BlockId, ByteSize, Instant};

use crate::host::{Host, Mood, Reply, Request};
use crate::kernel::{Kernel, Kind, State, Zone};
use crate::monitor::{Monitor, Watch};
use crate::scenario::{Load, Psi, Scenario};

use hands::{Done, Hands, Task};
use pager::Pager;
use ticket::{Effect, Returns};

/// A device that has not answered for so long is taken for silent (guest-agent/src/link/mod.rs).
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// After a loss the device is being reset for at least so long.
const AFTER_LOSS: Duration = Duration::from_millis(500);
/// Asking a silent device anew.
const SILENT_RETRY: Duration = Duration::from_secs(1);

/// Whose doing it is that a block is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The kernel uses it.
    Online,
    /// Offline, and the host has not said that it knows.
    Leaving,
    /// Offline, and the host knows.
    Stolen,
    /// On its way back.
    Returning,
    /// Offline by somebody else.
    Foreign,
}

/// What an agent did, for whoever tells the story.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deeds {
    /// Blocks stolen.
    pub stolen: u64,
    /// Blocks that came back.
    pub returned: u64,
    /// Of these, without a grant.
    pub unasked: u64,
    /// Steals that failed.
    pub failed: u64,
    /// Returns that were denied.
    pub denied: u64,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    controller: Controller,
    heat: HeatMap,
    monitor: Monitor,
    holds: Vec<Hold>,
    hands: Hands,
    pager: Pager,
    returns: Returns,
    outcomes: Vec<Outcome>,
    unasked: BTreeSet<BlockId>,
    mode: Mode,
    /// Since when the device has said nothing.
    unheard: Option<Instant>,
    is_silent: bool,
    is_greeted: bool,
    psi: Psi,
    free: FreeMemory,
    load: Load,
    spare: SpareTime,
    due: Instant,
    /// What it has done so far.
    pub deeds: Deeds,
}

impl Agent {
    /// An agent that has just started: what is offline is its own, except `foreign` blocks.
    pub fn start(
        now: Instant,
        settings: Settings,
        kernel: &Kernel,
        foreign: &BTreeSet<BlockId>,
        mut monitor: Monitor,
    ) -> Self {
        monitor.restart(now);
        let hold = |id, state| match state {
            State::Online | State::GoingOffline => Hold::Online,
            State::Offline if foreign.contains(&id) => Hold::Foreign,
            State::Offline => Hold::Leaving,
        };
        Self {
            controller: Controller::new(settings),
            heat: HeatMap::new(kernel.unit()),
            monitor,
            holds: kernel.blocks().iter().map(|block| hold(block.id, block.state)).collect(),
            hands: Hands::default(),
            pager: Pager::new(now, &settings.limits, kernel.present()),
            returns: Returns::default(),
            outcomes: Vec::new(),
            unasked: BTreeSet::new(),
            mode: Mode::Tune,
            unheard: None,
            is_silent: false,
            is_greeted: false,
            psi: Psi::Present,
            free: FreeMemory::KeptByGuest,
            load: Load::Works,
            spare: SpareTime::default(),
            due: now,
            deeds: Deeds::default(),
        }
    }

    /// Makes boot memory movable, as the policy allows; before the first look.
    pub fn convert(&self, kernel: &mut Kernel) -> usize {
        let Conversions { candidates, most } = conversions(&self.views(kernel));
        let mut done = 0;
        for block in candidates {
            if done == most {
                break;
            }
            done += usize::from(kernel.convert(block));
        }
        done
    }

    /// Says who it is.
    pub fn greet(&mut self, now: Instant, host: &mut Host) {
        let ours = |hold: &Hold| matches!(hold, Hold::Leaving | Hold::Stolen);
        host.post(now, Request::Hello { stolen: self.blocks(ours) });
    }

    /// What kind of guest it is in.
    pub fn live_in(&mut self, scenario: &Scenario) {
        let Scenario { psi, free, load, .. } = *scenario;
        (self.psi, self.free, self.load) = (psi, free, load);
    }

    /// What an operator wants.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Other limits from now on. The real one says so to its host, for people to see; nothing that this host
    /// decides follows from them.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        self.controller.set_limits(limits);
        self.wake(now);
    }

    /// What an operator wants.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What does not change.
    pub fn settings(&self) -> &Settings {
        self.controller.settings()
    }

    /// What is known of a block.
    pub fn hold(&self, block: BlockId) -> Hold {
        self.holds[block.0 as usize]
    }

    /// How many blocks are stolen, and known to be.
    pub fn stolen(&self) -> u64 {
        self.holds.iter().filter(|hold| **hold == Hold::Stolen).count() as u64
    }

    /// The pending return.
    pub fn ticket(&self) -> Option<&memtide_policy::guest::Ticket> {
        self.returns.ticket()
    }

    /// Whether a device is there that answers.
    pub fn device(&self) -> DeviceState {
        match self.unheard {
            Some(since) if self.is_silent => DeviceState::Silent { since },
            _ => DeviceState::Ready,
        }
    }

    /// The monitor, for the next agent.
    pub fn into_monitor(self) -> Monitor {
        self.monitor
    }

    /// Whether it looks now, and not at a later tick.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.due
    }

    /// Something happened: it looks now.
    pub fn wake(&mut self, now: Instant) {
        self.due = now;
    }

    /// Takes in what the device says, or that it says nothing.
    pub fn hear(&mut self, now: Instant, replies: Vec<Reply>, host: &mut Host) {
        if !replies.is_empty() {
            self.wake(now);
        }
        for reply in replies {
            self.on_reply(now, reply, host);
        }
        if host.mood() != Mood::Dead {
            return;
        }
        let since = *self.unheard.get_or_insert(now);
        if !self.is_silent && now.since(since) >= ANSWER_DEADLINE {
            self.is_silent = true;
            self.returns.lost(now, now + AFTER_LOSS);
            self.wake(now);
        }
    }

    fn on_reply(&mut self, now: Instant, reply: Reply, host: &mut Host) {
        match reply {
            Reply::Welcome { stolen } => {
                self.is_greeted = true;
                stolen.into_iter().for_each(|block| self.is_known(block));
            }
            Reply::Dropped(block) => self.is_known(block),
            Reply::Notice => self.returns.hurry(now),
            Reply::Alive => {
                (self.unheard, self.is_silent) = (None, false);
                self.returns.lost(now, now + AFTER_LOSS);
                self.greet(now, host);
            }
            Reply::Return { ticket, blocks, verdict } => {
                match self.returns.answered(now, ticket, verdict) {
                    // A late grant of a ticket that is no more: the blocks are still offline.
                    Effect::Wait if verdict == crate::host::Verdict::Granted => {
                        self.greet(now, host);
                    }
                    Effect::Wait => {}
                    Effect::PutOnline => blocks.into_iter().for_each(|b| self.bring_back(now, b)),
                    Effect::Denied => {
                        self.deeds.denied += 1;
                        self.outcomes.push(Outcome::Denied);
                    }
                }
            }
        }
    }

    /// The host knows that the block is stolen.
    fn is_known(&mut self, block: BlockId) {
        if self.hold(block) == Hold::Leaving {
            self.set(block, Hold::Stolen);
            self.deeds.stolen += 1;
            self.outcomes.push(Outcome::Stolen(block));
        }
    }

    /// The thread that changes blocks has had another tick.
    pub fn work(&mut self, now: Instant, kernel: &mut Kernel, host: &mut Host) {
        self.pager.work(now, kernel);
        for Done { block, task, result } in self.hands.work(now, kernel) {
            self.wake(now);
            match (task, result) {
                (Task::Steal { .. }, Ok(())) => {
                    self.set(block, Hold::Leaving);
                    host.post(now, Request::Steal(block));
                }
                (Task::Steal { .. }, Err(failure)) => {
                    self.deeds.failed += u64::from(failure != StealFailure::Aborted);
                    self.outcomes.push(Outcome::StealFailed(block, failure));
                }
                (Task::Return, _) => self.on_online(now, block, host),
            }
        }
    }

    fn on_online(&mut self, now: Instant, block: BlockId, host: &mut Host) {
        self.set(block, Hold::Online);
        self.deeds.returned += 1;
        if self.unasked.remove(&block) {
            self.deeds.unasked += 1;
            host.post(now, Request::Taken(vec![block]));
        }
        if self.returns.one_done(block) {
            self.outcomes.push(Outcome::Returned);
        }
    }

    /// Looks and decides. The observation is handed out for whoever checks the plan.
    pub fn decide(
        &mut self,
        now: Instant,
        trigger_fired: bool,
        kernel: &Kernel,
        balloon: ByteSize,
    ) -> (Observation, Plan) {
        if let Some(seen) = self.monitor.snapshot(now, kernel) {
            self.heat.observe(&seen.regions);
            self.heat.set_used(seen.used, seen.touched);
        }
        let seen = Observation {
            memory: kernel.memory(),
            free_memory: self.free,
            squeeze: Some(kernel.squeeze()),
            psi: (self.psi == Psi::Present).then(|| kernel.psi()),
            trigger_fired,
            balloon,
            blocks: self.views(kernel),
            working_set: self.heat.working_set(),
            // Without DAMON nobody knows what is cold.
            swap: kernel.swap().filter(|_| self.monitor.watch() == Watch::Damon),
            steal: self.steal_state(),
            effort: self.effort(now),
            ticket: self.returns.ticket().cloned(),
            device: self.device(),
            mode: self.mode,
            outcomes: std::mem::take(&mut self.outcomes),
        };
        let plan = self.controller.step(now, &seen);
        self.pager.take(plan.reclaim);
        self.due = now + plan.wait;
        (seen, plan)
    }

    /// Does what was decided.
    pub fn carry_out(&mut self, now: Instant, actions: Vec<Action>, host: &mut Host) {
        for action in actions {
            match action {
                Action::Steal { blocks, keep } => self.hands.steal(blocks, keep),
                Action::AbortSteal => self.hands.abort(),
                Action::ShortenSteal { to } => self.hands.shorten(to),
                Action::AskReturn { ticket, blocks, urgency } => {
                    if !self.returns.ask(now, ticket, blocks.clone(), urgency) {
                        continue;
                    }
                    if self.is_silent {
                        // Nobody hears it. The ticket waits, and its silence is counted.
                        self.returns.lost(now, now + SILENT_RETRY);
                    } else {
                        host.post(now, Request::Return { ticket, blocks, urgency });
                    }
                }
                Action::CancelReturn { ticket } => {
                    if self.returns.cancel() {
                        host.post(now, Request::Cancel { ticket });
                    }
                }
                Action::TakeUnasked(blocks) => self.take_unasked(now, blocks),
            }
        }
    }

    /// Nothing is touched while the device might be working on a request that names these blocks.
    fn take_unasked(&mut self, now: Instant, blocks: Vec<BlockId>) {
        if self.returns.is_asked() {
            return;
        }
        self.returns.granted_by_need();
        for block in blocks {
            self.unasked.insert(block);
            self.bring_back(now, block);
        }
    }

    fn bring_back(&mut self, now: Instant, block: BlockId) {
        self.set(block, Hold::Returning);
        self.hands.put_online(now, block);
    }

    fn effort(&mut self, now: Instant) -> Effort {
        self.spare.look(now, self.load.idle());
        Effort { per_second: self.spare.for_stealing(), stealing: self.hands.steal_time() }
    }

    fn steal_state(&self) -> StealState {
        let unreported = self.is_greeted && self.holds.contains(&Hold::Leaving);
        if self.hands.is_stealing() || unreported { StealState::Running } else { StealState::Idle }
    }

    fn views(&self, kernel: &Kernel) -> Vec<BlockView> {
        let view = |block: &crate::kernel::Block| {
            let state = match self.hold(block.id) {
                Hold::Leaving | Hold::Returning => BlockState::InTransit,
                Hold::Stolen => BlockState::Stolen,
                Hold::Foreign => BlockState::Foreign,
                Hold::Online if block.has_hole => BlockState::Fixed(FixedReason::NeverOffline),
                // The agent's rings lie in the kernel's own zone, in the block after the first.
                Hold::Online if block.id == BlockId(1) => {
                    BlockState::Fixed(FixedReason::AgentMemory)
                }
                Hold::Online if block.zone == Zone::Movable => BlockState::Movable,
                Hold::Online => BlockState::Kernel,
            };
            let census = self.monitor.census(kernel, block);
            BlockView { id: block.id, state, heat: self.heat.heat(block.id), census }
        };
        kernel.blocks().iter().map(view).collect()
    }

    fn set(&mut self, block: BlockId, hold: Hold) {
        self.holds[block.0 as usize] = hold;
    }

    fn blocks(&self, test: impl Fn(&Hold) -> bool) -> Vec<BlockId> {
        let held = self.holds.iter().enumerate().filter(|(_, hold)| test(hold));
        held.map(|(n, _)| BlockId(n as u64)).collect()
    }
}

/// What a block's pages are, where somebody counts.
fn census(kernel: &Kernel, block: BlockId) -> memtide_policy::guest::Census {
    let block = kernel.block(block);
    memtide_policy::guest::Census {
        to_migrate: crate::kernel::in_bytes(block.to_migrate()),
        unmovable_pages: block.of(Kind::Kernel),
    }
}
