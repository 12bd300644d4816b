//! The most that was in use lately: what a guest has needed once it may need again.

use alloc::collections::VecDeque;
use core::time::Duration;

use memtide_units::{ByteSize, Instant};

use super::observation::Memory;
use super::quiet::LONGEST;

/// Peaks are kept for spans of this long, so that a peak counts up to so much longer than it was
/// asked for.
const SPAN: Duration = Duration::from_secs(10);
/// As many spans as the longest rest has, and the one that is not over yet.
const SPANS: usize = (LONGEST.as_secs() / SPAN.as_secs()) as usize + 1;

/// Remembers the peak of each span.
#[derive(Clone, Debug, Default)]
pub(super) struct Peaks {
    /// Since when it is known what is in use.
    since: Option<Instant>,
    /// When each span began, and the most that was in use in it.
    spans: VecDeque<(Instant, ByteSize)>,
}

impl Peaks {
    /// Looks at the memory of `now`.
    pub(super) fn observe(&mut self, now: Instant, memory: &Memory) {
        self.since.get_or_insert(now);
        let used = memory.used();
        match self.spans.back_mut() {
            Some((began, most)) if now.since(*began) < SPAN => *most = used.max(*most),
            _ => self.spans.push_back((now, used)),
        }
        if self.spans.len() > SPANS {
            self.spans.pop_front();
        }
    }

    /// The most that was in use within this long, as far as it is known.
    pub(super) fn within(&self, now: Instant, time: Duration) -> ByteSize {
        let spans = self.spans.iter().rev();
        let recent = spans.take_while(|(began, _)| now.since(*began) < time.saturating_add(SPAN));
        recent.map(|(_, used)| *used).max().unwrap_or_default()
    }

    /// Whether it has been known for so long.
    pub(super) fn is_known_for(&self, now: Instant, time: Duration) -> bool {
        self.since.is_some_and(|since| now.since(since) >= time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(mib: u64) -> Memory {
        let (total, available) = (ByteSize::from_mib(1000), ByteSize::from_mib(1000 - mib));
        Memory { total, available, ..Memory::default() }
    }

    #[test]
    fn a_peak_counts_as_long_as_is_asked_for_and_a_span_longer_at_most() {
        let (mut peaks, at) = (Peaks::default(), |s: u64| Instant::from_millis(s * 1_000));
        for s in 0..1_000 {
            peaks.observe(at(s), &used(if s == 105 { 700 } else { 300 }));
            let within = |time| peaks.within(at(s), Duration::from_secs(time)).mib();
            let (sixty, all) = (within(60), within(600));
            assert_eq!(sixty == 700, (105..170).contains(&s), "{s}");
            assert_eq!(all == 700, (105..710).contains(&s), "{s}");
            assert!(peaks.spans.len() <= SPANS);
        }
        assert!(peaks.is_known_for(at(600), LONGEST) && !peaks.is_known_for(at(599), LONGEST));
    }
}
