//! Between two decisions: how long nothing needs to be decided, and what ends that.
//!
//! A decision says how long it holds unless something happens. Once a second a guest at rest tells
//! its host how it is, and the host's answer wakes the agent, although it changes nothing. Such a
//! turn ends after listening: it looks at nothing of the guest, and what is left of the wait is
//! waited for. All that is not known to change nothing has the agent decide anew.
//!
//! While a batch of blocks is being stolen, one after the other ends, and one report after the other is
//! answered. As long as that is all, and there are more blocks to come, it is what was decided: the wait
//! is for what may speak against it, and the blocks' thread looks at what is free before each.

use std::time::Duration;

use memtide_policy::guest::{DeviceState, Outcome, Plan};
use memtide_units::{ByteSize, Instant};
use memtide_wire::block::{Request, Verdict};

use super::{Agent, Woken};
use crate::link::LinkEvent;

/// Within a batch a decision holds for so long: what the policy itself asks for while something is under
/// way, which the one that begins the batch does not know yet.
const BATCH_LOOK: Duration = Duration::from_millis(100);

/// The next turn is for nothing but to see whether the guest has begun to grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Still {
    /// Whatever happens, a turn is due after so long.
    pub latest: Duration,
    /// It has not, as long as so much is free.
    pub free: ByteSize,
    /// How long each look at what is free holds.
    pub every: Duration,
}

/// What the last decision said of the time until the next one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest {
    /// When it was made.
    since: Instant,
    /// When the next one is due.
    until: Instant,
    /// How long it was to hold, and each look that finds memory lying still has it hold for as long.
    every: Duration,
    /// What must be free for that.
    while_free: Option<ByteSize>,
    /// How the device was.
    device: Option<DeviceState>,
    /// Something has happened since that it could not know.
    is_over: bool,
}

impl Rest {
    pub(super) fn after(now: Instant, plan: &Plan, device: DeviceState) -> Self {
        let (every, while_free) = (plan.wait, plan.while_free);
        let (since, until) = (now, now + every);
        Self { since, until, every, while_free, device: Some(device), is_over: false }
    }

    /// Something happens: whatever wakes the agent next has it decide.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    /// Memory was found to lie still at `at`.
    pub(super) fn go_on(&mut self, at: Instant) {
        self.until = self.until.max(at + self.every);
    }
}

/// Whether a decision may be another after this event than before.
pub(super) fn is_news(event: &LinkEvent) -> bool {
    match event {
        LinkEvent::Answered(Request::Telemetry(_) | Request::Goodbye, response) => {
            response.verdict != Verdict::Ok
        }
        LinkEvent::StatisticsWanted => false,
        LinkEvent::Answered(..)
        | LinkEvent::Silent
        | LinkEvent::Lost(_)
        | LinkEvent::Grain(_)
        | LinkEvent::NotOffline(_) => true,
    }
}

impl Agent {
    /// Whether a turn in which the host was heard need not look at the guest.
    pub(super) fn may_rest_on(&self, now: Instant, woken: Woken) -> bool {
        self.holds(now, woken)
            && now < self.due.refresh
            && !self.is_busy()
            && self.outcomes.is_empty()
    }

    /// Whether all that has happened since the last decision is that blocks of a batch were stolen, of
    /// which more are to come.
    pub(super) fn is_within_a_batch(&self, now: Instant, woken: Woken) -> bool {
        let is_going_well = self.outcomes.iter().all(|it| matches!(it, Outcome::Stolen(_)));
        let is_recent = now.since(self.rest.since) < BATCH_LOOK;
        is_recent && self.holds(now, woken) && self.parts.hands.is_stealing() && is_going_well
    }

    /// Whether this event is one of those.
    pub(super) fn is_step_of_a_batch(&self, event: &LinkEvent) -> bool {
        let LinkEvent::Answered(Request::Steal(_), response) = event else { return false };
        response.verdict == Verdict::Ok && self.parts.hands.is_stealing()
    }

    /// Whether the last decision holds still: nothing is due, and nothing has happened that ends it.
    fn holds(&self, now: Instant, woken: Woken) -> bool {
        let (rest, due) = (&self.rest, &self.due);
        let is_due = now >= rest.until || now >= due.report;
        // One that was late has answered, or one that answered is late.
        let is_as_before = rest.device == Some(self.parts.link.device_state());
        let has_happened = rest.is_over || woken.by_trigger || self.returns.ticket().is_some();
        is_as_before && !is_due && !has_happened
    }

    /// How long nothing needs to be done now unless something happens.
    pub(super) fn pause(&mut self, now: Instant) -> Duration {
        let until = |at: Instant| at.since(now).max(Duration::from_millis(1));
        let report = until(self.due.report);
        let latest = self.parts.link.due().map_or(report, |due| until(due).min(report));
        let Rest { since, every, is_over, .. } = self.rest;
        let may_lie_still = !is_over && !self.is_busy() && !self.ejection.is_near();
        let still = |free: ByteSize| Still { latest, free, every };
        self.still = self.rest.while_free.filter(|_| may_lie_still).map(still);
        let look = self.parts.hands.is_stealing().then(|| until(since + BATCH_LOOK));
        let plugs = self.ejection.plugs.pause().unwrap_or(latest);
        until(self.rest.until).min(latest).min(look.unwrap_or(latest)).min(plugs)
    }

    /// An answer or a block is waited for.
    fn is_busy(&self) -> bool {
        let awaits_host = self.ejection.plugs.pause().is_some();
        awaits_host || !self.parts.link.is_idle() || self.parts.hands.is_busy()
    }

    /// What lets the next turn wait longer than the last one said.
    pub fn still(&self) -> Option<Still> {
        self.still
    }
}
