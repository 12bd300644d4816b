//! Memtide's block queue: requests, and one response each, in order.
//!
//! Two may be in flight: one of any length, and a short one in what is left of the response's page. So
//! a device that has answered one finds the next, and need not wait until its interrupt has been seen.

use std::collections::VecDeque;

use memtide_units::Gpa;
use memtide_wire::block::{RESPONSE_LEN, Request, Response};

use super::ring::{Buffer, Direction, Ring, RingError, SIZE_MAX, Used};
use super::transport::{Doorbell, Transport, TransportError};
use crate::dma::{Area, PAGE, PAGES, REQUEST_PAGES};

/// Why the queue must be set up anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The device broke the ring's rules.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// What it wrote is no response.
    #[error("the device wrote {0} bytes that are no response of this version")]
    NoResponse(u32),
    /// The response belongs to another request.
    #[error("the device answered request {found} when {expected} was asked")]
    Sequence {
        /// The request in flight.
        expected: u32,
        /// The one that the response names.
        found: u32,
    },
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Its place is another's that is in flight.
    #[error("no more requests like this one can be in flight")]
    Busy,
    /// It does not fit the request pages.
    #[error("the request has {0} bytes, more than the block queue takes")]
    TooLong(usize),
}

/// The queue, running.
#[derive(Debug)]
pub struct BlockQueue {
    ring: Ring,
    area: Area,
    doorbell: Doorbell,
    /// Of the request that was sent last.
    sequence: u32,
    /// First the one that was sent first.
    in_flight: VecDeque<InFlight>,
}

/// A request that was sent.
#[derive(Debug)]
struct InFlight {
    slot: Slot,
    sequence: u32,
    /// Kept where the device was faster with this one than with those before.
    response: Option<Response>,
}

/// Where a request and its response lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// In pages of its own: a request of any length.
    Long,
    /// In the second part of the response's page.
    Short,
}

/// Descriptors that the longest request needs: its pages and the response.
const CHAIN_MAX: u16 = REQUEST_PAGES as u16 + 1;
/// Those of a short one: itself and its response. Together they fit the smallest ring that takes the
/// longest request, since its size is a power of two.
const SHORT_CHAIN: u16 = 2;
const _: () = assert!(CHAIN_MAX + SHORT_CHAIN <= CHAIN_MAX.next_power_of_two());

/// Where responses lie.
const RESPONSE_PAGE: usize = PAGES - 1;
/// Within that page: the response to a short request, and the request.
const SHORT_RESPONSE_AT: usize = 512;
const SHORT_REQUEST_AT: usize = 1024;
/// Bytes of the longest short request: a report of some 180 ranges.
const SHORT_MAX: usize = PAGE - SHORT_REQUEST_AT;

impl Slot {
    fn first_descriptor(self) -> u16 {
        match self {
            Self::Long => 0,
            Self::Short => CHAIN_MAX,
        }
    }

    /// Where in the area the request lies.
    fn request_at(self) -> usize {
        match self {
            Self::Long => PAGE,
            Self::Short => RESPONSE_PAGE * PAGE + SHORT_REQUEST_AT,
        }
    }

    /// Where in the area the response lies.
    fn response_at(self) -> usize {
        match self {
            Self::Long => RESPONSE_PAGE * PAGE,
            Self::Short => RESPONSE_PAGE * PAGE + SHORT_RESPONSE_AT,
        }
    }
}

impl BlockQueue {
    /// Sets queue `index` up in `area`, between feature negotiation and `driver_ok`.
    ///
    /// # Errors
    /// Why it cannot be: there is no such queue, or one too short for the longest request. The
    /// area comes back with it: the device has seen nothing of it that it could use.
    pub fn start(
        transport: &Transport,
        index: u16,
        area: Area,
    ) -> Result<Self, (TransportError, Area)> {
        let set_up = || {
            let size = queue_size(transport, index)?;
            let ring = Ring::new(area.pages().part(0, 1), size);
            let addresses = Ring::addresses(area.place(0));
            Ok((ring, transport.enable_queue(index, size, addresses)?))
        };
        match set_up() {
            Ok((ring, doorbell)) => {
                Ok(Self { ring, area, doorbell, sequence: 0, in_flight: VecDeque::new() })
            }
            Err(error) => Err((error, area)),
        }
    }

    /// The memory, once the device has been reset.
    pub fn into_area(self) -> Area {
        self.area
    }

