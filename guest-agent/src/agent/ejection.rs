//! What only the host brings back: asked before it is ejected.
//!
//! ```text
//!   stolen whole, at rest --Eject--> ok --> the kernel ejects it
//!   a block of it granted --Plug---> ok --> the host plugs it in --> that block goes online
//! ```
//! The second line is in `plugs`.

use std::collections::BTreeMap;
use std::time::Duration;

use memtide_policy::guest::{DeviceState, Mode};
use memtide_sysfs::memory;
use memtide_units::{BlockId, ByteSize, Instant};
use memtide_wire::block::{RefuseReason, Request, Response, Verdict};
use memtide_wire::config::Plugging;

use super::Agent;
use super::plugs::Plugs;
use super::trust::Trust;
use crate::blocks::{Hold, Reach};
use crate::remove::{Held, Unit};
use crate::status::{Lack, say_lack};

/// What is stolen whole is ejected when it has been for so long. To have it plugged in again takes 50 to 130 ms under
/// emulation where an offline block is back in 20, and has QEMU and both kernels at work: not in turns.
const AT_REST: Duration = Duration::from_secs(20);
/// What could not be ejected is left alone for so long; others may go.
const AFTER_NO: Duration = Duration::from_secs(600);

/// What is under way between this guest and its host about ejected memory.
#[derive(Debug, Default)]
pub(super) struct Ejection {
    /// Blocks were stolen, and it was not looked since whether something is stolen whole by that.
    unseen: bool,
    /// What is stolen whole, and since when.
    rested: BTreeMap<String, Instant>,
    /// What could not be ejected, and until when it is left alone.
    shunned: BTreeMap<String, Instant>,
    /// What the host is asked about.
    asked: Option<Unit>,
    /// What is being removed.
    going: Option<Unit>,
    pub(super) plugs: Plugs,
    pub(super) trust: Trust,
    lack: Option<Lack>,
}

impl Ejection {
    /// Whether something is to be ejected soon: a guest that lies still would not come to it.
    pub(super) fn is_near(&self) -> bool {
        self.unseen || !self.rested.is_empty()
    }

    /// Blocks were stolen: what they are of may be whole by now.
    pub(super) fn is_news(&mut self) {
        self.unseen = true;
    }

    /// It was looked whether something is stolen whole.
    pub(super) fn has_looked(&mut self) {
        self.unseen = false;
    }

    /// Whether the host was asked for something, and it is not done.
    pub(super) fn awaits_host(&self) -> bool {
        self.asked.is_some() || self.plugs.pause().is_some()
    }

    /// Nothing is to go for now.
    pub(super) fn nothing_rests(&mut self) {
        (self.unseen, self.rested) = (false, BTreeMap::new());
    }

    /// With a policy for plugged memory that an agent before this one has left held.
    pub(super) fn resume(held: Option<Held>) -> Self {
        Self { plugs: Plugs::resume(held), ..Self::default() }
    }
}

impl Agent {
    /// Whether somebody on the host would plug in now what was ejected.
    pub(super) fn host_plugs(&self) -> bool {
        let link = &self.parts.link;
        link.device_state() == DeviceState::Ready && link.config().plugging == Plugging::Ready
    }

    /// What of the ejected ones could come back now.
    fn reach(&self) -> Reach {
        match self.host_plugs() {
            true => Reach::AllBut(self.ejection.trust.doubted()),
            false => Reach::Nothing,
        }
    }

    /// What was ejected counts as stolen, and may be asked back, while the host would plug it in.
    pub(super) fn judge_host(&mut self, now: Instant) {
        self.ejection.trust.judge(now);
        let reach = self.reach();
        self.parts.blocks.set_reach(reach);
    }

    /// Ejected blocks that nobody would bring back now.
    pub(super) fn out_of_reach(&self) -> Vec<BlockId> {
        let reach = self.reach();
        let ejected = self.parts.blocks.ejected().into_iter();
        ejected.filter(|block| !reach.includes(*block)).collect()
    }

    /// The host has not plugged in what this block is of: it is not asked again at once.
    pub(super) fn doubt_host(&mut self, block: BlockId) {
        let unit = self.parts.removers.find(block).ok().flatten().map(|(_, unit)| unit.blocks);
        self.ejection.trust.lose(&unit.unwrap_or_else(|| vec![block]));
    }

