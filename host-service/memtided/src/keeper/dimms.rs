//! Which DIMMs of a VM are plugged in, which its guest has ejected, and which of these have to be
//! plugged in again.
//!
//! ```text
//!              the guest tells that it ejects          a look: gone
//!      +-> In --------------------------> Leaving ---------------------> Out
//!      |    |                               | a look: there, and not        |
//!      +----|-------------------------------+ all of it stolen, for long     |
//!      +----|---------------------------------------------------------------+
//!      |    | a look: gone             plugged in again, or a look: there
//!      +- Missed --> forgotten by the next look: an operator unplugged it
//!           |
//!           +------> Out, where its agent calls it stolen for long all the same: its word was not heard
//! ```
//!
//! Knows no clock and no socket. What is `Leaving` or `Out` is kept over a restart of memtided, and what is
//! stolen whole, whose guest may tell at any time.

mod entry;

use std::collections::BTreeMap;

use memtide_api::device::{DeviceStatus, PLUGGABLE_MAX};
use memtide_units::{GpaRange, Instant};

use super::ranges::{covers, joined, touches};
use crate::vmm::{DIMMS_MAX, Dimm, PlugOutcome};
pub(in crate::keeper) use entry::Why;
use entry::{Entry, Left, Place};

/// The DIMMs of one VM, by the name of their backend.
#[derive(Debug, Default)]
pub(super) struct Dimms {
    entries: BTreeMap<String, Entry>,
    /// The present VMM has been looked at.
    looked: bool,
    /// There is a connection to the device, and from there to the VMM.
    reachable: bool,
    /// Who in the guest knows what is out, where anybody does.
    who: Option<Left>,
}

/// What an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The guest has ejected it.
    Ejected(Dimm),
    /// Somebody else has unplugged it.
    Unplugged(Dimm),
    /// memtided has plugged it in again.
    Plugged(Dimm, Why),
    /// It is there again, without memtided.
    Back(Dimm),
    /// It was out, and another one lies at its place now: it is forgotten.
    Replaced(Dimm),
    /// Its backend is gone, as the text says: it is forgotten.
    NoBackend(Dimm, String),
    /// It could not be plugged in, for a reason that is new.
    Failed(Dimm, String),
}

impl Dimms {
    /// With what was out, or about to be, when an earlier life ended, and what was stolen whole.
    pub(super) fn new(out: &[Dimm], stolen: &[Dimm]) -> Self {
        let entry = |place| {
            move |dimm: &Dimm| {
                let entry = Entry { is_stolen: true, ..Entry::new(dimm.clone(), place) };
                (dimm.memdev.clone(), entry)
            }
        };
        let stolen = stolen.iter().map(entry(Place::In));
        let entries = stolen.chain(out.iter().map(entry(Place::Leaving))).collect();
        Self { entries, ..Self::default() }
    }

    /// What its guest may eject at any moment without having said so yet.
    pub(super) fn stolen(&self) -> Vec<Dimm> {
        let entries = self.entries.values();
        let is_stolen = |entry: &&Entry| entry.is_stolen && !entry.may_be_out();
        entries.filter(is_stolen).map(|entry| entry.dimm.clone()).collect()
    }

    /// What has to outlive a restart: what is out, and what may be at any moment.
    pub(super) fn to_keep(&self) -> Vec<Dimm> {
        let entries = self.entries.values();
        entries.filter(|entry| entry.may_be_out()).map(|entry| entry.dimm.clone()).collect()
    }

    /// The guest tells that it is about to eject all this. True where that is worth keeping.
    pub(super) fn ejecting(&mut self, ranges: &[GpaRange]) -> bool {
        let named = joined(ranges.iter().copied());
        let mut room = DIMMS_MAX.saturating_sub(self.to_keep().len());
        let mut is_new = false;
        for entry in self.entries.values_mut().filter(|entry| covers(&named, entry.dimm.range)) {
            entry.again = entry.plugging.is_some();
            (entry.is_stolen, entry.stays) = (true, None);
            if entry.may_be_out() || room == 0 {
                continue;
            }
            entry.place = Place::Leaving;
            room -= 1;
            is_new = true;
        }
        is_new
    }

    /// The guest waits for what of this it has ejected.
    pub(super) fn wanted(&mut self, ranges: &[GpaRange]) {
        let asked = |entry: &&mut Entry| entry.may_be_out() && touches(ranges, entry.dimm.range);
        self.entries.values_mut().filter(asked).for_each(|entry| entry.wanted = true);
    }

