//! What answers of the device and ended jobs change.

use std::time::Duration;

use memtide_policy::guest::{Outcome, StealFailure};
use memtide_sysfs::memory::{self, State};
use memtide_units::{BlockId, GpaRange, Instant};
use memtide_wire::block::{RefuseReason, Request, Response, Verdict};

use super::Agent;
use super::rest::is_news;
use crate::blocks::Hold;
use crate::link::LinkEvent;
use crate::returns::Effect;
use crate::worker::{Done, Failure, Job, Task};

/// After a loss the device is being reset for at least so long; asking sooner is of no use.
const AFTER_LOSS: Duration = Duration::from_millis(500);

impl Agent {
    pub(super) fn on_link(&mut self, now: Instant, event: LinkEvent) {
        if is_news(&event) && !self.is_step_of_a_batch(&event) {
            self.rest.end();
        }
        match event {
            LinkEvent::Answered(request, response) => self.on_answer(now, request, response),
            LinkEvent::StatisticsWanted => {
                let stats = self.parts.senses.statistics();
                self.parts.link.send_statistics(&stats);
            }
            LinkEvent::Silent => {
                tracing::warn!("the device does not answer: nothing is stolen until it does");
                self.counters.device_losses += 1;
                self.returns.lost(now, now + AFTER_LOSS);
            }
            LinkEvent::Lost(why) => {
                tracing::warn!("the device was lost: {why}");
                self.counters.device_losses += 1;
                self.ejection_lost();
                self.plugs_lost();
                if self.parts.link.take_refused_hello() == Some(RefuseReason::OutsideMemory) {
                    self.forget_ejected();
                }
                self.returns.lost(now, now + AFTER_LOSS);
            }
            LinkEvent::Grain(grain) => self.on_grain(now, grain),
            LinkEvent::NotOffline(ranges) => {
                for block in self.parts.blocks.in_ranges(&ranges) {
                    self.on_not_offline(now, block);
                }
            }
        }
    }

    /// A block that was about to be reported is not, or is no part of a range that is, offline whole.
    fn on_not_offline(&mut self, now: Instant, block: BlockId) {
        match memory::state(&self.parts.root, block) {
            Ok(State::Offline) if self.parts.blocks.is_still_out(&self.parts.root, block) => {
                self.parts.link.report_stolen(self.parts.blocks.ranges(&[block]));
            }
            // Other memory is in its place, or the agent has let it go: a look at all of them tells.
            Ok(State::Offline) => self.due.refresh = now,
            Ok(State::Online | State::GoingOffline) => {
                self.parts.blocks.set(&self.parts.root, block, Hold::Online);
                self.came_online(block);
            }
            // It has just been unplugged: the next refresh finds out.
            Err(error) => tracing::debug!("{block} is not reported: {error}"),
        }
    }

    /// Somebody has put a block online that the agent had taken. It rests, or the two would go on and
    /// on about it.
    pub(super) fn came_online(&mut self, block: BlockId) {
        tracing::warn!("{block} was stolen, and somebody has put it online");
        self.outcomes.push(Outcome::StealFailed(block, StealFailure::Busy));
        let ranges = self.parts.blocks.ranges(&[block]);
        self.forget_reports(&ranges);
        self.parts.link.post(Request::Taken(ranges));
    }

    /// The host has unplugged the memory of a stolen block. It keeps what it was told of stolen blocks
    /// while regions come and go, so it is told anew.
    pub(super) fn is_gone(&mut self, block: BlockId) {
        tracing::info!("{block} was stolen, and the host has unplugged its memory");
        self.forget_reports(&self.parts.blocks.ranges(&[block]));
        self.parts.blocks.forget(block);
        self.parts.link.greet_again();
    }

    /// The same, and it has plugged in other memory at its place, which it may not drop.
    pub(super) fn is_replaced(&mut self, block: BlockId) {
        tracing::warn!(
            "{block} was stolen, and the host has plugged in other memory at its place: left alone"
        );
        self.forget_reports(&self.parts.blocks.ranges(&[block]));
        self.parts.link.greet_again();
    }

    /// What waits to be said of these is not true any more.
    fn forget_reports(&mut self, ranges: &[GpaRange]) {
        ranges.iter().for_each(|range| _ = self.parts.link.forget_report(*range));
    }

