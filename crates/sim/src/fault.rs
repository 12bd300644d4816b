//! What befalls a guest, and when.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use memtide_policy::guest::{LimitsWish, Mode};
use memtide_units::{ByteSize, Instant, Permille};

use crate::chance::{Chance, Stream};
use crate::host::Mood;
use crate::scenario::{Scenario, Weather};

/// Something goes wrong, or right again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The agent is killed, and another starts after so long.
    Restart(Duration),
    /// The host is disposed like this from now on.
    Mood(Mood),
    /// The VM stands still, and its clock does not.
    Paused(Duration),
    /// The agent gets no processor time for so long.
    Starved(Duration),
    /// In so many of a thousand cases a block is busy from now on.
    Busy(u64),
    /// An operator wants this from now on.
    Wanted(Mode),
    /// An operator sets other limits.
    Limits(LimitsWish),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |time: &Duration| (time.as_secs(), time.subsec_millis() / 100);
        match self {
            Self::Restart(down) => {
                let (s, t) = tenths(down);
                write!(f, "the agent is killed, and back after {s}.{t} s")
            }
            Self::Mood(mood) => write!(f, "{mood}"),
            Self::Paused(time) => write!(f, "the VM is paused for {} s", time.as_secs()),
            Self::Starved(time) => {
                let (s, t) = tenths(time);
                write!(f, "the agent does not run for {s}.{t} s")
            }
            Self::Busy(permille) if *permille > 100 => f.write_str("pages are pinned everywhere"),
            Self::Busy(_) => f.write_str("the pins are gone"),
            Self::Wanted(Mode::Restore) => f.write_str("an operator wants everything back"),
            Self::Wanted(Mode::Tune) => f.write_str("the operator lets the agent go on"),
            Self::Limits(LimitsWish { min, max, .. }) => {
                f.write_str("an operator sets the limits:")?;
                min.map_or(Ok(()), |min| write!(f, " min {min}"))?;
                max.map_or(Ok(()), |max| write!(f, " max {max}"))
            }
        }
    }
}

/// In how many of a thousand cases a block is busy when nothing is wrong.
const BUSY_USUALLY: u64 = 20;
/// And while pages are pinned everywhere: a backup by direct I/O, RDMA.
const BUSY_NOW: u64 = 600;

/// What is to come, in order.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    to_come: VecDeque<(Instant, Fault)>,
}

impl Faults {
    /// What befalls this scenario. All is well in its calm half: what was broken is whole again. Limits stay
    /// as they were set last.
    pub fn of(scenario: &Scenario) -> Self {
        let mut all = weather(scenario);
        all.extend(changes(scenario));
        let scripted = scenario.script.iter();
        all.extend(scripted.map(|(at, fault)| (Instant::default() + *at, *fault)));
        all.sort_by_key(|(at, _)| *at);
        Self { to_come: all.into() }
    }
    /// What happens by `now`.
    pub fn next(&mut self, now: Instant) -> Option<Fault> {
        self.to_come.front().filter(|(at, _)| *at <= now)?;
        self.to_come.pop_front().map(|(_, fault)| fault)
    }
}

/// What goes wrong, and is right again.
fn weather(scenario: &Scenario) -> Vec<(Instant, Fault)> {
    let mut chance = Chance::of(scenario.seed, Stream::Faults);
    let (low, high) = match scenario.weather {
        Weather::Fair => return Vec::new(),
        Weather::Gusty => (60, 240),
        Weather::Stormy => (5, 60),
    };
    let end = scenario.length().as_secs() / 2;
    let (mut faults, mut at) = (Vec::new(), 20);
    loop {
        at += chance.between(low, high);
        if at >= end {
            return faults;
        }
        at += add(&mut faults, at, end, &mut chance);
    }
}

/// Limits that an operator sets while the guest runs: up, down, apart and together.
fn changes(scenario: &Scenario) -> Vec<(Instant, Fault)> {
    let mut chance = Chance::of(scenario.seed, Stream::Limits);
    let (low, high) = match scenario.weather {
        Weather::Fair => return Vec::new(),
        Weather::Gusty => (120, 600),
        Weather::Stormy => (10, 180),
    };
    let end = scenario.length().as_secs() / 2;
    let share = |permille: u64| -> ByteSize {
        Permille(u32::try_from(permille).unwrap_or(1000)).of(scenario.present())
    };
    let (mut faults, mut at) = (Vec::new(), chance.between(low, high));
    while at < end {
        let max = chance.between(400, 1000);
        let min = chance.between(100, max);
        let wish = LimitsWish { min: Some(share(min)), max: Some(share(max)), psi_goal: None };
        faults.push((Instant::from_millis(at * 1000), Fault::Limits(wish)));
        at += chance.between(low, high);
    }
    faults
}

/// Adds one misfortune and its end; answers with how many seconds it lasts.
fn add(faults: &mut Vec<(Instant, Fault)>, at: u64, end: u64, chance: &mut Chance) -> u64 {
    let lasts = chance.between(3, 60).min(end - at);
    let mut push = |at: u64, fault| faults.push((Instant::from_millis(at * 1000), fault));
    let mut for_a_while = |fault, again| {
        push(at, fault);
        push(at + lasts, again);
        lasts
    };
    match chance.between(0, 9) {
        0 | 1 => {
            push(at, Fault::Restart(Duration::from_millis(chance.between(200, 5_000))));
            0
        }
        2 => {
            push(at, Fault::Paused(Duration::from_secs(chance.between(1, 400))));
            0
        }
        3 => {
            push(at, Fault::Starved(Duration::from_millis(chance.between(500, 8_000))));
            0
        }
        4 => for_a_while(Fault::Busy(BUSY_NOW), Fault::Busy(BUSY_USUALLY)),
        5 => for_a_while(Fault::Wanted(Mode::Restore), Fault::Wanted(Mode::Tune)),
        _ => {
            let moods = [Mood::Tight, Mood::Squeezing, Mood::Denying, Mood::Undecided, Mood::Dead];
            let mood = chance.one_of(&moods);
            for_a_while(Fault::Mood(mood), Fault::Mood(Mood::Willing))
        }
    }
}
