//! What is read off one observation, with what was seen before.

use core::time::Duration;

use memtide_units::{BlockSize, ByteSize, Instant};

use super::controller::Settings;
use super::headroom::Headroom;
use super::hot_cache::HotCache;
use super::limits::{Ceiling, Limits};
use super::observation::{BlockState, FreeMemory, Observation};
use super::pace::Steps;
use super::peak::Peaks;
use super::pressure::{Pressure, PressureMeter};
use super::quiet::LONGEST;
use super::reclaim::Around;
use super::returns::{Need, OverGoal, Stall};
use super::shortage::{MISSED, Shortage, Want};
use super::steals::{Lately, Room};
use super::trend::{Growth, Trend};

/// What one step works with.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) online: ByteSize,
    pub(super) ceiling: Ceiling,
    /// Blocks that lack until as much is online as the user wants at least.
    pub(super) lacking: u64,
    pub(super) headroom: Headroom,
    /// As PSI has it.
    pub(super) measured: Pressure,
    /// What of it is for want of the guest's memory; `None` while it is not known.
    pub(super) pressure: Option<Pressure>,
    /// Some task stalls right now for want of the guest's memory.
    pub(super) trigger_fired: bool,
    pub(super) growth: Growth,
    /// Of the page cache, what counts as in use.
    pub(super) hot_cache: ByteSize,
    /// What was in use lately, where that counts as in use still.
    pub(super) lately: Lately,
    pub(super) over_goal: Option<Stall>,
    /// Some task stalls too much, if only for what was paged out.
    pub(super) stalls: bool,
    pub(super) steps: Steps,
}

impl Figures {
    /// Tasks have stalled so much lately, or do right now, that the pace starts over: twice the goal.
    /// Less slows it down; paging out cold memory is tuned to come near half of the goal, and crosses it.
    pub(super) fn hurts(&self) -> bool {
        let is_double = |stall: &Stall| stall.some.0 >= stall.goal.0.saturating_mul(2);
        self.trigger_fired || self.over_goal.as_ref().is_some_and(is_double)
    }

    pub(super) fn around(&self, seen: &Observation) -> Around {
        let refaulted = seen.squeeze.map(|squeeze| squeeze.refaulted);
        let working_set = seen.working_set;
        Around {
            mode: seen.mode,
            swap: seen.swap,
            stalls: self.stalls,
            available: seen.memory.available,
            refaulted,
            working_set,
        }
    }

    pub(super) fn need<'a>(&'a self, seen: &'a Observation, settings: &Settings) -> Need<'a> {
        // Over the host's target nothing could come back for the sake of a cache, and asking for it
        // would keep the guest from following the target.
        let is_over_ceiling = self.room(seen, settings).is_over_ceiling();
        Need {
            memory: &seen.memory,
            hot_cache: if is_over_ceiling { ByteSize::ZERO } else { self.hot_cache },
            headroom: &self.headroom,
            growth: self.growth,
            trigger_fired: self.trigger_fired,
            over_goal: self.over_goal,
            steps: self.steps,
            block: settings.block.size(),
        }
    }

    pub(super) fn room<'a>(&'a self, seen: &'a Observation, settings: &'a Settings) -> Room<'a> {
        Room {
            memory: &seen.memory,
            hot_cache: self.hot_cache,
            headroom: &self.headroom,
            lately: self.lately,
            limits: &settings.limits,
            online: self.online,
            ceiling: self.ceiling,
            block: settings.block.size(),
            scale_by: settings.scale_by,
        }
    }
}

/// Blocks that lack until the minimum, and no more than the maximum has room for. What is between online and
/// stolen counts as `online`: which way it goes is seen once it has gone. The host's target does not count, for it
/// never goes below the minimum; and nothing is stolen of the block that the minimum ends in.
fn lacking(limits: &Limits, block: BlockSize, online: ByteSize) -> u64 {
    let lacking = (limits.min() - online).bytes().div_ceil(block.size().bytes().max(1));
    lacking.min(block.count_in(limits.max() - online))
}

/// What is remembered from one look to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauges {
    meter: PressureMeter,
    over_goal: OverGoal,
    /// When some task last stalled too much for what was paged out alone.
    waited_for_swap: Option<Instant>,
    shortage: Shortage,
    hot_cache: HotCache,
    trend: Trend,
    peaks: Peaks,
}

