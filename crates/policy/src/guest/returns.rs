//! When blocks are asked back, how many, how urgently, and when no longer.

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{BlockId, ByteSize, Instant, PpMillion};

use super::headroom::Headroom;
use super::observation::Memory;
use super::pace::Steps;
use super::plan::Urgency;
use super::pressure::WINDOW;
use super::trend::Growth;

/// Pressure at the goal that lasts this long asks a block back whatever is available: `MemAvailable`
/// counts page cache as available, and cannot see that it is thrashing. Five windows; pressure
/// that is higher has to last shorter in proportion.
pub(super) const STUBBORN: Duration = Duration::from_secs(10);
/// But so long at least: a single stall is seen for a whole window.
const STUBBORN_LEAST: Duration = WINDOW.saturating_add(Duration::from_secs(1));

/// What decides about a return.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need<'a> {
    pub(super) memory: &'a Memory,
    /// Of the page cache, what counts as in use.
    pub(super) hot_cache: ByteSize,
    pub(super) headroom: &'a Headroom,
    pub(super) growth: Growth,
    pub(super) trigger_fired: bool,
    /// How pressure has been over the goal, where it is.
    pub(super) over_goal: Option<Stall>,
    pub(super) steps: Steps,
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
        let ahead = self.available() - self.growth.ahead;
        let stalls = self.trigger_fired || self.over_goal.is_some();
        let little = ahead < self.headroom.low + self.block;
        if ahead < self.headroom.low {
            return Some(Wanted { count: self.count(), urgency: self.urgency(stalls) });
        }
        let count = if stalls && little { 1 } else { 0 }.max(self.stubborn());
        (count > 0).then_some(Wanted { count, urgency: Urgency::Pressure })
    }

    /// Blocks that pressure alone asks for: none where it has not lasted yet, nor where much is
    /// free. Then it is not for want of memory that somebody stalls: what came back last is not
    /// used up yet, or a control group is at a limit of its own.
    fn stubborn(&self) -> u64 {
        let lasts = |stall: &Stall| stall.time >= stall.patience();
        match self.over_goal.filter(lasts) {
            Some(stall) if self.memory.free < self.headroom.low => stall.blocks(self.steps),
            _ => 0,
        }
    }

    /// Whether a return that was asked for is still worth waiting for: until as much is available
    /// as it would have brought.
    pub(super) fn is_satisfied(&self) -> bool {
        self.over_goal.is_none() && self.available() - self.growth.ahead >= self.headroom.refill
    }

    /// What is available, without the cache that is in use.
    fn available(&self) -> ByteSize {
        self.memory.available - self.hot_cache
    }

    /// Blocks that bring back the headroom, at least one; in an emergency with room to spare.
    fn count(&self) -> u64 {
        let ahead = self.available() - self.growth.surge.max(self.growth.ahead);
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
        // A cache that is in use can be dropped before anybody is killed.
        if available < self.headroom.emergency {
            Urgency::Emergency
        } else if stalls
            || self.available() < half
            || available - self.growth.ahead < self.headroom.emergency
        {
            Urgency::Pressure
        } else {
            Urgency::Comfort
        }
    }
}

/// Pressure over the goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    /// For how long, since blocks were asked back for it last.
    pub(super) time: Duration,
    /// How often they were, since it has been over the goal.
    pub(super) asked: u32,
    /// How much it is.
    pub(super) some: PpMillion,
    /// How much it may be.
    pub(super) goal: PpMillion,
}

impl Stall {
    /// How long it may last: the further over the goal, the shorter.
    fn patience(&self) -> Duration {
        (STUBBORN * self.goal.0 / self.some.0.max(1)).max(STUBBORN_LEAST)
    }

    /// A step, and twice as many blocks each time that it was not enough: the inverse of what a thief
    /// does (see [`Pace`](super::pace::Pace)).
    fn blocks(&self, steps: Steps) -> u64 {
        let doubled = 1_u64.checked_shl(self.asked).unwrap_or(u64::MAX);
        steps.least.saturating_mul(doubled).min(steps.most)
    }
}

/// Remembers since when pressure has been over the goal.
#[derive(Clone, Debug, Default)]
pub(super) struct OverGoal {
    since: Option<Instant>,
    asked: u32,
}

