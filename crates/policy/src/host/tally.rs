//! Counts of what the gate did for one VM.

use core::time::Duration;

/// Counts since the gate was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Returns asked for.
    pub asked: u64,
    /// Granted, at once or later, by the gate or by the device itself.
    pub granted: u64,
    /// Held for a while, whatever came of it.
    pub held: u64,
    /// The longest that a return was held.
    pub held_max: Duration,
}

impl Tally {
    /// Longer than ever before?
    pub(super) fn held_for(&mut self, time: Duration) {
        self.held_max = self.held_max.max(time);
    }
}

#[cfg(test)]
mod tests {
    use memtide_units::{ByteSize, Instant};

    use super::super::*;

    const VM: VmId = VmId(1);

    fn ask(ticket: u32) -> Ask {
        let (bytes, urgency) = (ByteSize::from_mib(128), Urgency::Pressure);
        Ask { vm: VM, ticket, bytes, urgency, since: Instant::from_millis(0) }
    }

    fn step(gate: &mut Gate, budget: ByteSize) {
        let mut ledger = Ledger::default();
        ledger.open(VM, Limits::NONE);
        let memory = ByteSize::from_gib(1);
        ledger.observed(VM, Holdings { memory, stolen: memory, ..Holdings::NONE });
        let memory = HostMemory { total: ByteSize::from_gib(9), available: ByteSize::from_gib(9) };
        let seen = HostObservation { ledger: &ledger, budget: Budget::Given(budget), memory };
        gate.step(Instant::from_millis(7_000), &seen);
    }

    #[test]
    fn a_return_is_counted_once_whoever_grants_it() {
        let mut gate = Gate::default();
        gate.asked(ask(1));
        step(&mut gate, ByteSize::from_gib(1));
        gate.carried_out(VM, 1);
        assert_eq!((gate.tally(VM).asked, gate.tally(VM).granted), (1, 1), "granted by the gate");
        gate.carried_out(VM, 2);
        assert_eq!((gate.tally(VM).asked, gate.tally(VM).granted), (2, 2), "never asked here");
        gate.asked(ask(3));
        gate.carried_out(VM, 3);
        assert_eq!((gate.tally(VM).asked, gate.tally(VM).granted), (3, 3), "granted meanwhile");
        gate.asked(ask(4));
        step(&mut gate, ByteSize::from_gib(1));
        gate.asked(Ask { urgency: Urgency::Emergency, ..ask(4) });
        step(&mut gate, ByteSize::from_gib(1));
        gate.carried_out(VM, 4);
        assert_eq!((gate.tally(VM).asked, gate.tally(VM).granted), (4, 4), "changed after a grant");
    }

    #[test]
    fn a_held_return_is_counted_once_however_often_it_is_judged() {
        let mut gate = Gate::default();
        gate.asked(ask(1));
        step(&mut gate, ByteSize::ZERO);
        step(&mut gate, ByteSize::ZERO);
        gate.asked(Ask { urgency: Urgency::Emergency, ..ask(1) });
        gate.reattached(VM, Some(ask(1)));
        step(&mut gate, ByteSize::ZERO);
        let tally = gate.tally(VM);
        assert_eq!((tally.asked, tally.held, tally.held_max.as_secs()), (1, 1, 7));
    }

    #[test]
    fn a_promise_without_a_trace_is_forgotten_after_a_while() {
        let mut gate = Gate::default();
        gate.asked(ask(1));
        step(&mut gate, ByteSize::from_gib(1));
        gate.confirmed(Instant::from_millis(16_000), VM, None);
        assert_eq!(gate.promised(), ByteSize::from_mib(128), "it may be fetched still");
        gate.confirmed(Instant::from_millis(17_000), VM, None);
        assert_eq!(gate.promised(), ByteSize::ZERO);
    }
}
