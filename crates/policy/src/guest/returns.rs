//! When blocks are asked back, how many, how urgently, and when no longer.

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{BlockId, ByteSize, Instant, PpMillion};

use super::headroom::Headroom;
use super::observation::Memory;
use super::plan::Urgency;

/// Pressure that lasts this long asks a block back whatever is available: `MemAvailable` counts
/// page cache as available, and cannot see that it is thrashing. Five windows.
pub(super) const STUBBORN: Duration = Duration::from_secs(10);

/// What decides about a return.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need<'a> {
    pub(super) memory: &'a Memory,
    pub(super) headroom: &'a Headroom,
    /// What will be used in addition half a second from now.
    pub(super) growth: ByteSize,
    pub(super) trigger_fired: bool,
    /// How long pressure has been over the goal.
    pub(super) over_goal: Option<Duration>,
    pub(super) block: ByteSize,
}

/// A return that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) count: u64,
    pub(super) urgency: Urgency,
}

impl Need<'_> {
    /// The return that these numbers call for, if any.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        let ahead = self.memory.available - self.growth;
        let stalls = self.trigger_fired || self.over_goal.is_some();
        let little = ahead < self.headroom.low + self.block;
        if ahead < self.headroom.low {
            return Some(Wanted { count: self.count(ahead), urgency: self.urgency(stalls) });
        }
        let stubborn = self.over_goal.is_some_and(|time| time >= STUBBORN);
        ((stalls && little) || stubborn).then_some(Wanted { count: 1, urgency: Urgency::Pressure })
    }

    /// Whether a return that was asked for is still worth waiting for: until as much is available
    /// as it would have brought.
    pub(super) fn is_satisfied(&self) -> bool {
        self.over_goal.is_none() && self.memory.available - self.growth >= self.headroom.refill
    }

    /// Blocks that bring back the headroom, at least one; in an emergency with room to spare.
    fn count(&self, ahead: ByteSize) -> u64 {
        let goal = if self.memory.available < self.headroom.emergency {
            self.headroom.steal
        } else {
            self.headroom.refill
        };
        (goal - ahead).bytes().div_ceil(self.block.bytes().max(1)).max(1)
    }

    fn urgency(&self, stalls: bool) -> Urgency {
        let available = self.memory.available;
        let half = ByteSize::from_bytes(self.headroom.low.bytes() / 2);
        if available < self.headroom.emergency {
            Urgency::Emergency
        } else if stalls || available < half || available - self.growth < self.headroom.emergency {
            Urgency::Pressure
        } else {
            Urgency::Comfort
        }
    }
}

/// Remembers since when pressure has been over the goal.
#[derive(Clone, Debug, Default)]
pub(super) struct OverGoal {
    since: Option<Instant>,
}

impl OverGoal {
    /// How long pressure has been over the goal, where it is.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        some: PpMillion,
        goal: PpMillion,
    ) -> Option<Duration> {
        self.since = (some > goal).then(|| self.since.unwrap_or(now));
        self.since.map(|since| now.since(since))
    }

    /// A block was asked back for it: the next one after another [`STUBBORN`].
    pub(super) fn restart(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
    }
}

/// The lowest `count` of `stolen`, no more than `room` for them, in ascending order.
pub(super) fn nearest(
    stolen: impl Iterator<Item = BlockId>,
    count: u64,
    room: u64,
) -> Vec<BlockId> {
    let count = usize::try_from(count.min(room)).unwrap_or(usize::MAX);
    stolen.take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::BlockSize;

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    /// A guest with 1000 MiB online: low 100, refill 164, steal 292, emergency 48 MiB.
    fn wanted(available: u64, growth: u64, over_goal_s: Option<u64>) -> Option<(u64, Urgency)> {
        let memory = Memory { total: mib(1000), free: mib(0), available: mib(available) };
        let headroom = Headroom::of(mib(1000), BlockSize::X86_SMALL, None, ByteSize::ZERO);
        let over_goal = over_goal_s.map(Duration::from_secs);
        let need = Need {
            memory: &memory,
            headroom: &headroom,
            growth: mib(growth),
            trigger_fired: false,
            over_goal,
            block: mib(128),
        };
        need.wanted().map(|wanted| (wanted.count, wanted.urgency))
    }

    #[test]
    fn urgency_follows_how_short_it_is() {
        assert_eq!(wanted(100, 0, None), None);
        assert_eq!(wanted(99, 0, None), Some((1, Urgency::Comfort)));
        assert_eq!(wanted(49, 0, None), Some((1, Urgency::Pressure)));
        assert_eq!(wanted(47, 0, None), Some((2, Urgency::Emergency)));
    }

    #[test]
    fn fast_growth_asks_early_and_for_more() {
        assert_eq!(wanted(300, 100, None), None);
        assert_eq!(wanted(300, 250, None), Some((1, Urgency::Comfort)));
        assert_eq!(wanted(300, 500, None), Some((2, Urgency::Pressure)));
    }

    #[test]
    fn pressure_counts_when_little_is_available_or_when_it_stays() {
        assert_eq!(wanted(227, 0, Some(0)), Some((1, Urgency::Pressure)));
        assert_eq!(wanted(228, 0, Some(9)), None);
        assert_eq!(wanted(900, 0, Some(10)), Some((1, Urgency::Pressure)));
    }

    #[test]
    fn the_lowest_blocks_come_first_and_never_more_than_there_is_room_for() {
        let stolen = || [3, 5, 6, 7].into_iter().map(BlockId);
        assert_eq!(nearest(stolen(), 2, 9), [BlockId(3), BlockId(5)]);
        assert_eq!(nearest(stolen(), 9, 1), [BlockId(3)]);
        assert_eq!(nearest(stolen(), 9, 9).len(), 4);
    }
}