impl OverGoal {
    /// How pressure has been over the goal, where it is.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        some: PpMillion,
        goal: PpMillion,
    ) -> Option<Stall> {
        self.since = (some > goal).then(|| self.since.unwrap_or(now));
        self.asked = if self.since.is_some() { self.asked } else { 0 };
        let asked = self.asked;
        self.since.map(|since| Stall { time: now.since(since), asked, some, goal })
    }

    /// Blocks were asked back for it: more of them when it has lasted as long again.
    pub(super) fn restart(&mut self, now: Instant) {
        self.since = self.since.map(|_| now);
        self.asked = self.asked.saturating_add(u32::from(self.since.is_some()));
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
        let stall = over_goal_s.map(|s| stall(s, 1_001, 0));
        stalling(0, available, growth, stall)
    }

    /// So many seconds of so much pressure, after so many questions; the goal is 0.1 %.
    fn stall(s: u64, some: u32, asked: u32) -> Stall {
        let (some, goal) = (PpMillion(some), PpMillion(1_000));
        Stall { time: Duration::from_secs(s), asked, some, goal }
    }

    fn stalling(
        free: u64,
        available: u64,
        growth: u64,
        over_goal: Option<Stall>,
    ) -> Option<(u64, Urgency)> {
        caching(0, (free, available, growth), over_goal)
    }

    fn caching(
        hot_cache: u64,
        (free, available, growth): (u64, u64, u64),
        over_goal: Option<Stall>,
    ) -> Option<(u64, Urgency)> {
        let memory = Memory {
            total: mib(1000),
            free: mib(free),
            available: mib(available),
            ..Memory::default()
        };
        let headroom = Headroom::of(mib(1000), BlockSize::X86_SMALL, None, ByteSize::ZERO);
        let need = Need {
            memory: &memory,
            hot_cache: mib(hot_cache),
            headroom: &headroom,
            growth: Growth { ahead: mib(growth), surge: mib(growth), ..Growth::default() },
            trigger_fired: false,
            over_goal,
            steps: Steps { least: 1, most: 16 },
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
    fn the_further_over_the_goal_the_sooner_and_more_each_time_that_it_was_not_enough() {
        let wanted = |stall| stalling(0, 900, 0, Some(stall)).map(|(count, _)| count);
        assert_eq!([wanted(stall(4, 2_000, 0)), wanted(stall(5, 2_000, 0))], [None, Some(1)]);
        // A single stall is over after a window.
        assert_eq!([wanted(stall(2, 300_000, 0)), wanted(stall(3, 300_000, 0))], [None, Some(1)]);
        let counts = [1, 2, 3, 4, 9, 99].map(|asked| wanted(stall(10, 2_000, asked)).unwrap());
        assert_eq!(counts, [2, 4, 8, 16, 16, 16]);
    }

    #[test]
    fn a_cache_that_is_in_use_is_not_available_and_nobody_dies_of_it() {
        let wanted = |hot_cache| caching(hot_cache, (60, 400, 0), None);
        assert_eq!(wanted(300), None);
        assert_eq!(wanted(301), Some((1, Urgency::Comfort)));
        assert_eq!(wanted(400), Some((2, Urgency::Pressure)));
    }

    #[test]
    fn pressure_in_spite_of_much_free_memory_asks_for_nothing() {
        let bad = Some(stall(60, 300_000, 3));
        assert_eq!(stalling(100, 900, 0, bad), None);
        assert_eq!(stalling(99, 900, 0, bad), Some((8, Urgency::Pressure)));
    }

    #[test]
    fn questions_are_counted_while_pressure_lasts() {
        let (mut over, goal) = (OverGoal::default(), PpMillion(1_000));
        let mut at = |s: u64, some: u32| {
            let now = Instant::from_millis(s * 1_000);
            let seen = over.observe(now, PpMillion(some), goal);
            over.restart(now);
            seen.map(|stall| (stall.time.as_secs(), stall.asked))
        };
        let seen = [at(0, 0), at(1, 1_500), at(4, 1_500), at(9, 1_500), at(10, 0), at(11, 1_500)];
        assert_eq!(seen, [None, Some((0, 0)), Some((3, 1)), Some((5, 2)), None, Some((0, 0))]);
    }

    #[test]
    fn the_lowest_blocks_come_first_and_never_more_than_there_is_room_for() {
        let stolen = || [3, 5, 6, 7].into_iter().map(BlockId);
        assert_eq!(nearest(stolen(), 2, 9), [BlockId(3), BlockId(5)]);
        assert_eq!(nearest(stolen(), 9, 1), [BlockId(3)]);
        assert_eq!(nearest(stolen(), 9, 9).len(), 4);
    }
}
