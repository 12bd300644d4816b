//! The balloon's size as news: a guest can say a new one ten thousand times a second, and Linux says one
//! for each MiB. Clients hear of the latest, some times a second.

use std::time::Duration;

use memtide_balloon::Event;
use memtide_units::Instant;

/// Between two sizes that clients are told.
const APART: Duration = Duration::from_millis(100);

/// The size that clients have not heard of yet, and when they last heard of one.
#[derive(Debug, Default)]
pub(crate) struct SizeNews {
    waiting: Option<Event>,
    told: Option<Instant>,
}

impl SizeNews {
    /// Keeps an event that tells of a size, and hands any other back.
    pub(crate) fn keep(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Balloon { .. } => {
                self.waiting = Some(event);
                None
            }
            other => Some(other),
        }
    }

    /// When the next is to be told.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        self.waiting.as_ref()?;
        Some(self.told.map_or(now, |told| told + APART))
    }

    /// What is to be told now.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Event> {
        if self.due(now)? > now {
            return None;
        }
        self.told = Some(now);
        self.waiting.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::ByteSize;

    #[test]
    fn the_first_is_told_at_once_and_the_latest_in_its_time() {
        let size = |mib| Event::Balloon { actual: ByteSize::from_mib(mib) };
        let at = Instant::from_millis;
        let mut news = SizeNews::default();
        assert_eq!(news.due(at(5)), None);
        assert_eq!(news.keep(size(1)), None);
        assert_eq!(news.take(at(5)), Some(size(1)));
        (2..100).for_each(|mib| assert_eq!(news.keep(size(mib)), None));
        assert_eq!((news.take(at(50)), news.due(at(50))), (None, Some(at(105))));
        assert_eq!(news.take(at(105)), Some(size(99)));
        assert_eq!(news.due(at(300)), None);
        let other = Event::ReturnCancelled { ticket: 1 };
        assert_eq!(news.keep(other.clone()), Some(other));
    }
}
