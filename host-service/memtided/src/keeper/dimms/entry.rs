//! One DIMM: where it is, and what speaks for plugging it in again.

use std::time::Duration;

use memtide_api::device::{DeviceStatus, Driver};
use memtide_units::{GpaRange, Instant};

use super::Change;
use crate::keeper::ranges::touches;
use crate::vmm::Dimm;

/// The agent lives and does not know what is out: it was started anew, or died between its grant and
/// its wish. It names a moment's worth of changes within this time.
const ALONE_WITH_AGENT: Duration = Duration::from_secs(15);
/// No agent drives the device: long enough for a guest that boots to start its agent, which may
/// know better.
const ALONE_WITHOUT_AGENT: Duration = Duration::from_secs(60);
/// An announced DIMM that is there, and not all stolen, for so long was not ejected. Until then it
/// may go: the guest's kernel has let go of it before QEMU has.
const SETTLED: Duration = Duration::from_secs(20);
/// An agent looks at all blocks each half minute, and finds out which are gone; one whose processor is
/// busy does so later.
const TOLD: Duration = Duration::from_secs(120);
/// An agent tells how its guest is each second: one that has not for so long is stopped, or its guest is.
const LIVES: u64 = 10_000;
/// After a failure; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// One DIMM.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dimm: Dimm,
    pub(super) place: Place,
    /// All of it is stolen, as far as is known.
    pub(super) is_stolen: bool,
    /// The guest waits for it.
    pub(super) wanted: bool,
    /// It is out, nobody holds it, and since when.
    pub(super) alone: Option<(Left, Instant)>,
    /// It is missing without a word, and called stolen, by whom, and since when.
    pub(super) missed: Option<(Left, Instant)>,
    /// It was announced and is there, not all of it stolen, and since when.
    pub(super) stays: Option<Instant>,
    /// It is being plugged in, and why; `again` where the guest has told meanwhile that it ejects it.
    pub(super) plugging: Option<Why>,
    pub(super) again: bool,
    pub(super) pause: Duration,
    pub(super) not_before: Option<Instant>,
    pub(super) failure: Option<String>,
}

/// Where it is: the module above draws how it goes from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Plugged in.
    In,
    /// The last look missed it, and its guest has not told that it ejects it.
    Missed,
    /// The guest has told; it may be gone already.
    Leaving,
    /// The guest has ejected it.
    Out,
}

/// Who has left a DIMM alone, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// An agent that does not call it stolen.
    Agent,
    /// Nobody is there who could.
    NoAgent,
}

/// Why something is plugged in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keeper) enum Why {
    /// The guest waits for it.
    Wanted,
    /// Nobody in the guest holds it stolen.
    Alone,
}

impl Entry {
    pub(super) fn new(dimm: Dimm, place: Place) -> Self {
        Self {
            dimm,
            place,
            // So that it is not called returned before the device was heard.
            is_stolen: place == Place::Leaving,
            wanted: false,
            alone: None,
            missed: None,
            stays: None,
            plugging: None,
            again: false,
            pause: RETRY_FIRST,
            not_before: None,
            failure: None,
        }
    }

    pub(super) fn may_be_out(&self) -> bool {
        matches!(self.place, Place::Leaving | Place::Out)
    }

    /// Nothing speaks for plugging it in any longer.
    pub(super) fn calm(&mut self) {
        (self.wanted, self.alone) = (false, None);
        (self.pause, self.not_before, self.failure) = (RETRY_FIRST, None, None);
    }

    /// An attempt failed; the next one comes later each time. True where the reason is another one.
    pub(super) fn failed(&mut self, now: Instant, why: &str) -> bool {
        self.later(now);
        let is_new = self.failure.as_deref() != Some(why);
        self.failure = Some(why.into());
        is_new
    }

