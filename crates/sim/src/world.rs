//! One run: everything in its order, tick after tick.

use std::collections::BTreeSet;
use std::time::Duration;

use memtide_policy::guest::Settings;
use memtide_units::{BlockId, Instant};

use crate::TICK;
use crate::agent::{Agent, Deeds};
use crate::chance::{Chance, Stream};
use crate::check::{Broken, Checks, Moment};
use crate::fault::{Fault, Faults};
use crate::host::Host;
use crate::kernel::{Kernel, Killed};
use crate::monitor::Monitor;
use crate::scenario::{Foreign, Psi, Scenario, Weather};
use crate::story::{About, Story};
use crate::workload::{Phase, Workload};

/// In so many of a thousand ticks the agent looks though nothing has happened.
const LOOKS_FOR_NOTHING: u64 = 5;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was run.
    pub scenario: Scenario,
    /// What happened.
    pub story: Story,
    /// Promises that were not kept; none in a good run.
    pub broken: Vec<Broken>,
    /// What the agents did, all together.
    pub deeds: Deeds,
    /// How often somebody was killed for memory.
    pub kills: u64,
    /// Each time that programs wanted more than they had, how long it took until they had it.
    pub growths: Vec<Duration>,
}

/// Who decides in the guest at a moment.
#[derive(Debug)]
enum Life {
    /// An agent.
    Agent(Box<Agent>),
    /// None: the next starts then.
    Down { until: Instant, monitor: Monitor, deeds: Deeds },
}

struct World<'a> {
    scenario: &'a Scenario,
    /// What every agent is told from now on.
    settings: Settings,
    now: Instant,
    kernel: Kernel,
    host: Host,
    life: Life,
    foreign: BTreeSet<BlockId>,
    workload: Workload,
    faults: Faults,
    chance: Chance,
    /// The agent gets no processor time until then.
    starved: Instant,
    trigger: bool,
    checks: Checks,
    story: Story,
    broken: Vec<Broken>,
    kills: u64,
    growths: Vec<Duration>,
    /// Since when programs have wanted more than they have.
    grows: Option<Instant>,
}

