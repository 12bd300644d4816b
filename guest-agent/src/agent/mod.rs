//! The agent itself: one turn at a time, with the time as an argument.
//!
//! A turn takes in what has happened (answers of the device, ended jobs, snapshots), looks at the
//! guest, asks the policy, and carries its plan out. It never waits; who runs it ([`crate::run`])
//! waits for as long as a turn says, or until something happens. So a whole agent runs in a test
//! against a fake kernel and a fake device.
//!
//! * `observe`: what the policy is shown of the guest.
//! * `events`: what answers and ended jobs change.
//! * `act`: how each action of a plan is carried out.
//! * `grain`: what becomes of pieces where the device takes none, or an administrator wants them.
//! * `removal`: what is stolen whole loses its `struct page`s.
//! * `ejection`: the host's part in that, where it has one.
//! * `plugs`: the way back from there.
//! * `access`: what DAMON has seen, and who watches if it ends.
//! * `report`: telemetry for the host, the status for people.
//! * `books`: what is true of blocks in the moment in which something is sent.
//! * `leaving`: what comes before the end.
//! * `settings`: what an operator may change while it runs.
//! * `zones`: what is plugged in is made movable.
//! * `rest`: how long all that holds, and when a turn need not look at the guest.

mod access;
mod act;
mod books;
mod ejection;
mod events;
mod grain;
mod leaving;
mod observe;
mod plugs;
mod removal;
mod report;
mod rest;
mod settings;
#[cfg(test)]
mod tests;
mod trust;
mod zones;

use std::collections::BTreeSet;
use std::time::Duration;

use memtide_policy::guest::{Controller, Decision, HeatMap, LimitsWish, Mode, Outcome, Plan, Swap};
use memtide_sysfs::memory::StateRequest;
use memtide_sysfs::{Error, Root};
use memtide_units::{BlockId, Instant};

use crate::access::AccessHistory;
use crate::blocks::{Blocks, ByPieces, Hold, Surprise};
use crate::config::Conversion;
use crate::damon_watch::Closeness;
use crate::decisions::Decisions;
use crate::hands::Hands;
use crate::link::Link;
use crate::overcommit::{Need, Overcommit};
use crate::pace::{Pace, timed};
use crate::pieces::Pieces;
use crate::processor_time::ProcessorTime;
use crate::remove::{Held, Policy, Removers};
use crate::returns::Returns;
use crate::runtime::{RuntimeDir, Seen};
use crate::senses::{Reading, Senses};
use crate::status::{Counters, Lack, Reloads};
use crate::watching::Watching;

pub use self::rest::Still;

use self::books::Books;
use self::ejection::Ejection;
use self::rest::Rest;
use self::zones::Zones;

/// Telemetry, the status file and a look at the device's health: once a second.
const SECOND: Duration = Duration::from_secs(1);
/// A look for blocks that somebody else has changed.
const REFRESH: Pace = Pace { shortest: Duration::from_secs(5), longest: Duration::from_secs(30) };
/// Answers handled in one turn at most: a device that answers faster than that still gets its
/// turn, and so does everybody else.
const ANSWERS_MAX: usize = 16;

/// What woke the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// The PSI trigger fired.
    pub by_trigger: bool,
    /// The device has interrupted: it lives, and there may be something to see.
    pub by_device: bool,
    /// When memory was last known to be what it was at the turn before.
    pub still_at: Option<Instant>,
}

/// The parts that an agent is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where the kernel's files are.
    pub root: Root,
    /// What must outlive the agent.
    pub runtime: RuntimeDir,
    /// What is remembered of blocks.
    pub seen: Seen,
    /// All blocks.
    pub blocks: Blocks,
    /// Changes blocks.
    pub hands: Hands,
    /// Talks to the device.
    pub link: Link,
    /// Decides.
    pub controller: Controller,
    /// The limits as they were wished for: what they come to depends on how much memory there is.
    pub wish: LimitsWish,
    /// Reads the guest's state.
    pub senses: Senses,
    /// Watches access and pages cold memory out, where and while that can be done.
    pub watching: Watching,
    /// What was touched, for people.
    pub access: AccessHistory,
    /// What was decided, for people.
    pub decisions: Decisions,
    /// Memory in place of blocks that cannot be emptied, where the guest can have that.
    pub pieces: Option<Pieces>,
    /// How stolen memory is removed and plugged in.
    pub removers: Removers,
    /// What happens to plugged memory by itself.
    pub policy: Policy,
    /// Lets programs map more than what is online, where the agent may.
    pub overcommit: Option<Overcommit>,
    /// That policy, as an agent before this one has left it held.
    pub held: Option<Held>,
    /// How a stolen block is put online.
    pub how_online: StateRequest,
    /// Whether what is in a kernel zone is made movable.
    pub conversion: Conversion,
    /// What this guest lacks.
    pub lacks: Vec<Lack>,
}

/// Whether the host has said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Something,
}

