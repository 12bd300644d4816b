//! Memory that comes to a kernel zone while the agent runs: it is made movable, as boot memory was at start.
//!
//! ```text
//!   a look finds it --> as many as the ratio allows --> one at a time, while nothing else is to be done
//!                                \--> the others stay, and the status says so
//! ```
//! Right after memory was plugged in next to nothing lies in it. A conversion is the blocks' thread's work,
//! and it makes way for a return. Nothing here is tried for ever: a block that cannot be emptied stays.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use memtide_policy::guest::{
    Conversions, DeviceState, Headroom, Mode, StealFailure, ZoneBalance, conversions,
};
use memtide_units::{BlockId, ByteSize, Instant};

use super::Agent;
use crate::config::Conversion;
use crate::status::{Lack, say_lack};
use crate::worker::{Failure, Job, Task};

/// A block that could not be emptied rests for so long, twice as long each further time: I/O in flight that
/// pins pages passes in that time.
const FIRST_REST: Duration = Duration::from_secs(10);
/// After so many tries, which are five minutes, what lies in it is the kernel's and will not go.
const TRIES_MAX: u32 = 6;
/// Where memory was short, or a return came first, nothing is tried for so long.
const LATER: Duration = Duration::from_secs(30);
/// What was done is paid for afterwards, as for stealing: so much may be owed that it takes as long as this, and
/// the next block waits while it is more. Nobody pays longer for one: what was seen of the guest before is not
/// true any more.
const OWES_MAX: Duration = Duration::from_secs(30);
const SECOND_US: u128 = 1_000_000;

/// What was tried in vain.
#[derive(Clone, Copy, Debug)]
struct Tries {
    /// Of which making of the block.
    making: Option<u64>,
    count: u32,
    not_before: Instant,
}

/// What is under way about zones.
#[derive(Debug, Default)]
pub(super) struct Zones {
    tries: BTreeMap<BlockId, Tries>,
    /// What was done is paid for then.
    paid: Instant,
    /// Something else comes first.
    not_before: Instant,
    /// Blocks that were made movable, and that nobody was told of.
    done: usize,
    lacks: [Option<Lack>; 4],
    /// How much memory the blocks in use are, and what the kernel had at that moment.
    memory: Option<(ByteSize, ByteSize)>,
}

impl Zones {
    fn is_given_up(&self, block: BlockId) -> bool {
        self.tries.get(&block).is_some_and(|tries| tries.count >= TRIES_MAX)
    }

    fn rests(&self, now: Instant, block: BlockId) -> bool {
        self.tries.get(&block).is_some_and(|tries| now < tries.not_before)
    }

    fn failed(&mut self, now: Instant, block: BlockId, making: Option<u64>) {
        let count = self.tries.get(&block).map_or(0, |tries| tries.count);
        let not_before = now + FIRST_REST.saturating_mul(1 << count.min(TRIES_MAX));
        self.tries.insert(block, Tries { making, count: count + 1, not_before });
    }

    /// Something was done that takes so long to pay for.
    fn owe(&mut self, now: Instant, time: Duration) {
        self.paid = self.paid.max(now) + time;
    }

    fn may_begin(&self, now: Instant) -> bool {
        now >= self.not_before && self.paid.since(now) < OWES_MAX
    }
}

/// How long it takes to pay for what has cost so much processor time, at so much of each second.
fn paid_in(cost: Duration, per_second: Duration) -> Duration {
    let micros = cost.as_micros() * SECOND_US / per_second.as_micros().max(1);
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).min(OWES_MAX)
}

