//! The host's decisions, fed by devices and operators that say anything: sizes without measure, asks
//! that were never asked, time in leaps.
//!
//! What is granted stays within the budget, or within what the VM is guaranteed, and within its
//! limit; nobody out of reach is granted anything; a balloon is never larger than its VM.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use memtide_policy::host::{
    Ask, Budget, Gate, Holdings, HostMemory, HostObservation, Ledger, Limits, Link, TargetPolicy,
    Urgency, VmId, Word,
};
use memtide_units::{ByteSize, Instant};

use crate::meter;

const MEMORY_MAX: usize = 256 << 10;
const STEPS_MAX: usize = 64;
/// Few, so that they meet.
const VMS: u8 = 5;

/// A size near those of others, or any.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Size {
    Blocks(u8),
    Near(u8, i8),
    Any(u64),
}

impl Size {
    fn get(self) -> ByteSize {
        match self {
            Self::Blocks(count) => ByteSize::from_mib(128).times(count.into()),
            Self::Near(shift, by) => {
                ByteSize::from_bytes((1_u64 << (shift % 64)).wrapping_add_signed(by.into()))
            }
            Self::Any(bytes) => ByteSize::from_bytes(bytes),
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    Open { vm: u8, min: Size, max: Size },
    Limits { vm: u8, min: Size, max: Size },
    Observed { vm: u8, memory: Size, given: [Size; 2], resident: [Size; 2], answers: bool },
    Stolen { vm: u8, stolen: Size },
    Balloon { vm: u8, balloon: Size },
    Lost(u8),
    Gone(u8),
    Ask { vm: u8, ask: Question },
    Confirmed { vm: u8, open: Option<Question> },
    Reattached { vm: u8, open: Option<Question> },
    Withdrawn { vm: u8, ticket: u8 },
    CarriedOut { vm: u8, ticket: u8 },
    Forgotten(u8),
    Keep { vm: u8, keep: Option<Size> },
    Resume { vm: u8, squeezed: Size },
    Eased { vm: u8, given_up: Size },
    Budget(Option<Size>),
    Memory { total: Size, available: Size },
    Wait(u32),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
struct Question {
    ticket: u8,
    bytes: Size,
    urgency: u8,
    ago: u16,
}

struct Host {
    ledger: Ledger,
    gate: Gate,
    targets: TargetPolicy,
    budget: Budget,
    memory: HostMemory,
    now: Instant,
}

/// Carries out the steps in `data`.
pub fn run(data: &[u8]) {
    meter::within(MEMORY_MAX, || {
        let mut input = Unstructured::new(data);
        let total = ByteSize::from_gib(64);
        let mut host = Host {
            ledger: Ledger::default(),
            gate: Gate::default(),
            targets: TargetPolicy::default(),
            budget: Budget::Given(ByteSize::from_gib(8)),
            memory: HostMemory { total, available: total },
            now: Instant::from_millis(100_000),
        };
        for _ in 0..STEPS_MAX {
            let Ok(step) = Step::arbitrary(&mut input) else { break };
            host.happen(&step);
            host.decide();
            if input.is_empty() {
                break;
            }
        }
    });
}

fn vm(number: u8) -> VmId {
    VmId((number % VMS).into())
}

fn limits(min: Size, max: Size) -> Limits {
    Limits::new(min.get(), max.get()).unwrap_or(Limits::NONE)
}

impl Host {
    fn ask(&self, number: u8, question: Question) -> Ask {
        let all = [Urgency::Comfort, Urgency::Pressure, Urgency::Emergency];
        let ms = self.now.as_millis().saturating_sub(question.ago.into());
        Ask {
            vm: vm(number),
            ticket: (question.ticket % 4).into(),
            bytes: question.bytes.get(),
            urgency: all[usize::from(question.urgency) % 3],
            since: Instant::from_millis(ms),
        }
    }

    fn happen(&mut self, step: &Step) {
        match *step {
            Step::Open { vm: n, min, max } => self.ledger.open(vm(n), limits(min, max)),
            Step::Limits { vm: n, min, max } => self.ledger.set_limits(vm(n), limits(min, max)),
            Step::Observed { vm: n, memory, given, resident, answers } => {
                let [stolen, balloon] = given.map(Size::get);
                let [resident, at_least] = resident.map(Size::get);
                let holdings = Holdings {
                    memory: memory.get(),
                    stolen,
                    balloon,
                    resident,
                    at_least,
                    answers_targets: answers,
                    ..Holdings::NONE
                };
                self.ledger.observed(vm(n), holdings);
            }
            Step::Stolen { vm: n, stolen } => self.ledger.stolen_is(vm(n), stolen.get()),
            Step::Balloon { vm: n, balloon } => self.ledger.balloon_is(vm(n), balloon.get()),
            Step::Lost(n) => {
                self.ledger.lost(vm(n));
                self.gate.lost(vm(n));
            }
            Step::Gone(n) => {
                self.ledger.gone(vm(n));
                self.gate.forgotten(vm(n));
            }
            Step::Budget(budget) => {
                self.budget = budget.map_or(Budget::Host, |size| Budget::Given(size.get()));
            }
            Step::Memory { total, available } => {
                self.memory = HostMemory { total: total.get(), available: available.get() };
            }
            Step::Wait(ms) => self.now = self.now + Duration::from_millis(ms.into()),
            _ => self.question(step),
        }
    }

    fn question(&mut self, step: &Step) {
        match *step {
            Step::Ask { vm, ask } => self.gate.asked(self.ask(vm, ask)),
            Step::Confirmed { vm: n, open } => {
                self.gate.confirmed(self.now, vm(n), open.map(|open| self.ask(n, open)));
            }
            Step::Reattached { vm: n, open } => {
                self.gate.reattached(vm(n), open.map(|open| self.ask(n, open)));
            }
            Step::Withdrawn { vm: n, ticket } => self.gate.withdrawn(vm(n), (ticket % 4).into()),
            Step::CarriedOut { vm: n, ticket } => self.gate.carried_out(vm(n), (ticket % 4).into()),
            Step::Forgotten(n) => self.gate.forgotten(vm(n)),
            Step::Keep { vm: n, keep } => self.targets.set_keep(vm(n), keep.map(Size::get)),
            Step::Resume { vm: n, squeezed } => self.targets.resume(vm(n), squeezed.get()),
            Step::Eased { vm: n, given_up } => self.targets.eased(vm(n), given_up.get()),
            _ => {}
        }
    }

    fn decide(&mut self) {
        let asks: Vec<Ask> =
            (0..VMS).filter_map(|number| self.gate.open(vm(number)).copied()).collect();
        let mut held = self.ledger.committed() + self.gate.promised();
        let seen =
            HostObservation { ledger: &self.ledger, budget: self.budget, memory: self.memory };
        let budget = seen.budget_bytes();
        let plan = self.gate.step(self.now, &seen);
        for decision in plan.decisions.iter().filter(|decision| decision.word == Word::Grant) {
            let ask = asks.iter().find(|ask| ask.vm == decision.vm).expect("somebody asked");
            assert_eq!(ask.ticket, decision.ticket);
            let account = self.ledger.account(ask.vm).expect("it has an account");
            assert_eq!(account.link, Link::Connected, "it cannot be told");
            held += ask.bytes;
            let holds = account.committed() + ask.bytes;
            // Nothing is always there.
            let is_guaranteed = holds <= account.limits.min() || ask.bytes.is_zero();
            assert!(is_guaranteed || held <= budget, "{ask:?}: {held} of {budget}");
            assert!(is_guaranteed || holds <= account.limits.max(), "{ask:?}: over its limit");
        }
        for held in &plan.report {
            assert!(!held.obstacle.to_string().is_empty());
        }
        let targets = self.targets.step(self.now, &seen, &self.gate, &plan.report);
        for target in targets.targets {
            let account = self.ledger.account(target.vm).expect("it has an account");
            assert!(target.balloon <= account.holdings.memory, "{target:?} of {account:?}");
        }
    }
}
