//! What was ejected and is granted: the host is asked to plug it in, and the agent waits until it is there.
//!
//! Plugged memory goes online by itself on most kernels (`auto_online_blocks`). From asking for it until it is
//! there, and what was granted of it is online, it does not, so that the others of its blocks stay
//! stolen. A host that is late may plug it in all the same: the policy is held for that too, for a while,
//! and by the successor of an agent that was killed meanwhile.
//!
//! Nothing here waits: other blocks come back meanwhile.

use std::time::Duration;

use memtide_policy::guest::{Outcome, StealFailure};
use memtide_sysfs::memory;
use memtide_units::{BlockId, Instant};
use memtide_wire::block::{RefuseReason, Request, Response, Verdict};

use super::Agent;
use crate::blocks::Hold;
use crate::remove::{Held, Plug, PluggedBy, Unit};
use crate::worker::{Failure, Job, Task};

/// From asking the host to having the blocks: 50 to 130 ms under emulation, and the host's service may look for
/// QEMU's monitor for five seconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// Who was late by so much has not done it.
const OWED: Duration = Duration::from_secs(60);
/// How often it is looked whether the blocks are there.
const LOOK: Duration = Duration::from_millis(10);

/// What is waited for.
#[derive(Debug)]
struct Wait {
    unit: Unit,
    /// Blocks of it that were granted.
    blocks: Vec<BlockId>,
    until: Option<Instant>,
    answer: Answer,
}

/// The host's word on a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// None yet, or that it will.
    Hoped,
    Refused,
}

/// All that is waited for, and the policy that is held meanwhile.
#[derive(Debug, Default)]
pub(super) struct Plugs {
    waits: Vec<Wait>,
    held: Option<Held>,
    /// It may come still, though nobody waits any more: until when that is reckoned with.
    owed: Option<Owed>,
}

#[derive(Debug)]
struct Owed {
    held: Held,
    until: Option<Instant>,
}

impl Plugs {
    /// An agent before this one may have asked for something, and the policy is held as it left it.
    pub(super) fn resume(held: Option<Held>) -> Self {
        Self { owed: held.map(|held| Owed { held, until: None }), ..Self::default() }
    }

    /// Until the next look, if something is waited for.
    pub(super) fn pause(&self) -> Option<Duration> {
        (!self.waits.is_empty()).then_some(LOOK)
    }

    /// The agent ends. What it has asked for may come all the same: the next agent reckons with that.
    pub(super) fn leave(&mut self) {
        let is_coming = self.owed.is_some() || !self.waits.is_empty();
        let owed = self.owed.take().map(|owed| owed.held);
        let held = [self.held.take(), owed].into_iter().flatten().filter(|_| is_coming);
        held.for_each(Held::leave);
    }

    fn wait_for(&mut self, block: BlockId) -> Option<&mut Wait> {
        self.waits.iter_mut().find(|wait| wait.unit.blocks.contains(&block))
    }
}

impl Agent {
    /// Whether what a block belongs to was ejected; then the host is asked for it, and the block goes online
    /// when it is there.
    ///
    /// # Errors
    /// Why the host cannot be asked.
    pub(super) fn plug_in_first(&mut self, block: BlockId) -> Result<bool, Failure> {
        if let Some(wait) = self.ejection.plugs.wait_for(block) {
            wait.blocks.push(block);
            return Ok(true);
        }
        let found = self.parts.removers.find(block).map_err(|error| failed(&error))?;
        let unit = match found {
            Some((_, unit)) if unit.plug == Plug::Out && unit.by == PluggedBy::Host => unit,
            _ => return Ok(false),
        };
        if !self.host_plugs() {
            return Err(failed(&"it was ejected, and nobody on the host plugs it in now"));
        }
        if memory::may_hold_own_structs(&self.parts.root) {
            return Err(failed(
                &"it was ejected, and would come back with its own struct pages in it: boot this guest with \
                  memory_hotplug.memmap_on_memory=0",
            ));
        }
        if self.ejection.plugs.held.is_none() {
            let held = self.parts.policy.hold().map_err(|error| failed(&error))?;
            self.ejection.plugs.held = Some(held);
        }
        tracing::info!("{} was ejected, and is asked for", unit.name);
        self.parts.link.post(Request::Plug(self.parts.blocks.ranges(&unit.blocks)));
        let (blocks, answer) = (vec![block], Answer::Hoped);
        self.ejection.plugs.waits.push(Wait { unit, blocks, until: None, answer });
        Ok(true)
    }

