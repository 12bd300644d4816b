//! What must not go on for ever.

use std::collections::VecDeque;
use std::time::Duration;

use memtide_policy::guest::{Decision, Limits, Plan, WaitReason};
use memtide_units::{Instant, Permille};

use super::{Moment, Promise, Since, Terms};
use crate::kernel::State;
use crate::scenario::Weather;
use crate::workload::{Name, Phase};

/// A guest with memory to spare has tried to give some up within so long: the longest rest after a
/// return that the policy allows itself is ten minutes.
const STEALS_AGAIN: Duration = Duration::from_secs(660);
/// The policy may take so long to find a steady guest's size.
const SETTLES: Duration = Duration::from_secs(300);
/// Blocks that a settled, steady guest may move there and back: some at first, and so many in an
/// hour.
const MOVES_FIRST: u64 = 4;
const MOVES_PER_HOUR: u64 = 12;
/// So many steals may be stopped for pressure in so long: six, where each is followed by twice the
/// rest of the one before, of ten seconds at first.
const HURTS_MOST: usize = 8;
const HURTS_SPAN: Duration = Duration::from_secs(600);
/// Pressure is looked at over this long, and may be over the goal in one of twenty.
const WINDOW: Duration = Duration::from_secs(2);
const OVER_GOAL_MOST: Permille = Permille(50);

#[derive(Debug)]
pub(super) struct Calm {
    terms: Terms,
    spare: Since,
    tried: u64,
    phase: Option<Phase>,
    /// Since when a steady guest has been left in peace.
    peace: Option<Instant>,
    /// What had been moved when it had settled.
    moved_before: Option<(u64, u64)>,
    windows: Windows,
    /// When steals were stopped because the guest stalled.
    hurts: VecDeque<Instant>,
}

#[derive(Debug, Default)]
struct Windows {
    start: Option<(Instant, u64)>,
    all: u64,
    over: u64,
}

impl Calm {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            spare: Since::default(),
            tried: 0,
            phase: None,
            peace: None,
            moved_before: None,
            windows: Windows::default(),
            hurts: VecDeque::new(),
        }
    }

    pub(super) fn limited(&mut self, limits: Limits) {
        self.terms.limits = limits;
    }

    pub(super) fn disturbed(&mut self, now: Instant) {
        self.spare.restart();
        self.peace = Some(now);
        self.moved_before = None;
        self.windows.start = None;
    }

    /// A steal that is stopped for pressure was a mistake, which may be made so often.
    pub(super) fn decided(&mut self, at: &Moment<'_>, plan: &Plan) -> Vec<(Promise, String)> {
        let Decision::Abort(WaitReason::Pressure { .. } | WaitReason::Trigger) = plan.report else {
            return Vec::new();
        };
        self.hurts.push_back(at.now);
        while self.hurts.front().is_some_and(|first| at.now.since(*first) > HURTS_SPAN) {
            self.hurts.pop_front();
        }
        if self.hurts.len() <= HURTS_MOST {
            return Vec::new();
        }
        let count = self.hurts.len();
        self.hurts.clear();
        let what = format!("{count} steals were stopped for pressure in {HURTS_SPAN:?}");
        vec![(Promise::BacksOff, what)]
    }

    pub(super) fn ticked(&mut self, at: &Moment<'_>) -> Vec<(Promise, String)> {
        if self.phase.replace(at.phase) != Some(at.phase) {
            self.disturbed(at.now);
        }
        let mut found = Vec::new();
        found.extend(self.steals_again(at));
        if self.terms.workload == Name::Steady {
            found.extend(self.swings(at));
            self.watch_pressure(at);
        }
        found
    }

    /// Pressure of a steady guest in good weather, over the whole run.
    pub(super) fn ended(&mut self) -> Vec<(Promise, String)> {
        let Windows { all, over, .. } = self.windows;
        let is_fair = self.terms.weather == Weather::Fair;
        if !is_fair || over * 1000 <= all * u64::from(OVER_GOAL_MOST.0) {
            return Vec::new();
        }
        vec![(Promise::Pressure, format!("over the goal in {over} of {all} windows"))]
    }

    fn steals_again(&mut self, at: &Moment<'_>) -> Option<(Promise, String)> {
        let agent = at.agent?;
        let tried = agent.deeds.stolen + agent.deeds.failed;
        // To empty a block of 2 GiB takes minutes under emulation.
        let is_trying = at.kernel.blocks().iter().any(|block| block.state == State::GoingOffline);
        if std::mem::replace(&mut self.tried, tried) != tried || is_trying {
            self.spare.restart();
        }
        let has_spare = self.terms.could_steal(at, agent);
        let time = self.spare.observe(at.now, has_spare.then_some(()));
        (time > STEALS_AGAIN).then(|| {
            self.spare.restart();
            let (available, online) = (at.kernel.memory().available, at.kernel.online());
            let what =
                format!("{available} of {online} available for {time:?}, and nothing is stolen");
            (Promise::StealsAgain, what)
        })
    }

    fn swings(&mut self, at: &Moment<'_>) -> Option<(Promise, String)> {
        let settled = self.peace.filter(|since| at.now.since(*since) >= SETTLES)? + SETTLES;
        let deeds = at.agent?.deeds;
        let (stolen, returned) = (deeds.stolen, deeds.returned);
        let before = *self.moved_before.get_or_insert((stolen, returned));
        let time = at.now.since(settled);
        let most = MOVES_FIRST + MOVES_PER_HOUR * time.as_secs() / 3600;
        // What only goes is no swing: large blocks go slowly.
        let count = 2 * (stolen - before.0).min(returned - before.1);
        (count > most).then(|| {
            self.disturbed(at.now);
            (Promise::NoSwing, format!("{count} blocks moved in {time:?} of an even load"))
        })
    }

    fn watch_pressure(&mut self, at: &Moment<'_>) {
        let is_settled = self.peace.is_some_and(|since| at.now.since(since) >= SETTLES);
        if !is_settled {
            return;
        }
        let stalled = at.kernel.psi().some_us;
        let (start, before) = *self.windows.start.get_or_insert((at.now, stalled));
        let elapsed = at.now.since(start);
        if elapsed < WINDOW {
            return;
        }
        let goal = u128::from(self.terms.limits.psi_goal().0) * elapsed.as_micros() / 1_000_000;
        self.windows.all += 1;
        self.windows.over += u64::from(u128::from(stalled - before) > goal);
        self.windows.start = Some((at.now, stalled));
    }
}
