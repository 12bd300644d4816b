//! The gate: who gets memory back, who waits, and why.
//!
//! A return is granted whole or held whole. Those at the gate stand in a line: by urgency, then by
//! waiting time, and waiting raises urgency, so that nobody waits behind newcomers for ever. A
//! return that does not fit lets smaller ones pass for a while and then keeps what becomes free.
//!
//! ```text
//!            asked                 step: there is room
//! (nothing) -------> Waiting ------------------------------> Promised -- carried out --> (nothing)
//!                    ^     |  step: an obstacle                  |
//!                    +-----+  (told when the reason changes)     +-- withdrawn, forgotten --> (nothing)
//! ```
//!
//! What is promised counts as held by its VM from the decision on, until the ledger shows it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::time::Duration;

use memtide_units::{ByteSize, Instant};

use super::obstacle::{HoldReason, Obstacle};
use super::room::{RESERVE_AFTER, Room};
use super::{HostObservation, Link, Tally, VmId};

/// Waiting for so long counts as one step of urgency.
const AGE_STEP: Duration = Duration::from_secs(30);
/// A promise that the device shows no trace of is forgotten after so long. An agent asks again
/// within a second of a decision; ten cover one that is starved of processor time.
const PROMISE_TTL: Duration = Duration::from_secs(10);

/// How badly a return is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Room for growth that nobody waits for.
    Comfort,
    /// The guest is under pressure.
    Pressure,
    /// The guest is about to run out of memory.
    Emergency,
}

/// A return that a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whose.
    pub vm: VmId,
    /// The guest's number for it; a VM has one open at a time.
    pub ticket: u32,
    /// How much.
    pub bytes: ByteSize,
    /// How badly.
    pub urgency: Urgency,
    /// Since when.
    pub since: Instant,
}

/// What a device is to be told about a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The guest may have it.
    Grant,
    /// Not yet.
    Hold(HoldReason),
}

/// One decision, for the device to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whose return.
    pub vm: VmId,
    /// Which: a device that has another one open by now ignores the decision.
    pub ticket: u32,
    /// What about it.
    pub word: Word,
}

/// A return that is held after this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub ask: Ask,
    /// For how long by now.
    pub waited: Duration,
    /// What is in the way; its text explains.
    pub obstacle: Obstacle,
}

/// What follows from one observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is new to tell, in the order of the line.
    pub decisions: Vec<Decision>,
    /// When time alone can change something: step again then at the latest.
    pub wait: Option<Duration>,
    /// Everything that is held, in the order of the line.
    pub report: Vec<Held>,
}

#[derive(Clone, Copy, Debug)]
enum Standing {
    Waiting { told: Option<HoldReason> },
    Promised { at: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    ask: Ask,
    standing: Standing,
    /// It has been held at least once: counted already.
    was_held: bool,
    /// It has been granted before, and was changed before the guest had heard it: counted already.
    was_granted: bool,
}

impl Entry {
    fn new(ask: Ask) -> Self {
        Self {
            ask,
            standing: Standing::Waiting { told: None },
            was_held: false,
            was_granted: false,
        }
    }

    /// The same question put anew: what it asks may have changed, since when it waits has not.
    fn anew(self, ask: Ask) -> Self {
        let since = self.ask.since.min(ask.since);
        Self { ask: Ask { since, ..ask }, standing: Standing::Waiting { told: None }, ..self }
    }
}

/// The line at the gate, and what was promised.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    entries: BTreeMap<VmId, Entry>,
    tallies: BTreeMap<VmId, Tally>,
}

impl Gate {
    /// A guest asks. The same ticket with another size or urgency keeps its waiting time; another
    /// ticket takes the place of the one before.
    pub fn asked(&mut self, ask: Ask) {
        let known = self.entries.get(&ask.vm).filter(|entry| entry.ask.ticket == ask.ticket);
        let entry = match known {
            Some(entry) if entry.ask.bytes == ask.bytes && entry.ask.urgency == ask.urgency => {
                return;
            }
            Some(entry) => entry.anew(ask),
            None => {
                self.tally_mut(ask.vm).asked += 1;
                Entry::new(ask)
            }
        };
        self.entries.insert(ask.vm, entry);
    }

    /// The guest took its question back, or the device does not know the ticket.
    pub fn withdrawn(&mut self, vm: VmId, ticket: u32) {
        if self.entries.get(&vm).is_some_and(|entry| entry.ask.ticket == ticket) {
            self.entries.remove(&vm);
        }
    }

    /// The guest has the memory. A return that the device granted by itself is counted here.
    pub fn carried_out(&mut self, vm: VmId, ticket: u32) {
        let entry = self.entries.get(&vm).filter(|entry| entry.ask.ticket == ticket).copied();
        match entry.map(|entry| entry.standing) {
            Some(Standing::Promised { .. }) => {}
            Some(Standing::Waiting { .. }) if entry.is_some_and(|entry| entry.was_granted) => {}
            Some(Standing::Waiting { .. }) => self.tally_mut(vm).granted += 1,
            None => {
                let tally = self.tally_mut(vm);
                tally.asked += 1;
                tally.granted += 1;
            }
        }
        self.withdrawn(vm, ticket);
    }

    /// What a device's status says is open, while the connection has been up: catches up with
    /// whatever was missed. A promise is kept for a while though its ticket has gone, because a
    /// device may cease to call a granted return open before the guest has fetched it.
    pub fn confirmed(&mut self, now: Instant, vm: VmId, open: Option<Ask>) {
        match (open, self.entries.get(&vm).copied()) {
            (Some(ask), _) => self.asked(ask),
            (None, Some(entry)) => {
                let keep = matches!(entry.standing, Standing::Promised { at }
                    if now.since(at) < PROMISE_TTL);
                if !keep {
                    self.entries.remove(&vm);
                }
            }
            (None, None) => {}
        }
    }

