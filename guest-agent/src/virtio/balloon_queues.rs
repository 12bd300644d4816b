//! The standard queues of any virtio-balloon: PFN arrays out and back, statistics when asked for
//! (virtio 1.3, 5.5.6).
//!
//! An array has at most 256 PFNs and one descriptor: that is what Linux sends, and what devices are
//! tried with. Cloud Hypervisor reads the first descriptor of a chain alone and refuses longer
//! arrays. Sixteen arrays go out with one notification, 16 MiB of memory: QEMU works through what
//! it finds in one go, page by page, and holds the guest's other exits up meanwhile (26 ms for so
//! many under emulation).
//!
//! ```text
//! page 0        the inflate ring      page 2        the statistics ring
//! page 1        the deflate ring      pages 3..=6   sixteen arrays of PFNs
//! page 7        statistics
//! ```

use memtide_units::Pfn;
use memtide_wire::features::{self, QueueRole};
use memtide_wire::pfn::PFN_LEN;
use memtide_wire::stats::{self, Stat};

use super::ring::{Buffer, Direction, Ring, RingError, SIZE_MAX};
use super::transport::{Doorbell, Transport, TransportError};
use crate::dma::{Area, PAGE, PAGES};

/// PFNs of one array: `VIRTIO_BALLOON_ARRAY_PFNS_MAX` of Linux.
const ARRAY_PFNS: usize = 256;
const ARRAY_LEN: usize = ARRAY_PFNS * PFN_LEN;
/// Arrays of one batch.
const ARRAYS: usize = 16;
/// PFNs of one batch at most.
pub const BATCH_PFNS: usize = ARRAYS * ARRAY_PFNS;

const STATS_RING: usize = 2;
const ARRAYS_AT: usize = 3;
const STATS_AT: usize = ARRAYS_AT + ARRAYS * ARRAY_LEN / PAGE;
const _: () = assert!(STATS_AT < PAGES && stats::STATS_MAX * stats::STAT_LEN <= PAGE);

/// What the agent does of what a balloon may offer. Free page reporting, hinting and page poison
/// are for who manages single pages.
pub const FEATURES: u64 = features::MUST_TELL_HOST | features::STATS_VQ | features::DEFLATE_ON_OOM;

/// Which way pages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the balloon: their content is worth nothing from now on.
    Inflate,
    /// Out of it: the guest is about to use them.
    Deflate,
}

#[derive(Debug)]
struct Queue {
    ring: Ring,
    doorbell: Doorbell,
}

/// The queues, running.
#[derive(Debug)]
pub struct BalloonQueues {
    inflate: Queue,
    deflate: Queue,
    stats: Option<Queue>,
    area: Area,
}

impl BalloonQueues {
    /// Sets the queues up in `area`, between feature negotiation, which has taken `acked`, and
    /// `driver_ok`.
    ///
    /// # Errors
    /// Why they cannot be. The area comes back with it: the device has not been started.
    pub fn start(
        transport: &Transport,
        acked: u64,
        area: Area,
    ) -> Result<Self, (TransportError, Area)> {
        let set_up = || {
            let stats = (acked & features::STATS_VQ != 0)
                .then(|| queue(transport, &area, QueueRole::Stats, STATS_RING, acked))
                .transpose()?;
            Ok((
                queue(transport, &area, QueueRole::Inflate, 0, acked)?,
                queue(transport, &area, QueueRole::Deflate, 1, acked)?,
                stats,
            ))
        };
        match set_up() {
            Ok((inflate, deflate, stats)) => Ok(Self { inflate, deflate, stats, area }),
            Err(error) => Err((error, area)),
        }
    }

    /// The memory, once the device has been reset.
    pub fn into_area(self) -> Area {
        self.area
    }

    /// How many PFNs [`Self::send`] takes at most: the rings may be short.
    pub fn batch(&self) -> usize {
        let arrays = usize::from(self.inflate.ring.size().min(self.deflate.ring.size()));
        arrays.min(ARRAYS) * ARRAY_PFNS
    }

