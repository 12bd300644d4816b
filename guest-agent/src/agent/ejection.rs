//! What only the host brings back: asked before it is ejected, and asked for when it is granted.
//!
//! ```text
//!   stolen whole, at rest --Eject--> ok --> the kernel ejects it
//!   a block of it granted --Plug---> ok --> the host plugs it in --> that block goes online
//! ```
//! Plugged memory goes online by itself on most kernels. From asking for it until all that was granted of
//! it is back it does not, so that the others of its blocks stay stolen.

use std::collections::BTreeSet;
use std::time::Duration;

use memtide_policy::guest::{DeviceState, Mode, StealFailure};
use memtide_sysfs::memory;
use memtide_units::{BlockId, Instant};
use memtide_wire::block::{RefuseReason, Request, Response, Verdict};
use memtide_wire::config::Plugging;

use super::Agent;
use super::removal::AFTER_FAILURE;
use crate::blocks::Hold;
use crate::remove::{Held, Plug, PluggedBy, Unit};
use crate::status::Lack;
use crate::worker::Failure;

/// What is stolen whole is ejected when it has been for so long. To have it plugged in again takes 130 ms under
/// emulation where an offline block is back in 20, and has QEMU and both kernels at work: not in turns.
const AT_REST: Duration = Duration::from_secs(20);

/// After the host has not plugged in what it was asked for, nobody relies on it for so long.
const AFTER_NO: Duration = Duration::from_secs(10);

/// Whether the host does what it said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trust {
    #[default]
    Given,
    /// It has not done it just now.
    Lost,
    /// It is asked again then.
    Back(Instant),
}

/// What is under way between this guest and its host about ejected memory.
#[derive(Debug, Default)]
pub(super) struct Ejection {
    /// What is stolen whole, and since when.
    rested: Option<(String, Instant)>,
    /// What the host is asked about, or has agreed to.
    asked: Option<Unit>,
    /// What the host is plugging in, and the policy that keeps it offline meanwhile.
    awaited: BTreeSet<String>,
    held: Option<Held>,
    trust: Trust,
    lack: Option<Lack>,
}

impl Agent {
    /// Whether somebody on the host would plug in now what was ejected.
    pub(super) fn host_plugs(&self) -> bool {
        let link = &self.parts.link;
        link.device_state() == DeviceState::Ready
            && link.config().plugging == Plugging::Ready
            && self.ejection.trust == Trust::Given
    }

    /// What was ejected counts as stolen, and may be asked back, while the host would plug it in.
    pub(super) fn judge_host(&mut self, now: Instant) {
        self.ejection.trust = match self.ejection.trust {
            Trust::Lost => Trust::Back(now + AFTER_NO),
            Trust::Back(at) if now >= at => Trust::Given,
            same => same,
        };
        let plugs = self.host_plugs();
        self.parts.blocks.set_host_plugs(plugs);
    }

    /// Whether a unit may be ejected now. What the guest is guaranteed must not depend on the host's
    /// service, nor what it keeps for itself.
    pub(super) fn may_eject(&mut self, now: Instant, unit: &Unit) -> bool {
        let blocks = &self.parts.blocks;
        let size = blocks.size().size();
        let out = size.times((blocks.ejected().len() + unit.blocks.len()) as u64);
        let keeps = self.parts.controller.settings().limits.min().max(self.parts.link.guaranteed());
        if !self.host_plugs()
            || blocks.present() - out < keeps
            || memory::may_hold_own_structs(&self.parts.root)
        {
            return false;
        }
        let since = match &self.ejection.rested {
            Some((name, since)) if *name == unit.name => *since,
            _ => now,
        };
        self.ejection.rested = Some((unit.name.clone(), since));
        now.since(since) >= AT_REST
    }

    /// Nothing is stolen whole that could be ejected.
    pub(super) fn nothing_rests(&mut self) {
        self.ejection.rested = None;
    }

    /// Asks the host whether it will plug this in again; it is ejected when that is answered.
    pub(super) fn ask_to_eject(&mut self, unit: Unit) {
        if self.ejection.asked.is_none() {
            self.parts.link.post(Request::Eject(self.parts.blocks.ranges(&unit.blocks)));
            self.ejection.asked = Some(unit);
        }
    }

