//! A guest is within its limits soon, also after they have changed.

use std::time::Duration;

use memtide_policy::guest::{DeviceState, Limits, Mode};
use memtide_units::{ByteSize, Permille};

use super::{Moment, Promise, Since, Terms, is_willing};
use crate::agent::Agent;
use crate::kernel::{State, Zone};
use crate::scenario::Psi;

/// What lacks until the minimum has come nearer within so long, besides the time that putting it online takes:
/// a willing gate is heard within ten seconds, and a block of 2 GiB is online after two under emulation.
const BACK: Duration = Duration::from_secs(20);
/// A guest over its maximum that can spare a block has tried to give one up within so long: for a minute what a
/// control group stalls at its own limit may be the guest's own want.
const GONE: Duration = Duration::from_secs(90);

/// To spare is what is available beyond a fifth of what is online and two and a half blocks: the
/// most that the policy may want for growth.
const FOR_GROWTH: Permille = Permille(200);

#[derive(Debug)]
pub(super) struct Within {
    terms: Terms,
    below: Since,
    above: Since,
    /// What had come back, and been tried, by the last look.
    moved: (u64, u64),
}

impl Within {
    pub(super) fn new(terms: Terms) -> Self {
        Self { terms, below: Since::default(), above: Since::default(), moved: (0, 0) }
    }

    pub(super) fn limited(&mut self, limits: Limits) {
        self.terms.limits = limits;
    }

    pub(super) fn disturbed(&mut self) {
        self.below.restart();
        self.above.restart();
    }

    pub(super) fn ticked(&mut self, at: &Moment<'_>) -> Vec<(Promise, String)> {
        let Some(agent) = at.agent else { return Vec::new() };
        let deeds = agent.deeds;
        let moved = (deeds.returned, deeds.stolen + deeds.failed);
        let before = std::mem::replace(&mut self.moved, moved);
        if before.0 != moved.0 {
            self.below.restart();
        }
        let is_trying = at.kernel.blocks().iter().any(|block| block.state == State::GoingOffline);
        if before.1 != moved.1 || is_trying {
            self.above.restart();
        }
        let mut found = Vec::new();
        let (min, max) = (self.terms.limits.min(), self.terms.limits.max());
        let (online, is_below) = (at.kernel.online(), self.lacks(at, agent));
        let time = self.below.observe(at.now, is_below.then_some(()));
        if time > BACK {
            self.below.restart();
            let what = format!("{online} is online for {time:?}, the minimum is {min}");
            found.push((Promise::Limits, what));
        }
        let time = self.above.observe(at.now, self.exceeds(at, agent).then_some(()));
        if time > GONE {
            self.above.restart();
            let what = format!("{online} is online for {time:?}, the maximum is {max}");
            found.push((Promise::Limits, what));
        }
        found
    }

    /// Less is online than the minimum, and a block could come back.
    fn lacks(&self, at: &Moment<'_>, agent: &Agent) -> bool {
        let (limits, online) = (&self.terms.limits, at.kernel.online());
        online < limits.min()
            && !at.returnable(limits).is_zero()
            && is_willing(at.host)
            && agent.device() == DeviceState::Ready
    }

    /// More is online than the maximum, and a block could go.
    fn exceeds(&self, at: &Moment<'_>, agent: &Agent) -> bool {
        at.kernel.online() > self.terms.limits.max() && self.terms.could_steal(at, agent)
    }
}

impl Terms {
    /// Whether a guest that is left in peace has a block to spare that may go.
    pub(super) fn could_steal(&self, at: &Moment<'_>, agent: &Agent) -> bool {
        let (unit, online) = (self.unit.size(), at.kernel.online());
        let kept = FOR_GROWTH.of(online).max(ByteSize::from_mib(64)) + unit.times(2) + unit;
        let movable = |block: &&crate::kernel::Block| {
            block.zone == Zone::Movable && block.state == State::Online && !block.has_hole
        };
        self.psi == Psi::Present
            && at.kernel.memory().available >= kept
            && online >= self.limits.min() + unit
            && at.kernel.blocks().iter().any(|block| movable(&block))
            && agent.mode() == Mode::Tune
            && agent.device() == DeviceState::Ready
            && is_willing(at.host)
            && agent.ticket().is_none()
    }
}
