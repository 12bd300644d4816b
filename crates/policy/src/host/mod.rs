//! What a host grants, and what it asks back.
//!
//! ```text
//! devices -> Ledger (who holds what) -+-> Gate::step          -> grant or hold each return
//! /proc/meminfo, configuration -------+-> TargetPolicy::step  -> how large each balloon shall be
//! ```
//!
//! [`Ledger`] is rebuilt from what devices say and needs no database. [`Gate`] and [`TargetPolicy`]
//! are values that somebody else owns: they are told what happened, asked what follows, and never
//! find out whether it was carried out except by being told. A decision names its ticket, so one
//! that arrives late decides nothing else.

mod balance;
mod budget;
mod gate;
mod ledger;
mod obstacle;
mod room;
mod tally;
mod target;

#[cfg(test)]
mod gate_properties;
#[cfg(test)]
mod transcript;

pub use budget::{Budget, HostMemory};
pub use gate::{Ask, Decision, Gate, Held, Plan, Urgency, Word};
pub use ledger::{Account, Holdings, Ledger, Limits, LimitsError, Link, VmId};
pub use obstacle::{HoldReason, Obstacle};
pub use tally::Tally;
pub use target::{Cause, Target, TargetPlan, TargetPolicy};

/// Everything about the host that a decision may depend on, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct HostObservation<'a> {
    /// Who holds what.
    pub ledger: &'a Ledger,
    /// What the operator allows.
    pub budget: Budget,
    /// What the host's kernel says.
    pub memory: HostMemory,
}

impl HostObservation<'_> {
    /// The budget in bytes, as of this observation.
    pub fn budget_bytes(&self) -> memtide_units::ByteSize {
        self.budget.bytes(self.memory, self.ledger.resident())
    }
}