    /// The host's word on that. Meanwhile somebody may have asked for its blocks.
    pub(super) fn on_eject_answer(&mut self, now: Instant, response: Response) {
        let Some(unit) = self.ejection.asked.take() else { return };
        if let Verdict::Refused(reason) = response.verdict {
            if reason != RefuseReason::NoHello {
                tracing::info!("{} is not ejected: the host says that {reason}", unit.name);
            }
            self.due.removal = now + AFTER_FAILURE;
            return;
        }
        let is_asked_for = self.mode == Mode::Restore || self.returns.ticket().is_some();
        let is_still_so = self.parts.blocks.can_be_removed(&unit.blocks);
        if is_asked_for || !is_still_so || self.parts.hands.is_busy() {
            return;
        }
        self.ejection.rested = None;
        if let Err(error) = self.remove_unit(&unit) {
            tracing::error!("{} is not ejected: {error}", unit.name);
            self.due.removal = now + AFTER_FAILURE;
        }
    }

    /// What was asked of a device that was lost is not answered.
    pub(super) fn ejection_lost(&mut self) {
        self.ejection.asked = None;
        self.parts.removers.expect_host(false);
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
        ejected.into_iter().for_each(|block| self.is_gone(block));
    }

    /// Has the host plug in what a block belongs to, where it was ejected. The block itself is put online
    /// by whoever waits for it.
    pub(super) fn have_plugged_in(&mut self, block: BlockId) -> Result<(), Failure> {
        let failed = |why: &dyn ToString| Failure {
            is_offline: true,
            ..Failure::new(StealFailure::Busy, why.to_string())
        };
        let found = self.parts.removers.find(block).map_err(|error| failed(&error))?;
        let unit = match found {
            Some((_, unit)) if unit.plug == Plug::Out && unit.by == PluggedBy::Host => unit,
            _ => return Ok(()),
        };
        if self.ejection.awaited.contains(&unit.name) {
            return Ok(());
        }
        if !self.host_plugs() {
            return Err(failed(&"it was ejected, and nobody on the host plugs it in now"));
        }
        if memory::may_hold_own_structs(&self.parts.root) {
            return Err(failed(
                &"it was ejected, and would come back with its own struct pages in it: write N to \
                  /sys/module/memory_hotplug/parameters/memmap_on_memory",
            ));
        }
        if self.ejection.held.is_none() {
            let held = self.parts.policy.hold().map_err(|error| failed(&error))?;
            self.ejection.held = Some(held);
        }
        tracing::info!("{} was ejected, and is asked for", unit.name);
        self.parts.removers.expect_host(true);
        self.parts.link.post(Request::Plug(self.parts.blocks.ranges(&unit.blocks)));
        self.ejection.awaited.insert(unit.name);
        Ok(())
    }

    pub(super) fn on_plug_answer(&mut self, response: Response) {
        if let Verdict::Refused(reason) = response.verdict {
            tracing::warn!("the host does not plug in what was ejected: {reason}");
            // Whoever waits for it need not.
            self.parts.removers.expect_host(false);
        }
    }

    /// A block that was ejected does not come back.
    pub(super) fn note_not_plugged(&mut self, block: BlockId) {
        if self.parts.blocks.is_ejected(block) {
            self.ejection.trust = Trust::Lost;
        }
    }

    /// A block is back, or will not be.
    pub(super) fn note_plugged(&mut self) {
        let blocks = &self.parts.blocks;
        let is_awaited = |block: &BlockId| blocks.is_ejected(*block);
        if blocks.with(Hold::Returning).iter().any(is_awaited) {
            return;
        }
        for name in std::mem::take(&mut self.ejection.awaited) {
            let is_back = self.ejection.trust == Trust::Given;
            tracing::info!("{name} {}", if is_back { "is plugged in again" } else { "stays out" });
        }
        self.ejection.held = None;
    }

    /// Says so where what was ejected could not be brought back now.
    pub(super) fn see_to_ejected(&mut self) {
        let count = self.parts.blocks.ejected().len();
        let lack = (count > 0 && !self.host_plugs()).then(|| Lack::host_that_plugs(count));
        if lack == self.ejection.lack {
            return;
        }
        if let Some(lack) = &lack {
            tracing::warn!("this guest lacks {}: {}", lack.what, lack.effect);
        }
        let before = std::mem::replace(&mut self.ejection.lack, lack.clone());
        self.parts.lacks.retain(|other| Some(other) != before.as_ref());
        self.parts.lacks.extend(lack);
    }
}
