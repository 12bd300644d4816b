//! Whether to steal now, and how many blocks.

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{BlockId, ByteSize, PpMillion};

use super::controller::ScaleBy;
use super::headroom::Headroom;
use super::limits::{Ceiling, Limits};
use super::observation::Memory;
use super::plan::WaitReason;
use super::pressure::Pressure;

/// With `MemFree` below this the kernel reclaims already, and a block's pages would find room only
/// by pushing out others. About the low watermark of a small guest without huge pages.
const FREE_FLOOR: ByteSize = ByteSize::from_mib(8);

/// While more is online than the host wants, pressure may be this many times the goal before
/// stealing stops: 1 % with the default. The host is short, and the guest still survives it.
const EAGER_GOALS: u32 = 10;

/// Most that the host's target takes at once from a guest with plenty of free memory, or one block:
/// two seconds of the host's dropping it. The next batch is planned on what is seen after it.
const RUSH_MOST: ByteSize = ByteSize::from_gib(8);

/// Where more than what is free goes, this part of the page cache may in one window: the kernel drops
/// what was not read for the longest time first, so that no more than this part of what is in use
/// goes before somebody waits for it.
const CACHE_PART: u64 = 4;

/// What was in use lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lately {
    /// Only what is in use now counts.
    Now,
    /// So much was within this long, and counts as if it were still: free memory reaches the host as
    /// it is.
    Reported { time: Duration, used: ByteSize },
    /// The same, because what was given up sooner was needed again.
    Learned { time: Duration, used: ByteSize },
}

/// What decides how many blocks may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room<'a> {
    pub(super) memory: &'a Memory,
    /// Of the page cache, what counts as in use.
    pub(super) hot_cache: ByteSize,
    pub(super) headroom: &'a Headroom,
    pub(super) lately: Lately,
    pub(super) limits: &'a Limits,
    pub(super) online: ByteSize,
    /// What may be online, by the host's target and the user's maximum.
    pub(super) ceiling: Ceiling,
    pub(super) block: ByteSize,
    pub(super) scale_by: ScaleBy,
}

/// How many blocks may go, and what must be left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    pub(super) count: u64,
    pub(super) keep: ByteSize,
    /// Set where the ceiling is the reason.
    pub(super) ceiling: Option<Ceiling>,
}

impl Room<'_> {
    /// True while more is online than may be.
    pub(super) fn is_over_ceiling(&self) -> bool {
        self.online > self.ceiling.size()
    }

    /// Where the host's target alone counts and nothing is over it, nothing goes.
    pub(super) fn at_target(&self) -> Option<WaitReason> {
        let is_met = self.scale_by == ScaleBy::Target && !self.is_over_ceiling();
        is_met.then_some(WaitReason::AtTarget { ceiling: self.ceiling })
    }

    /// How much pressure forbids stealing.
    pub(super) fn goal(&self) -> PpMillion {
        let factor = if self.is_over_ceiling() { EAGER_GOALS } else { 1 };
        PpMillion(self.limits.psi_goal().0.saturating_mul(factor))
    }

    /// The pressure that forbids stealing now, if it does.
    pub(super) fn forbidding(&self, pressure: Pressure) -> Option<WaitReason> {
        let (some, goal) = (pressure.some, self.goal());
        (some > goal).then_some(WaitReason::Pressure { some, goal })
    }

    /// The pressure that ends a steal which is faster than the pace: what the user accepts, even
    /// where the host's target is allowed more.
    pub(super) fn unhurrying(&self, pressure: Pressure) -> Option<WaitReason> {
        let (some, goal) = (pressure.some, self.limits.psi_goal());
        (some > goal).then_some(WaitReason::Pressure { some, goal })
    }

    /// Blocks over the ceiling that may go at once, whatever the pace is. The pace is there to find
    /// out how much a guest can spare; where the host says how much shall go, and so much is *free*
    /// with plenty left over, there is nothing to find out: nothing has to be pushed out to make
    /// room, and the guest does not stall.
    pub(super) fn easy(&self, pressure: Pressure) -> u64 {
        if !self.is_over_ceiling() || self.unhurrying(pressure).is_some() {
            return 0;
        }
        let free = self.blocks_in(self.memory.free - self.headroom.steal);
        free.min(self.blocks_over()).min(self.blocks_in(RUSH_MOST).max(1))
    }

    /// Blocks that may go at once without pushing out much of the cache: at least one.
    pub(super) fn gentle(&self) -> u64 {
        let part = ByteSize::from_bytes(self.memory.cache.bytes() / CACHE_PART);
        self.blocks_in(self.memory.free.max(part)).max(1)
    }

    /// How many blocks may go now, at least one.
    ///
    /// # Errors
    /// Why none may.
    pub(super) fn allowed(&self) -> Result<Allowed, WaitReason> {
        if self.memory.free < FREE_FLOOR {
            return Err(WaitReason::NoFree { free: self.memory.free });
        }
        let by_minimum = self.by_minimum()?;
        let (plenty, eager) = (self.by_plenty(), self.by_ceiling());
        let best = if eager.count > plenty.count { eager } else { plenty };
        if best.count == 0 {
            let keep = if self.is_over_ceiling() { eager.keep } else { plenty.keep };
            return Err(self.missing(keep + self.block));
        }
        Ok(Allowed { count: best.count.min(by_minimum), ..best })
    }

    /// How many blocks the minimum lets go, at least one.
    ///
    /// # Errors
    /// It lets none.
    pub(super) fn by_minimum(&self) -> Result<u64, WaitReason> {
        match self.blocks_in(self.online - self.limits.min()) {
            0 => Err(WaitReason::AtMinimum { min: self.limits.min() }),
            count => Ok(count),
        }
    }

    /// Why one more block cannot go, which needs so much.
    fn missing(&self, needed: ByteSize) -> WaitReason {
        let available = match self.is_over_ceiling() {
            true => self.memory.available,
            false => self.memory.available - self.hot_cache,
        };
        match self.lately {
            Lately::Reported { time, .. } if available >= needed => {
                WaitReason::Patient { within: time }
            }
            Lately::Learned { time, used } if available >= needed => {
                WaitReason::UsedLately { used, within: time }
            }
            _ if self.memory.available >= needed => {
                WaitReason::CacheInUse { cache: self.hot_cache, missing: needed - available }
            }
            _ => {
                let over = self.is_over_ceiling();
                let for_swapped = if over { ByteSize::ZERO } else { self.headroom.for_swapped };
                WaitReason::Steady { available, needed, for_swapped }
            }
        }
    }

    /// What the guest has to spare, where that is given up unasked.
    fn by_plenty(&self) -> Allowed {
        let keep = self.headroom.steal;
        let count = match self.scale_by {
            ScaleBy::Use => self.blocks_in(self.spare() - keep),
            ScaleBy::Target => 0,
        };
        Allowed { count, keep, ceiling: None }
    }

    /// What is available without the cache that is in use, and was all along.
    fn spare(&self) -> ByteSize {
        let available = match self.lately {
            Lately::Now => self.memory.available,
            Lately::Reported { used, .. } | Lately::Learned { used, .. } => {
                self.memory.available.min(self.memory.total - used)
            }
        };
        available - self.hot_cache
    }

    /// What the host's target asks for: the margin against stealing and returning in turns is not
    /// needed here, because the same target forbids the return.
    fn by_ceiling(&self) -> Allowed {
        let keep = self.headroom.low;
        let spare = self.blocks_in(self.memory.available - keep);
        Allowed { count: self.blocks_over().min(spare), keep, ceiling: Some(self.ceiling) }
    }

    /// Blocks that have to go until no more is online than may be.
    pub(super) fn blocks_over(&self) -> u64 {
        (self.online - self.ceiling.size()).bytes().div_ceil(self.block.bytes().max(1))
    }

    fn blocks_in(&self, size: ByteSize) -> u64 {
        size.bytes() / self.block.bytes().max(1)
    }
}

