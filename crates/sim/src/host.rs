//! The device and the host behind it: the production ledger, gate and targets, in good and bad moods.
//!
//! The device is reduced to what an agent can tell of it: a report is answered once the backing is
//! dropped; a return is granted below the minimum at once, otherwise when the gate says so; a notice
//! tells that the gate has decided. Each request takes some milliseconds.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use memtide_policy::guest::Urgency;
use memtide_policy::host::{
    Ask, Budget, Gate, Holdings, HostMemory, HostObservation, Ledger, Limits, TargetPolicy,
    Urgency as HostUrgency, VmId, Word,
};
use memtide_units::{BlockId, BlockSize, ByteSize, Instant};

use crate::chance::{Chance, Stream};

/// The only VM that is told; others are a budget that they use up.
const VM: VmId = VmId(1);
/// A question that is on its way to the gate is asked again after so long, one that is held after
/// that (crates/balloon/src/requests.rs).
const RETRY_ASKING: Duration = Duration::from_millis(250);
const RETRY_HELD: Duration = Duration::from_secs(1);
/// A host that is never short itself: what it gives is its budget.
const PLENTY: HostMemory =
    HostMemory { total: ByteSize::from_gib(1024), available: ByteSize::from_gib(900) };

/// How the host is disposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// There is room for everybody.
    Willing,
    /// Others have taken what was free: returns are held.
    Tight,
    /// The host is so short that it asks for more.
    Squeezing,
    /// The device denies returns.
    Denying,
    /// Nobody decides: the device answers that it has asked.
    Undecided,
    /// The device answers nothing.
    Dead,
}

impl fmt::Display for Mood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Willing => "the host is willing",
            Self::Tight => "the host has nothing left",
            Self::Squeezing => "the host is short",
            Self::Denying => "the host denies returns",
            Self::Undecided => "nobody decides",
            Self::Dead => "the device is dead",
        })
    }
}

/// What an agent asks of its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who it is, and what is stolen.
    Hello {
        /// What is offline by its doing.
        stolen: Vec<BlockId>,
    },
    /// This block is offline.
    Steal(BlockId),
    /// May these come back?
    Return {
        /// The question's number.
        ticket: u32,
        /// All of them or none.
        blocks: Vec<BlockId>,
        /// How badly.
        urgency: Urgency,
    },
    /// The ticket is not wanted any more.
    Cancel {
        /// Its number.
        ticket: u32,
    },
    /// These are online, unasked.
    Taken(Vec<BlockId>),
}

/// What the device says about a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Granted,
    /// Not now.
    Held {
        /// Ask again then.
        retry: Duration,
    },
    /// It was asked on; ask again.
    Asking {
        /// Then.
        retry: Duration,
    },
    /// No.
    Denied,
}

/// What the device says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It knows the agent; these are booked as stolen.
    Welcome {
        /// What the hello named.
        stolen: Vec<BlockId>,
    },
    /// The block's backing is gone.
    Dropped(BlockId),
    /// About a return.
    Return {
        /// The question's number.
        ticket: u32,
        /// What was asked for.
        blocks: Vec<BlockId>,
        /// The answer.
        verdict: Verdict,
    },
    /// Something has moved: ask again.
    Notice,
    /// It was dead and lives again: everything that was asked is forgotten.
    Alive,
}

/// The device and its host.
#[derive(Debug)]
pub struct Host {
    unit: BlockSize,
    present: ByteSize,
    min: ByteSize,
    ledger: Ledger,
    gate: Gate,
    targets: TargetPolicy,
    budget: ByteSize,
    mood: Mood,
    chance: Chance,
    inbox: VecDeque<(Instant, Request)>,
    outbox: VecDeque<Reply>,
    /// Blocks whose backing is gone and that the guest must not use.
    dropped: BTreeSet<BlockId>,
    granted: Option<u32>,
    balloon: ByteSize,
}

impl Host {
    /// A host with room for a VM of `present` bytes, which is guaranteed `min`.
    pub fn new(seed: u64, unit: BlockSize, present: ByteSize, min: ByteSize) -> Self {
        let mut ledger = Ledger::default();
        let limits = Limits::new(min, ByteSize::MAX).unwrap_or(Limits::NONE);
        ledger.open(VM, limits);
        let mut host = Self {
            unit,
            present,
            min,
            ledger,
            gate: Gate::default(),
            targets: TargetPolicy::default(),
            budget: present,
            mood: Mood::Willing,
            chance: Chance::of(seed, Stream::Host),
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            dropped: BTreeSet::new(),
            granted: None,
            balloon: ByteSize::ZERO,
        };
        host.observe();
        host
    }

