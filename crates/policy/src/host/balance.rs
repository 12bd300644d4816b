//! Must memory be asked back, can some be let go, or is all well?

use memtide_units::{ByteSize, Permille};

use super::{Budget, Gate, Held, HostMemory, HostObservation, Obstacle};

/// Below this much it is not worth moving memory: a sixty-fourth of the budget or of the host's
/// reserve. A squeeze goes so far below the limit, and ends when there is twice as much room, so
/// that what is let go does not start the next squeeze.
const BAND_SHARE: Permille = Permille(16);
const BAND_MIN: ByteSize = ByteSize::from_mib(32);
const BAND_MAX: ByteSize = ByteSize::from_mib(512);

/// What is to be done about what the VMs hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Balance {
    /// They hold too much: ask so much back, of everybody.
    Excess(ByteSize),
    /// A return waits for so much: ask it of those who hold more above their guarantee than
    /// the asker would with it. Nobody is ever asked for what makes him poorer than who gets it, so two VMs
    /// cannot take the same memory from each other in turns.
    Wanted {
        /// What is missing.
        bytes: ByteSize,
        /// What the asker would hold above its guarantee.
        above_min: ByteSize,
    },
    /// Nothing is to be done.
    Even,
    /// There is so much room.
    Room(ByteSize),
}

impl Balance {
    /// Of the host's memory, and of the budget where one is given. A budget that follows the host
    /// is no reason by itself: VMs that have not touched their memory may well add up to more than
    /// the host has, and nobody is short.
    pub(super) fn of(seen: &HostObservation<'_>, gate: &Gate, waiting: &[Held]) -> Self {
        let host = Self::of_host(seen.memory);
        match seen.budget {
            Budget::Host => host,
            Budget::Given(budget) => Self::of_budget(budget, seen, gate, waiting).or_worse(host),
        }
    }

    fn of_host(memory: HostMemory) -> Self {
        Self::between(memory.reserve(), memory.available, band(memory.reserve()))
    }

    fn of_budget(
        budget: ByteSize,
        seen: &HostObservation<'_>,
        gate: &Gate,
        waiting: &[Held],
    ) -> Self {
        let held = seen.ledger.committed() + gate.promised();
        match Self::between(held, budget, band(budget)) {
            excess @ Self::Excess(_) => excess,
            other => Self::wanted(seen, waiting, budget.saturating_sub(held)).unwrap_or(other),
        }
    }

    /// The first in the line that waits for the budget, and could have what it asks for.
    fn wanted(seen: &HostObservation<'_>, waiting: &[Held], free: ByteSize) -> Option<Self> {
        let first = waiting.iter().find(|held| matches!(held.obstacle, Obstacle::Budget { .. }))?;
        let account = seen.ledger.account(first.ask.vm)?;
        Some(Self::Wanted {
            bytes: first.ask.bytes.saturating_sub(free),
            above_min: account.above_min() + first.ask.bytes,
        })
    }

    fn between(need: ByteSize, have: ByteSize, band: ByteSize) -> Self {
        if need > have {
            Self::Excess(need - have + band)
        } else if have - need > band.times(2) {
            Self::Room(have - need - band)
        } else {
            Self::Even
        }
    }

    /// A shortage before a wish, a wish before nothing, nothing before room, and the larger
    /// shortage and the smaller room.
    fn or_worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Excess(a), Self::Excess(b)) => Self::Excess(a.max(b)),
            (Self::Room(a), Self::Room(b)) => Self::Room(a.min(b)),
            (Self::Excess(_), _) => self,
            (_, Self::Excess(_)) => other,
            (Self::Wanted { .. }, _) | (Self::Even, _) => self,
            (Self::Room(_), _) => other,
        }
    }

    /// What is missing, for whatever reason.
    pub(super) fn missing(self) -> ByteSize {
        match self {
            Self::Excess(bytes) | Self::Wanted { bytes, .. } => bytes,
            Self::Even | Self::Room(_) => ByteSize::ZERO,
        }
    }
}

fn band(of: ByteSize) -> ByteSize {
    BAND_SHARE.of(of).clamp(BAND_MIN, BAND_MAX)
}
