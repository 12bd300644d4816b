//! Why a return is held: a stable name for programs, a sentence with numbers for people.

use core::fmt;

use memtide_units::ByteSize;

/// The reasons by name; the names are those of the block queue's hold reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldReason {
    /// The gate does not know enough yet.
    Asking,
    /// It would pass the host's memory budget.
    HostBudget,
    /// It would pass the limit that the host set for this VM.
    VmLimit,
    /// The host itself is short of memory.
    HostPressure,
}

impl HoldReason {
    /// Its name on the wire, in the API and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::HostBudget => "host-budget",
            Self::VmLimit => "vm-limit",
            Self::HostPressure => "host-pressure",
        }
    }
}

/// What stands between a return and its grant. Its text is the explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The gate has just started and has not tried to reach so many VMs yet.
    Unheard {
        /// How many.
        vms: usize,
    },
    /// The VM would hold more than its limit.
    Limit {
        /// What is asked.
        needs: ByteSize,
        /// What the VM holds.
        holds: ByteSize,
        /// What it may hold.
        max: ByteSize,
    },
    /// The host would be left with less than its reserve.
    Pressure {
        /// What is asked.
        needs: ByteSize,
        /// What the host has available, less what has been granted and not been touched yet.
        available: ByteSize,
        /// What it keeps for itself.
        reserve: ByteSize,
    },
    /// The budget's free part does not hold it.
    Budget {
        /// What is asked.
        needs: ByteSize,
        /// What of the budget is free.
        free: ByteSize,
        /// The budget.
        budget: ByteSize,
        /// Whether what becomes free is kept for it.
        turn: Turn,
    },
    /// Even with every other VM down to its guarantee the budget would not hold it.
    TooMuch {
        /// What is asked.
        needs: ByteSize,
        /// What of the budget is free.
        free: ByteSize,
        /// What the others would still hold.
        others: ByteSize,
        /// The budget.
        budget: ByteSize,
    },
    /// There is room, and it is kept for somebody who has waited longer.
    Behind {
        /// What is asked.
        needs: ByteSize,
        /// What of the budget is free.
        free: ByteSize,
        /// What the one before asks.
        kept_for: ByteSize,
    },
}

/// A budget-held return's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Smaller returns may still overtake it.
    Open,
    /// It has waited long enough: nobody behind it is granted anything before it.
    Reserving,
}

impl Obstacle {
    /// The name for it.
    pub const fn reason(&self) -> HoldReason {
        match self {
            Self::Unheard { .. } => HoldReason::Asking,
            Self::Limit { .. } => HoldReason::VmLimit,
            Self::Pressure { .. } => HoldReason::HostPressure,
            Self::Budget { .. } | Self::TooMuch { .. } | Self::Behind { .. } => {
                HoldReason::HostBudget
            }
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unheard { vms } => write!(
                f,
                "the gate has just started and has yet to hear from {vms} other VM{}",
                if *vms == 1 { "" } else { "s" }
            ),
            Self::Limit { needs, holds, max } => write!(
                f,
                "needs {needs}, but holds {holds} of at most {max}, so {} could be granted; \
                 raise the VM's max",
                max.saturating_sub(*holds)
            ),
            Self::Pressure { needs, available, reserve } => write!(
                f,
                "needs {needs}, but the host has {available} available and keeps {reserve} for \
                 itself; waits for host memory"
            ),
            Self::Budget { needs, free, budget, turn } => {
                write!(f, "needs {needs}, {free} of the {budget} budget are free; ")?;
                f.write_str(match turn {
                    Turn::Open => "waits until other VMs give memory up, or raise the budget",
                    Turn::Reserving => "is next: what other VMs give up is kept for it",
                })
            }
            Self::TooMuch { needs, free, others, budget } => {
                write!(f, "needs {needs}, {free} of the {budget} budget are free; ")?;
                if others.is_zero() {
                    f.write_str(
                        "there is no other VM that could give up the rest: raise the budget",
                    )
                } else {
                    write!(
                        f,
                        "other VMs are guaranteed {others} and cannot give up the rest: raise the \
                         budget"
                    )
                }
            }
            Self::Behind { needs, free, kept_for } => write!(
                f,
                "needs {needs}, and the {free} that are free are kept for a return of {kept_for} \
                 that has waited longer"
            ),
        }
    }
}