    /// True while a batch has not come back.
    pub fn is_busy(&self) -> bool {
        self.inflate.ring.is_busy() || self.deflate.ring.is_busy()
    }

    /// True where the device has used something that was not looked at yet.
    pub fn has_used(&self) -> bool {
        let stats = self.stats.as_ref().is_some_and(|queue| queue.ring.has_used());
        self.inflate.ring.has_used() || self.deflate.ring.has_used() || stats
    }

    /// Sends a batch of `frames`, at most [`Self::batch`] of them. False, and nothing is sent, while
    /// another is on its way.
    #[must_use]
    pub fn send(&mut self, transport: &Transport, way: Way, frames: &[Pfn]) -> bool {
        if self.is_busy() || frames.len() > self.batch() {
            return false;
        }
        let buffers: Vec<Buffer> =
            frames.chunks(ARRAY_PFNS).enumerate().map(|(n, frames)| self.fill(n, frames)).collect();
        let queue = match way {
            Way::Inflate => &mut self.inflate,
            Way::Deflate => &mut self.deflate,
        };
        let is_sent = queue.ring.submit_each(&buffers);
        if is_sent {
            transport.ring(queue.doorbell);
        }
        is_sent
    }

    /// Writes array `n`.
    fn fill(&self, n: usize, frames: &[Pfn]) -> Buffer {
        let bytes: Vec<u8> = frames.iter().flat_map(|pfn| pfn.0.to_le_bytes()).collect();
        let (page, offset) = (ARRAYS_AT + n * ARRAY_LEN / PAGE, n * ARRAY_LEN % PAGE);
        self.area.pages().write(page * PAGE + offset, &bytes);
        let mut gpa = self.area.place(page);
        gpa.0 += offset as u64;
        Buffer { gpa, len: bytes.len() as u32, direction: Direction::ToDevice }
    }

    /// Takes what has come back. True when that was the rest of the batch on its way.
    ///
    /// # Errors
    /// [`RingError`]: the device must be reset before anything is believed again.
    pub fn receive(&mut self) -> Result<bool, RingError> {
        let was_busy = self.is_busy();
        for queue in [&mut self.inflate, &mut self.deflate] {
            while queue.ring.take()?.is_some() {}
        }
        Ok(was_busy && !self.is_busy())
    }

    /// Whether the host wants fresh statistics: it has given the buffer back, or never had one.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn wants_statistics(&mut self) -> Result<bool, RingError> {
        let Some(queue) = &mut self.stats else { return Ok(false) };
        queue.ring.take()?;
        Ok(!queue.ring.is_busy())
    }

    /// Hands statistics over; the host keeps them until it wants others. Does nothing where it does
    /// not want any.
    pub fn send_statistics(&mut self, transport: &Transport, stats: &[Stat]) {
        let Some(queue) = &mut self.stats else { return };
        let bytes = stats::encode(&stats[..stats.len().min(stats::STATS_MAX)]);
        let gpa = self.area.place(STATS_AT);
        let buffer = Buffer { gpa, len: bytes.len() as u32, direction: Direction::ToDevice };
        if queue.ring.is_busy() {
            return;
        }
        self.area.pages().write(STATS_AT * PAGE, &bytes);
        if queue.ring.submit(0, &[buffer]) {
            transport.ring(queue.doorbell);
        }
    }
}

