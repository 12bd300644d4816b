//! How each action of a plan is carried out.

use memtide_policy::guest::{Action, DeviceState, Outcome, StealFailure, Urgency};
use memtide_units::{BlockId, ByteSize, Instant};
use memtide_wire::block::{self, Request, ReturnRequest};

use super::Agent;
use crate::blocks::Hold;
use crate::worker::{Job, KERNEL_DEADLINE, Look, Task, movable_deadline};

impl Agent {
    pub(super) fn carry_out(&mut self, now: Instant, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Steal { blocks, keep } => self.steal(&blocks, keep),
                Action::AbortSteal => self.abort_steal(),
                Action::ShortenSteal { to } => self.parts.hands.shorten(to),
                Action::AskReturn { ticket, blocks, urgency } => {
                    self.ask(now, ticket, blocks, urgency);
                }
                Action::CancelReturn { ticket } => {
                    if self.returns.cancel() {
                        self.parts.link.post(Request::Cancel { ticket });
                    }
                }
                Action::TakeUnasked(blocks) => self.take_unasked(&blocks),
            }
        }
    }

    fn steal(&mut self, blocks: &[BlockId], keep: ByteSize) {
        let table = &self.parts.blocks;
        let job = |block: &BlockId| {
            let (deadline, look) = if table.goes_by_pieces(*block) {
                (KERNEL_DEADLINE, Look::ForPieces)
            } else if table.is_movable(*block) {
                let look = table.bare_making(*block).map_or(Look::AtRoom, Look::AtRoomOf);
                (movable_deadline(table.size()), look)
            } else {
                (KERNEL_DEADLINE, Look::AtPages)
            };
            Job { block: *block, task: Task::Steal { keep, deadline, look } }
        };
        self.parts.hands.steal(blocks.iter().map(job));
    }

    /// Ends the steal at work, and puts blocks online again that the host has not heard of.
    fn abort_steal(&mut self) {
        self.parts.hands.abort();
        // What was taken in pieces may be reported in part already: it goes on, and is asked back.
        let in_pieces = self.parts.blocks.in_pieces();
        let mut leaving = self.parts.blocks.with(Hold::Leaving);
        leaving.retain(|block| !in_pieces.contains(block));
        for block in leaving {
            let range = self.parts.blocks.size().range(block);
            if range.is_some_and(|range| self.parts.link.unreport(range)) {
                self.outcomes.push(Outcome::StealFailed(block, StealFailure::Aborted));
                self.bring_back(block);
            }
        }
    }

    fn ask(&mut self, now: Instant, ticket: u32, blocks: Vec<BlockId>, urgency: Urgency) {
        let ranges = self.parts.blocks.given(&blocks);
        if !self.returns.ask(now, ticket, blocks, urgency) {
            return;
        }
        if self.parts.link.device_state() == DeviceState::Ready {
            let urgency = on_the_wire(urgency);
            self.parts.link.post(Request::Return(ReturnRequest { ticket, urgency, ranges }));
        } else {
            // Nobody hears it. The ticket waits, and its silence is counted.
            self.returns.lost(now, now + super::SECOND);
        }
    }

    /// Takes everything back without a grant; false where that is not safe.
    pub(crate) fn take_all(&mut self) -> bool {
        let mut blocks = self.parts.blocks.offline_by_us();
        // Nobody in the guest can take these.
        blocks.retain(|block| !self.parts.blocks.is_ejected(*block));
        if !self.parts.link.settle() {
            return false;
        }
        self.take_unasked(&blocks);
        true
    }

    /// Nobody decides, and the guest's life comes first. Still nothing is touched while the device
    /// might be working on an earlier request that names these blocks.
    fn take_unasked(&mut self, blocks: &[BlockId]) {
        if !self.parts.link.settle() {
            return;
        }
        self.parts.link.forget_returns();
        self.returns.granted_by_need(blocks);
        for block in blocks {
            self.unasked.insert(*block);
            self.bring_back(*block);
        }
    }
}

fn on_the_wire(urgency: Urgency) -> block::Urgency {
    match urgency {
        Urgency::Comfort => block::Urgency::Comfort,
        Urgency::Pressure => block::Urgency::Pressure,
        Urgency::Emergency => block::Urgency::Emergency,
    }
}