    /// The host has dropped what it was told is offline. Should somebody have put a block online since
    /// the look that came before, what the kernel wrote there meanwhile may be gone, and nothing brings
    /// it back (docs/adr/0017): people must know.
    fn look_after_the_drop(&mut self, ranges: &[GpaRange]) {
        // Blocks that pieces stand for are online, and nobody can get at the pieces.
        let in_pieces = self.parts.blocks.in_pieces();
        let mut whole = self.parts.blocks.in_ranges(ranges);
        whole.retain(|block| !in_pieces.contains(block));
        for block in whole {
            let is_ours =
                matches!(self.parts.blocks.hold(block), Some(Hold::Stolen | Hold::Leaving));
            let now = memory::state(&self.parts.root, block);
            if is_ours && matches!(now, Ok(State::Online)) {
                self.counters.dropped_online += 1;
                tracing::error!(
                    "{block} was put online by somebody else while the host was dropping it: what \
                     was written to it in that moment may be lost; reboot this guest, and see which \
                     udev rule or program puts offline memory online"
                );
                self.parts.blocks.set(&self.parts.root, block, Hold::Online);
                self.came_online(block);
            }
        }
    }

    fn on_answer(&mut self, now: Instant, request: Request, response: Response) {
        match request {
            Request::Hello(hello) => {
                if response.verdict == Verdict::Ok {
                    self.counters.hellos += 1;
                    let told = [&hello.stolen[..], &hello.ejected].concat();
                    tracing::info!("the host knows this guest, with {} ranges stolen", told.len());
                    self.have_told(&told);
                    self.look_after_the_drop(&hello.stolen);
                }
            }
            Request::Steal(ranges) => self.on_steal_answer(&ranges, response),
            Request::Return(asked) => {
                let effect = self.returns.answered(now, asked.ticket, &response);
                if effect == Effect::Wait && response.verdict == Verdict::Ok {
                    // A late grant of a ticket that is no more: the blocks are still offline.
                    self.parts.link.greet_again();
                }
                self.on_return_answer(effect, response);
            }
            Request::Telemetry(_) => {}
            Request::Eject(_) => self.on_eject_answer(now, response),
            Request::Plug(_) => self.on_plug_answer(&request, response),
            Request::Cancel { .. } | Request::Taken(_) | Request::Goodbye => {
                if let Verdict::Refused(reason) = response.verdict {
                    tracing::debug!("the host refused a notice: {reason}");
                }
            }
        }
    }

    fn on_steal_answer(&mut self, ranges: &[GpaRange], response: Response) {
        match response.verdict {
            Verdict::Ok => {
                self.have_told(ranges);
                self.look_after_the_drop(ranges);
            }
            // A hello follows, and names them.
            Verdict::Refused(RefuseReason::NoHello) => {}
            other => {
                tracing::warn!("the host did not take {} stolen ranges: {other:?}", ranges.len());
                // A block that is online may lie in what stands for others.
                let mut named = self.parts.blocks.in_ranges(ranges);
                named.retain(|block| self.parts.blocks.hold(*block) != Some(Hold::Online));
                for block in named {
                    self.outcomes.push(Outcome::StealFailed(block, StealFailure::HostRefused));
                    self.counters.steals_failed += 1;
                    self.bring_back(block);
                }
            }
        }
    }

    fn have_told(&mut self, ranges: &[GpaRange]) {
        let before = self.parts.blocks.with(Hold::Leaving);
        self.parts.blocks.told(ranges);
        for block in before {
            if self.parts.blocks.hold(block) == Some(Hold::Stolen) {
                self.counters.stolen += 1;
                self.ejection.is_news();
                self.outcomes.push(Outcome::Stolen(block));
            }
        }
        self.owes_rewatch = true;
    }

    fn on_return_answer(&mut self, effect: Effect, response: Response) {
        match effect {
            Effect::Wait => {}
            Effect::PutOnline(blocks) => {
                blocks.into_iter().for_each(|block| self.bring_back(block));
            }
            Effect::Denied => {
                tracing::info!("the gate did not grant the return: {:?}", response.verdict);
                self.outcomes.push(Outcome::Denied);
                if response.verdict == Verdict::Refused(RefuseReason::NotStolen) {
                    // The host believes something else than we do: tell it all again.
                    self.parts.link.greet_again();
                }
            }
        }
    }