/// When something is due again.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    report: Instant,
    refresh: Instant,
    /// Not before: something could not be removed.
    removal: Instant,
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    parts: Parts,
    returns: Returns,
    heat: HeatMap,
    mode: Mode,
    outcomes: Vec<Outcome>,
    /// Blocks that are being taken back without a grant.
    unasked: BTreeSet<BlockId>,
    counters: Counters,
    reloads: Reloads,
    /// Which blocks may be taken in pieces again by a device that takes any; `None` while this one does.
    by_pieces: Option<ByPieces>,
    /// What is lacking where the device takes none.
    coarse: Option<Lack>,
    /// What is lacking where some of them count as an administrator's.
    adopted: Option<Lack>,
    ejection: Ejection,
    zones: Zones,
    /// How DAMON made its last snapshot.
    closeness: Option<Closeness>,
    reading: Reading,
    processors: ProcessorTime,
    swap: Option<Swap>,
    /// What was decided last.
    note: String,
    /// What the log has not been told of it yet.
    unsaid: Option<Decision>,
    /// Devices through which the kernel tells the host what is free.
    reporters: Vec<String>,
    due: Due,
    rest: Rest,
    still: Option<Still>,
    generation: u32,
    /// The host may want something else than when it was last decided.
    has_new_wish: bool,
    /// Blocks have come or gone since DAMON was told what to watch.
    owes_rewatch: bool,
    /// Goodbye has not been said yet.
    is_leaving: bool,
    /// The next agent would learn that the device is silent.
    is_marked_silent: bool,
}

impl Agent {
    /// An agent of these parts.
    pub fn new(mut parts: Parts) -> Self {
        let ejection = Ejection::resume(parts.held.take());
        let mut heat = HeatMap::new(parts.blocks.size());
        if parts.watching.damon().is_some() {
            heat.expect();
        }
        Self {
            parts,
            returns: Returns::default(),
            heat,
            mode: Mode::Tune,
            outcomes: Vec::new(),
            unasked: BTreeSet::new(),
            counters: Counters::default(),
            reloads: Reloads::default(),
            by_pieces: None,
            coarse: None,
            adopted: None,
            ejection,
            zones: Zones::default(),
            closeness: None,
            reading: Reading::default(),
            processors: ProcessorTime::default(),
            swap: None,
            note: "starting".into(),
            unsaid: None,
            reporters: Vec::new(),
            due: Due::default(),
            rest: Rest::default(),
            still: None,
            generation: 0,
            has_new_wish: false,
            owes_rewatch: false,
            is_leaving: false,
            is_marked_silent: false,
        }
    }

    /// What an operator wants from now on.
    pub fn set_mode(&mut self, mode: Mode) {
        if mode != self.mode {
            tracing::info!("the mode is {mode:?} from now on");
        }
        self.mode = mode;
        self.rest.end();
    }

    /// The parts, for whoever waits on their descriptors.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// What was decided last, and why.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// One turn; answers with how long nothing needs to be done unless something happens.
    ///
    /// # Errors
    /// That the guest's memory cannot be read, or its runtime directory not be written: nothing can
    /// be decided any more.
    pub fn turn(&mut self, now: Instant, woken: Woken) -> Result<Duration, crate::run::RunError> {
        if let Some(at) = woken.still_at {
            self.parts.controller.lay_still(at);
            self.rest.go_on(at);
        }
        // An interrupt may come for an answer that the turn which asked has taken in already.
        let is_hosts = self.listen(now, woken) == Heard::Something || woken.by_device;
        self.see_to_plugs(now);
        if is_hosts && self.may_rest_on(now, woken) {
            return Ok(self.pause(now));
        }
        self.take_ended_jobs(now);
        if self.is_within_a_batch(now, woken) {
            return Ok(self.pause(now));
        }
        self.see_to_watching(now);
        if self.is_refresh_due(now) {
            let (refreshed, cost) = timed(|| self.refresh());
            refreshed?;
            self.due.refresh = now + REFRESH.pause(cost);
            if !self.parts.hands.is_busy() {
                self.remove_what_is_stolen_whole(now)?;
            }
        }
        // Of the last decision: this one need not wait for the log.
        self.say_what_is_unsaid();
        let plan = self.decide(now, woken)?;
        self.carry_out(now, plan.actions);
        self.convert_next(now);
        self.take_note(now, plan.report);
        self.see_to_reclaim(now, plan.reclaim);
        self.see_to_mappings();
        self.rewatch_if_due();
        // What was just posted goes out at once, not at the next turn.
        self.exchange(now);
        if now >= self.due.report {
            self.due.report = now + SECOND;
            self.report(now);
            // After all else: telemetry waits for nobody, and nobody for it.
            self.exchange(now);
        }
        Ok(self.pause(now))
    }

    /// Hears the host: its answers, and what it may have changed.
    fn listen(&mut self, now: Instant, woken: Woken) -> Heard {
        let link = &mut self.parts.link;
        if woken.by_device {
            link.look_soon();
        }
        if let Some(event) = (now >= self.due.report).then(|| link.check(now)).flatten() {
            self.on_link(now, event);
        }
        self.exchange(now)
    }