    /// The memory that the device may reach.
    pub fn area(&self) -> &Area {
        &self.area
    }

    /// True where the device has used something that was not taken in yet.
    pub fn has_used(&self) -> bool {
        let is_kept = |flight: &InFlight| flight.response.is_some();
        self.ring.has_used() || self.in_flight.front().is_some_and(is_kept)
    }

    /// True while a request has not been answered.
    pub fn is_busy(&self) -> bool {
        self.ring.is_busy()
    }

    /// Sends `request`. Whatever it says must hold until the answer has been read: a block named
    /// in a steal stays offline, one named in a return is not touched.
    ///
    /// # Errors
    /// [`SendError`]: nothing was sent.
    pub fn send(&mut self, transport: &Transport, request: &Request) -> Result<(), SendError> {
        let sequence = self.sequence.wrapping_add(1);
        let bytes = request.encode(sequence);
        if bytes.len() > REQUEST_PAGES * PAGE {
            return Err(SendError::TooLong(bytes.len()));
        }
        let slot = self.free_slot(bytes.len()).ok_or(SendError::Busy)?;
        self.area.pages().write(slot.request_at(), &bytes);
        self.area.pages().write(slot.response_at(), &[0; RESPONSE_LEN]);
        if !self.ring.submit(slot.first_descriptor(), &self.chain(slot, bytes.len())) {
            return Err(SendError::Busy);
        }
        self.sequence = sequence;
        self.in_flight.push_back(InFlight { slot, sequence, response: None });
        transport.ring(self.doorbell);
        Ok(())
    }

    /// A place for a request of so many bytes.
    fn free_slot(&self, len: usize) -> Option<Slot> {
        let is_free = |slot| !self.in_flight.iter().any(|flight| flight.slot == slot);
        let short = Some(Slot::Short).filter(|_| len <= SHORT_MAX);
        [Some(Slot::Long), short].into_iter().flatten().find(|slot| is_free(*slot))
    }

    /// One descriptor for each page of the request, since pages are not contiguous, and one for
    /// the response.
    fn chain(&self, slot: Slot, len: usize) -> Vec<Buffer> {
        let at = slot.request_at();
        let mut chain: Vec<Buffer> = (0..len.div_ceil(PAGE))
            .map(|page| Buffer {
                gpa: self.gpa(at + page * PAGE),
                len: (len - page * PAGE).min(PAGE) as u32,
                direction: Direction::ToDevice,
            })
            .collect();
        chain.push(Buffer {
            gpa: self.gpa(slot.response_at()),
            len: RESPONSE_LEN as u32,
            direction: Direction::FromDevice,
        });
        chain
    }

    /// Where a byte of the area lies for the device.
    fn gpa(&self, at: usize) -> Gpa {
        Gpa(self.area.place(at / PAGE).0 + (at % PAGE) as u64)
    }

    /// The response to the oldest request in flight, if it has come.
    ///
    /// # Errors
    /// [`QueueError`]: the device must be reset before anything is believed again.
    pub fn receive(&mut self) -> Result<Option<Response>, QueueError> {
        while let Some(used) = self.ring.take()? {
            self.keep_response(used)?;
        }
        let first = self.in_flight.front_mut().and_then(|flight| flight.response.take());
        if first.is_some() {
            self.in_flight.pop_front();
        }
        Ok(first)
    }

    fn keep_response(&mut self, Used { head, len }: Used) -> Result<(), QueueError> {
        let mut flights = self.in_flight.iter_mut();
        // The ring lets no chain back that was not in flight.
        let Some(flight) = flights.find(|flight| flight.slot.first_descriptor() == head) else {
            return Err(QueueError::NoResponse(len));
        };
        if (len as usize) < RESPONSE_LEN {
            return Err(QueueError::NoResponse(len));
        }
        let bytes = self.area.pages().read(flight.slot.response_at(), RESPONSE_LEN);
        let response = Response::decode(&bytes).ok_or(QueueError::NoResponse(len))?;
        if response.sequence != flight.sequence {
            let (expected, found) = (flight.sequence, response.sequence);
            return Err(QueueError::Sequence { expected, found });
        }
        flight.response = Some(response);
        Ok(())
    }
}