    /// Puts an offline block online. From here on no hello names it, and no report that a hello
    /// has overtaken and that waits still.
    pub(super) fn bring_back(&mut self, block: BlockId) {
        self.forget_reports(&self.parts.blocks.given(&[block]));
        self.parts.blocks.set(&self.parts.root, block, Hold::Returning);
        if self.parts.blocks.is_ejected(block) && self.waits_for_host(block) {
            return;
        }
        let task = Task::Return(self.parts.how_online);
        self.parts.hands.put_online(Job { block, task });
    }

    pub(super) fn on_done(&mut self, now: Instant, done: Done) {
        let (Job { block, task }, cost) = (done.job, done.cost);
        let is_step = matches!((task, &done.result), (Task::Steal { .. }, Ok(())));
        if !(is_step && self.parts.hands.is_stealing()) {
            self.rest.end();
        }
        if done.result.is_err() {
            // The log tells what was tried before what came of it.
            self.say_what_is_unsaid();
        }
        match (task, done.result) {
            (Task::Steal { look, .. }, Ok(())) => self.on_offline(block, look.making()),
            (Task::Steal { .. }, Err(failure)) => self.on_steal_failed(now, block, &failure),
            (Task::Return(_), result) => self.on_return_ended(block, result),
            (Task::Remove, result) => self.on_removed(now, block, result),
            (Task::Convert { .. }, result) => self.on_converted(now, (block, cost), result),
        }
    }

    pub(super) fn on_offline(&mut self, block: BlockId, making: Option<u64>) {
        match self.parts.pieces.as_ref().and_then(|pieces| pieces.runs(block)) {
            Some(runs) => {
                self.parts.blocks.went_in_pieces(block, runs);
                if !self.may_report_pieces(block) {
                    return;
                }
            }
            None => self.parts.blocks.went_offline(&self.parts.root, block, making),
        }
        let ranges = self.parts.blocks.given(&[block]);
        self.parts.link.report_stolen(ranges);
    }

    fn on_steal_failed(&mut self, now: Instant, block: BlockId, failure: &Failure) {
        if failure.kind != StealFailure::Aborted {
            self.tell(now, format!("{block} was not stolen: {}", failure.text));
            self.counters.steals_failed += 1;
        }
        self.outcomes.push(Outcome::StealFailed(block, failure.kind));
    }

    /// Whether a block that was ejected is waited for now, or cannot come back.
    fn waits_for_host(&mut self, block: BlockId) -> bool {
        match self.plug_in_first(block) {
            Ok(is_awaited) => is_awaited,
            Err(failure) => {
                self.doubt_host(block);
                self.stays_ejected(block, &failure);
                true
            }
        }
    }

    fn on_return_ended(&mut self, block: BlockId, result: Result<(), Failure>) {
        // It was granted while it was being ejected.
        if result.is_err() && self.parts.blocks.is_ejected(block) && self.waits_for_host(block) {
            return;
        }
        let was_unasked = self.unasked.remove(&block);
        match result {
            Ok(()) => {
                let ranges = self.parts.blocks.given(&[block]);
                self.parts.blocks.set(&self.parts.root, block, Hold::Online);
                self.counters.returned += 1;
                if was_unasked {
                    self.counters.taken_unasked += 1;
                    self.parts.link.post(Request::Taken(ranges));
                }
            }
            // There is nothing to be stolen or returned any more.
            Err(_) if self.parts.blocks.is_gone(&self.parts.root, block).unwrap_or(false) => {
                self.is_gone(block);
                self.outcomes.push(Outcome::Denied);
            }
            Err(failure) => {
                tracing::warn!("{block} could not be put online: {}", failure.text);
                // It is offline, and the host thinks it is not.
                self.on_offline(block, None);
                self.outcomes.push(Outcome::Denied);
            }
        }
        self.return_has_ended(block);
    }

    /// A block is back, or will not be.
    pub(super) fn return_has_ended(&mut self, block: BlockId) {
        self.note_plugged();
        if self.returns.one_done(block) {
            self.outcomes.push(Outcome::Returned);
            self.owes_rewatch = true;
        }
    }
}