impl Agent {
    /// Where there is more memory than the table of blocks says, it was plugged in, or somebody else has put it
    /// online: that is looked at soon. The kernel takes its own memory from a zone above the one that it has
    /// lived in first (mm/page_alloc.c, `build_zonerefs_node`), and two of four blocks could not be emptied
    /// some seconds later (docs/adr/0028).
    pub(super) fn notice_news(&mut self, now: Instant) {
        // What the thread has just done may be in one and not yet in the other.
        if self.parts.hands.is_at_work() {
            return;
        }
        let size = self.parts.blocks.size().size();
        let now_known = size.times(self.parts.blocks.count_in_use() as u64);
        let now_there = self.reading.meminfo.total;
        // Firmware and the kernel's image take some of it, and always the same.
        let (known, there) =
            self.zones.memory.replace((now_known, now_there)).unwrap_or((now_known, now_there));
        if now_there + known > there + now_known + ByteSize::from_bytes(size.bytes() / 2) {
            self.due.refresh = now;
        }
    }

    /// Finds out what is to be made movable, and says what cannot be.
    pub(super) fn see_to_zones(&mut self) {
        let (blocks, zones) = (&mut self.parts.blocks, &mut self.zones);
        let late: BTreeSet<BlockId> = blocks.latecomers().into_iter().collect();
        let is_so = |block: &BlockId, tries: &Tries| {
            late.contains(block) && blocks.making(*block) == tries.making
        };
        zones.tries.retain(|block, tries| is_so(block, tries));
        let by_zone = blocks.by_zone();
        let Conversions { mut candidates, most } = conversions(&by_zone);
        candidates.retain(|block| late.contains(block));
        let could_be =
            |block: &&BlockId| !zones.is_given_up(**block) && !blocks.has_pieces_in(**block);
        let able: Vec<BlockId> = candidates.iter().filter(could_be).copied().collect();
        let lacks = match self.parts.conversion {
            Conversion::Leave => [lack(late.len(), Lack::left_in_kernel_zone), None],
            Conversion::Convert => {
                let balance = ZoneBalance::of(&by_zone);
                blocks.await_conversion(able.iter().take(most).copied().collect());
                let (stuck, over) = (late.len() - able.len(), able.len().saturating_sub(most));
                let stay = lack(stuck + over, |_| Lack::kernel_zone(stuck, over));
                [stay, balance.is_lopsided().then(|| Lack::kernel_memory(balance))]
            }
        };
        self.say_of_zones(lacks);
    }

    fn say_of_zones(&mut self, [zone, kernel]: [Option<Lack>; 2]) {
        let blocks = &self.parts.blocks;
        let has_other_way = || blocks.all().iter().any(|block| blocks.goes_by_pieces(*block));
        let may_convert = self.parts.conversion == Conversion::Convert;
        let is_stuck = may_convert && blocks.movable_count() == 0 && !has_other_way();
        let plain = lack(blocks.with_own_structs(), Lack::plain_blocks);
        let now = [zone, kernel, plain, is_stuck.then(Lack::stealable)];
        for (known, now) in self.zones.lacks.iter_mut().zip(now) {
            say_lack(&mut self.parts.lacks, known, now);
        }
    }

    /// Begins to make one block movable, if one is to be and nothing else is to be done. Call it when all that
    /// was decided is under way.
    pub(super) fn convert_next(&mut self, now: Instant) {
        let blocks = &self.parts.blocks;
        // From the top, as the policy has it, but for those that rest.
        // Pieces may have come to lie in one since it was chosen.
        let may_go =
            |block: &BlockId| !self.zones.rests(now, *block) && !blocks.has_pieces_in(*block);
        let next = blocks.awaiting_conversion().rev().find(may_go);
        let Some(block) = next.filter(|_| self.zones.may_begin(now) && self.has_time()) else {
            return;
        };
        let set = self.heat.working_set();
        let keep = Headroom::of(blocks.online(), blocks.size(), set, ByteSize::ZERO).low;
        self.parts.hands.convert(Job { block, task: Task::Convert { keep } });
    }

    /// Whether nothing is under way, or waited for, that a conversion could be in the way of.
    fn has_time(&self) -> bool {
        let Self { parts, returns, ejection, mode, .. } = self;
        let awaits_host = returns.ticket().is_some() || ejection.awaits_host();
        let is_at_rest = parts.link.device_state() == DeviceState::Ready && parts.link.is_idle();
        *mode == Mode::Tune && is_at_rest && !awaits_host && !parts.hands.is_busy()
    }

