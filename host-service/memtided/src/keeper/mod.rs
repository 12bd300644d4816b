//! The keeper: all state in one place, changed by one message after the other.
//!
//! It knows no socket and no clock. It is told what devices, clients and the host's kernel say, and
//! [`Keeper::step`] answers with what devices are to be told. What is granted, held or asked back
//! is decided by `memtide_policy::host`; the keeper translates between its words and the API's.

mod access;
mod changes;
mod dimms;
mod hearing;
mod lines;
mod plugging;
mod ranges;
mod view;

pub use changes::Refused;
pub(crate) use plugging::VmOrder;

use std::collections::BTreeMap;

use memtide_api::device::{Decision, DeviceStatus, Request};
use memtide_api::http::{Budget, VmState};
use memtide_policy::host::{
    self, Gate, Held, HostMemory, HostObservation, Ledger, Limits, TargetPolicy, VmId, Word,
};
use memtide_units::{ByteSize, Instant, Pfn};

use crate::config::{Config, VmConfig};
use crate::store::{Change, Memory, MinMax, VmMemory};
use lines::Lines;
use plugging::Plugging;

/// What a device is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Whose device.
    pub vm: VmId,
    /// What.
    pub request: Request,
}

/// What follows from a message.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be sent, in this order.
    pub sends: Vec<Send>,
    /// Step again after so long at the latest.
    pub wait: Option<std::time::Duration>,
    /// For the VMs' monitors.
    pub(crate) orders: Vec<VmOrder>,
    /// What is to be kept should be written now, not with the next tick.
    pub(crate) keep: bool,
}

/// One VM: what the policy does not need to know of it.
#[derive(Debug)]
struct Vm {
    name: String,
    configured: Limits,
    state: VmState,
    device: Option<Box<DeviceStatus>>,
    held: Option<Held>,
    /// Its device was asked how it is, and the answer is on its way.
    asked: bool,
    /// Blocks taken unasked, as often as it happened.
    taken: u64,
    /// The balloon that the policy wants, and the one that the device was told.
    wanted: ByteSize,
    told: Option<ByteSize>,
    lines: Lines,
    access: access::Access,
    plugging: Plugging,
}

/// All state of memtided.
#[derive(Debug)]
pub struct Keeper {
    vms: Vec<Vm>,
    ledger: Ledger,
    gate: Gate,
    targets: TargetPolicy,
    configured_budget: Budget,
    budget: Budget,
    memory: HostMemory,
    /// Requests that wait for the next step.
    outbox: Vec<Send>,
    /// The same for the VMs' monitors.
    orders: Vec<VmOrder>,
    /// What was heard since must be in the file soon.
    keep_soon: bool,
}

impl Keeper {
    /// Opens the books for the VMs of `config`, with what an earlier life kept.
    pub fn new(config: &Config, kept: &Memory, memory: HostMemory) -> Self {
        let mut keeper = Self {
            vms: Vec::new(),
            ledger: Ledger::default(),
            gate: Gate::default(),
            targets: TargetPolicy::default(),
            configured_budget: config.budget,
            budget: kept.budget.map_or(config.budget, |change| change.after(config.budget)),
            memory,
            outbox: Vec::new(),
            orders: Vec::new(),
            keep_soon: false,
        };
        for vm in &config.vms {
            let kept = kept.vms.get(&vm.name).cloned().unwrap_or_default();
            keeper.open(vm, &kept);
        }
        keeper
    }

    fn open(&mut self, vm: &VmConfig, kept: &VmMemory) {
        let id = VmId(u32::try_from(self.vms.len()).expect("a configuration has fewer VMs"));
        let configured = MinMax { min: vm.limits.min(), max: vm.limits.max() };
        let now = kept.limits.map_or(configured, |change| change.after(configured));
        self.ledger.open(id, Limits::new(now.min, now.max).unwrap_or(vm.limits));
        self.targets.set_keep(id, kept.keep);
        self.targets.resume(id, kept.squeezed);
        self.vms.push(Vm {
            name: vm.name.clone(),
            configured: vm.limits,
            state: VmState::Starting,
            device: None,
            held: None,
            asked: false,
            taken: 0,
            wanted: ByteSize::ZERO,
            told: None,
            lines: Lines::default(),
            access: access::Access::default(),
            plugging: Plugging::new(vm.qmp.is_some(), kept),
        });
    }

    /// The host's memory was read again.
    pub fn host_memory(&mut self, memory: HostMemory) {
        self.memory = memory;
    }

    /// What is to be kept over a restart.
    pub fn to_keep(&self) -> Memory {
        let vms = self.ids().map(|id| (self.vm(id).name.clone(), self.to_keep_of(id)));
        Memory {
            budget: Change::between(self.configured_budget, self.budget),
            vms: vms.filter(|(_, kept)| *kept != VmMemory::default()).collect(),
        }
    }

