//! The gate's side in the device: one question at a time, and who answers it.
//!
//! The device decides nothing here but the two cases that need nobody: a guest below its guaranteed
//! minimum, and a host on which no controller has been seen for a while. Every other return waits
//! for a controller's word. It waits *here*, not in the ring: the agent is answered "held" at once
//! and asks again.
//!
//! ```text
//!   asked --> Waiting(asking) --decide--> Waiting(reason) --decide--> Granted | Denied
//!                   ^                          |                        |
//!                   +---- controller left -----+       told at the next ask, then gone
//! ```

use std::time::Duration;

use memtide_units::{ByteSize, GpaRange, Instant};
use memtide_wire::block::{HoldReason, ReturnRequest, Urgency};

use crate::event::{Event, GrantedBy, PendingReturn};

/// What the device does with returns when no controller is there to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalRule {
    /// Grants them: a guest without a controller has its memory.
    #[default]
    Grant,
    /// Grants what leaves the balloon as large as it shall be (`num_pages`), and holds the rest: the
    /// target is then a limit that the guest cannot pass, not a wish.
    Target,
    /// Holds them until somebody decides; for hosts where overcommitting is the larger evil.
    Hold,
}

/// A controller's word on a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The guest may have the blocks.
    Grant,
    /// Not yet.
    Hold(HoldReason),
    /// No.
    Deny(HoldReason),
}

/// A decision on a ticket that nobody waits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no return with the ticket {0} is waiting: it was granted, cancelled or never asked for")]
pub struct NoSuchTicket(pub u32);

/// What to answer a return with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    Grant(GrantedBy),
    Wait(HoldReason),
    Deny(HoldReason),
}

/// Where a return would leave the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Floor {
    /// At or below what it is guaranteed.
    WithinMinimum,
    /// Above that, and still without all that it shall do without.
    WithinTarget,
    /// With more than the balloon's target leaves it.
    Above,
}

/// Who answers a return above the guaranteed minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// The controller that is attached.
    Controller,
    /// The one that has left, and is waited for.
    AbsentController,
    /// The local rule, or whoever decides by hand what that holds.
    LocalRule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting(HoldReason),
    Granted,
    Denied(HoldReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Never,
    Attached,
    Left(Instant),
}

#[derive(Clone, Debug)]
struct Pending {
    ticket: u32,
    urgency: Urgency,
    ranges: Vec<GpaRange>,
    since: Instant,
    state: State,
}

impl Pending {
    /// A grant is for the blocks that were asked for, however urgently they are wanted by now; a
    /// question that is still open is another one when it has become more urgent.
    fn asks_the_same(&self, wanted: &ReturnRequest) -> bool {
        let same_urgency = self.urgency == wanted.urgency || self.state == State::Granted;
        self.ticket == wanted.ticket && self.ranges == wanted.ranges && same_urgency
    }

    fn view(&self, now: Instant) -> Option<PendingReturn> {
        let State::Waiting(reason) = self.state else { return None };
        Some(PendingReturn {
            ticket: self.ticket,
            urgency: self.urgency,
            bytes: self.ranges.iter().map(|range| range.len()).sum::<ByteSize>(),
            ranges: self.ranges.clone(),
            waited: now.since(self.since),
            reason,
        })
    }
}

/// The question that waits, and whether somebody is there to answer it.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    rule: LocalRule,
    grace: Duration,
    controller: Controller,
    pending: Option<Pending>,
}

impl Gate {
    /// `grace` is how long a controller that left is waited for.
    pub(crate) fn new(rule: LocalRule, grace: Duration) -> Self {
        Self { rule, grace, controller: Controller::Never, pending: None }
    }

