//! One pass over a virtqueue: every chain is carried out and answered before the next is taken.
//!
//! Between two passes at most one chain of a queue has been taken and not answered: the statistics
//! buffer that the standard has the device keep, or a request whose pages go slice by slice
//! ([`crate::under_way`]). Whoever stops a ring un-takes it first ([`Balloon::ring_stops`]); after that
//! no write to guest memory and no punch can come.

use std::sync::atomic::Ordering;

use memtide_units::{ByteSize, GpaRange, Instant};
use memtide_wire::block::REQUEST_MAX;
use memtide_wire::features::QueueRole;
use memtide_wire::pfn::{PFN_LEN, PFNS_MAX};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::chain::{Chain, ChainError, DESCRIPTORS_MAX};
use crate::device::Balloon;
use crate::memory::RequestMemory;
use crate::reclaim::Reclaim;
use crate::requests::Refusal;
use crate::under_way::{End, Todo, UnderWay};

/// Bytes that one pass reclaims before others get their turn: 20 to 40 ms of punching 4 KiB pages
/// that are all there, which is how long a VMM that stops the ring waits with its big lock held.
const PASS_BYTES_MAX: ByteSize = ByteSize::from_mib(256);

/// Holes that one pass punches before others get their turn: 5 to 10 us each, so as long as that.
const PASS_PUNCHES_MAX: u64 = 4096;

/// Bytes of requests that one pass looks at: those of the largest inflate request. Page numbers that
/// are no memory reclaim nothing, and a ring full of such requests takes seconds.
const PASS_READ_MAX: u64 = (PFNS_MAX * PFN_LEN) as u64;

/// Descriptors that one pass walks: 64 chains of the longest kind, or a full ring of short ones twice.
/// A chain may name nothing that counts as read or as reclaimed, and still has to be walked: 32768
/// chains of 1024 descriptors each take seconds.
const PASS_DESCRIPTORS_MAX: usize = 64 * DESCRIPTORS_MAX;

/// A virtqueue and the memory that it lies in.
pub struct Ring<'a, M> {
    /// The queue's position and addresses.
    pub queue: &'a mut Queue,
    /// Guest memory.
    pub memory: &'a M,
}

/// When something is done, and whose backing it is done to.
pub struct Moment<'a, R> {
    /// Now.
    pub now: Instant,
    /// The host.
    pub host: &'a mut R,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Chains that were answered.
    pub answered: u32,
    /// Whether the driver wants to be told so.
    pub interrupt: Interrupt,
    /// Whether chains were left for the next pass.
    pub left: Left,
}

/// Does the driver want an interrupt?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interrupt {
    /// Yes.
    Wanted,
    /// No, or nothing has happened.
    #[default]
    NotWanted,
}

/// Is there more to do?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Left {
    /// The ring is empty; a kick tells of more.
    #[default]
    Nothing,
    /// The pass had done its share: start another one soon.
    More,
    /// The guest has talked too much: start another one at this time, not before.
    Until(Instant),
}

