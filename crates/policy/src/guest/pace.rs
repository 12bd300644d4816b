//! How many blocks one window may steal.
//!
//! The kernel's own feedback law for DAMOS quotas (mm/damon/core.c, `damon_feed_loop_next_input`),
//! with blocks in place of bytes: below the goal the next input grows by the distance to it, at
//! most doubling; above it shrinks likewise; at twice the goal or more it starts over from one.

use memtide_units::{Instant, PpMillion};

use super::pressure::WINDOW;

/// Most blocks of one window: 2 GiB of 128 MiB blocks, about a second of offlining idle memory.
const MAX: u32 = 16;

/// The allowance of the present window.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    blocks: u32,
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
    pub(super) fn allowance(&self) -> usize {
        self.blocks as usize
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
    pub(super) fn adapt(&mut self, now: Instant, some: PpMillion, goal: PpMillion) {
        let (some, goal) = (u64::from(some.0), u64::from(goal.0.max(1)));
        if some > goal {
            self.blocks = next_blocks(self.blocks, some, goal);
        } else if self.spent.is_some() && !self.is_proving(now) {
            self.blocks = next_blocks(self.blocks, some, goal);
            self.spent = None;
        }
    }
}

/// The law itself, on integers.
fn next_blocks(last: u32, some: u64, goal: u64) -> u32 {
    let last = u64::from(last);
    let next = if some >= 2 * goal {
        1
    } else if some > goal {
        last - last * (some - goal) / goal
    } else {
        last + last * (goal - some) / goal
    };
    u32::try_from(next).unwrap_or(MAX).clamp(1, MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOAL: PpMillion = PpMillion(1_000);

    #[test]
    fn proven_quiet_doubles_and_idleness_does_not() {
        let (mut pace, mut now, mut seen) = (Pace::default(), Instant::default(), vec![]);
        for _ in 0..6 {
            pace.spend(now);
            now = now + WINDOW;
            pace.adapt(now, PpMillion(0), GOAL);
            seen.push(pace.allowance());
        }
        assert_eq!(seen, [2, 4, 8, 16, 16, 16]);
        let mut idle = Pace::default();
        idle.adapt(now, PpMillion(0), GOAL);
        assert_eq!(idle.allowance(), 1);
    }

    #[test]
    fn twice_the_goal_starts_over_and_a_little_over_slows_down() {
        assert_eq!(next_blocks(16, 2_000, 1_000), 1);
        assert_eq!(next_blocks(16, 1_500, 1_000), 8);
        assert_eq!(next_blocks(8, 500, 1_000), 12);
        assert_eq!(next_blocks(8, 1_000, 1_000), 8);
    }

    proptest! {
        #[test]
        fn never_more_than_double_never_less_than_one(last in 1_u32..=MAX, some in 0_u64..1_000_001, goal in 1_u64..100_000) {
            let next = next_blocks(last, some, goal);
            prop_assert!((1..=MAX).contains(&next) && next <= 2 * last);
            prop_assert!(some <= goal || next <= last);
        }
    }
}
