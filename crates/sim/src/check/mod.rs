//! The promises, and whether they are kept.
//!
//! The checkers see everything: the kernel's pages, the host's books, the agent's plans. They know
//! nothing of how the policy decides; they know what was promised to whoever uses it.
//!
//! * `safety`: what must never happen, looked at in every tick.
//! * `liveness`: what must happen in time.
//! * `limits`: the same of limits that change.
//! * `calm`: what must not happen for ever: a guest that has memory to spare and keeps it, or that
//!   steals and returns in turns.

mod calm;
mod limits;
mod liveness;
mod safety;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use memtide_policy::guest::{Limits, Observation, Plan};
use memtide_units::{BlockSize, ByteSize, Instant};
use serde::Serialize;

use crate::agent::Agent;
use crate::host::{Host, Mood, Reply};
use crate::kernel::{Kernel, Killed};
use crate::scenario::{Psi, Scenario, Weather};
use crate::workload::{Name, Phase};

use calm::Calm;
use limits::Within;
use liveness::Liveness;
use safety::Safety;

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promise {
    /// Each block is either the guest's, or stolen, or on its way, and everybody agrees.
    Books,
    /// The host drops nothing that the guest's kernel uses.
    Drops,
    /// No block is stolen twice, none that is not the agent's to steal, none blindly.
    Steals,
    /// The guest is never below its minimum by the agent's doing.
    Minimum,
    /// The guest never asks for more than its maximum.
    Maximum,
    /// A guest is within its limits soon, where its host lets it be and it has the memory for it.
    Limits,
    /// Nothing is granted that was not asked for.
    Grants,
    /// A plan can be carried out, and says when to look again.
    Plans,
    /// What was granted is online soon.
    ComesBack,
    /// A willing gate is heard soon.
    IsHeard,
    /// A guest that is about to run out asks.
    Asks,
    /// A guest that stalls badly gets something back soon.
    Relief,
    /// Nobody is killed for memory that is stolen and could come back, nor right after a steal down to the
    /// maximum, which nothing may come back beyond.
    NobodyKilled,
    /// Nobody is killed for kernel memory while movable memory is free.
    KernelMemory,
    /// What a small and calm guest has to spare goes.
    StealsAgain,
    /// What made the guest stall is not tried again at once.
    BacksOff,
    /// A steady guest does not steal and return in turns.
    NoSwing,
    /// A steady guest stays under its pressure goal.
    Pressure,
}

impl Promise {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Books,
        Self::Drops,
        Self::Steals,
        Self::Minimum,
        Self::Maximum,
        Self::Limits,
        Self::Grants,
        Self::Plans,
        Self::ComesBack,
        Self::IsHeard,
        Self::Asks,
        Self::Relief,
        Self::NobodyKilled,
        Self::KernelMemory,
        Self::StealsAgain,
        Self::BacksOff,
        Self::NoSwing,
        Self::Pressure,
    ];
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Books => "every block is in one place, and everybody agrees where",
            Self::Drops => "the host drops nothing that the guest uses",
            Self::Steals => "no block is stolen twice, and none that must not be",
            Self::Minimum => "never below the minimum by the agent's doing",
            Self::Maximum => "never above the maximum by the agent's wish",
            Self::Limits => "a guest is within its limits soon",
            Self::Grants => "nothing is granted that was not asked for",
            Self::Plans => "every plan can be carried out",
            Self::ComesBack => "what is granted is online soon",
            Self::IsHeard => "a willing gate is heard soon",
            Self::Asks => "a guest that runs out asks",
            Self::Relief => "a guest that stalls badly gets something back soon",
            Self::NobodyKilled => "nobody is killed while stolen memory could come back",
            Self::KernelMemory => "nobody is killed for kernel memory while movable memory is free",
            Self::StealsAgain => "a calm guest gives up what it has to spare",
            Self::BacksOff => "what made the guest stall is not tried again at once",
            Self::NoSwing => "a steady guest does not swing",
            Self::Pressure => "a steady guest stays under its pressure goal",
        })
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// Which.
    pub promise: Promise,
    /// What happened.
    pub what: String,
}

/// Everything at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// When.
    pub now: Instant,
    /// The guest's kernel.
    pub kernel: &'a Kernel,
    /// The device and its host.
    pub host: &'a Host,
    /// The agent, where one runs.
    pub agent: Option<&'a Agent>,
    /// What the workload is about.
    pub phase: Phase,
}

