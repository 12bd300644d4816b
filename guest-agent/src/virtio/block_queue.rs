//! Memtide's block queue: one request at a time, one response each.

use memtide_wire::block::{RESPONSE_LEN, Request, Response};

use super::ring::{Buffer, Direction, Ring, RingError, SIZE_MAX};
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
    /// Another is in flight.
    #[error("another request is in flight")]
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
    sequence: u32,
}

/// Descriptors that the longest request needs: its pages and the response.
const CHAIN_MAX: u16 = REQUEST_PAGES as u16 + 1;
/// Where the response lies.
const RESPONSE_PAGE: usize = PAGES - 1;

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
            Ok((ring, doorbell)) => Ok(Self { ring, area, doorbell, sequence: 0 }),
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
        self.ring.has_used()
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
        if self.ring.is_busy() {
            return Err(SendError::Busy);
        }
        let sequence = self.sequence.wrapping_add(1);
        let bytes = request.encode(sequence);
        if bytes.len() > REQUEST_PAGES * PAGE {
            return Err(SendError::TooLong(bytes.len()));
        }
        self.area.pages().part(1, REQUEST_PAGES).write(0, &bytes);
        self.area.pages().part(RESPONSE_PAGE, 1).clear();
        if !self.ring.submit(&self.chain(bytes.len())) {
            return Err(SendError::Busy);
        }
        self.sequence = sequence;
        transport.ring(self.doorbell);
        Ok(())
    }

    /// One descriptor for each page of the request, since pages are not contiguous, and one for
    /// the response.
    fn chain(&self, len: usize) -> Vec<Buffer> {
        let page_len = |page: usize| (len - page * PAGE).min(PAGE) as u32;
        let mut chain: Vec<Buffer> = (0..len.div_ceil(PAGE))
            .map(|page| Buffer {
                gpa: self.area.place(1 + page),
                len: page_len(page),
                direction: Direction::ToDevice,
            })
            .collect();
        chain.push(Buffer {
            gpa: self.area.place(RESPONSE_PAGE),
            len: RESPONSE_LEN as u32,
            direction: Direction::FromDevice,
        });
        chain
    }

    /// The response to the request in flight, if it has come.
    ///
    /// # Errors
    /// [`QueueError`]: the device must be reset before anything is believed again.
    pub fn receive(&mut self) -> Result<Option<Response>, QueueError> {
        let Some(len) = self.ring.take()? else { return Ok(None) };
        let bytes = self.area.pages().part(RESPONSE_PAGE, 1).read(0, RESPONSE_LEN);
        if (len as usize) < RESPONSE_LEN {
            return Err(QueueError::NoResponse(len));
        }
        let response = Response::decode(&bytes).ok_or(QueueError::NoResponse(len))?;
        if response.sequence != self.sequence {
            let (expected, found) = (self.sequence, response.sequence);
            return Err(QueueError::Sequence { expected, found });
        }
        Ok(Some(response))
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
            assert_eq!(queue.send(&transport, &Request::Goodbye), Err(SendError::Busy));
            assert_eq!(queue.receive(), Ok(None));
            let (sequence, seen) = fake.answer(granted).unwrap();
            assert_eq!(seen, request);
            assert_eq!(queue.receive().unwrap().unwrap().sequence, sequence);
            assert!(!queue.is_busy());
        }
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