/// The first of `candidates`, no more than allowance and room permit.
pub(super) fn chosen(candidates: Vec<BlockId>, allowance: u64, count: u64) -> Vec<BlockId> {
    let count = usize::try_from(count.min(allowance)).unwrap_or(usize::MAX);
    candidates.into_iter().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::super::limits::LimitsWish;
    use super::*;
    use memtide_units::BlockSize;

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    fn of_steady(available: u64, needed: u64) -> WaitReason {
        let (available, needed) = (mib(available), mib(needed));
        WaitReason::Steady { available, needed, for_swapped: ByteSize::ZERO }
    }

    /// 2048 MiB present, minimum 512 MiB; `low` 100 MiB and `steal` 292 MiB at 1000 MiB online.
    fn allowed(online: u64, available: u64, ceiling: u64) -> Result<(u64, bool), WaitReason> {
        caching(online, (available, 0), ceiling)
    }

    fn caching(
        online: u64,
        (available, hot_cache): (u64, u64),
        ceiling: u64,
    ) -> Result<(u64, bool), WaitReason> {
        let limits = Limits::new(mib(2048), LimitsWish::default()).unwrap();
        let memory = Memory {
            total: mib(online),
            free: mib(50),
            available: mib(available),
            ..Memory::default()
        };
        let headroom = Headroom::of(mib(online), BlockSize::X86_SMALL, None, ByteSize::ZERO);
        let room = Room {
            memory: &memory,
            hot_cache: mib(hot_cache),
            headroom: &headroom,
            lately: Lately::Now,
            limits: &limits,
            online: mib(online),
            ceiling: Ceiling::Target(mib(ceiling)),
            block: mib(128),
            scale_by: ScaleBy::Use,
        };
        room.allowed().map(|allowed| (allowed.count, allowed.ceiling.is_some()))
    }

    #[test]
    fn plenty_leaves_a_block_and_a_half_over_low() {
        assert_eq!(allowed(1000, 420, 2048), Ok((1, false)));
        assert_eq!(allowed(1000, 548, 2048), Ok((2, false)));
        let steady = of_steady(419, 420);
        assert_eq!(allowed(1000, 419, 2048), Err(steady));
    }

    #[test]
    fn a_cache_that_is_in_use_goes_for_the_host_alone() {
        assert_eq!(caching(1000, (548, 128), 2048), Ok((1, false)));
        let in_use = WaitReason::CacheInUse { cache: mib(129), missing: mib(1) };
        assert_eq!(caching(1000, (548, 129), 2048), Err(in_use));
        assert_eq!(caching(1000, (548, 129), 900), Ok((1, true)));
    }

    #[test]
    fn the_hosts_target_goes_further_but_not_below_low_or_the_minimum() {
        assert_eq!(allowed(1000, 400, 700), Ok((2, true)));
        assert_eq!(allowed(1000, 400, 999), Ok((1, true)));
        let steady = of_steady(227, 228);
        assert_eq!(allowed(1000, 227, 700), Err(steady));
        assert_eq!(allowed(639, 600, 512), Err(WaitReason::AtMinimum { min: mib(512) }));
        assert_eq!(allowed(640, 250, 512), Ok((1, true)));
    }
}
