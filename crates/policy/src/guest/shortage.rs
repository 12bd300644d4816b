//! Whether it is for want of the guest's memory that somebody stalls.
//!
//! PSI counts every task of the guest, also one in a control group that has reached a limit of its
//! own. It would stall as much in a guest ten times as large, so it must neither keep all the others
//! from giving up what they do not need, nor have the host give back what does not help. What tells
//! the two apart is what the kernel does: it reclaims for the whole guest, compacts, or reads from
//! swap only where the guest itself is short, and counts that apart ([`Squeeze`]).

use core::time::Duration;

use memtide_units::Instant;

use super::observation::Squeeze;

/// What was reclaimed so long ago may be missed still: ACMA's working set interval.
const MISSED: Duration = Duration::from_secs(60);

/// Remembers when the guest was last short.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shortage {
    events: Option<u64>,
    squeezed: Option<Instant>,
}

impl Shortage {
    /// Looks at the counters of `now`. True where a stall may be for want of the guest's memory: also
    /// where nobody counts, and for a minute after the first look, for nobody knows what was before.
    pub(super) fn observe(&mut self, now: Instant, squeeze: Option<Squeeze>) -> bool {
        let events = squeeze.map(|squeeze| squeeze.events);
        if events.is_none() || self.events != events {
            self.squeezed = Some(now);
        }
        self.events = events;
        self.squeezed.is_some_and(|squeezed| now.since(squeezed) < MISSED)
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
            shortage.observe(at(s), events.map(squeeze))
        };
        assert!(short(0, Some(700)), "who knows what was before");
        assert!(short(59, Some(700)) && !short(60, Some(700)));
        assert!(short(100, Some(701)) && short(159, Some(701)) && !short(160, Some(701)));
        assert!(short(200, None) && short(900, None));
    }
}