    /// Reads answers and sends what waits, until neither is left.
    fn exchange(&mut self, now: Instant) -> Heard {
        let heard = self.pump(now);
        self.parts.hands.set_room(self.parts.link.room(self.parts.blocks.size()));
        let is_silent = self.parts.link.is_given_up();
        if is_silent != self.is_marked_silent {
            self.is_marked_silent = is_silent;
            let runtime = &self.parts.runtime;
            if is_silent { runtime.mark_silent() } else { runtime.clear_silent() }
        }
        let generation = self.parts.link.config().generation;
        if generation != self.generation {
            self.generation = generation;
            self.has_new_wish = true;
            self.returns.hurry(now);
            self.rest.end();
        }
        heard
    }

    fn pump(&mut self, now: Instant) -> Heard {
        let mut heard = Heard::Nothing;
        for _ in 0..ANSWERS_MAX {
            let limits = self.parts.controller.settings().limits;
            let Parts { root, blocks, link, .. } = &mut self.parts;
            let events = link.service(now, &Books { root, blocks, limits });
            if events.is_empty() {
                return heard;
            }
            heard = Heard::Something;
            for event in events {
                self.on_link(now, event);
            }
        }
        heard
    }

    /// Takes in what the blocks' thread has done. What has gone offline is reported before anything
    /// else is looked at, so that the host can begin to drop it.
    fn take_ended_jobs(&mut self, now: Instant) {
        while let Some(done) = self.parts.hands.take() {
            self.on_done(now, done);
            self.exchange(now);
        }
    }

    /// Not while blocks change by the agent's own hand, which finds out by itself, nor between two of a
    /// batch: that has DAMON told anew. But blocks that are to be taken may wait for long, for the host of a
    /// plain balloon, and nothing of them changes meanwhile. Nor does what the host has just begun to want
    /// wait for it: it takes tens of milliseconds, and may as well come after.
    fn is_refresh_due(&self, now: Instant) -> bool {
        let (hands, due) = (&self.parts.hands, self.due.refresh);
        let is_late = now >= due + REFRESH.longest && !hands.is_at_work();
        let awaits_host = self.ejection.plugs.pause().is_some();
        is_late || (now >= due && !hands.is_busy() && !self.has_new_wish && !awaits_host)
    }

    /// Finds out what somebody else did to blocks.
    fn refresh(&mut self) -> Result<(), crate::run::RunError> {
        for surprise in self.parts.blocks.refresh(&self.parts.root)? {
            match surprise {
                Surprise::CameOnline(block) => self.came_online(block),
                Surprise::WentOffline(block) => {
                    tracing::warn!("{block} went offline by somebody else's hand: left alone");
                }
                Surprise::Gone(block) => self.is_gone(block),
                Surprise::Replaced(block) => self.is_replaced(block),
            }
        }
        self.reporters = self.parts.senses.free_page_reporters();
        self.see_to_limits();
        self.see_to_adopted();
        self.parts.removers.forget_what_is_back();
        let blocks = &self.parts.blocks;
        self.ejection.trust.keep_only(|block| blocks.is_ejected(block));
        self.see_to_ejected();
        self.see_to_zones();
        // Also what has been plugged in, or was put online or offline by somebody else.
        self.rewatch();
        let seen = self.parts.blocks.seen();
        if seen != self.parts.seen {
            self.parts.runtime.set_seen(&seen)?;
            self.parts.seen = seen;
        }
        Ok(())
    }

    fn decide(&mut self, now: Instant, woken: Woken) -> Result<Plan, Error> {
        let seen = self.observe(now, woken)?;
        let plan = self.parts.controller.step(now, &seen);
        self.has_new_wish = false;
        self.rest = Rest::after(now, &plan, seen.device);
        Ok(plan)
    }

    /// Whether the host has accepted an introduction.
    pub fn has_greeted(&self) -> bool {
        self.counters.hellos > 0
    }

    /// Whether nothing of what is offline is the agent's doing any more.
    pub fn has_nothing_stolen(&self) -> bool {
        let blocks = &self.parts.blocks;
        blocks.offline_by_us().is_empty() && blocks.with(Hold::Returning).is_empty()
    }

    /// The same, but for what was ejected while nobody plugs it in.
    pub fn has_all_that_can_come(&self) -> bool {
        let blocks = &self.parts.blocks;
        let out = self.out_of_reach();
        blocks.offline_by_us().iter().all(|block| out.contains(block))
            && blocks.with(Hold::Returning).is_empty()
    }

    /// Has large mappings allowed while blocks are stolen, or about to be, and at no other time.
    pub fn see_to_mappings(&mut self) {
        let is_whole = self.has_nothing_stolen() && !self.parts.hands.is_stealing();
        if let Some(overcommit) = &mut self.parts.overcommit {
            overcommit.meet(if is_whole { Need::Nothing } else { Need::LargeMappings });
        }
    }
}