impl Gauges {
    /// Looks. What was given up and needed again counts as in use for `learned`.
    pub(super) fn read(
        &mut self,
        now: Instant,
        seen: &Observation,
        settings: &Settings,
        learned: Option<Duration>,
    ) -> Figures {
        let (limits, block) = (&settings.limits, settings.block);
        let online = seen.bytes_where(block, |state| state.is_online());
        let between = seen.bytes_where(block, |state| state == BlockState::InTransit);
        let present = seen.bytes_where(block, |_| true);
        let measured = seen.psi.and_then(|totals| self.meter.observe(now, totals));
        let growth = self.trend.observe(now, &seen.memory);
        self.peaks.observe(now, &seen.memory);
        let mut headroom = Headroom::of(online, block, seen.working_set, growth.burst);
        let want = self.shortage.observe(now, seen.squeeze);
        let available = seen.memory.available - self.hot_cache.known(now, seen);
        let returning = seen.swap.map(|swap| swap.returning());
        let fitting = returning.filter(|returning| available >= headroom.low + *returning);
        let is_short = match want {
            Want::Nothing => false,
            Want::Swapped => fitting.is_none(),
            Want::Memory => true,
        };
        let goal = limits.psi_goal();
        let pressure = measured.map(|all| if is_short { all } else { Pressure::default() });
        let trigger_fired = seen.trigger_fired && is_short;
        let over_goal = self.over_goal.observe(now, pressure.unwrap_or_default().some, goal);
        let is_over = measured.unwrap_or_default().some > goal;
        let stalls = want != Want::Nothing && (is_over || seen.trigger_fired);
        if stalls && !is_short {
            self.waited_for_swap = Some(now);
        }
        if self.waited_for_swap.is_some_and(|at| now.since(at) < MISSED) {
            // It goes on fitting: no steal brings on what would have blocks asked back.
            headroom.leave_room_for_swapped(fitting.unwrap_or_default());
        }
        Figures {
            online,
            ceiling: limits.ceiling(present, seen.balloon),
            lacking: lacking(limits, block, online + between),
            headroom,
            measured: measured.unwrap_or_default(),
            pressure,
            trigger_fired,
            growth,
            hot_cache: self.hot_cache.observe(now, seen, trigger_fired || over_goal.is_some()),
            lately: self.lately(now, seen, learned),
            over_goal,
            stalls,
            steps: Steps::of(online, block),
        }
    }

    /// How much of what was in use before still counts.
    fn lately(&self, now: Instant, seen: &Observation, learned: Option<Duration>) -> Lately {
        match (seen.free_memory, learned) {
            (FreeMemory::ReportedToHost, _) => {
                let is_known = self.peaks.is_known_for(now, LONGEST);
                let peak = self.peaks.within(now, LONGEST);
                let used = if is_known { peak } else { seen.memory.total };
                Lately::Reported { time: LONGEST, used }
            }
            (FreeMemory::KeptByGuest, Some(time)) => {
                Lately::Learned { time, used: self.peaks.within(now, time) }
            }
            (FreeMemory::KeptByGuest, None) => Lately::Now,
        }
    }

    /// Blocks are asked back.
    pub(super) fn asked(&mut self, now: Instant) {
        self.over_goal.restart(now);
    }

    /// Until then memory was what it was at the last look.
    pub(super) fn lay_still(&mut self, at: Instant) {
        self.trend.lay_still(at);
    }

    /// A return took so long from its grant to being online.
    pub(super) fn return_took(&mut self, time: Duration) {
        self.trend.return_took(time);
    }
}

#[cfg(test)]
mod tests {
    use super::super::controller::{KernelZone, ScaleBy};
    use super::super::limits::LimitsWish;
    use super::super::observation::{BlockView, Memory, PsiTotals, Squeeze, Swap};
    use super::*;
    use memtide_units::BlockId;

    /// What must be left over after a steal is also what an emergency asks back.
    #[test]
    fn room_for_what_is_in_swap_is_left_only_while_there_is_some() {
        let (mib, block) = (ByteSize::from_mib, BlockSize::X86_SMALL);
        let settings = Settings {
            block,
            limits: Limits::new(mib(2_048), LimitsWish::default()).unwrap(),
            scale_by: ScaleBy::Use,
            kernel_zone: KernelZone::Leave,
            gate_deadline: None,
            first_ticket: 1,
        };
        let view = |id| BlockView {
            id: BlockId(id),
            state: BlockState::Movable,
            heat: None,
            census: None,
        };
        let mut seen = Observation {
            blocks: (0..16).map(view).collect(),
            swap: Some(Swap { total: mib(2_048), swapped: mib(600), ..Swap::default() }),
            ..Observation::of_nothing()
        };
        let mut gauges = Gauges::default();
        let mut left = |s: u64, available, some_us| {
            seen.memory = Memory { total: mib(2_000), available: mib(available), ..seen.memory };
            seen.psi = Some(PsiTotals { some_us, full_us: 0 });
            seen.squeeze = Some(Squeeze { swapped_in: s, ..Squeeze::default() });
            let figures = gauges.read(Instant::from_millis(s * 1_000), &seen, &settings, None);
            let plain = Headroom::of(figures.online, block, None, figures.growth.burst);
            figures.headroom.steal - plain.steal
        };
        assert_eq!([left(0, 1_800, 0), left(61, 1_800, 0)], [ByteSize::ZERO; 2], "nobody waits");
        assert_eq!(left(63, 1_800, 100_000), mib(600));
        assert_eq!(left(66, 1_800, 100_000), mib(600), "somebody did");
        assert_eq!(left(69, 10, 100_000), ByteSize::ZERO);
    }
}
