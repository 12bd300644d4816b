//! Who pages cold memory out where the policy says so: DAMON's second scheme, which finds out by itself how
//! much may go in a second without more stall than the user accepts (guest-agent's `reclaiming.rs`).

use std::time::Duration;

use memtide_policy::guest::{Limits, PagingBounds, Reclaim};
use memtide_units::{ByteSize, Instant};

use crate::TICK;
use crate::kernel::{Kernel, in_pages};

/// The scheme looks at what it has done so often.
const LOOK: Duration = Duration::from_secs(1);
/// It grows by so much of the most each time that the goal was kept. The kernel's own law is steeper
/// far from the goal (mm/damon/core.c, `damon_feed_loop_next_input`).
const STEP: u64 = 16;

/// The scheme.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pager {
    is_on: bool,
    most: u64,
    goal_us: u64,
    per_second: u64,
    looked: Instant,
    stalled_us: u64,
}

impl Pager {
    /// Off, at first.
    pub(super) fn new(now: Instant, limits: &Limits, present: ByteSize) -> Self {
        let PagingBounds { bytes, stall_us: goal_us } = PagingBounds::of(limits, present);
        let most = in_pages(bytes);
        Self { is_on: false, most, goal_us, per_second: most / STEP, looked: now, stalled_us: 0 }
    }

    /// Follows the policy.
    pub(super) fn take(&mut self, reclaim: Reclaim) {
        self.is_on = matches!(reclaim, Reclaim::On(_));
    }

    /// One tick of it.
    pub(super) fn work(&mut self, now: Instant, kernel: &mut Kernel) {
        if now.since(self.looked) >= LOOK {
            let stalled_us = kernel.psi().some_us;
            let step = self.most / STEP;
            let wanted = match stalled_us - self.stalled_us {
                // While it is off it is told that its goal is exactly met.
                _ if !self.is_on => self.per_second,
                us if us > self.goal_us => self.per_second / 2,
                _ => self.per_second + step,
            };
            self.per_second = wanted.clamp(1, self.most);
            (self.looked, self.stalled_us) = (now, stalled_us);
        }
        if self.is_on {
            let ticks = (LOOK.as_millis() / TICK.as_millis()) as u64;
            kernel.page_out(self.per_second.div_ceil(ticks));
        }
    }
}
