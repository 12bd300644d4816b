//! How many blocks one window may steal, and one question ask back for the sake of pressure.
//!
//! The kernel's own feedback law for DAMOS quotas (mm/damon/core.c, `damon_feed_loop_next_input`),
//! with blocks in place of bytes: below the goal the next input grows by the distance to it, at
//! most doubling; above it shrinks likewise; at twice the goal or more it starts over from the least.

use memtide_units::{BlockSize, ByteSize, Instant, PpMillion};

use super::pressure::WINDOW;

/// The least of one window is this part of what is online, and one block: a guest of a TiB would
/// take minutes to get going by one block of 128 MiB.
const LEAST_PART: u64 = 256;
/// The most of one window is this part of what is online, or so much of a small guest: about a second
/// of offlining idle memory.
const MOST_PART: u64 = 2;
const MOST_FLOOR: ByteSize = ByteSize::from_gib(2);

/// How many blocks are few, and how many are many, in a guest of some size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) least: u64,
    pub(super) most: u64,
}

impl Steps {
    /// With so much online.
    pub(super) fn of(online: ByteSize, block: BlockSize) -> Self {
        let blocks = block.count_in(online);
        let most = (blocks / MOST_PART).max(block.count_in(MOST_FLOOR)).max(1);
        Self { least: (blocks / LEAST_PART).max(1), most }
    }
}

/// The allowance of the present window.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    blocks: u64,
    /// When blocks were last stolen with this allowance; growth needs proof.
    spent: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { blocks: 1, spent: None }
    }
}

impl Pace {
    /// How many blocks may be stolen now: at least one.
    pub(super) fn allowance(&self) -> u64 {
        self.blocks
    }

    /// Blocks were stolen: whether that was too fast shows in the window that follows.
    pub(super) fn spend(&mut self, now: Instant) {
        self.spent = Some(now);
    }

    /// Whether the window after the last steal is not over yet.
    pub(super) fn is_proving(&self, now: Instant) -> bool {
        self.spent.is_some_and(|spent| now.since(spent) < WINDOW)
    }

    /// Adapts to the pressure of the last window. Only a steal can prove that the pace is good, so
    /// an idle guest does not gather allowance; pressure counts against it at any time.
    pub(super) fn adapt(&mut self, now: Instant, some: PpMillion, goal: PpMillion, steps: Steps) {
        let (some, goal) = (u64::from(some.0), u64::from(goal.0.max(1)));
        self.blocks = self.blocks.clamp(steps.least, steps.most);
        if some > goal {
            self.blocks = next_blocks(self.blocks, some, goal, steps);
        } else if self.spent.is_some() && !self.is_proving(now) {
            self.blocks = next_blocks(self.blocks, some, goal, steps);
            self.spent = None;
        }
    }
}

/// The law itself, on integers.
fn next_blocks(last: u64, some: u64, goal: u64, steps: Steps) -> u64 {
    let next = if some >= 2 * goal {
        steps.least
    } else if some > goal {
        last - last * (some - goal) / goal
    } else {
        last + last * (goal - some) / goal
    };
    next.clamp(steps.least, steps.most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOAL: PpMillion = PpMillion(1_000);
    const SMALL: Steps = Steps { least: 1, most: 16 };

    #[test]
    fn proven_quiet_doubles_and_idleness_does_not() {
        let (mut pace, mut now, mut seen) = (Pace::default(), Instant::default(), vec![]);
        for _ in 0..6 {
            pace.spend(now);
            now = now + WINDOW;
            pace.adapt(now, PpMillion(0), GOAL, SMALL);
            seen.push(pace.allowance());
        }
        assert_eq!(seen, [2, 4, 8, 16, 16, 16]);
        let mut idle = Pace::default();
        idle.adapt(now, PpMillion(0), GOAL, SMALL);
        assert_eq!(idle.allowance(), 1);
    }

    #[test]
    fn twice_the_goal_starts_over_and_a_little_over_slows_down() {
        let next = |last, some| next_blocks(last, some, 1_000, SMALL);
        assert_eq!([next(16, 2_000), next(16, 1_500)], [1, 8]);
        assert_eq!([next(8, 500), next(8, 1_000)], [12, 8]);
    }

    #[test]
    fn a_step_is_a_part_of_the_guest_whatever_its_blocks_are() {
        let of = |gib, mib| {
            let block = BlockSize::new(ByteSize::from_mib(mib)).unwrap();
            let Steps { least, most } = Steps::of(ByteSize::from_gib(gib), block);
            (least, most)
        };
        assert_eq!([of(2, 128), of(64, 2048), of(1, 2048)], [(1, 16), (1, 16), (1, 1)]);
        assert_eq!([of(1024, 128), of(1024, 2048)], [(32, 4096), (2, 256)]);
    }

    #[test]
    fn a_tebibyte_is_given_up_in_half_a_minute_and_not_in_a_quarter_of_an_hour() {
        let (mut pace, mut now, mut windows) = (Pace::default(), Instant::default(), 0);
        let mut blocks = 7_000_u64;
        while blocks > 0 {
            let steps = Steps::of(ByteSize::from_mib(128 * (1_192 + blocks)), BlockSize::X86_SMALL);
            pace.adapt(now, PpMillion(0), GOAL, steps);
            blocks -= pace.allowance().min(blocks);
            pace.spend(now);
            now = now + WINDOW;
            windows += 1;
        }
        assert!(windows < 15, "{windows}");
    }

    proptest! {
        #[test]
        fn never_more_than_double_never_less_than_one(last in 1_u64..=16, some in 0_u64..1_000_001, goal in 1_u64..100_000) {
            let next = next_blocks(last, some, goal, SMALL);
            prop_assert!((1..=16).contains(&next) && next <= 2 * last);
            prop_assert!(some <= goal || next <= last);
        }
    }
}