impl Moment<'_> {
    /// Bytes in blocks whose return the agent may ask for.
    fn returnable(&self, limits: &Limits) -> ByteSize {
        let unit = self.kernel.unit().size();
        let Some(agent) = self.agent else { return ByteSize::ZERO };
        let stolen = agent.stolen();
        unit.times(stolen).min((limits.max() - self.kernel.online()).round_down_to(unit))
    }
}

/// What a run is held to.
#[derive(Clone, Copy, Debug)]
struct Terms {
    unit: BlockSize,
    limits: Limits,
    workload: Name,
    weather: Weather,
    psi: Psi,
}

/// All checkers of one run.
#[derive(Debug)]
pub struct Checks {
    safety: Safety,
    liveness: Liveness,
    calm: Calm,
    within: Within,
    broken: Vec<Broken>,
    told: usize,
}

/// After so many broken promises a run has said enough.
const ENOUGH: usize = 20;

impl Checks {
    /// For this scenario.
    pub fn new(scenario: &Scenario) -> Self {
        let terms = Terms {
            unit: scenario.unit,
            limits: scenario.settings().limits,
            workload: scenario.workload,
            weather: scenario.weather,
            psi: scenario.psi,
        };
        Self {
            safety: Safety::new(terms),
            liveness: Liveness::new(terms),
            calm: Calm::new(terms),
            within: Within::new(terms),
            broken: Vec::new(),
            told: 0,
        }
    }

    /// The device has said this, and nobody has acted on it yet.
    pub fn heard(&mut self, at: &Moment<'_>, replies: &[Reply]) {
        let broken = self.safety.heard(at, replies);
        self.note(at.now, broken);
    }

    /// The agent has seen and decided this, and nothing of it is done yet.
    pub fn decided(&mut self, at: &Moment<'_>, seen: &Observation, plan: &Plan) {
        let broken = self.safety.decided(at, seen, plan);
        self.note(at.now, broken);
        let broken = self.calm.decided(at, plan);
        self.note(at.now, broken);
    }

    /// A tick is over.
    pub fn ticked(&mut self, at: &Moment<'_>) {
        let broken = self.safety.ticked(at);
        self.note(at.now, broken);
        let broken = self.liveness.ticked(at);
        self.note(at.now, broken);
        let broken = self.calm.ticked(at);
        self.note(at.now, broken);
        let broken = self.within.ticked(at);
        self.note(at.now, broken);
    }

    /// Somebody was killed.
    pub fn killed(&mut self, at: &Moment<'_>, killed: Killed) {
        let broken = self.liveness.killed(at, killed);
        self.note(at.now, broken);
    }

    /// Something happened that is not the agent's doing: whatever had to come in time may take its
    /// time again.
    pub fn disturbed(&mut self, now: Instant) {
        self.liveness.disturbed(now);
        self.calm.disturbed(now);
        self.within.disturbed();
    }

    /// An operator has changed the limits: they are what the run is held to from now on.
    pub fn limited(&mut self, now: Instant, limits: Limits) {
        self.safety.limited(now, limits);
        self.liveness.limited(limits);
        self.calm.limited(limits);
        self.within.limited(limits);
    }

    /// The run is over.
    pub fn ended(&mut self, at: &Moment<'_>) {
        let broken = self.calm.ended();
        self.note(at.now, broken);
    }

    /// What was broken since the last call.
    pub fn news(&mut self) -> Vec<Broken> {
        let news = self.broken[self.told..].to_vec();
        self.told = self.broken.len();
        news
    }

    /// Whether the run may stop.
    pub fn is_enough(&self) -> bool {
        self.broken.len() >= ENOUGH
    }

    fn note(&mut self, now: Instant, broken: Vec<(Promise, String)>) {
        let at_ms = now.as_millis();
        self.broken.extend(broken.into_iter().map(|(promise, what)| Broken {
            at_ms,
            promise,
            what,
        }));
    }
}

/// Remembers since when something has been so.
#[derive(Clone, Copy, Debug, Default)]
struct Since(Option<Instant>);

impl Since {
    /// How long it has been so at `now`, zero where it is not.
    fn observe(&mut self, now: Instant, is_so: Option<()>) -> Duration {
        self.0 = is_so.map(|()| self.0.unwrap_or(now));
        self.0.map_or(Duration::ZERO, |since| now.since(since))
    }

    fn restart(&mut self) {
        self.0 = None;
    }
}

fn is_willing(host: &Host) -> bool {
    host.mood() == Mood::Willing
}