/// A split ring's size is a power of two (virtio 1.3, 2.7), whatever the device offers.
fn queue_size(transport: &Transport, index: u16) -> Result<u16, TransportError> {
    let most = transport.queue_size_max(index)?.min(SIZE_MAX);
    let size = 1 << most.ilog2();
    if size < CHAIN_MAX {
        return Err(TransportError::QueueShort { index, size: most, needed: CHAIN_MAX });
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeDevice, granted};
    use super::super::transport::RESET_DEADLINE;
    use super::*;
    use memtide_units::{BlockId, BlockSize, ByteSize};
    use memtide_wire::block::Hello;

    fn started(fake: &FakeDevice) -> (Transport, BlockQueue) {
        let transport = fake.transport();
        transport.reset(RESET_DEADLINE).unwrap();
        transport.negotiate(0).unwrap();
        let queue = BlockQueue::start(&transport, 5, fake.area()).unwrap();
        transport.driver_ok();
        (transport, queue)
    }

    fn large_hello() -> Request {
        let size = BlockSize::X86_SMALL;
        let stolen = (0..2000).map(|n| size.range(BlockId(2 * n)).unwrap()).collect();
        Request::Hello(Hello {
            ejected: Vec::new(),
            epoch: 1,
            block_size: size,
            present: ByteSize::from_gib(512),
            online: ByteSize::from_gib(256),
            min: ByteSize::from_gib(1),
            max: ByteSize::from_gib(512),
            stolen,
        })
    }

    #[test]
    fn requests_of_any_length_reach_the_device_and_its_answers_come_back() {
        let fake = FakeDevice::new();
        let (transport, mut queue) = started(&fake);
        for request in [large_hello(), Request::Goodbye, Request::Cancel { ticket: 7 }] {
            queue.send(&transport, &request).unwrap();
            assert_eq!(queue.send(&transport, &large_hello()), Err(SendError::Busy));
            assert_eq!(queue.receive(), Ok(None));
            let (sequence, seen) = fake.answer(granted).unwrap();
            assert_eq!(seen, request);
            assert_eq!(queue.receive().unwrap().unwrap().sequence, sequence);
            assert!(!queue.is_busy());
        }
    }

    #[test]
    fn a_short_request_goes_behind_another_and_each_answer_finds_its_own() {
        let fake = FakeDevice::new();
        let (transport, mut queue) = started(&fake);
        queue.send(&transport, &large_hello()).unwrap();
        for ticket in 1..1000 {
            let next = Request::Cancel { ticket };
            queue.send(&transport, &next).unwrap();
            assert_eq!(queue.send(&transport, &Request::Goodbye), Err(SendError::Busy));
            fake.answer(granted).unwrap();
            assert_eq!(queue.receive().unwrap().unwrap().sequence, ticket);
            assert_eq!((queue.receive(), queue.is_busy()), (Ok(None), true));
            assert_eq!(fake.waiting(), Some(next));
        }
    }

    #[test]
    fn answers_come_in_the_order_of_the_requests() {
        let fake = FakeDevice::new();
        let (transport, mut queue) = started(&fake);
        queue.send(&transport, &large_hello()).unwrap();
        queue.send(&transport, &Request::Goodbye).unwrap();
        fake.answer_last_first();
        let mut next = || queue.receive().unwrap().map(|response| response.sequence);
        assert_eq!([next(), next(), next()], [Some(1), Some(2), None]);
    }

    #[test]
    fn an_answer_to_something_else_is_not_believed() {
        let fake = FakeDevice::new();
        let (transport, mut queue) = started(&fake);
        queue.send(&transport, &Request::Goodbye).unwrap();
        fake.answer(|sequence, request| Response {
            sequence: sequence + 1,
            ..granted(sequence, request)
        });
        assert_eq!(queue.receive(), Err(QueueError::Sequence { expected: 1, found: 2 }));
        let fake = FakeDevice::new();
        let (transport, mut queue) = started(&fake);
        queue.send(&transport, &Request::Goodbye).unwrap();
        fake.answer_bytes(&[0xff; RESPONSE_LEN]);
        assert_eq!(queue.receive(), Err(QueueError::NoResponse(RESPONSE_LEN as u32)));
    }

    #[test]
    fn a_queue_too_short_for_a_hello_is_refused() {
        let fake = FakeDevice::new();
        fake.shorten_queues(8);
        let transport = fake.transport();
        assert!(BlockQueue::start(&transport, 5, fake.area()).is_err());
    }
}