    fn to_keep_of(&self, id: VmId) -> VmMemory {
        let min_max = |limits: Limits| MinMax { min: limits.min(), max: limits.max() };
        let configured = min_max(self.vm(id).configured);
        VmMemory {
            limits: Change::between(configured, min_max(self.limits(id))),
            keep: self.targets.keep(id),
            squeezed: self.targets.squeezed(id),
            out: self.vm(id).plugging.dimms.to_keep(),
            stolen: self.vm(id).plugging.dimms.stolen(),
        }
    }

    /// Lets the policy decide, now.
    pub fn step(&mut self, now: Instant) -> Outcome {
        let seen = HostObservation {
            ledger: &self.ledger,
            budget: policy_budget(self.budget),
            memory: self.memory,
        };
        let gate = self.gate.step(now, &seen);
        let targets = self.targets.step(now, &seen, &self.gate, &gate.report);
        let mut sends = std::mem::take(&mut self.outbox);
        sends.extend(gate.decisions.iter().map(|decision| self.told(now, decision, &gate.report)));
        self.remember_held(gate.report);
        for target in targets.targets {
            sends.extend(self.aim(now, &target));
        }
        self.order_plugs(now);
        let wait = [gate.wait, targets.wait].into_iter().flatten().min();
        let (orders, keep) =
            (std::mem::take(&mut self.orders), std::mem::take(&mut self.keep_soon));
        Outcome { sends, wait, orders, keep }
    }

    fn told(&mut self, now: Instant, decision: &host::Decision, report: &[Held]) -> Send {
        if self.may_log(now, decision.vm) {
            self.log_decision(decision, report);
        }
        let word = match decision.word {
            Word::Grant => Decision::Grant,
            Word::Hold(reason) => Decision::Hold(reason.name().into()),
        };
        let request = Request::Decide { ticket: decision.ticket, decision: word };
        Send { vm: decision.vm, request }
    }

    fn log_decision(&self, decision: &host::Decision, report: &[Held]) {
        let (name, ticket) = (&self.vm(decision.vm).name, decision.ticket);
        match decision.word {
            Word::Grant => tracing::info!(vm = name, ticket, "granted"),
            Word::Hold(reason) => {
                let held = report.iter().find(|held| held.ask.vm == decision.vm);
                let why = held.map_or_else(String::new, |held| held.obstacle.to_string());
                tracing::info!(vm = name, ticket, "held ({}): {why}", reason.name());
            }
        }
    }

    /// May a line about what this VM's guest does be written now?
    fn may_log(&mut self, now: Instant, id: VmId) -> bool {
        let vm = self.vm_mut(id);
        vm.lines.admit(now, &vm.name)
    }

    fn remember_held(&mut self, report: Vec<Held>) {
        let mut held: BTreeMap<VmId, Held> = report.into_iter().map(|h| (h.ask.vm, h)).collect();
        for id in self.ids() {
            self.vm_mut(id).held = held.remove(&id);
        }
    }

    /// A device is told its balloon when it is another than it knows of.
    fn aim(&mut self, now: Instant, target: &host::Target) -> Option<Send> {
        let vm = self.vm_mut(target.vm);
        vm.wanted = target.balloon.round_down_to(Pfn::SIZE);
        if vm.state != VmState::Connected || vm.told == Some(vm.wanted) {
            return None;
        }
        vm.told = Some(vm.wanted);
        if vm.lines.admit(now, &vm.name) {
            tracing::info!(vm = vm.name, balloon = %vm.wanted, cause = ?target.cause, "a new target");
        }
        Some(Send { vm: target.vm, request: Request::SetTarget { balloon: vm.wanted } })
    }

    fn send(&mut self, vm: VmId, request: Request) {
        self.outbox.push(Send { vm, request });
    }

    fn ids(&self) -> impl Iterator<Item = VmId> + use<> {
        (0..self.vms.len()).map_while(|index| u32::try_from(index).ok()).map(VmId)
    }

    fn vm(&self, id: VmId) -> &Vm {
        &self.vms[id.0 as usize]
    }

    fn vm_mut(&mut self, id: VmId) -> &mut Vm {
        &mut self.vms[id.0 as usize]
    }

    fn limits(&self, id: VmId) -> Limits {
        self.ledger.account(id).map_or(Limits::NONE, |account| account.limits)
    }
}

/// The API's budget in the policy's words.
fn policy_budget(budget: Budget) -> host::Budget {
    match budget {
        Budget::Host => host::Budget::Host,
        Budget::Bytes(bytes) => host::Budget::Given(bytes),
    }
}