    /// How it is disposed.
    pub fn mood(&self) -> Mood {
        self.mood
    }

    /// From now on it is disposed like this.
    pub fn set_mood(&mut self, mood: Mood) {
        if self.mood == Mood::Dead && mood != Mood::Dead {
            self.inbox.clear();
            self.outbox.push_back(Reply::Alive);
        }
        self.budget = match mood {
            Mood::Tight => self.ledger.committed(),
            Mood::Squeezing => {
                self.ledger.committed() - ByteSize::from_bytes(self.present.bytes() / 8)
            }
            Mood::Willing | Mood::Denying | Mood::Undecided | Mood::Dead => self.present,
        };
        self.mood = mood;
    }

    /// What the host wants to have in the balloon.
    pub fn balloon(&self) -> ByteSize {
        self.balloon
    }

    /// Blocks whose backing is gone.
    pub fn dropped(&self) -> &BTreeSet<BlockId> {
        &self.dropped
    }

    /// A request arrives, some milliseconds after it was sent.
    pub fn post(&mut self, now: Instant, request: Request) {
        let takes = Duration::from_millis(self.chance.between(2, 60));
        // The queue keeps its order.
        let at = self.inbox.back().map_or(now + takes, |(last, _)| (now + takes).max(*last));
        self.inbox.push_back((at, request));
    }

    /// The agent of these requests is gone, and its queues with it.
    pub fn lost_agent(&mut self) {
        self.inbox.clear();
        self.outbox.clear();
        self.granted = None;
        self.gate.forgotten(VM);
    }

    /// One tick; answers with what the device says in it.
    pub fn tick(&mut self, now: Instant) -> Vec<Reply> {
        if self.mood == Mood::Dead {
            return Vec::new();
        }
        while self.inbox.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, request)) = self.inbox.pop_front() else { break };
            self.take(now, request);
        }
        if self.mood != Mood::Undecided {
            self.decide(now);
        }
        self.outbox.drain(..).collect()
    }

    fn take(&mut self, now: Instant, request: Request) {
        match request {
            Request::Hello { stolen } => {
                self.gate.forgotten(VM);
                self.granted = None;
                self.dropped = stolen.iter().copied().collect();
                self.observe();
                self.outbox.push_back(Reply::Welcome { stolen });
            }
            Request::Steal(block) => {
                self.dropped.insert(block);
                self.book();
                self.outbox.push_back(Reply::Dropped(block));
            }
            Request::Return { ticket, blocks, urgency } => {
                let verdict = self.judge(now, ticket, &blocks, urgency);
                if verdict == Verdict::Granted {
                    self.hand_over(&blocks);
                    self.gate.carried_out(VM, ticket);
                    self.granted = None;
                }
                self.outbox.push_back(Reply::Return { ticket, blocks, verdict });
            }
            Request::Cancel { ticket } => {
                self.gate.withdrawn(VM, ticket);
                self.granted = self.granted.filter(|granted| *granted != ticket);
            }
            Request::Taken(blocks) => {
                self.hand_over(&blocks);
                self.targets.eased(VM, self.unit.size().times(self.dropped.len() as u64));
            }
        }
    }

    fn judge(
        &mut self,
        now: Instant,
        ticket: u32,
        blocks: &[BlockId],
        urgency: Urgency,
    ) -> Verdict {
        let bytes = self.unit.size().times(blocks.len() as u64);
        if self.online() + bytes <= self.min {
            return Verdict::Granted;
        }
        match self.mood {
            Mood::Denying => return Verdict::Denied,
            Mood::Undecided | Mood::Dead => return Verdict::Asking { retry: RETRY_ASKING },
            Mood::Willing | Mood::Tight | Mood::Squeezing => {}
        }
        let urgency = for_the_gate(urgency);
        self.gate.asked(Ask { vm: VM, ticket, bytes, urgency, since: now });
        self.decide(now);
        let is_granted = self.granted == Some(ticket);
        if is_granted { Verdict::Granted } else { Verdict::Held { retry: RETRY_HELD } }
    }

    /// The gate and the targets look at the ledger.
    fn decide(&mut self, now: Instant) {
        let budget = Budget::Given(self.budget);
        let seen = HostObservation { ledger: &self.ledger, budget, memory: PLENTY };
        let plan = self.gate.step(now, &seen);
        let targets = self.targets.step(now, &seen, &self.gate, &plan.report);
        for decision in plan.decisions {
            if decision.word == Word::Grant {
                self.granted = Some(decision.ticket);
                self.outbox.push_back(Reply::Notice);
            }
        }
        let wanted = targets.targets.first().map_or(self.balloon, |target| target.balloon);
        if wanted != self.balloon {
            self.balloon = wanted;
            self.outbox.push_back(Reply::Notice);
        }
    }

    fn hand_over(&mut self, blocks: &[BlockId]) {
        blocks.iter().for_each(|block| _ = self.dropped.remove(block));
        self.book();
    }

    /// What the VM may use without asking.
    fn online(&self) -> ByteSize {
        self.present - self.unit.size().times(self.dropped.len() as u64)
    }

    fn book(&mut self) {
        let stolen = self.unit.size().times(self.dropped.len() as u64);
        self.ledger.stolen_is(VM, stolen);
    }

    fn observe(&mut self) {
        let stolen = self.unit.size().times(self.dropped.len() as u64);
        let resident = self.present - stolen;
        let holdings = Holdings {
            memory: self.present,
            stolen,
            resident,
            at_least: resident,
            unit: self.unit.size(),
            answers_targets: true,
            ..Holdings::NONE
        };
        self.ledger.observed(VM, holdings);
    }
}