    /// A new connection to the device: nobody knows which of our words it heard, so all that is
    /// open is judged and told again.
    pub fn reattached(&mut self, vm: VmId, open: Option<Ask>) {
        let before = self.entries.remove(&vm);
        match (open, before) {
            (Some(ask), Some(entry)) if entry.ask.ticket == ask.ticket => {
                self.entries.insert(vm, entry.anew(ask));
            }
            (Some(ask), _) => self.asked(ask),
            (None, _) => {}
        }
    }

    /// The device is out of reach. What waits cannot be answered and stands in nobody's way; what
    /// was promised may be taken at any moment and counts on.
    pub fn lost(&mut self, vm: VmId) {
        if matches!(self.entries.get(&vm), Some(Entry { standing: Standing::Waiting { .. }, .. })) {
            self.entries.remove(&vm);
        }
    }

    /// There is no such VM any more, or a new agent that knows of no question.
    pub fn forgotten(&mut self, vm: VmId) {
        self.entries.remove(&vm);
    }

    /// What was promised and is not in the ledger yet.
    pub fn promised(&self) -> ByteSize {
        self.entries
            .values()
            .filter(|entry| matches!(entry.standing, Standing::Promised { .. }))
            .map(|entry| entry.ask.bytes)
            .sum()
    }

    /// The return that a VM has open, waiting or promised.
    pub fn open(&self, vm: VmId) -> Option<&Ask> {
        self.entries.get(&vm).map(|entry| &entry.ask)
    }

    /// What was done for a VM so far.
    pub fn tally(&self, vm: VmId) -> Tally {
        self.tallies.get(&vm).copied().unwrap_or_default()
    }

    /// Decides on everything that waits. Grants of one step are accounted against each other.
    pub fn step(&mut self, now: Instant, seen: &HostObservation<'_>) -> Plan {
        let mut room = Room::new(seen, self.promised());
        let mut plan = Plan::default();
        for ask in self.line(now, seen) {
            let waited = now.since(ask.since);
            match room.judge(&ask, waited) {
                Ok(()) => self.grant(now, &ask, &mut plan),
                Err(obstacle) => self.hold(Held { ask, waited, obstacle }, &mut plan),
            }
        }
        plan.wait = self.next_change(now);
        plan
    }

    /// Those who wait and can be answered, first come first.
    fn line(&self, now: Instant, seen: &HostObservation<'_>) -> Vec<Ask> {
        let answerable =
            |vm| seen.ledger.account(vm).is_some_and(|account| account.link == Link::Connected);
        let mut line: Vec<Ask> = self
            .entries
            .values()
            .filter(|entry| matches!(entry.standing, Standing::Waiting { .. }))
            .map(|entry| entry.ask)
            .filter(|ask| answerable(ask.vm))
            .collect();
        line.sort_by_key(|ask| (Reverse(rank(ask, now)), ask.since, ask.vm));
        line
    }

    fn grant(&mut self, now: Instant, ask: &Ask, plan: &mut Plan) {
        let Some(entry) = self.entries.get_mut(&ask.vm) else { return };
        entry.standing = Standing::Promised { at: now };
        if !core::mem::replace(&mut entry.was_granted, true) {
            self.tally_mut(ask.vm).granted += 1;
        }
        plan.decisions.push(Decision { vm: ask.vm, ticket: ask.ticket, word: Word::Grant });
    }

    fn hold(&mut self, held: Held, plan: &mut Plan) {
        let (ask, reason) = (held.ask, held.obstacle.reason());
        self.tally_mut(ask.vm).held_for(held.waited);
        plan.report.push(held);
        let Some(entry) = self.entries.get_mut(&ask.vm) else { return };
        let told = Standing::Waiting { told: Some(reason) };
        let is_news =
            !matches!(entry.standing, Standing::Waiting { told: Some(old) } if old == reason);
        let is_first = !core::mem::replace(&mut entry.was_held, true);
        entry.standing = told;
        if is_news {
            let word = Word::Hold(reason);
            plan.decisions.push(Decision { vm: ask.vm, ticket: ask.ticket, word });
        }
        if is_first {
            self.tally_mut(ask.vm).held += 1;
        }
    }

    fn next_change(&self, now: Instant) -> Option<Duration> {
        self.entries.values().filter_map(|entry| until_change(entry, now)).min()
    }

    fn tally_mut(&mut self, vm: VmId) -> &mut Tally {
        self.tallies.entry(vm).or_default()
    }
}

/// Urgency, raised by waiting.
fn rank(ask: &Ask, now: Instant) -> u128 {
    let steps = now.since(ask.since).as_millis() / AGE_STEP.as_millis();
    (ask.urgency as u128 + steps).min(Urgency::Emergency as u128)
}

/// When time alone changes an entry's place or rights.
fn until_change(entry: &Entry, now: Instant) -> Option<Duration> {
    let waited = now.since(entry.ask.since);
    match entry.standing {
        Standing::Promised { .. } => None,
        Standing::Waiting { .. } => [RESERVE_AFTER, AGE_STEP, AGE_STEP * 2]
            .into_iter()
            .filter_map(|at| at.checked_sub(waited).filter(|rest| !rest.is_zero()))
            .min(),
    }
}
