//! What waits to be sent, and in which order it goes.

use std::collections::VecDeque;

use memtide_units::{BlockSize, ByteSize, GpaRange};
use memtide_wire::block::{RANGES_MAX, Request};

use super::Guest;

/// Requests that wait, at most. Only telemetry comes without end, and it waits for nobody.
const MAX: usize = 64;

/// Ranges that a report names at most, so that it fits beside another in the block queue's memory.
const BESIDE_RANGES_MAX: usize = 128;

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Request>,
    /// Blocks that are in the host's books and that it is told of once more, when nothing else is
    /// to be said: it may have been told of them by an earlier agent, or not.
    backlog: VecDeque<GpaRange>,
}

impl Outbox {
    /// Adds a request; false where there is no room for it. Telemetry is dropped while anything else waits: there will
    /// be more.
    pub(super) fn post(&mut self, request: Request) -> bool {
        let is_telemetry = matches!(request, Request::Telemetry(_));
        if is_telemetry && !self.waiting.is_empty() {
            return false;
        }
        if self.waiting.len() >= MAX {
            tracing::warn!("{MAX} requests wait for the device: one is dropped");
            return false;
        }
        self.waiting.push_back(request);
        true
    }

    /// Adds a report of ranges that were taken offline, to one that waits if there is one.
    pub(super) fn report(&mut self, ranges: Vec<GpaRange>) {
        match self.waiting.back_mut() {
            Some(Request::Steal(waiting)) => waiting.extend(ranges),
            _ => _ = self.post(Request::Steal(ranges)),
        }
    }

    /// Has these told once more, in place of all that were to be.
    pub(super) fn set_backlog(&mut self, blocks: Vec<GpaRange>) {
        self.backlog = blocks.into();
    }

    /// Forgets a report that waits, of either kind. True where it was not in the host's books yet.
    pub(super) fn forget_report(&mut self, range: GpaRange) -> bool {
        self.backlog.retain(|waiting| *waiting != range);
        let waiting = self.waiting.iter_mut().find_map(|request| match request {
            Request::Steal(ranges) if ranges.contains(&range) => Some(ranges),
            _ => None,
        });
        let Some(ranges) = waiting else { return false };
        ranges.retain(|waiting| *waiting != range);
        self.waiting.retain(|request| *request != Request::Steal(Vec::new()));
        true
    }

    /// Forgets questions: they were answered in another way.
    pub(super) fn forget_returns(&mut self) {
        self.waiting.retain(|request| !matches!(request, Request::Return(_)));
    }

    /// Forgets all that a hello and the policy will say again.
    pub(super) fn keep_only_news(&mut self) {
        self.waiting.retain(|request| matches!(request, Request::Taken(_)));
        self.backlog.clear();
    }

    /// What goes next: whatever is quick, or of a report as much as `most` allows, but one range at
    /// least. While the host drops that, what has gone offline since joins the rest, and a return may
    /// go in between.
    pub(super) fn next(&mut self, most: ByteSize) -> Option<Request> {
        let quick = self.waiting.iter().position(is_quick);
        if let Some(quick) = quick {
            return self.waiting.remove(quick);
        }
        match self.fitting(|range, named| named + range.len() <= most) {
            Some(count) => self.take_report(count.clamp(1, RANGES_MAX)),
            None => self.backlog.pop_front().map(|range| Request::Steal(vec![range])),
        }
    }

    /// Of the report that waits as many whole blocks as `most` allows, where that are any and nothing quick
    /// waits.
    pub(super) fn next_report(&mut self, most: ByteSize, block: BlockSize) -> Option<Request> {
        if self.waiting.iter().any(is_quick) {
            return None;
        }
        let fits = |range: &GpaRange, named| {
            range.is_aligned_to(block.size()) && named + range.len() <= most
        };
        let count = self.fitting(fits).filter(|count| *count > 0)?;
        self.take_report(count.min(BESIDE_RANGES_MAX))
    }

    /// How many ranges of the report that is at the front fit, where there is one, by each range and how
    /// much those before it name.
    fn fitting(&self, fits: impl Fn(&GpaRange, ByteSize) -> bool) -> Option<usize> {
        let Some(Request::Steal(waiting)) = self.waiting.front() else { return None };
        let mut named = ByteSize::ZERO;
        let fits = |range: &&GpaRange| {
            let fits = fits(range, named);
            named += range.len();
            fits
        };
        Some(waiting.iter().take_while(fits).count())
    }

    fn take_report(&mut self, count: usize) -> Option<Request> {
        let Some(Request::Steal(waiting)) = self.waiting.front_mut() else { return None };
        if count >= waiting.len() {
            return self.waiting.pop_front();
        }
        Some(Request::Steal(waiting.drain(..count).collect()))
    }

    /// How much the reports that wait name.
    pub(super) fn unreported(&self) -> ByteSize {
        self.waiting.iter().map(reported).sum()
    }

    /// True where a report is what goes next.
    pub(super) fn is_at_a_report(&self) -> bool {
        self.waiting.front().is_some_and(|request| matches!(request, Request::Steal(_)))
    }

    /// Puts one back that could not be sent.
    pub(super) fn put_back(&mut self, request: Request) {
        self.waiting.push_front(request);
    }

    /// True where nothing waits that is news to the host.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// What a report names.
pub(super) fn reported(request: &Request) -> ByteSize {
    let Request::Steal(ranges) = request else { return ByteSize::ZERO };
    ranges.iter().map(|range| range.len()).sum()
}

/// Whether it is answered at once.
fn is_quick(request: &Request) -> bool {
    !matches!(request, Request::Steal(_))
}

/// A report without what somebody has put online while it waited, and those: the host would drop them
/// in use (docs/adr/0017).
pub(super) fn still_true(
    request: Option<Request>,
    guest: &dyn Guest,
) -> (Option<Request>, Vec<GpaRange>) {
    let Some(Request::Steal(ranges)) = request else { return (request, Vec::new()) };
    let (offline, changed): (Vec<_>, Vec<_>) =
        ranges.into_iter().partition(|range| guest.is_offline(*range));
    ((!offline.is_empty()).then_some(Request::Steal(offline)), changed)
}
