//! Whether it is for want of the guest's memory that somebody stalls.
//!
//! PSI counts every task of the guest, also one in a control group that has reached a limit of its
//! own. It would stall as much in a guest ten times as large, so it must neither keep all the others
//! from giving up what they do not need, nor have the host give back what does not help. What tells
//! the two apart is what the kernel does: it reclaims for the whole guest, or compacts, only where the
//! guest itself is short, and counts that apart ([`Squeeze`]).
//!
//! What is read from swap may have gone there long ago. Where so much is available that all of it could come
//! back and enough were left, whoever waits for it lacks nothing that a block could give.

use core::time::Duration;

use memtide_units::Instant;

use super::observation::Squeeze;

/// What was reclaimed so long ago may be missed still: ACMA's working set interval.
pub(super) const MISSED: Duration = Duration::from_secs(60);

/// For want of what somebody may stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Of nothing that the guest as a whole could do something about.
    Nothing,
    /// Of what was paged out at some time and has to be read.
    Swapped,
    /// Of memory.
    Memory,
}

/// Remembers when the guest was last short.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shortage {
    events: Counter,
    swapped_in: Counter,
}

impl Shortage {
    /// Looks at the counters of `now`. A stall may be for want of the guest's memory also where nobody
    /// counts, and for a minute after the first look, for nobody knows what was before.
    pub(super) fn observe(&mut self, now: Instant, squeeze: Option<Squeeze>) -> Want {
        let is_short = self.events.has_moved(now, squeeze.map(|squeeze| squeeze.events));
        let reads = self.swapped_in.has_moved(now, squeeze.map(|squeeze| squeeze.swapped_in));
        match (is_short, reads) {
            (true, _) => Want::Memory,
            (false, true) => Want::Swapped,
            (false, false) => Want::Nothing,
        }
    }
}

/// When one of the kernel's counters last moved.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    last: Option<u64>,
    moved: Option<Instant>,
}

impl Counter {
    /// Whether it has lately, or nobody knows.
    fn has_moved(&mut self, now: Instant, count: Option<u64>) -> bool {
        if count.is_none() || self.last != count {
            self.moved = Some(now);
        }
        self.last = count;
        self.moved.is_some_and(|moved| now.since(moved) < MISSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_short_while_its_kernel_reclaims_and_a_minute_after() {
        let (mut shortage, at) = (Shortage::default(), |s: u64| Instant::from_millis(s * 1_000));
        let mut short = |s, events: Option<u64>| {
            let squeeze = |events| Squeeze { events, ..Squeeze::default() };
            shortage.observe(at(s), events.map(squeeze)) == Want::Memory
        };
        assert!(short(0, Some(700)), "who knows what was before");
        assert!(short(59, Some(700)) && !short(60, Some(700)));
        assert!(short(100, Some(701)) && short(159, Some(701)) && !short(160, Some(701)));
        assert!(short(200, None) && short(900, None));
    }

    #[test]
    fn what_comes_back_from_swap_is_told_apart() {
        let mut shortage = Shortage::default();
        let mut wants = |s: u64, events, swapped_in| {
            let squeeze = Squeeze { events, swapped_in, ..Squeeze::default() };
            shortage.observe(Instant::from_millis(s * 1_000), Some(squeeze))
        };
        wants(0, 7, 7);
        assert_eq!(wants(60, 7, 7), Want::Nothing);
        assert_eq!([wants(61, 7, 8), wants(120, 7, 8)], [Want::Swapped; 2]);
        assert_eq!([wants(121, 7, 8), wants(122, 8, 9)], [Want::Nothing, Want::Memory]);
        assert_eq!(wants(182, 8, 10), Want::Swapped);
    }
}