/// Plays a scenario to its end, or until it has broken enough.
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario);
    let end = Instant::default() + scenario.length();
    while world.now < end && !world.checks.is_enough() {
        world.tick();
    }
    world.end()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let Scenario { seed, machine, unit, blocks, .. } = *scenario;
        let mut kernel = Kernel::boot(seed, machine, unit, blocks);
        kernel.swap_on(scenario.swap_space());
        let foreign = foreign(scenario, &mut kernel);
        let (present, settings) = (scenario.present(), scenario.settings());
        let mut host = Host::new(seed, unit, present, settings.limits.min());
        let monitor = Monitor::new(seed, scenario.watch);
        let now = Instant::default();
        let mut agent = Agent::start(now, settings, &kernel, &foreign, monitor);
        agent.live_in(scenario);
        agent.convert(&mut kernel);
        agent.greet(now, &mut host);
        Self {
            scenario,
            settings,
            now,
            kernel,
            host,
            life: Life::Agent(Box::new(agent)),
            foreign,
            workload: Workload::new(scenario.workload, present, seed),
            faults: Faults::of(scenario),
            // The faults' own stream has been used up in advance.
            chance: Chance::of(!seed, Stream::Faults),
            starved: now,
            trigger: false,
            checks: Checks::new(scenario),
            story: Story::default(),
            broken: Vec::new(),
            kills: 0,
            growths: Vec::new(),
            grows: None,
        }
    }

    fn tick(&mut self) {
        while let Some(fault) = self.faults.next(self.now) {
            self.befall(fault);
        }
        let demand = self.workload.wants(self.now, self.phase());
        let ticked = self.kernel.tick(self.now, &demand);
        self.trigger |= ticked.trigger;
        self.time_growth(self.kernel.lacks(&demand));
        if let Some(killed) = ticked.killed {
            self.on_kill(killed);
        }
        self.rise();
        let replies = self.host.tick(self.now);
        let at = moment(self.now, &self.kernel, &self.host, &self.life, self.phase());
        self.checks.heard(&at, &replies);
        if let Life::Agent(agent) = &mut self.life {
            agent.hear(self.now, replies, &mut self.host);
        }
        if self.now >= self.starved {
            self.act();
        } else {
            // Nothing is owed by who does not run.
            self.checks.disturbed(self.now);
        }
        let at = moment(self.now, &self.kernel, &self.host, &self.life, self.phase());
        self.checks.ticked(&at);
        self.tell_broken();
        self.story.sample(self.now, &self.kernel);
        self.now = self.now + TICK;
    }

    fn time_growth(&mut self, is_growing: bool) {
        match self.grows {
            None if is_growing => self.grows = Some(self.now),
            Some(since) if !is_growing => {
                self.growths.push(self.now.since(since));
                self.grows = None;
            }
            None | Some(_) => {}
        }
    }

    /// The agent's part of a tick.
    fn act(&mut self) {
        let (now, phase) = (self.now, self.phase());
        let is_restless = self.scenario.weather != Weather::Fair;
        let looks = is_restless && self.chance.happens(LOOKS_FOR_NOTHING);
        let Life::Agent(agent) = &mut self.life else { return };
        agent.work(now, &mut self.kernel, &mut self.host);
        let has_trigger = self.scenario.psi == Psi::Present;
        if (self.trigger && has_trigger) || looks {
            agent.wake(now);
        }
        if !agent.is_due(now) {
            return;
        }
        let trigger = std::mem::take(&mut self.trigger) && has_trigger;
        let (seen, plan) = agent.decide(now, trigger, &self.kernel, self.host.balloon());
        self.story.decided(now, &self.kernel, &plan.report.to_string());
        self.story.reclaims(now, &self.kernel, plan.reclaim);
        let agent = Some(&**agent);
        let at = Moment { now, kernel: &self.kernel, host: &self.host, agent, phase };
        self.checks.decided(&at, &seen, &plan);
        if let Life::Agent(agent) = &mut self.life {
            agent.carry_out(now, plan.actions, &mut self.host);
        }
    }

    fn phase(&self) -> Phase {
        let half = Instant::default() + self.scenario.length() / 2;
        if self.now < half { Phase::Busy } else { Phase::Calm }
    }

    fn on_kill(&mut self, killed: Killed) {
        self.kills += 1;
        let at = moment(self.now, &self.kernel, &self.host, &self.life, self.phase());
        self.checks.killed(&at, killed);
        let text = format!("the OOM killer came: no {:?} memory", killed.wanted);
        self.story.tell(self.now, &self.kernel, About::Killed, text);
        self.workload.killed(self.now);
    }

    fn befall(&mut self, fault: Fault) {
        self.story.tell(self.now, &self.kernel, About::Fault, fault.to_string());
        self.checks.disturbed(self.now);
        match fault {
            Fault::Restart(down) => self.fall(self.now + down),
            Fault::Mood(mood) => self.host.set_mood(mood),
            Fault::Paused(time) => {
                self.now = self.now + time;
                self.checks.disturbed(self.now);
            }
            Fault::Starved(time) => self.starved = self.now + time,
            Fault::Busy(permille) => self.kernel.set_busy(permille),
            Fault::Wanted(mode) => {
                if let Life::Agent(agent) = &mut self.life {
                    agent.set_mode(mode);
                }
            }
            Fault::Limits(wish) => {
                self.settings.limits = self.scenario.limits(wish);
                self.checks.limited(self.now, self.settings.limits);
                if let Life::Agent(agent) = &mut self.life {
                    agent.set_limits(self.now, self.settings.limits);
                }
            }
        }
    }

    /// The agent is killed: the write at work ends, its questions die with it.
    fn fall(&mut self, until: Instant) {
        self.kernel.interrupt_offline();
        self.host.lost_agent();
        let down = Life::Down {
            until,
            monitor: Monitor::new(0, self.scenario.watch),
            deeds: Deeds::default(),
        };
        self.life = match std::mem::replace(&mut self.life, down) {
            Life::Agent(agent) => {
                let deeds = agent.deeds;
                Life::Down { until, monitor: agent.into_monitor(), deeds }
            }
            Life::Down { monitor, deeds, .. } => Life::Down { until, monitor, deeds },
        };
    }

    /// The next agent starts, if it is time.
    fn rise(&mut self) {
        let Life::Down { until, monitor, deeds } = &self.life else { return };
        if self.now < *until {
            return;
        }
        let (monitor, deeds) = (monitor.clone(), *deeds);
        let mut agent = Agent::start(self.now, self.settings, &self.kernel, &self.foreign, monitor);
        agent.deeds = deeds;
        agent.live_in(self.scenario);
        agent.convert(&mut self.kernel);
        agent.greet(self.now, &mut self.host);
        self.life = Life::Agent(Box::new(agent));
        self.checks.disturbed(self.now);
    }

    fn tell_broken(&mut self) {
        for broken in self.checks.news() {
            let text = format!("\"{}\": {}", broken.promise, broken.what);
            self.story.tell(self.now, &self.kernel, About::Broken, text);
            self.broken.push(broken);
        }
    }

    fn end(mut self) -> Outcome {
        let at = moment(self.now, &self.kernel, &self.host, &self.life, self.phase());
        self.checks.ended(&at);
        self.tell_broken();
        let deeds = match &self.life {
            Life::Agent(agent) => agent.deeds,
            Life::Down { deeds, .. } => *deeds,
        };
        let Self { scenario, story, broken, kills, growths, .. } = self;
        Outcome { scenario: scenario.clone(), story, broken, deeds, kills, growths }
    }
}

fn moment<'a>(
    now: Instant,
    kernel: &'a Kernel,
    host: &'a Host,
    life: &'a Life,
    phase: Phase,
) -> Moment<'a> {
    let agent = match life {
        Life::Agent(agent) => Some(&**agent),
        Life::Down { .. } => None,
    };
    Moment { now, kernel, host, agent, phase }
}

/// Somebody took the last block but one offline before the agent came.
fn foreign(scenario: &Scenario, kernel: &mut Kernel) -> BTreeSet<BlockId> {
    match scenario.foreign {
        Foreign::None => BTreeSet::new(),
        Foreign::One => {
            let block = BlockId(scenario.blocks - 2);
            kernel.take_away(block);
            let is_away = kernel.block(block).state == crate::kernel::State::Offline;
            is_away.then_some(block).into_iter().collect()
        }
    }
}