    pub(super) fn on_plug_answer(&mut self, asked: &Request, response: Response) {
        let (Verdict::Refused(reason), Request::Plug(ranges)) = (response.verdict, asked) else {
            return;
        };
        if reason == RefuseReason::NoHello {
            // That goes first, and then this is asked again.
            self.parts.link.post(asked.clone());
            return;
        }
        tracing::warn!("the host does not plug in what was ejected: {reason}");
        for block in self.parts.blocks.in_ranges(ranges) {
            if let Some(wait) = self.ejection.plugs.wait_for(block) {
                wait.answer = Answer::Refused;
            }
        }
    }

    /// What was asked of a device that was lost is not answered. It may have been passed on.
    pub(super) fn plugs_lost(&mut self) {
        self.ejection.plugs.waits.iter_mut().for_each(|wait| wait.answer = Answer::Refused);
    }

    /// Looks whether what is waited for is there, or will not be.
    pub(super) fn see_to_plugs(&mut self, now: Instant) {
        for mut wait in std::mem::take(&mut self.ejection.plugs.waits) {
            let until = *wait.until.get_or_insert(now + DEADLINE);
            if self.parts.removers.is_plugged_in(&wait.unit) {
                self.is_plugged(wait);
            } else if wait.answer == Answer::Refused || now >= until {
                self.is_not_plugged(wait);
            } else {
                self.ejection.plugs.waits.push(wait);
            }
        }
        if let Some(owed) = &mut self.ejection.plugs.owed {
            let until = *owed.until.get_or_insert(now + OWED);
            if now >= until || self.parts.blocks.ejected().is_empty() {
                self.ejection.plugs.owed = None;
            }
        }
    }

    fn is_plugged(&mut self, wait: Wait) {
        tracing::info!("{} is plugged in again", wait.unit.name);
        self.parts.removers.is_back(&wait.unit);
        self.ejection.trust.regain(&wait.unit.blocks);
        self.rest.end();
        let task = Task::Return(self.parts.how_online);
        for block in wait.blocks {
            self.parts.hands.put_online(Job { block, task });
        }
    }

    /// It may come all the same, and must not go online by itself then.
    fn is_not_plugged(&mut self, wait: Wait) {
        self.ejection.trust.lose(&wait.unit.blocks);
        self.rest.end();
        if let Ok(held) = self.parts.policy.hold() {
            self.ejection.plugs.owed = Some(Owed { held, until: None });
        }
        let why = match wait.answer {
            Answer::Refused => "it was ejected, and the host does not plug it in".to_owned(),
            Answer::Hoped => {
                let seconds = DEADLINE.as_secs();
                format!("it was ejected, and the host did not plug it in within {seconds} s")
            }
        };
        for block in wait.blocks {
            self.stays_ejected(block, &failed(&why));
        }
    }

    /// A block that was granted does not come back. The host hears of it by a hello, which says that it is not
    /// there: a report would have the host drop what may arrive in this moment.
    pub(super) fn stays_ejected(&mut self, block: BlockId, failure: &Failure) {
        self.unasked.remove(&block);
        tracing::warn!("{block} could not be put online: {}", failure.text);
        self.parts.blocks.went_offline(&self.parts.root, block, None);
        self.parts.link.greet_again();
        self.outcomes.push(Outcome::Denied);
        self.return_has_ended(block);
    }

    /// A block is back, or will not be: with the last one the policy is as it was.
    pub(super) fn note_plugged(&mut self) {
        let is_awaited = |block: &BlockId| self.parts.blocks.is_ejected(*block);
        let returning = self.parts.blocks.with(Hold::Returning);
        if self.ejection.plugs.waits.is_empty() && !returning.iter().any(is_awaited) {
            self.ejection.plugs.held = None;
        }
    }
}

fn failed(why: &dyn ToString) -> Failure {
    Failure { is_offline: true, ..Failure::new(StealFailure::Busy, why.to_string()) }
}