    /// How the device is. True where the VMM should be looked at now.
    pub(super) fn observed(&mut self, now: Instant, status: &DeviceStatus) -> bool {
        let vmm_came = status.vmm_connected && !self.reachable;
        self.reachable = status.vmm_connected;
        // Another VMM may have come, with other DIMMs.
        self.looked &= status.vmm_connected && !vmm_came;
        let stolen = joined(status.stolen.iter().copied());
        let memory = joined(status.memory.iter().map(|region| region.range));
        let left = Left::in_guest(status);
        self.who = Left::lately(status);
        let mut has_left = false;
        for entry in self.entries.values_mut() {
            entry.is_stolen = covers(&stolen, entry.dimm.range);
            entry.judge(now, left);
            has_left |= entry.place == Place::Leaving && !touches(&memory, entry.dimm.range);
        }
        self.reachable && (vmm_came || has_left)
    }

    /// The device cannot be heard.
    pub(super) fn unreachable(&mut self) {
        self.reachable = false;
        self.looked = false;
        self.who = None;
        for entry in self.entries.values_mut() {
            (entry.wanted, entry.alone) = (false, None);
        }
    }

    /// The VM has these DIMMs now, and no others.
    pub(super) fn seen(&mut self, now: Instant, dimms: Vec<Dimm>) -> Vec<Change> {
        self.looked = true;
        let mut present: BTreeMap<String, Dimm> =
            dimms.into_iter().map(|dimm| (dimm.memdev.clone(), dimm)).collect();
        let taken: Vec<GpaRange> = present.values().map(|dimm| dimm.range).collect();
        let mut changes = Vec::new();
        let who = self.who;
        self.entries.retain(|memdev, entry| {
            let (stays, change) = match present.remove(memdev) {
                Some(dimm) => (true, entry.is_there(now, dimm)),
                None => entry.is_missing(now, who, &taken),
            };
            changes.extend(change);
            stays
        });
        let new = |(memdev, dimm)| (memdev, Entry::new(dimm, Place::In));
        self.entries.extend(present.into_iter().map(new));
        changes
    }

    /// What is to be plugged in now; each is under way until [`Self::plugged`].
    pub(super) fn due(&mut self, now: Instant) -> Vec<Dimm> {
        if !self.reachable {
            return Vec::new();
        }
        let due = |entry: &mut Entry| {
            entry.plugging = Some(entry.why(now)?);
            Some(entry.dimm.clone())
        };
        self.entries.values_mut().filter_map(due).collect()
    }

    /// An attempt to plug in has ended.
    pub(super) fn plugged(
        &mut self,
        now: Instant,
        memdev: &str,
        outcome: PlugOutcome,
    ) -> Option<Change> {
        let entry = self.entries.get_mut(memdev)?;
        let why = entry.plugging.take()?;
        let ejects_again = std::mem::take(&mut entry.again);
        let dimm = entry.dimm.clone();
        match outcome {
            PlugOutcome::Done => {
                let place = if ejects_again { Place::Leaving } else { Place::In };
                *entry = Entry::new(dimm.clone(), place);
                Some(Change::Plugged(dimm, why))
            }
            PlugOutcome::WasThere => {
                if entry.may_be_out() {
                    // Its guest has let go of it, and the VMM has not yet.
                    entry.later(now);
                }
                None
            }
            PlugOutcome::NoBackend(text) => {
                self.entries.remove(memdev);
                Some(Change::NoBackend(dimm, text))
            }
            PlugOutcome::Failed(text) => {
                entry.failed(now, &text).then_some(Change::Failed(dimm, text))
            }
        }
    }

    /// What the device should tell its guest that it may eject, joined; `None` as long as nobody
    /// knows. Where that is too much for one call, what is out comes first.
    pub(super) fn pluggable(&self) -> Option<Vec<GpaRange>> {
        if !self.looked {
            return None;
        }
        // What is missing without a word may be out all the same: a hello that names it must be taken.
        let all = joined(self.ranges(|entry| entry.place != Place::Missed || entry.is_stolen));
        let out = self.owed();
        let (first, rest): (Vec<GpaRange>, Vec<GpaRange>) =
            all.into_iter().partition(|range| touches(&out, *range));
        Some(joined(first.into_iter().chain(rest).take(PLUGGABLE_MAX)))
    }

    /// What of that is out, or may be at any moment.
    pub(super) fn owed(&self) -> Vec<GpaRange> {
        let mut owed = joined(self.ranges(Entry::may_be_out));
        owed.truncate(PLUGGABLE_MAX);
        owed
    }

    fn ranges(&self, which: fn(&Entry) -> bool) -> impl Iterator<Item = GpaRange> {
        self.entries.values().filter(move |entry| which(entry)).map(|entry| entry.dimm.range)
    }
}

#[cfg(test)]
mod tests;