    /// The next attempt comes later, and the one after that later still.
    pub(super) fn later(&mut self, now: Instant) {
        self.not_before = Some(now + self.pause);
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    /// Does anything speak for plugging it in, now that the device was heard?
    pub(super) fn judge(&mut self, now: Instant, left: Option<Left>) {
        let (may_want, is_let_go) = match left {
            Some(Left::Agent) => (!self.is_stolen, !self.is_stolen),
            // Who waited has gone, and so has the map of what is stolen.
            Some(Left::NoAgent) => (false, true),
            None => (true, false),
        };
        self.wanted &= may_want;
        let left = left.filter(|_| self.place == Place::Out && is_let_go);
        self.alone = left.map(|left| match self.alone {
            Some((before, since)) if before == left => (left, since),
            _ => (left, now),
        });
        if !self.wanted && self.alone.is_none() {
            self.calm();
        }
    }

    /// Why it is to be plugged in now, if it is.
    pub(super) fn why(&self, now: Instant) -> Option<Why> {
        let must_wait = self.not_before.is_some_and(|at| now < at);
        if !self.may_be_out() || self.plugging.is_some() || must_wait {
            return None;
        }
        let is_alone = self.alone.is_some_and(|(left, since)| now.since(since) >= left.patience());
        match (self.wanted, is_alone) {
            (true, _) => Some(Why::Wanted),
            (false, true) => Some(Why::Alone),
            (false, false) => None,
        }
    }

    pub(super) fn is_there(&mut self, now: Instant, dimm: Dimm) -> Option<Change> {
        (self.dimm, self.missed) = (dimm, None);
        match self.place {
            Place::In | Place::Missed => self.place = Place::In,
            Place::Leaving => self.still_there(now),
            Place::Out => {
                self.place = Place::In;
                self.calm();
                return Some(Change::Back(self.dimm.clone()));
            }
        }
        None
    }

    /// To eject takes a moment.
    fn still_there(&mut self, now: Instant) {
        if self.is_stolen {
            self.stays = None;
            return;
        }
        let since = *self.stays.get_or_insert(now);
        if now.since(since) >= SETTLED {
            (self.place, self.stays) = (Place::In, None);
            self.calm();
        }
    }

    /// Whether to remember it, and what to say. The first look that misses a DIMM may be ahead of
    /// the word of a guest that ejects it.
    pub(super) fn is_missing(
        &mut self,
        now: Instant,
        who: Option<Left>,
        taken: &[GpaRange],
    ) -> (bool, Option<Change>) {
        let dimm = self.dimm.clone();
        let (place, change) = match self.place {
            Place::In => (Place::Missed, None),
            Place::Missed => match self.who_did_it(now, who) {
                None => (Place::Missed, None),
                Some(Left::NoAgent) => return (false, Some(Change::Unplugged(dimm))),
                Some(Left::Agent) => (Place::Out, Some(Change::Ejected(dimm.clone()))),
            },
            Place::Leaving => (Place::Out, Some(Change::Ejected(dimm.clone()))),
            Place::Out => (Place::Out, None),
        };
        self.place = place;
        if touches(taken, dimm.range) {
            return (false, Some(Change::Replaced(dimm)));
        }
        (true, change)
    }
}

impl Entry {
    /// Who has taken out what went without a word: its agent, or somebody else. An agent that has lost a stolen DIMM to an
    /// operator calls it stolen no longer; it just may not have told yet. Where there is no agent the map of
    /// what is stolen is what the last one has left, and proves nothing.
    fn who_did_it(&mut self, now: Instant, who: Option<Left>) -> Option<Left> {
        if !self.is_stolen {
            return Some(Left::NoAgent);
        }
        self.missed = who.map(|who| match self.missed {
            Some((before, since)) if before == who => (who, since),
            _ => (who, now),
        });
        let (who, since) = self.missed?;
        let patience = match who {
            Left::Agent => TOLD,
            Left::NoAgent => ALONE_WITHOUT_AGENT,
        };
        (now.since(since) >= patience).then_some(who)
    }
}

impl Left {
    /// Who in the guest could hold a DIMM stolen; `None` where nobody can tell.
    pub(super) fn in_guest(status: &DeviceStatus) -> Option<Self> {
        match (status.vmm_connected, status.driver, &status.hello) {
            (true, Driver::Agent, Some(_)) => Some(Self::Agent),
            (true, Driver::Stock | Driver::None, _) => Some(Self::NoAgent),
            (true, Driver::Agent, None) | (false, ..) => None,
        }
    }

    /// The same, for who has to have looked at its guest lately.
    pub(super) fn lately(status: &DeviceStatus) -> Option<Self> {
        let lives = status.telemetry_age_ms.is_some_and(|age| age < LIVES);
        Self::in_guest(status).filter(|left| *left != Self::Agent || lives)
    }

    fn patience(self) -> Duration {
        match self {
            Self::Agent => ALONE_WITH_AGENT,
            Self::NoAgent => ALONE_WITHOUT_AGENT,
        }
    }
}
