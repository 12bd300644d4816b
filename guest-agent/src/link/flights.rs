//! What was sent and has not been answered: one request, or two reports of stolen memory.
//!
//! The host drops what the first names while the second waits in the ring, so that it need not wait
//! itself: for an interrupt, a turn of the agent and a notification, which take a virtual processor
//! that has to wait for its host's longer than the drop. Together they name no more than one report
//! may, so that a return has to wait no longer, and a block that somebody puts online meanwhile is in
//! no more danger (docs/adr/0017).

use std::collections::VecDeque;
use std::time::Duration;

use memtide_units::{BlockSize, ByteSize, Instant};
use memtide_wire::block::Request;

use super::outbox::reported;

/// A device answers each request at once; punching a batch of large blocks may take a while.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Reports in flight at most.
const REPORTS_MAX: usize = 2;

/// The requests in flight, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Flights {
    requests: VecDeque<Request>,
    /// Since when the oldest is with the device alone, or went on for the last time.
    since: Instant,
    is_late: bool,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// `request` was sent.
    pub(super) fn add(&mut self, now: Instant, request: Request) {
        if self.is_empty() {
            self.go_on(now);
        }
        self.requests.push_back(request);
    }

    /// The oldest was answered; the device turns to the next.
    pub(super) fn answered(&mut self, now: Instant) -> Option<Request> {
        self.go_on(now);
        self.requests.pop_front()
    }

    /// The device has shown that it works on the oldest.
    pub(super) fn go_on(&mut self, now: Instant) {
        (self.since, self.is_late) = (now, false);
    }

    /// True once, when the oldest has waited too long.
    pub(super) fn has_become_late(&mut self, now: Instant) -> bool {
        let is_news = !self.is_empty() && !self.is_late && now.since(self.since) >= ANSWER_DEADLINE;
        self.is_late |= is_news;
        is_news
    }

    /// The device is silent: the oldest has waited too long.
    pub(super) fn is_late(&self) -> bool {
        self.is_late
    }

    /// When the oldest will have waited too long.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = !self.is_empty() && !self.is_late;
        waits.then(|| self.since + ANSWER_DEADLINE)
    }

    /// True where one makes the host drop memory.
    pub(super) fn drop_memory(&self) -> bool {
        self.requests.iter().any(|it| matches!(it, Request::Hello(_) | Request::Steal(_)))
    }

    /// How much the reports in flight name.
    pub(super) fn reported(&self) -> ByteSize {
        self.requests.iter().map(reported).sum()
    }

    /// True where a hello is on its way.
    pub(super) fn say_hello(&self) -> bool {
        self.requests.iter().any(|it| matches!(it, Request::Hello(_)))
    }

    /// How much one more report may name, where all in flight may name so much: `None` for no report, as
    /// beside one that does not name whole blocks.
    pub(super) fn room(&self, most: ByteSize, block: BlockSize) -> Option<ByteSize> {
        let mut named = ByteSize::ZERO;
        for request in &self.requests {
            let Request::Steal(ranges) = request else { return None };
            if !ranges.iter().all(|range| range.is_aligned_to(block.size())) {
                return None;
            }
            named += reported(request);
        }
        let is_open = self.requests.len() < REPORTS_MAX && named < most;
        is_open.then(|| most - named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::{BlockId, Gpa, GpaRange};

    const BLOCK: BlockSize = BlockSize::X86_SMALL;

    fn report(blocks: std::ops::Range<u64>) -> Request {
        Request::Steal(blocks.map(|n| BLOCK.range(BlockId(n)).unwrap()).collect())
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn reports_share_the_room_and_nothing_else_goes_beside_one() {
        let most = ByteSize::from_mib(512);
        let mut flights = Flights::default();
        assert_eq!(flights.room(most, BLOCK), Some(most));
        flights.add(at(0), report(0..1));
        assert_eq!(flights.room(most, BLOCK), Some(ByteSize::from_mib(384)));
        flights.add(at(0), report(1..2));
        assert_eq!(flights.room(most, BLOCK), None, "two are enough");
        flights.answered(at(1));
        assert_eq!(flights.room(ByteSize::from_mib(128), BLOCK), None, "it is used up");
        let piece = GpaRange::new(Gpa(1 << 30), ByteSize::from_mib(2)).unwrap();
        let pieces = Request::Steal(vec![piece]);
        for other in [Request::Goodbye, Request::Cancel { ticket: 1 }, pieces] {
            let mut flights = Flights::default();
            flights.add(at(0), other);
            assert_eq!(flights.room(most, BLOCK), None);
        }
    }

    #[test]
    fn the_second_has_its_time_from_the_first_ones_answer() {
        let mut flights = Flights::default();
        assert_eq!((flights.due(), flights.has_become_late(at(60_000))), (None, false));
        flights.add(at(0), report(0..1));
        flights.add(at(4_000), report(1..2));
        assert_eq!(flights.due(), Some(at(5_000)));
        assert_eq!(flights.answered(at(4_500)), Some(report(0..1)));
        assert!(!flights.has_become_late(at(9_499)));
        assert!(flights.has_become_late(at(9_500)) && flights.is_late());
        assert_eq!((flights.has_become_late(at(9_600)), flights.due()), (false, None));
        assert_eq!(flights.answered(at(9_700)), Some(report(1..2)));
        assert!(!flights.is_late());
    }
}