/// The ring itself is not usable: its indices make no sense or it does not lie in memory.
#[derive(Debug, thiserror::Error)]
#[error("the ring is not usable until the driver sets it up anew: {0}")]
pub struct RingError(#[from] virtio_queue::Error);

impl Balloon {
    /// Carries out what is in the ring, up to a share that keeps others from starving.
    ///
    /// A chain that makes no sense is answered with nothing and counted; the driver gets its
    /// buffers back and goes on.
    ///
    /// # Errors
    /// [`RingError`] where the ring's own structures make no sense. It is not touched again then,
    /// unless the driver sets it up anew.
    pub fn process<M: RequestMemory, R: Reclaim>(
        &mut self,
        role: QueueRole,
        ring: &mut Ring<'_, M>,
        moment: &mut Moment<'_, R>,
    ) -> Result<Pass, RingError> {
        let mut pass = Pass::default();
        let mut share = Share::default();
        let punches = self.counters.punches;
        loop {
            share.punches = self.counters.punches - punches;
            if share.is_used_up(ring.queue.size()) {
                pass.left = Left::More;
                break;
            }
            let before = ring.queue.next_used();
            if let Some(work) = self.under_way.take(role) {
                share.reclaimed += self.go_on(role, work, ring, moment)?;
                share.has_dropped = role == QueueRole::Block && ring.queue.next_used() != before;
            } else if let Some(when) = self.silent_until(role, moment.now) {
                pass.left = Left::Until(when);
                break;
            } else if let Some(chain) = next_chain(ring)? {
                share.add(self.begin_chain(role, chain, ring, moment)?);
            } else if ring.queue.enable_notification(ring.memory)? {
                // Between the look and this a driver has added one without a kick. That counts, since
                // one that does nothing else could keep this going.
                share.chains += 1;
            } else {
                break;
            }
            pass.answered += u32::from(ring.queue.next_used().wrapping_sub(before));
        }
        if pass.answered > 0 {
            pass.interrupt = interrupt_wanted(ring)?;
        }
        Ok(pass)
    }

    fn silent_until(&self, role: QueueRole, now: Instant) -> Option<Instant> {
        if role == QueueRole::Block { self.pace.wait(now) } else { None }
    }

    /// Takes one chain, and answers it unless it takes long; says what that took.
    fn begin_chain<M: RequestMemory, R: Reclaim>(
        &mut self,
        role: QueueRole,
        descriptors: DescriptorChain<&M>,
        ring: &mut Ring<'_, M>,
        moment: &mut Moment<'_, R>,
    ) -> Result<Share, RingError> {
        let head = descriptors.head_index();
        let chain = Chain::collect(descriptors);
        let read = chain.as_ref().map_or(0, Chain::readable);
        // Where a chain broke is not known; it was walked no further than this.
        let descriptors = chain.as_ref().map_or(DESCRIPTORS_MAX, Chain::len);
        if role == QueueRole::Block {
            self.pace.count(read.min(REQUEST_MAX as u64), moment.now);
        }
        let begun = chain.and_then(|chain| self.carry_out(role, chain, ring.memory, moment));
        let begun = begun.unwrap_or_else(|error| self.give_back(role, &error, moment.now));
        match begun {
            Begun::Done(_) if role == QueueRole::Stats => self.park_stats(head, ring)?,
            Begun::Done(written) => ring.queue.add_used(ring.memory, head, written)?,
            Begun::Drops(todo, end) => self.keep(role, UnderWay { head, todo, end }),
        }
        Ok(Share { chains: 1, descriptors, read, ..Share::default() })
    }

    /// A chain that makes no sense goes back with nothing written to it.
    fn give_back(&mut self, role: QueueRole, error: &ChainError, now: Instant) -> Begun {
        if role == QueueRole::Deflate {
            // Nobody knows which pages the guest uses again.
            self.host_pages.clear();
        }
        self.refuse(error.name(), now, || format!("on the {role:?} queue: {error}"));
        Begun::Done(0)
    }

    fn keep(&mut self, role: QueueRole, work: UnderWay) {
        if let Some(place) = self.under_way.of(role) {
            *place = Some(work);
        }
    }

    fn carry_out<M: RequestMemory, R: Reclaim>(
        &mut self,
        role: QueueRole,
        chain: Chain,
        memory: &M,
        moment: &mut Moment<'_, R>,
    ) -> Result<Begun, ChainError> {
        match role {
            QueueRole::Inflate => self.inflate(&chain, memory, moment)?,
            QueueRole::Deflate => self.deflate(&chain, memory, moment.now)?,
            QueueRole::Stats => self.read_stats(&chain, memory, moment.now)?,
            QueueRole::Reporting => {
                return Ok(Begun::Drops(self.begin_report(&chain, moment.now), End::Report));
            }
            // Never offered; a driver that uses it nevertheless gets its buffers back.
            QueueRole::Hinting => {}
            QueueRole::Block => return self.begin_request(chain, memory, moment),
        }
        Ok(Begun::Done(0))
    }

    /// Drops the next slice of what a chain names, and answers the chain if that was the last one.
    /// Says how much has gone.
    fn go_on<M: RequestMemory, R: Reclaim>(
        &mut self,
        role: QueueRole,
        mut work: UnderWay,
        ring: &mut Ring<'_, M>,
        moment: &mut Moment<'_, R>,
    ) -> Result<ByteSize, RingError> {
        let slice = work.todo.next_slice(&self.memory);
        let outcome = match slice {
            Some(slice) => self.drop_slice(slice, &mut work.end, moment),
            None => Ok(()),
        };
        if outcome.is_ok() && !work.todo.is_empty() {
            self.keep(role, work);
        } else {
            let written = match work.end {
                End::Report => 0,
                End::Block(job) => self.end_job(*job, outcome, ring.memory, moment),
            };
            ring.queue.add_used(ring.memory, work.head, written)?;
        }
        Ok(slice.map_or(ByteSize::ZERO, GpaRange::len))
    }

    fn drop_slice<R: Reclaim>(
        &mut self,
        slice: GpaRange,
        end: &mut End,
        moment: &mut Moment<'_, R>,
    ) -> Result<(), Refusal> {
        match (end, moment.host.reclaim(slice)) {
            (End::Block(job), gone) => return self.note_slice(job, gone, moment.now),
            (End::Report, Ok(reclaimed)) => self.counters.count_reclaim(reclaimed),
            (End::Report, Err(error)) => self.reclaim_failed(&error, moment.now),
        }
        Ok(())
    }

    /// The ring stops, or is set up anew: the chain that was taken and not answered is the driver's
    /// again, unused. A ring that starts again finds it in its place.
    pub fn ring_stops(&mut self, role: QueueRole, queue: &mut Queue) {
        let parked = role == QueueRole::Stats && self.stats.parked.take().is_some();
        if parked || self.under_way.take(role).is_some() {
            queue.go_to_previous_position();
        }
    }
}

/// What a pass has done by now.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    chains: u32,
    descriptors: usize,
    read: u64,
    reclaimed: ByteSize,
    punches: u64,
    /// A request was answered that took long. Its driver is told at once, and has the next one ready
    /// while the one behind it is carried out.
    has_dropped: bool,
}