/// Sets the queue of `role` up, with its ring in page `page` of `area`.
fn queue(
    transport: &Transport,
    area: &Area,
    role: QueueRole,
    page: usize,
    acked: u64,
) -> Result<Queue, TransportError> {
    let is_it = |index: &u16| QueueRole::of(usize::from(*index), acked, usize::MAX) == Some(role);
    let index = (0..u16::try_from(PAGES).unwrap_or(u16::MAX)).find(is_it).unwrap_or(u16::MAX);
    // A split ring's size is a power of two (virtio 1.3, 2.7), whatever the device offers.
    let size = 1 << transport.queue_size_max(index)?.min(SIZE_MAX).ilog2();
    let ring = Ring::new(area.pages().part(page, 1), size);
    let doorbell = transport.enable_queue(index, size, Ring::addresses(area.place(page)))?;
    Ok(Queue { ring, doorbell })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeDevice, Given};
    use super::super::transport::RESET_DEADLINE;
    use super::*;

    fn started(fake: &FakeDevice) -> (Transport, BalloonQueues) {
        let transport = fake.transport();
        transport.reset(RESET_DEADLINE).unwrap();
        let acked = transport.negotiate(FEATURES).unwrap();
        let queues = BalloonQueues::start(&transport, acked, fake.area()).unwrap();
        transport.driver_ok();
        (transport, queues)
    }

    fn frames(first: u32, count: usize) -> Vec<Pfn> {
        (first..).take(count).map(Pfn).collect()
    }

    #[test]
    fn a_batch_is_sixteen_arrays_of_one_descriptor_and_done_when_all_are_back() {
        let fake = FakeDevice::plain();
        let (transport, mut queues) = started(&fake);
        let all = frames(0x8_0000, BATCH_PFNS);
        assert!(queues.send(&transport, Way::Inflate, &all));
        assert!(!queues.send(&transport, Way::Deflate, &all[..1]), "one at a time");
        for _ in 0..ARRAYS {
            assert_eq!(queues.receive(), Ok(false));
            let given = fake.take_pages(1);
            assert!(
                matches!(&given[..], [Given { way: Way::Inflate, frames }] if frames.len() == 256)
            );
        }
        assert!(queues.has_used());
        assert_eq!((queues.receive(), queues.receive()), (Ok(true), Ok(false)));
        assert!(queues.send(&transport, Way::Deflate, &all[..300]));
        let given: Vec<Pfn> =
            fake.take_pages(9).into_iter().flat_map(|given| given.frames).collect();
        assert_eq!(given, all[..300]);
        assert_eq!(queues.receive(), Ok(true));
    }

    #[test]
    fn short_rings_make_short_batches() {
        let fake = FakeDevice::plain();
        fake.shorten_queues(5);
        let (transport, mut queues) = started(&fake);
        assert_eq!(queues.batch(), 4 * ARRAY_PFNS);
        assert!(!queues.send(&transport, Way::Inflate, &frames(0, 4 * ARRAY_PFNS + 1)));
        assert!(queues.send(&transport, Way::Inflate, &frames(0, 4 * ARRAY_PFNS)));
    }

    #[test]
    fn statistics_are_handed_over_once_for_each_time_that_they_are_wanted() {
        let fake = FakeDevice::plain();
        let (transport, mut queues) = started(&fake);
        let stats = [Stat { tag: 4, value: 7 }, Stat { tag: 5, value: 9 }];
        assert_eq!(queues.wants_statistics(), Ok(true), "the host has no buffer yet");
        queues.send_statistics(&transport, &stats);
        assert_eq!(queues.wants_statistics(), Ok(false));
        assert_eq!(fake.take_statistics().unwrap(), stats);
        assert_eq!(queues.wants_statistics(), Ok(true));
        queues.send_statistics(&transport, &stats[..1]);
        queues.send_statistics(&transport, &stats);
        assert_eq!(fake.take_statistics().unwrap(), stats[..1]);
    }

    #[test]
    fn only_what_is_served_is_negotiated() {
        let fake = FakeDevice::plain();
        fake.offer(!features::STATS_VQ);
        let (_, mut queues) = started(&fake);
        let taken = features::VERSION_1 | features::MUST_TELL_HOST | features::DEFLATE_ON_OOM;
        assert_eq!(fake.driver_features(), taken);
        assert_eq!(queues.wants_statistics(), Ok(false));
    }
}
