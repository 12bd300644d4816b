//! What a device says, booked.

use memtide_api::device::{self, DeviceStatus, Driver, Event, GrantedBy, PendingReturn, Request};
use memtide_api::http::VmState;
use memtide_policy::host::{Ask, Holdings, Urgency, VmId};
use memtide_units::{ByteSize, GpaRange, Instant, Pfn};

use super::Keeper;
use crate::device::News;

impl Keeper {
    /// A link has news of its device.
    pub(crate) fn hear(&mut self, now: Instant, id: VmId, news: News) {
        match news {
            News::Trying(what) => tracing::info!(vm = self.vm(id).name, "{what}"),
            News::Attached(status) => self.attached(now, id, status),
            News::Status(status) => self.observed(now, id, status),
            News::Event(event) => self.happened(now, id, event),
            News::Refused { request, refusal } => self.refused(id, &request, &refusal),
            News::Lost(why) => {
                self.set_lost(id, why);
                self.ledger.lost(id);
                self.gate.lost(id);
            }
            News::Gone(why) => {
                self.set_lost(id, why);
                self.ledger.gone(id);
                self.gate.forgotten(id);
                self.vm_mut(id).device = None;
            }
        }
    }

    /// The device's own map is booked at once; the agent's, which is the truth, when it says hello.
    fn attached(&mut self, now: Instant, id: VmId, status: Box<DeviceStatus>) {
        tracing::info!(vm = self.vm(id).name, driver = ?status.driver, "attached to its device");
        self.vm_mut(id).state = VmState::Connected;
        self.vm_mut(id).told = Some(status.target);
        self.adopt_target(id, &status);
        let open = status.pending.as_ref().map(|pending| ask(now, id, pending));
        self.ledger.observed(id, holdings(&status));
        self.gate.reattached(id, open);
        let driver = status.driver;
        self.vm_mut(id).device = Some(status);
        self.send(id, Request::SetMin { min: self.limits(id).min() });
        if driver != Driver::Stock {
            self.send(id, Request::AskHello);
        }
    }

    /// A balloon that memtided knows nothing of was asked for by a person at the device itself: it
    /// stays, as that person's wish.
    fn adopt_target(&mut self, id: VmId, status: &DeviceStatus) {
        let known = self.targets.keep(id).is_some() || !self.targets.squeezed(id).is_zero();
        let memory = memory_of(status);
        let by_limit = memory - self.limits(id).max();
        if !known && !status.target.is_zero() && status.target != by_limit && !memory.is_zero() {
            tracing::info!(vm = self.vm(id).name, balloon = %status.target, "the device's target stays");
            self.targets.set_keep(id, Some(memory - status.target));
        }
    }

    fn observed(&mut self, now: Instant, id: VmId, status: Box<DeviceStatus>) {
        let open = status.pending.as_ref().map(|pending| ask(now, id, pending));
        self.ledger.observed(id, holdings(&status));
        self.gate.confirmed(now, id, open);
        self.vm_mut(id).device = Some(status);
    }

    fn happened(&mut self, now: Instant, id: VmId, event: Event) {
        match event {
            Event::DriverChanged { driver } => {
                tracing::info!(vm = self.vm(id).name, ?driver, "another driver");
                self.send(id, Request::Status);
            }
            Event::Hello(hello) => {
                self.ledger.stolen_is(id, total(&hello.stolen));
                self.send(id, Request::Status);
            }
            Event::Stolen { stolen, .. } => self.ledger.stolen_is(id, stolen),
            Event::ReturnAsked(pending) => {
                self.gate.asked(ask(now, id, &pending));
                self.note_pending(id, Some(pending));
            }
            Event::ReturnCancelled { ticket } => {
                self.gate.withdrawn(id, ticket);
                self.note_pending(id, None);
            }
            Event::Returned { ticket, by, stolen, .. } => {
                self.ledger.stolen_is(id, stolen);
                self.gate.carried_out(id, ticket);
                self.note_pending(id, None);
                if by != GrantedBy::Controller {
                    tracing::info!(vm = self.vm(id).name, ticket, "granted by the device: {by:?}");
                }
            }
            Event::Taken { stolen, ranges } => self.taken(id, stolen, total(&ranges)),
            Event::Balloon { actual } => {
                let stock = self.vm(id).device.as_ref().is_some_and(|d| d.driver == Driver::Stock);
                if stock {
                    self.ledger.balloon_is(id, actual);
                }
            }
            Event::Telemetry(telemetry) => {
                if let Some(device) = &mut self.vm_mut(id).device {
                    device.telemetry = Some(telemetry);
                }
            }
        }
    }

    /// Keeps the device's last status fresh between two polls.
    fn note_pending(&mut self, id: VmId, pending: Option<PendingReturn>) {
        if let Some(device) = &mut self.vm_mut(id).device {
            device.pending = pending;
        }
    }

    fn taken(&mut self, id: VmId, stolen: ByteSize, took: ByteSize) {
        self.ledger.stolen_is(id, stolen);
        let given_up = self.ledger.account(id).map_or(ByteSize::ZERO, |account| account.given_up());
        self.targets.eased(id, given_up);
        self.vm_mut(id).taken += 1;
        tracing::warn!(vm = self.vm(id).name, "its guest took {took} unasked: it could not wait");
    }

    fn refused(&mut self, id: VmId, request: &Request, refusal: &device::Refusal) {
        tracing::warn!(vm = self.vm(id).name, ?request, "refused by the device: {refusal}");
        if let Request::Decide { ticket, .. } = request {
            self.gate.withdrawn(id, *ticket);
        }
    }

    fn set_lost(&mut self, id: VmId, why: String) {
        let vm = self.vm_mut(id);
        let state = VmState::Lost(why.clone());
        if vm.state != state {
            tracing::warn!(vm = vm.name, "no connection to its device: {why}");
        }
        vm.state = state;
        vm.told = None;
    }
}

/// The device's words as an entry in the books.
fn holdings(status: &DeviceStatus) -> Holdings {
    let resident = status.resident;
    let page = Pfn::SIZE;
    let (balloon, at_least, unit) = match status.driver {
        Driver::Agent => {
            let unit = status.hello.as_ref().map_or(page, |hello| hello.block_size);
            (ByteSize::ZERO, ByteSize::ZERO, unit)
        }
        Driver::Stock => (status.actual, resident, page),
        // No driver, no balloon: a driver that leaves deflates, and a reboot forgets.
        Driver::None => (ByteSize::ZERO, resident, page),
    };
    Holdings {
        memory: memory_of(status),
        stolen: total(&status.stolen),
        balloon,
        resident,
        at_least,
        unit,
        answers_targets: status.driver != Driver::None,
    }
}

fn memory_of(status: &DeviceStatus) -> ByteSize {
    status.memory.iter().map(|region| region.range.len()).sum()
}

fn total(ranges: &[GpaRange]) -> ByteSize {
    ranges.iter().map(|range| range.len()).sum()
}

fn ask(now: Instant, vm: VmId, pending: &PendingReturn) -> Ask {
    let urgency = match pending.urgency {
        device::Urgency::Comfort => Urgency::Comfort,
        device::Urgency::Pressure => Urgency::Pressure,
        device::Urgency::Emergency => Urgency::Emergency,
    };
    let since = Instant::from_millis(now.as_millis().saturating_sub(pending.waited_ms));
    Ask { vm, ticket: pending.ticket, bytes: pending.bytes, urgency, since }
}