    /// Forgets of how long units have rested those that are not whole any more.
    pub(super) fn note_whole(&mut self, whole: &[Unit]) {
        self.ejection.rested.retain(|name, _| whole.iter().any(|unit| unit.name == *name));
    }

    /// Whether a unit may be ejected now. What the guest is guaranteed must not depend on the host's
    /// service, nor what it keeps for itself.
    pub(super) fn may_eject(&mut self, now: Instant, unit: &Unit) -> bool {
        let is_shunned = self.ejection.shunned.get(&unit.name).is_some_and(|until| now < *until);
        let could_go = self.host_plugs()
            && self.ejection.trust.doubted().is_empty()
            && !is_shunned
            && self.left_without(unit) >= self.kept()
            && !memory::may_hold_own_structs(&self.parts.root);
        if !could_go {
            self.ejection.rested.remove(&unit.name);
            return false;
        }
        let since = *self.ejection.rested.entry(unit.name.clone()).or_insert(now);
        self.ejection.asked.is_none() && now.since(since) >= AT_REST
    }

    /// What the guest could have without the host's service, with this unit gone as well.
    fn left_without(&self, unit: &Unit) -> ByteSize {
        let blocks = &self.parts.blocks;
        let out = blocks.ejected().len() + blocks.with(Hold::Foreign).len() + unit.blocks.len();
        blocks.present() - blocks.size().size().times(out as u64)
    }

    fn kept(&self) -> ByteSize {
        let limits = self.parts.controller.settings().limits;
        limits.min().max(self.parts.link.guaranteed())
    }

    /// Asks the host whether it will plug this in again; it is ejected when that is answered.
    pub(super) fn ask_to_eject(&mut self, unit: Unit) {
        let request = Request::Eject(self.parts.blocks.ranges(&unit.blocks));
        if self.parts.link.post(request) {
            self.ejection.asked = Some(unit);
        }
    }

    /// The host's word on that. Meanwhile somebody may have asked for its blocks.
    pub(super) fn on_eject_answer(&mut self, now: Instant, response: Response) {
        let Some(unit) = self.ejection.asked.take() else { return };
        match response.verdict {
            Verdict::Ok => {}
            Verdict::Refused(RefuseReason::NoHello) => return,
            other => {
                tracing::info!("{} is not ejected: the host says {other:?}", unit.name);
                return self.shun(now, unit.name);
            }
        }
        let is_asked_for = self.mode == Mode::Restore || self.returns.ticket().is_some();
        let is_still_so = self.parts.blocks.can_be_removed(&unit.blocks);
        if is_asked_for || !is_still_so || self.parts.hands.is_busy() {
            return;
        }
        match self.remove_unit(now, &unit) {
            Ok(()) => self.ejection.going = Some(unit),
            Err(error) => {
                tracing::error!("{} is not ejected: {error}", unit.name);
                self.shun(now, unit.name);
            }
        }
    }

    /// A removal has ended. True where it was an ejection: others may go, whatever came of it.
    pub(super) fn ejection_ended(&mut self, now: Instant, is_out: bool) -> bool {
        let Some(unit) = self.ejection.going.take() else { return false };
        self.ejection.rested.remove(&unit.name);
        if !is_out {
            self.shun(now, unit.name);
        }
        true
    }

    fn shun(&mut self, now: Instant, name: String) {
        self.ejection.shunned.retain(|_, until| now < *until);
        self.ejection.shunned.insert(name, now + AFTER_NO);
    }

    /// What was asked of a device that was lost is not answered.
    pub(super) fn ejection_lost(&mut self) {
        self.ejection.asked = None;
    }

    /// The host knows nothing of what was ejected: it is not this guest's any more, and a hello must not
    /// name it.
    pub(super) fn forget_ejected(&mut self) {
        let ejected = self.parts.blocks.ejected();
        if ejected.is_empty() {
            return;
        }
        tracing::warn!(
            "{} blocks that were ejected are given up: the host knows nothing of them",
            ejected.len()
        );
        self.parts.removers.forget_ejected();
        ejected.into_iter().for_each(|block: BlockId| self.is_gone(block));
    }

    /// Says so where what was ejected could not be brought back now.
    pub(super) fn see_to_ejected(&mut self) {
        let count = self.out_of_reach().len();
        let lack = (count > 0).then(|| Lack::host_that_plugs(count));
        say_lack(&mut self.parts.lacks, &mut self.ejection.lack, lack);
    }
}