fn for_the_gate(urgency: Urgency) -> HostUrgency {
    match urgency {
        Urgency::Comfort => HostUrgency::Comfort,
        Urgency::Pressure => HostUrgency::Pressure,
        Urgency::Emergency => HostUrgency::Emergency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    /// A host of a VM of 1 GiB, of which two blocks are stolen.
    fn host() -> Host {
        let mut host = Host::new(1, BlockSize::X86_SMALL, mib(1024), mib(256));
        let stolen = vec![BlockId(6), BlockId(7)];
        host.post(Instant::default(), Request::Hello { stolen: stolen.clone() });
        assert_eq!(at(&mut host, 100), [Reply::Welcome { stolen }]);
        host
    }

    fn at(host: &mut Host, ms: u64) -> Vec<Reply> {
        host.tick(Instant::from_millis(ms))
    }

    fn ask(host: &mut Host, ms: u64) -> Vec<Reply> {
        let (blocks, urgency) = (vec![BlockId(6)], Urgency::Pressure);
        host.post(Instant::from_millis(ms), Request::Return { ticket: 9, blocks, urgency });
        at(host, ms + 100)
    }

    fn verdict(replies: &[Reply]) -> Verdict {
        let verdict = |reply: &Reply| match reply {
            Reply::Return { ticket: 9, verdict, .. } => Some(*verdict),
            _ => None,
        };
        replies.iter().find_map(verdict).unwrap()
    }

    #[test]
    fn a_willing_host_grants_and_a_tight_one_holds_until_it_is_willing() {
        let mut host = host();
        assert_eq!(verdict(&ask(&mut host, 200)), Verdict::Granted);
        assert_eq!(host.dropped().len(), 1);
        let mut host = self::host();
        host.set_mood(Mood::Tight);
        assert_eq!(verdict(&ask(&mut host, 200)), Verdict::Held { retry: RETRY_HELD });
        assert_eq!(host.dropped().len(), 2);
        host.set_mood(Mood::Willing);
        assert_eq!(at(&mut host, 1_000), [Reply::Notice]);
        assert_eq!(verdict(&ask(&mut host, 1_050)), Verdict::Granted);
    }

    #[test]
    fn a_short_host_asks_for_more_and_a_dead_device_says_nothing_until_it_lives() {
        let mut host = host();
        host.set_mood(Mood::Squeezing);
        assert_eq!(at(&mut host, 200), [Reply::Notice]);
        assert!(host.balloon() > mib(256));
        host.set_mood(Mood::Dead);
        assert_eq!(ask(&mut host, 300), []);
        host.set_mood(Mood::Undecided);
        assert_eq!(at(&mut host, 600), [Reply::Alive]);
        let asking = Verdict::Asking { retry: RETRY_ASKING };
        assert_eq!(verdict(&ask(&mut host, 700)), asking);
        host.set_mood(Mood::Denying);
        assert_eq!(verdict(&ask(&mut host, 900)), Verdict::Denied);
    }
}
