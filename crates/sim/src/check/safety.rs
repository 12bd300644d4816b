//! What must never happen.

use std::collections::BTreeSet;
use std::time::Duration;

use memtide_policy::guest::{Action, BlockState, Limits, Observation, Plan};
use memtide_units::{BlockId, ByteSize, Instant};

use super::{Moment, Promise, Terms};
use crate::agent::{Agent, Hold};
use crate::host::{Reply, Verdict};
use crate::kernel::State;
use crate::scenario::Psi;

type Found = Vec<(Promise, String)>;

/// Most that a plan lets pass before the next look: telemetry's period.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A block that is going offline while the minimum is raised may go still, where its agent does not run: that
/// is given no processor for eight seconds at most.
const UNDER_WAY: Duration = Duration::from_secs(10);
/// More actions than that are no plan.
const ACTIONS_MOST: usize = 3;

#[derive(Debug)]
pub(super) struct Safety {
    terms: Terms,
    online: Option<ByteSize>,
    /// The minimum before it was raised, and until when what was under way may go by that.
    before: (ByteSize, Instant),
}

impl Safety {
    pub(super) fn new(terms: Terms) -> Self {
        let before = (terms.limits.min(), Instant::default());
        Self { terms, online: None, before }
    }

    pub(super) fn limited(&mut self, now: Instant, limits: Limits) {
        self.before = (self.terms.limits.min(), now + UNDER_WAY);
        self.terms.limits = limits;
    }

    /// The host has just dropped the backing of what it calls dropped or welcome: none of that may
    /// be in use. And it grants what the agent asks for now, or asked for before.
    pub(super) fn heard(&self, at: &Moment<'_>, replies: &[Reply]) -> Found {
        let mut found = Found::new();
        for reply in replies {
            let dropped = match reply {
                Reply::Dropped(block) => std::slice::from_ref(block),
                Reply::Welcome { stolen } => stolen,
                Reply::Return { ticket, blocks, verdict: Verdict::Granted } => {
                    found.extend(unasked_grant(at, *ticket, blocks));
                    &[]
                }
                Reply::Return { .. } | Reply::Notice | Reply::Alive => &[],
            };
            let in_use = dropped.iter().filter(|id| at.kernel.block(**id).state != State::Offline);
            found.extend(in_use.map(|id| {
                (
                    Promise::Drops,
                    format!("{id} is {:?}, and was dropped", at.kernel.block(*id).state),
                )
            }));
        }
        found
    }

    pub(super) fn decided(&self, at: &Moment<'_>, seen: &Observation, plan: &Plan) -> Found {
        let mut found = Found::new();
        if plan.wait.is_zero() || plan.wait > LONGEST_WAIT {
            found.push((Promise::Plans, format!("it waits for {:?}", plan.wait)));
        }
        if plan.actions.len() > ACTIONS_MOST {
            found.push((Promise::Plans, format!("{} actions", plan.actions.len())));
        }
        for action in &plan.actions {
            match action {
                Action::Steal { blocks, .. } => found.extend(self.bad_steal(at, seen, blocks)),
                Action::AskReturn { blocks, .. } | Action::TakeUnasked(blocks) => {
                    found.extend(self.bad_return(at, blocks));
                }
                Action::AbortSteal | Action::ShortenSteal { .. } | Action::CancelReturn { .. } => {}
            }
        }
        found
    }

    fn bad_steal(&self, at: &Moment<'_>, seen: &Observation, blocks: &[BlockId]) -> Found {
        let mut found = Found::new();
        if self.terms.psi == Psi::Absent {
            found.push((Promise::Steals, "the kernel has no PSI: nobody would hear it".into()));
        }
        let distinct: BTreeSet<_> = blocks.iter().collect();
        if distinct.len() < blocks.len() {
            found.push((Promise::Steals, format!("{blocks:?} names a block twice")));
        }
        for id in blocks {
            let block = at.kernel.block(*id);
            let state = seen.blocks.iter().find(|view| view.id == *id).map(|view| view.state);
            if state != Some(BlockState::Movable) || block.state != State::Online {
                let kernel = block.state;
                found
                    .push((Promise::Steals, format!("{id} is {kernel:?}, {state:?} to the agent")));
            }
        }
        let left = at.kernel.online() - self.terms.unit.size().times(blocks.len() as u64);
        if left < self.terms.limits.min() {
            let min = self.terms.limits.min();
            found.push((
                Promise::Minimum,
                format!("a plan would leave {left}, the minimum is {min}"),
            ));
        }
        found
    }

    fn bad_return(&self, at: &Moment<'_>, blocks: &[BlockId]) -> Found {
        let mut found = Found::new();
        let Some(agent) = at.agent else { return found };
        let not_stolen = blocks.iter().filter(|id| agent.hold(**id) != Hold::Stolen);
        found.extend(not_stolen.map(|id| {
            (Promise::Plans, format!("{id} is asked back and is {:?}", agent.hold(*id)))
        }));
        let max = self.terms.limits.max();
        let after = at.kernel.online() + self.terms.unit.size().times(blocks.len() as u64);
        if after > max {
            found
                .push((Promise::Maximum, format!("{after} would be online, the maximum is {max}")));
        }
        found
    }

    pub(super) fn ticked(&mut self, at: &Moment<'_>) -> Found {
        let mut found = Found::new();
        let online = at.kernel.online();
        let before = self.online.replace(online);
        let min = match self.before {
            (before, until) if at.now < until => before.min(self.terms.limits.min()),
            _ => self.terms.limits.min(),
        };
        if before.is_some_and(|before| online < before) && online < min {
            found.push((Promise::Minimum, format!("{online} is online, the minimum is {min}")));
        }
        if let Some(agent) = at.agent {
            found.extend(disagreements(at, agent));
        }
        found
    }
}

/// What the kernel says of each block must be what the agent and the host believe.
fn disagreements(at: &Moment<'_>, agent: &Agent) -> Found {
    let mut found = Found::new();
    for block in at.kernel.blocks() {
        let (hold, is_dropped) = (agent.hold(block.id), at.host.dropped().contains(&block.id));
        let agrees = match hold {
            // A write of `offline` that has ended, and that the agent has not looked at yet.
            Hold::Online => block.state != State::Offline || at.kernel.is_offlining(block.id),
            Hold::Leaving | Hold::Returning => block.state == State::Offline,
            Hold::Stolen => block.state == State::Offline && is_dropped,
            Hold::Foreign => block.state == State::Offline && !is_dropped,
        };
        if !agrees {
            let told = if is_dropped { "dropped" } else { "backed" };
            let what = format!(
                "{} is {:?}, {hold:?} to the agent, {told} by the host",
                block.id, block.state
            );
            found.push((Promise::Books, what));
        }
    }
    found
}

fn unasked_grant(at: &Moment<'_>, ticket: u32, blocks: &[BlockId]) -> Option<(Promise, String)> {
    // A grant of a ticket that the agent has let go of is answered with a new hello.
    let held = at.agent?.ticket().filter(|held| held.ticket == ticket)?;
    let is_asked = blocks == held.blocks;
    (!is_asked).then(|| {
        let asked = &held.blocks;
        (Promise::Grants, format!("{blocks:?} for ticket {ticket}, which asks for {asked:?}"))
    })
}
