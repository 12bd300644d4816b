//! Plugging in again what guests have ejected: between the device's words, the VMM's, and the
//! records of [`Dimms`].

use std::time::Duration;

use memtide_api::device::{DeviceStatus, Refusal, Request};
use memtide_api::http::VmState;
use memtide_policy::host::VmId;
use memtide_units::{GpaRange, Instant};

use super::Keeper;
use super::dimms::{Change, Dimms, Why};
use super::ranges::joined;
use crate::store::VmMemory;
use crate::vmm::{Dimm, Order, VmmNews};

/// A monitor that cannot be used for so long is no promise: what is in is no longer let go. Shorter
/// troubles, such as another client for a moment, are not worth a word to the guest.
const BLIND_MAX: Duration = Duration::from_secs(30);

/// The same is not said twice within this time: a status may be older than the word.
const SAY_AGAIN: Duration = Duration::from_secs(2);

/// What a VM's monitor is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmOrder {
    /// Whose.
    pub(crate) vm: VmId,
    /// What.
    pub(crate) order: Order,
}

/// What the keeper knows of one VM's DIMMs and its monitor.
#[derive(Debug)]
pub(super) struct Plugging {
    /// There is a monitor. Without one what is kept stays as it is.
    has_monitor: bool,
    pub(super) dimms: Dimms,
    /// A look is under way.
    looking: bool,
    /// Why the monitor cannot be used, and since when.
    unusable: Option<(String, Instant)>,
    /// What of that was said: a VM that does not run has no monitor.
    warned: Option<String>,
    /// What the device was told last, and when.
    told: Option<(Instant, Vec<GpaRange>)>,
    /// The device does not take ranges, and why: not asked again before it is attached anew.
    refused: Option<String>,
    /// What was last said about that.
    said: Option<String>,
}

impl Plugging {
    /// Nothing is known but what an earlier life kept.
    pub(super) fn new(has_monitor: bool, kept: &VmMemory) -> Self {
        let dimms = Dimms::new(&kept.out, &kept.stolen);
        Self {
            has_monitor,
            dimms,
            looking: false,
            unusable: None,
            warned: None,
            told: None,
            refused: None,
            said: None,
        }
    }

    /// Another connection, perhaps to another device.
    pub(super) fn attached(&mut self) {
        (self.told, self.refused) = (None, None);
    }

    /// Why nothing can be plugged in, for a person.
    pub(super) fn trouble(&self) -> Option<String> {
        let unusable = self.unusable.as_ref().map(|(why, _)| why);
        unusable.or(self.refused.as_ref()).cloned()
    }

    /// What the device should be told, where it believes something else.
    fn pluggable(&self, now: Instant, status: &DeviceStatus) -> Option<Vec<GpaRange>> {
        let believed = joined(status.pluggable.iter().copied());
        let wanted = self.promise(now, &believed).filter(|_| self.refused.is_none())?;
        let is_told =
            |(at, told): &(Instant, Vec<GpaRange>)| *told == wanted && now.since(*at) < SAY_AGAIN;
        let is_known = wanted == believed || self.told.as_ref().is_some_and(is_told);
        (!is_known).then_some(wanted)
    }

    /// What can be promised. Where the VMM has not been seen that is nothing new; what somebody else
    /// promised, an earlier memtided perhaps, is withdrawn where it cannot be kept.
    fn promise(&self, now: Instant, believed: &[GpaRange]) -> Option<Vec<GpaRange>> {
        let seen = self.dimms.pluggable();
        let is_blind = |(_, since): &(String, Instant)| now.since(*since) >= BLIND_MAX;
        if !self.has_monitor {
            (!believed.is_empty()).then(Vec::new)
        } else if self.unusable.as_ref().is_some_and(is_blind) {
            (seen.is_some() || !believed.is_empty()).then(|| self.dimms.owed())
        } else {
            seen
        }
    }
}

impl Keeper {
    /// The link to a VM's monitor has news.
    pub(crate) fn hear_vmm(&mut self, now: Instant, id: VmId, news: VmmNews) {
        match news {
            VmmNews::Dimms(dimms) => self.looked(now, id, dimms),
            VmmNews::Plug { memdev, outcome } => {
                let change = self.vm_mut(id).plugging.dimms.plugged(now, &memdev, outcome);
                change.into_iter().for_each(|change| self.log_change(now, id, &change));
            }
            VmmNews::Unusable(why) => self.cannot_look(now, id, why),
        }
    }

    fn looked(&mut self, now: Instant, id: VmId, dimms: Vec<Dimm>) {
        let plugging = &mut self.vm_mut(id).plugging;
        plugging.looking = false;
        plugging.unusable = None;
        let could_not = plugging.warned.take().is_some();
        let changes = plugging.dimms.seen(now, dimms);
        if could_not && self.may_log(now, id) {
            tracing::info!(vm = self.vm(id).name, "its VMM can be asked again");
        }
        for change in changes {
            self.log_change(now, id, &change);
        }
        self.hurry(now, id);
    }