impl Share {
    fn add(&mut self, other: Self) {
        self.chains += other.chains;
        self.descriptors += other.descriptors;
        self.read += other.read;
        self.reclaimed += other.reclaimed;
    }

    fn is_used_up(&self, ring_size: u16) -> bool {
        self.chains >= u32::from(ring_size)
            || self.descriptors >= PASS_DESCRIPTORS_MAX
            || self.read >= PASS_READ_MAX
            || self.reclaimed >= PASS_BYTES_MAX
            || self.punches >= PASS_PUNCHES_MAX
            || self.has_dropped
    }
}

/// What became of one chain.
pub(crate) enum Begun {
    /// It is done, and so many bytes were written into its writable buffers.
    Done(u32),
    /// These are to go before it is answered.
    Drops(Todo, End),
}

/// The next chain, if there is one. An index that claims more chains than the ring holds is an
/// error, as is an entry that cannot be read: both would otherwise be looked at for ever.
fn next_chain<'m, M: GuestMemory>(
    ring: &mut Ring<'m, M>,
) -> Result<Option<DescriptorChain<&'m M>>, RingError> {
    let memory = ring.memory;
    if let Some(chain) = ring.queue.iter(memory)?.next() {
        return Ok(Some(chain));
    }
    let available = ring.queue.avail_idx(memory, Ordering::Acquire)?;
    if available.0 == ring.queue.next_avail() {
        return Ok(None);
    }
    // It came after the first look, or it is not readable.
    match ring.queue.iter(memory)?.next() {
        Some(chain) => Ok(Some(chain)),
        None => Err(RingError(virtio_queue::Error::InvalidAvailRingIndex)),
    }
}

/// Asks the driver whether it wants an interrupt for what has been answered since the last time.
pub(crate) fn interrupt_wanted<M: GuestMemory>(
    ring: &mut Ring<'_, M>,
) -> Result<Interrupt, RingError> {
    let by_index = ring.queue.needs_notification(ring.memory)?;
    // Without event indices the crate always says yes; the driver's flag says better. An agent that
    // polls sets it.
    let flags: u16 = ring
        .memory
        .load(GuestAddress(ring.queue.avail_ring()), Ordering::Relaxed)
        .map_err(virtio_queue::Error::GuestMemory)?;
    let by_flag = u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0;
    let wanted = if ring.queue.event_idx_enabled() { by_index } else { by_flag };
    Ok(if wanted { Interrupt::Wanted } else { Interrupt::NotWanted })
}
