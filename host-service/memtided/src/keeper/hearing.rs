//! What a device says, booked.

use memtide_api::device::{self, DeviceStatus, Driver, Event, GrantedBy, PendingReturn, Request};
use memtide_api::http::VmState;
use memtide_policy::host::{Account, Ask, Holdings, Urgency, VmId};
use memtide_units::{ByteSize, Instant, Pfn};

use super::Keeper;
use super::ranges::{joined, total};
use crate::device::News;

impl Keeper {
    /// A link has news of its device.
    pub(crate) fn hear(&mut self, now: Instant, id: VmId, news: News) {
        match news {
            News::Trying(what) => tracing::info!(vm = self.vm(id).name, "{what}"),
            News::Attached(status) => self.attached(now, id, status),
            News::Status(status) => self.observed(now, id, status),
            News::Event(event) => self.happened(now, id, event),
            News::Refused { request, refusal } => self.refused(now, id, &request, &refusal),
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
        self.vm_mut(id).asked = false;
        self.vm_mut(id).plugging.attached();
        self.adopt_target(id, &status);
        let open = status.pending.as_ref().map(|pending| ask(now, id, pending));
        self.ledger.observed(id, holdings(&status));
        self.gate.reattached(id, open);
        let driver = status.driver;
        self.keep(now, id, status);
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
        self.vm_mut(id).asked = false;
        self.keep(now, id, status);
    }

    /// The device's last status. What was touched goes to the history, and is not repeated with each
    /// answer.
    fn keep(&mut self, now: Instant, id: VmId, mut status: Box<DeviceStatus>) {
        if let Some(heat) = status.telemetry.as_mut().and_then(|telemetry| telemetry.heat.take()) {
            self.vm_mut(id).access.hear(now, *heat);
        }
        self.watch_dimms(now, id, &status);
        self.vm_mut(id).device = Some(status);
    }

    fn happened(&mut self, now: Instant, id: VmId, event: Event) {
        match event {
            Event::DriverChanged { driver } => {
                if self.may_log(now, id) {
                    tracing::info!(vm = self.vm(id).name, ?driver, "another driver");
                }
                self.look(id);
            }
            Event::Hello(hello) => {
                self.claimed(id, |held| held.stolen = total(&hello.stolen));
                self.look(id);
            }
            Event::Stolen { stolen, .. } => self.claimed(id, |held| held.stolen = stolen),
            Event::ReturnAsked(pending) => {
                self.gate.asked(ask(now, id, &pending));
                self.note_pending(id, Some(pending));
            }
            Event::ReturnCancelled { ticket } => {
                self.gate.withdrawn(id, ticket);
                self.note_pending(id, None);
            }
            Event::Returned { ticket, by, stolen, .. } => {
                self.claimed(id, |held| held.stolen = stolen);
                self.gate.carried_out(id, ticket);
                self.note_pending(id, None);
                if by != GrantedBy::Controller && self.may_log(now, id) {
                    tracing::info!(vm = self.vm(id).name, ticket, "granted by the device: {by:?}");
                }
            }
            Event::Taken { stolen, ranges } => self.taken(now, id, stolen, total(&ranges)),
            Event::Ejecting { ranges } => self.ejecting(id, &ranges),
            Event::PlugWanted { ranges } => self.vm_mut(id).plugging.dimms.wanted(&ranges),
            Event::Balloon { actual } => {
                let stock = self.vm(id).device.as_ref().is_some_and(|d| d.driver == Driver::Stock);
                if stock {
                    self.claimed(id, |held| held.balloon = actual);
                }
            }
            Event::Telemetry(mut telemetry) => {
                if let Some(heat) = telemetry.heat.take() {
                    self.vm_mut(id).access.hear(now, *heat);
                }
                if let Some(device) = &mut self.vm_mut(id).device {
                    device.telemetry = Some(telemetry);
                }
            }
        }
    }

    /// A guest has given memory up, or taken some. What it gave up is booked as soon as the host sees
    /// it gone, and no sooner: a guest may touch what it gave up, and its word must not make room
    /// for others, or have them squeezed in its place.
    fn claimed(&mut self, id: VmId, claim: impl FnOnce(&mut Holdings)) {
        let Some(mut holdings) = self.ledger.account(id).map(|account| account.holdings) else {
            return;
        };
        claim(&mut holdings);
        self.ledger.observed(id, holdings);
        let booked = holdings.memory - holdings.stolen - holdings.balloon;
        if self.ledger.account(id).map(Account::committed).is_some_and(|held| held > booked) {
            self.look(id);
        }
    }

    /// Asks the device how it is, once until it answers: a guest that does a hundred things makes
    /// for one question.
    pub(super) fn look(&mut self, id: VmId) {
        if !std::mem::replace(&mut self.vm_mut(id).asked, true) {
            self.send(id, Request::Status);
        }
    }

    /// Keeps the device's last status fresh between two polls.
    fn note_pending(&mut self, id: VmId, pending: Option<PendingReturn>) {
        if let Some(device) = &mut self.vm_mut(id).device {
            device.pending = pending;
        }
    }

    fn taken(&mut self, now: Instant, id: VmId, stolen: ByteSize, took: ByteSize) {
        self.claimed(id, |held| held.stolen = stolen);
        let given_up = self.ledger.account(id).map_or(ByteSize::ZERO, |account| account.given_up());
        self.targets.eased(id, given_up);
        self.vm_mut(id).taken += 1;
        if self.may_log(now, id) {
            tracing::warn!(
                vm = self.vm(id).name,
                "its guest took {took} unasked: it could not wait"
            );
        }
    }

    fn refused(&mut self, now: Instant, id: VmId, request: &Request, refusal: &device::Refusal) {
        if matches!(request, Request::SetPluggable { .. }) {
            self.pluggable_refused(id, refusal);
            return;
        }
        // A decision on a return that its guest has taken back meanwhile, as often as it likes.
        if self.may_log(now, id) {
            tracing::warn!(vm = self.vm(id).name, ?request, "refused by the device: {refusal}");
        }
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
        vm.asked = false;
        vm.plugging.dimms.unreachable();
    }
}

/// The device's words as an entry in the books.
fn holdings(status: &DeviceStatus) -> Holdings {
    let resident = status.resident;
    let page = Pfn::SIZE;
    let (balloon, unit) = match status.driver {
        Driver::Agent => {
            (ByteSize::ZERO, status.hello.as_ref().map_or(page, |hello| hello.block_size))
        }
        Driver::Stock => (status.actual, page),
        // No driver, no balloon: a driver that leaves deflates, and a reboot forgets.
        Driver::None => (ByteSize::ZERO, page),
    };
    Holdings {
        memory: memory_of(status),
        stolen: total(&status.stolen),
        balloon,
        resident,
        // Whatever the guest says of itself, an agent's map of stolen blocks included.
        at_least: resident,
        unit,
        answers_targets: status.driver != Driver::None,
    }
}

/// All that is the VM's, whether it is plugged in at the moment or not: a figure that does not move
/// when the guest ejects memory, which stays stolen, or gets it back.
fn memory_of(status: &DeviceStatus) -> ByteSize {
    let regions = status.memory.iter().map(|region| region.range);
    total(&joined(
        regions.chain(status.pluggable.iter().copied()).chain(status.stolen.iter().copied()),
    ))
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
