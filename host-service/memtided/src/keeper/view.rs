//! What clients see.

use memtide_api::device::{self, DeviceStatus, PendingReturn};
use memtide_api::http::{
    Budget, BudgetSource, GateCounters, HeldReturn, HostStatus, VmState, VmStatus,
};
use memtide_policy::host::{Account, Held, HostObservation, Urgency, VmId};
use memtide_units::ByteSize;

use super::ranges::{joined, total};
use super::{Keeper, policy_budget};

impl Keeper {
    /// The host and all its VMs, in the order of the configuration.
    pub fn host_status(&self) -> HostStatus {
        let budget = policy_budget(self.budget);
        let seen = HostObservation { ledger: &self.ledger, budget, memory: self.memory };
        HostStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            budget: seen.budget_bytes(),
            budget_source: match self.budget {
                Budget::Host => BudgetSource::Host,
                Budget::Bytes(_) => BudgetSource::Given,
            },
            committed: self.ledger.committed(),
            resident: self.ledger.resident(),
            host_available: self.memory.available,
            vms: self.ids().map(|id| self.vm_status(id)).collect(),
        }
    }

    /// One VM.
    pub fn vm_status(&self, id: VmId) -> VmStatus {
        let vm = self.vm(id);
        let account = self.ledger.account(id);
        let holdings = account.map(|account| account.holdings);
        let of = |what: fn(&memtide_policy::host::Holdings) -> ByteSize| {
            holdings.as_ref().map_or(ByteSize::ZERO, what)
        };
        let limits = self.limits(id);
        VmStatus {
            name: vm.name.clone(),
            state: vm.state.clone(),
            driver: vm.device.as_ref().map(|device| device.driver).unwrap_or_default(),
            memory: of(|h| h.memory),
            committed: account.map_or(ByteSize::ZERO, Account::committed),
            stolen: of(|h| h.stolen),
            ejected: vm.device.as_deref().map_or(ByteSize::ZERO, ejected),
            resident: of(|h| h.resident),
            min: limits.min(),
            max: limits.max(),
            target: vm.wanted,
            held: vm.held.as_ref().map(|held| self.held_return(id, held)),
            gate: self.counters(id),
            plugging: vm.plugging.trouble(),
            device: vm.device.clone(),
        }
    }

    /// The line below the unit's name in `systemctl status`.
    pub(crate) fn summary(&self) -> String {
        let connected = self.vms.iter().filter(|vm| vm.state == VmState::Connected).count();
        let held = self.vms.iter().filter(|vm| vm.held.is_some()).count();
        let budget = policy_budget(self.budget).bytes(self.memory, self.ledger.resident());
        format!(
            "{connected} of {} VMs connected, {} of {budget} held by them, {held} returns waiting",
            self.vms.len(),
            self.ledger.committed(),
        )
    }

    fn held_return(&self, id: VmId, held: &Held) -> HeldReturn {
        let ranges = self
            .vm(id)
            .device
            .as_ref()
            .and_then(|device| device.pending.as_ref())
            .filter(|pending| pending.ticket == held.ask.ticket)
            .map(|pending| pending.ranges.clone())
            .unwrap_or_default();
        let asked = PendingReturn {
            ticket: held.ask.ticket,
            bytes: held.ask.bytes,
            ranges,
            urgency: match held.ask.urgency {
                Urgency::Comfort => device::Urgency::Comfort,
                Urgency::Pressure => device::Urgency::Pressure,
                Urgency::Emergency => device::Urgency::Emergency,
            },
            waited_ms: u64::try_from(held.waited.as_millis()).unwrap_or(u64::MAX),
            reason: held.obstacle.reason().name().into(),
        };
        HeldReturn { asked, explanation: held.obstacle.to_string() }
    }

    fn counters(&self, id: VmId) -> GateCounters {
        let tally = self.gate.tally(id);
        GateCounters {
            asked: tally.asked,
            granted: tally.granted,
            held: tally.held,
            // The gate holds; it never denies.
            denied: 0,
            taken: self.vm(id).taken,
            held_ms_max: u64::try_from(tally.held_max.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What is stolen and not in the VM at the moment.
fn ejected(status: &DeviceStatus) -> ByteSize {
    let regions = status.memory.iter().map(|region| region.range);
    let present = joined(regions.clone());
    total(&joined(regions.chain(status.stolen.iter().copied()))) - total(&present)
}