    /// The device is told when it has said how it is: that is asked for where it knows too little.
    fn hurry(&mut self, now: Instant, id: VmId) {
        let vm = self.vm(id);
        let differs = |status: &DeviceStatus| vm.plugging.pluggable(now, status).is_some();
        if vm.state == VmState::Connected && vm.device.as_deref().is_some_and(differs) {
            self.look(id);
        }
    }

    fn cannot_look(&mut self, now: Instant, id: VmId, why: String) {
        let plugging = &mut self.vm_mut(id).plugging;
        plugging.looking = false;
        let before = plugging.unusable.take();
        let since = before.as_ref().map_or(now, |(_, since)| *since);
        plugging.unusable = Some((why.clone(), since));
        let runs = self.vm(id).device.as_ref().is_some_and(|device| device.vmm_connected);
        let is_new = self.vm(id).plugging.warned.as_ref() != Some(&why);
        if runs && is_new && self.may_log(now, id) {
            tracing::warn!(vm = self.vm(id).name, "nothing can be plugged in: {why}");
            self.vm_mut(id).plugging.warned = Some(why);
        }
    }

    /// The device has told how it is.
    pub(super) fn watch_dimms(&mut self, now: Instant, id: VmId, status: &DeviceStatus) {
        let plugging = &mut self.vm_mut(id).plugging;
        let look = plugging.has_monitor && plugging.dimms.observed(now, status);
        let pluggable = plugging.pluggable(now, status);
        if let Some(ranges) = pluggable {
            plugging.told = Some((now, ranges.clone()));
            self.send(id, Request::SetPluggable { ranges });
        }
        if look {
            self.look_at_vmm(id);
        }
    }

    /// One look at a time.
    fn look_at_vmm(&mut self, id: VmId) {
        if !std::mem::replace(&mut self.vm_mut(id).plugging.looking, true) {
            self.orders.push(VmOrder { vm: id, order: Order::Look });
        }
    }

    /// The guest is about to eject this: known to the file before it is gone.
    pub(super) fn ejecting(&mut self, id: VmId, ranges: &[GpaRange]) {
        self.keep_soon |= self.vm_mut(id).plugging.dimms.ejecting(ranges);
    }

    /// Whatever has to be plugged in, as orders.
    pub(super) fn order_plugs(&mut self, now: Instant) {
        for id in self.ids() {
            let plugging = &mut self.vm_mut(id).plugging;
            if !plugging.has_monitor {
                continue;
            }
            let due = plugging.dimms.due(now).into_iter();
            let order = |dimm| VmOrder { vm: id, order: Order::Plug(dimm) };
            self.orders.extend(due.map(order));
        }
    }

    /// A device that is older than this call refuses it: asked once, and said once.
    pub(super) fn pluggable_refused(&mut self, id: VmId, refusal: &Refusal) {
        let why = format!(
            "its device does not let its guest eject memory: {refusal}; a vhost-user-balloon of \
             this memtided's version does, from the next start of the VM on"
        );
        let vm = self.vm_mut(id);
        if vm.plugging.said.as_ref() != Some(&why) {
            tracing::warn!(vm = vm.name, "{why}");
            vm.plugging.said = Some(why.clone());
        }
        vm.plugging.refused = Some(why);
    }

    fn log_change(&mut self, now: Instant, id: VmId, change: &Change) {
        if !self.may_log(now, id) {
            return;
        }
        let vm = &self.vm(id).name;
        match change {
            Change::Ejected(dimm) => tracing::info!(vm, "ejected by its guest: {dimm}"),
            Change::Unplugged(dimm) => tracing::info!(vm, "unplugged by somebody else: {dimm}"),
            Change::Plugged(dimm, Why::Wanted) => {
                tracing::info!(vm, "plugged in again: {dimm} (its guest waits for it)");
            }
            Change::Plugged(dimm, Why::Alone) => {
                tracing::info!(vm, "plugged in again: {dimm} (nobody holds it)");
            }
            Change::Back(dimm) => tracing::info!(vm, "plugged in by somebody else: {dimm}"),
            Change::Replaced(dimm) => {
                tracing::warn!(vm, "forgotten, since another DIMM lies at its place: {dimm}");
            }
            Change::NoBackend(dimm, why) => {
                tracing::warn!(vm, "forgotten, since its memory backend is gone: {dimm}: {why}");
            }
            Change::Failed(dimm, why) => {
                tracing::warn!(vm, "not plugged in, tried again: {dimm}: {why}");
            }
        }
    }
}

#[cfg(test)]
mod tests;
