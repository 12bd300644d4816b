//! How much goes to the host at a time, by what it drops in a moment.

use memtide_units::{BlockSize, ByteSize};

use super::{Link, State};

impl Link {
    /// How many blocks of this size may be taken now. While the host drops what is in flight, as much again
    /// is made ready and no more: it could be given back at once only after all of that, and a guest
    /// that works ahead has its processors in the way of the host's: the host dropped at 0.89 and 0.92 of the raw
    /// limit so, at 0.84 with half as much ready, and at 0.80 and 0.78 with three times as much (docs/performance.md).
    pub fn room(&self, block: BlockSize) -> usize {
        let block = block.size().bytes();
        let most = (2 * self.drops_at_once.bytes() / block).max(2);
        let in_flight = match &self.state {
            State::Up { flights, .. } => flights.reported(),
            State::Down { .. } => ByteSize::ZERO,
        };
        let undropped = (in_flight + self.outbox.unreported()).bytes().div_ceil(block);
        usize::try_from(most.saturating_sub(undropped)).unwrap_or(usize::MAX)
    }

    /// What one report names at most: two of them share what the host drops in a moment.
    pub(super) fn report_size(&self) -> ByteSize {
        ByteSize::from_bytes(self.drops_at_once.bytes() / 2)
    }
}
