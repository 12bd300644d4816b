//! Statistics of a stock driver.
//!
//! This queue works backwards (virtio 1.3, 5.5.6.3): the driver hands in a buffer of statistics, and
//! the device *keeps* it until it wants new ones; giving it back is the question. So one buffer is
//! parked here, the only one of the whole device. When the ring stops it is un-taken: the ring's
//! position goes back by one, and a ring that starts again there finds it again.

use std::time::Duration;

use memtide_units::Instant;
use memtide_wire::stats::{self, STAT_LEN, STATS_MAX, Stat};
use virtio_queue::QueueT;
use vm_memory::GuestMemory;

use crate::chain::{Chain, ChainError};
use crate::device::Balloon;
use crate::memory::RequestMemory;
use crate::ring::{Interrupt, Ring, RingError, interrupt_wanted};

/// How long after somebody read them the statistics are kept fresh: longer than the usual intervals
/// of monitoring, so that a reader finds new numbers, and short enough that a guest whose host
/// looks away is left alone.
const LINGER: Duration = Duration::from_secs(30);

/// The parked buffer and what was in the last one.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Head of the chain that is kept.
    pub(crate) parked: Option<u16>,
    /// When a buffer was last given back.
    asked: Option<Instant>,
    pub(crate) latest: Vec<Stat>,
    /// When they came.
    heard: Option<Instant>,
    pub(crate) wanted_until: Option<Instant>,
}

impl Stats {
    /// The driver is gone, and what it said with it; who reads stays.
    pub(crate) fn forget_driver(&mut self) {
        *self = Self { wanted_until: self.wanted_until, ..Self::default() };
    }
}

impl Balloon {
    /// Reads a buffer of statistics. Whatever does not fit [`STATS_MAX`] is left unread: that there
    /// is more is no fault of the driver.
    pub(crate) fn read_stats<M: RequestMemory>(
        &mut self,
        chain: &Chain,
        memory: &M,
        now: Instant,
    ) -> Result<(), ChainError> {
        self.note_shape(chain, STAT_LEN, now);
        let bytes = chain.read_up_to(memory, STATS_MAX * STAT_LEN)?;
        self.stats.latest = stats::decode(&bytes);
        self.stats.heard = Some(now);
        Ok(())
    }

    /// Keeps the buffer with this head. One that is kept already is given back: one is enough, and
    /// only the last one taken can be un-taken.
    pub(crate) fn park_stats<M: GuestMemory>(
        &mut self,
        head: u16,
        ring: &mut Ring<'_, M>,
    ) -> Result<(), RingError> {
        if let Some(older) = self.stats.parked.replace(head) {
            ring.queue.add_used(ring.memory, older, 0)?;
        }
        Ok(())
    }

    /// How old the statistics are; `None` where there are none.
    pub fn statistics_age(&self, now: Instant) -> Option<Duration> {
        self.stats.heard.map(|heard| now.since(heard))
    }

    /// How often they are asked for while somebody reads them; `None` never.
    pub fn stats_interval(&self) -> Option<Duration> {
        self.settings.stats_interval
    }

    /// Somebody reads the statistics: they are kept fresh for a while.
    pub fn want_stats(&mut self, now: Instant) {
        self.stats.wanted_until = Some(now + LINGER);
    }

    /// When the driver is to be asked for new statistics; `None` where nobody wants them or no
    /// buffer is there to ask with.
    pub fn stats_due(&self, now: Instant) -> Option<Instant> {
        let interval = self.settings.stats_interval?;
        self.stats.parked?;
        let due = self.stats.asked.map_or(now, |asked| asked + interval);
        self.stats.wanted_until.is_some_and(|until| due.max(now) < until).then_some(due)
    }

    /// Asks for new statistics if it is time, by giving the parked buffer back.
    ///
    /// # Errors
    /// [`RingError`] where the ring cannot be written.
    pub fn ask_stats<M: GuestMemory>(
        &mut self,
        ring: &mut Ring<'_, M>,
        now: Instant,
    ) -> Result<Interrupt, RingError> {
        if self.stats_due(now).is_none_or(|due| due > now) {
            return Ok(Interrupt::NotWanted);
        }
        let Some(head) = self.stats.parked.take() else { return Ok(Interrupt::NotWanted) };
        self.stats.asked = Some(now);
        ring.queue.add_used(ring.memory, head, 0)?;
        interrupt_wanted(ring)
    }
}