    pub(super) fn on_converted(
        &mut self,
        now: Instant,
        (block, cost): (BlockId, Duration),
        result: Result<(), Failure>,
    ) {
        self.zones.owe(now, paid_in(cost, self.processors.spare().for_stealing()));
        match result {
            Ok(()) => self.is_online_again(now, block),
            Err(failure) if failure.is_offline => {
                tracing::warn!(
                    "{block} counts as stolen: it was to be made movable, and {}",
                    failure.text
                );
                self.on_offline(block, None);
            }
            Err(failure) => {
                tracing::debug!("{block} stays in its zone: {}", failure.text);
                match failure.kind {
                    StealFailure::Aborted | StealFailure::NoRoom => {
                        self.zones.not_before = now + LATER;
                    }
                    StealFailure::Busy | StealFailure::TimedOut | StealFailure::HostRefused => {
                        self.zones.failed(now, block, self.parts.blocks.making(block));
                    }
                }
            }
        }
        self.see_to_zones();
        let (mut left, zones) = (self.parts.blocks.awaiting_conversion(), &self.zones);
        if left.all(|block| zones.rests(now, block)) {
            drop(left);
            self.tell_of_conversions(now);
        }
    }

    /// In `ZONE_MOVABLE`, or where the kernel did not have that, in its own zone as before.
    fn is_online_again(&mut self, now: Instant, block: BlockId) {
        let Self { parts, zones, .. } = self;
        parts.blocks.set(&parts.root, block, crate::blocks::Hold::Online);
        if parts.blocks.is_movable(block) {
            zones.done += 1;
        } else {
            zones.failed(now, block, parts.blocks.making(block));
        }
    }

    fn tell_of_conversions(&mut self, now: Instant) {
        let done = std::mem::take(&mut self.zones.done);
        if done > 0 {
            self.tell(now, format!("{done} blocks that came to a kernel zone were made movable"));
        }
    }
}

/// What is lacking where it is so of some blocks.
fn lack(count: usize, what: impl Fn(usize) -> Lack) -> Option<Lack> {
    (count > 0).then(|| what(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_paid_for_like_a_steal() {
        let ms = Duration::from_millis;
        assert_eq!(paid_in(ms(30), ms(15)), ms(2_000));
        assert_eq!(paid_in(ms(30), ms(250)), ms(120));
        assert_eq!(paid_in(ms(5_000), ms(15)), OWES_MAX);
        assert_eq!(paid_in(Duration::MAX, Duration::ZERO), OWES_MAX);
    }

    #[test]
    fn a_few_blocks_go_at_once_and_are_paid_for_before_there_are_more() {
        let (mut zones, at) = (Zones::default(), |s: u64| Instant::from_millis(s * 1_000));
        let mut begun = 0;
        while zones.may_begin(at(5)) {
            zones.owe(at(5), Duration::from_secs(7));
            begun += 1;
        }
        // 35 seconds' worth: there may be another when five of them have passed.
        assert_eq!(begun, 5);
        assert_eq!([10, 11].map(|s| zones.may_begin(at(s))), [false, true]);
    }

    #[test]
    fn a_block_rests_longer_each_time_and_is_given_up_after_some_minutes() {
        let (mut zones, block, mut now) = (Zones::default(), BlockId(8), Instant::default());
        for seconds in [10, 20, 40, 80, 160, 320] {
            assert!(!zones.is_given_up(block) && !zones.rests(now, block), "{seconds}");
            zones.failed(now, block, None);
            let end = now + Duration::from_secs(seconds);
            assert!(zones.rests(Instant::from_millis(end.as_millis() - 1), block));
            now = end;
        }
        assert!(zones.is_given_up(block));
    }
}