    /// Judges a return that is asked for, the first time or again.
    pub(crate) fn ask(
        &mut self,
        wanted: &ReturnRequest,
        floor: Floor,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> Say {
        let before = self.pending.take();
        if let Some(other) = before.as_ref().filter(|old| old.ticket != wanted.ticket) {
            events.push(Event::ReturnCancelled { ticket: other.ticket });
        }
        let before = before.filter(|old| old.ticket == wanted.ticket);
        let known = before.as_ref().filter(|old| old.asks_the_same(wanted));
        // Other ranges or another urgency under the same ticket are another question.
        let state = known.map_or(State::Waiting(HoldReason::Asking), |old| old.state);
        let is_news = known.is_none();
        let say = self.judge(state, floor, now);
        if let Say::Wait(reason) = say {
            let pending = Pending {
                ticket: wanted.ticket,
                urgency: wanted.urgency,
                ranges: wanted.ranges.clone(),
                since: before.map_or(now, |old| old.since),
                state: State::Waiting(reason),
            };
            events.extend(pending.view(now).filter(|_| is_news).map(Event::ReturnAsked));
            self.pending = Some(pending);
        }
        say
    }

    fn judge(&self, state: State, floor: Floor, now: Instant) -> Say {
        match (floor, state) {
            (Floor::WithinMinimum, _) => Say::Grant(GrantedBy::Minimum),
            (_, State::Granted) => Say::Grant(GrantedBy::Controller),
            (_, State::Denied(reason)) => Say::Deny(reason),
            (_, State::Waiting(reason)) if self.decider(now) != Decider::LocalRule => {
                Say::Wait(reason)
            }
            (_, State::Waiting(reason)) => match (self.rule, floor) {
                (LocalRule::Grant, _) | (LocalRule::Target, Floor::WithinTarget) => {
                    Say::Grant(GrantedBy::LocalRule)
                }
                (LocalRule::Target, _) => Say::Wait(HoldReason::VmLimit),
                (LocalRule::Hold, _) => Say::Wait(reason),
            },
        }
    }

    /// Who decides now. A controller that left may come back: a service that is restarted must not
    /// find that everything was given away in the second that it took.
    pub(crate) fn decider(&self, now: Instant) -> Decider {
        match self.controller {
            Controller::Attached => Decider::Controller,
            Controller::Left(when) if now.since(when) < self.grace => Decider::AbsentController,
            Controller::Never | Controller::Left(_) => Decider::LocalRule,
        }
    }

    /// Whether one is attached now.
    pub(crate) fn has_controller(&self) -> bool {
        self.controller == Controller::Attached
    }

    /// The local rule.
    pub(crate) fn rule(&self) -> LocalRule {
        self.rule
    }

    /// Another local rule. It judges anew what waits when that is asked for again.
    pub(crate) fn set_rule(&mut self, rule: LocalRule) {
        self.rule = rule;
        self.reopen();
    }

    /// A controller's word, or where there is none that of whoever steers by hand.
    pub(crate) fn decide(&mut self, ticket: u32, decision: Decision) -> Result<(), NoSuchTicket> {
        let pending = self.pending.as_mut().filter(|pending| pending.ticket == ticket);
        pending.ok_or(NoSuchTicket(ticket))?.state = match decision {
            Decision::Grant => State::Granted,
            Decision::Hold(reason) => State::Waiting(reason),
            Decision::Deny(reason) => State::Denied(reason),
        };
        Ok(())
    }

    /// What somebody else held before is open again.
    pub(crate) fn controller_attached(&mut self) {
        self.controller = Controller::Attached;
        self.reopen();
    }

    /// What the controller held is open again; what it granted or denied stands.
    pub(crate) fn controller_left(&mut self, now: Instant) {
        self.controller = Controller::Left(now);
        self.reopen();
    }

    fn reopen(&mut self) {
        if let Some(Pending { state: state @ State::Waiting(_), .. }) = &mut self.pending {
            *state = State::Waiting(HoldReason::Asking);
        }
    }

    /// Drops the question, and says which it was.
    pub(crate) fn cancel(&mut self) -> Option<u32> {
        self.pending.take().map(|pending| pending.ticket)
    }

    /// The ticket that is known, in whatever state.
    pub(crate) fn ticket(&self) -> Option<u32> {
        self.pending.as_ref().map(|pending| pending.ticket)
    }

    /// The ranges that are asked for.
    pub(crate) fn ranges(&self) -> &[GpaRange] {
        self.pending.as_ref().map_or(&[], |pending| &pending.ranges)
    }

    /// The question while it is open.
    pub(crate) fn open_question(&self, now: Instant) -> Option<PendingReturn> {
        self.pending.as_ref()?.view(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::Pfn;

    const GRACE: Duration = Duration::from_secs(60);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn wanted(ticket: u32, pfn: u32) -> ReturnRequest {
        let ranges = vec![GpaRange::of_pfn(Pfn(pfn))];
        ReturnRequest { ticket, urgency: Urgency::Pressure, ranges }
    }

    /// Asks above the minimum; the answer and the names of the events.
    fn ask(gate: &mut Gate, wanted: &ReturnRequest, now: Instant) -> (Say, Vec<String>) {
        let mut events = Vec::new();
        let say = gate.ask(wanted, Floor::Above, now, &mut events);
        let name = |event: &Event| match event {
            Event::ReturnAsked(pending) => format!("asked {}", pending.ticket),
            Event::ReturnCancelled { ticket } => format!("cancelled {ticket}"),
            other => panic!("the gate does not say {other:?}"),
        };
        (say, events.iter().map(name).collect())
    }

    const ASKING: Say = Say::Wait(HoldReason::Asking);

    #[test]
    fn a_question_is_told_once_and_its_answer_once() {
        let mut gate = Gate::new(LocalRule::Grant, GRACE);
        gate.controller_attached();
        assert_eq!(ask(&mut gate, &wanted(7, 1), at(0)), (ASKING, vec!["asked 7".into()]));
        assert_eq!(ask(&mut gate, &wanted(7, 1), at(250)), (ASKING, vec![]));
        assert_eq!(gate.open_question(at(400)).unwrap().waited, Duration::from_millis(400));
        gate.decide(7, Decision::Hold(HoldReason::HostBudget)).unwrap();
        assert_eq!(ask(&mut gate, &wanted(7, 1), at(500)).0, Say::Wait(HoldReason::HostBudget));
        gate.decide(7, Decision::Grant).unwrap();
        assert_eq!(ask(&mut gate, &wanted(7, 1), at(750)).0, Say::Grant(GrantedBy::Controller));
        assert_eq!(gate.decide(7, Decision::Grant), Err(NoSuchTicket(7)));
    }

    #[test]
    fn another_urgency_or_range_is_another_question() {
        let mut gate = Gate::new(LocalRule::Grant, GRACE);
        gate.controller_attached();
        ask(&mut gate, &wanted(7, 1), at(0));
        gate.decide(7, Decision::Hold(HoldReason::VmLimit)).unwrap();
        let urgent = ReturnRequest { urgency: Urgency::Emergency, ..wanted(7, 1) };
        assert_eq!(ask(&mut gate, &urgent, at(10)), (ASKING, vec!["asked 7".into()]));
        // A grant is for the blocks that were asked for, not for whatever the ticket names later.
        gate.decide(7, Decision::Grant).unwrap();
        assert_eq!(ask(&mut gate, &wanted(7, 2), at(20)), (ASKING, vec!["asked 7".into()]));
        let events = vec!["cancelled 7".into(), "asked 8".into()];
        assert_eq!(ask(&mut gate, &wanted(8, 2), at(30)), (ASKING, events));
    }

    #[test]
    fn a_grant_is_not_lost_when_the_guest_has_become_more_urgent() {
        let mut gate = Gate::new(LocalRule::Grant, GRACE);
        gate.controller_attached();
        ask(&mut gate, &wanted(7, 1), at(0));
        gate.decide(7, Decision::Grant).unwrap();
        let urgent = ReturnRequest { urgency: Urgency::Emergency, ..wanted(7, 1) };
        let granted = (Say::Grant(GrantedBy::Controller), vec![]);
        assert_eq!(ask(&mut gate, &urgent, at(10)), granted);
    }

    #[test]
    fn a_denied_ticket_is_told_and_gone() {
        let mut gate = Gate::new(LocalRule::Grant, GRACE);
        gate.controller_attached();
        ask(&mut gate, &wanted(1, 1), at(0));
        gate.decide(1, Decision::Deny(HoldReason::VmLimit)).unwrap();
        assert_eq!(ask(&mut gate, &wanted(1, 1), at(1)), (Say::Deny(HoldReason::VmLimit), vec![]));
        assert_eq!(gate.ticket(), None);
    }

    #[test]
    fn without_a_controller_the_local_rule_decides() {
        let mut grants = Gate::new(LocalRule::Grant, GRACE);
        let granted = (Say::Grant(GrantedBy::LocalRule), vec![]);
        assert_eq!(ask(&mut grants, &wanted(1, 1), at(0)), granted);
        let mut holds = Gate::new(LocalRule::Hold, GRACE);
        assert_eq!(ask(&mut holds, &wanted(1, 1), at(0)), (ASKING, vec!["asked 1".into()]));
        assert_eq!(ask(&mut holds, &wanted(1, 1), at(1_000_000)), (ASKING, vec![]));
    }

    #[test]
    fn the_target_is_a_limit_where_the_rule_says_so() {
        let mut gate = Gate::new(LocalRule::Target, GRACE);
        let mut events = Vec::new();
        let mut ask = |gate: &mut Gate, floor| gate.ask(&wanted(1, 1), floor, at(0), &mut events);
        assert_eq!(ask(&mut gate, Floor::WithinTarget), Say::Grant(GrantedBy::LocalRule));
        assert_eq!(ask(&mut gate, Floor::Above), Say::Wait(HoldReason::VmLimit));
        assert_eq!(ask(&mut gate, Floor::Above), Say::Wait(HoldReason::VmLimit));
        gate.set_rule(LocalRule::Hold);
        assert_eq!(ask(&mut gate, Floor::WithinTarget), ASKING, "the new rule's own reason");
        gate.controller_attached();
        assert_eq!(gate.decider(at(0)), Decider::Controller);
        assert_eq!(ask(&mut gate, Floor::WithinTarget), ASKING, "a controller is asked");
        assert_eq!(ask(&mut gate, Floor::WithinMinimum), Say::Grant(GrantedBy::Minimum));
    }

    #[test]
    fn a_person_decides_what_the_rule_holds() {
        let mut gate = Gate::new(LocalRule::Hold, GRACE);
        ask(&mut gate, &wanted(1, 1), at(0));
        gate.decide(1, Decision::Hold(HoldReason::HostPressure)).unwrap();
        assert_eq!(ask(&mut gate, &wanted(1, 1), at(1)).0, Say::Wait(HoldReason::HostPressure));
        gate.decide(1, Decision::Grant).unwrap();
        assert_eq!(ask(&mut gate, &wanted(1, 1), at(2)).0, Say::Grant(GrantedBy::Controller));
        assert_eq!(gate.decider(at(3)), Decider::LocalRule, "nobody is waited for after it");
    }

    #[test]
    fn a_controller_that_left_is_waited_for_and_then_not() {
        let mut gate = Gate::new(LocalRule::Grant, GRACE);
        gate.controller_attached();
        ask(&mut gate, &wanted(3, 1), at(0));
        gate.decide(3, Decision::Hold(HoldReason::HostBudget)).unwrap();
        gate.controller_left(at(1000));
        assert_eq!(ask(&mut gate, &wanted(3, 1), at(60_999)), (ASKING, vec![]));
        let granted = (Say::Grant(GrantedBy::LocalRule), vec![]);
        assert_eq!(ask(&mut gate, &wanted(3, 1), at(61_000)), granted);
    }

    #[test]
    fn a_grant_outlives_its_controller() {
        let mut gate = Gate::new(LocalRule::Hold, GRACE);
        gate.controller_attached();
        ask(&mut gate, &wanted(3, 1), at(0));
        gate.decide(3, Decision::Grant).unwrap();
        gate.controller_left(at(1));
        assert_eq!(ask(&mut gate, &wanted(3, 1), at(2)).0, Say::Grant(GrantedBy::Controller));
    }

    #[test]
    fn the_guaranteed_minimum_asks_nobody() {
        let mut gate = Gate::new(LocalRule::Hold, GRACE);
        gate.controller_attached();
        let mut events = Vec::new();
        let say = gate.ask(&wanted(1, 1), Floor::WithinMinimum, at(0), &mut events);
        assert_eq!((say, events), (Say::Grant(GrantedBy::Minimum), vec![]));
    }
}
