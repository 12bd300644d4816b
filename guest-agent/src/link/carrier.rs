//! What carries requests to the host: the block queue of a Memtide device, or the standard queues of
//! any other balloon. Nobody outside of this directory need know which.

use memtide_units::{ByteSize, GpaRange};
use memtide_wire::block::{Request, Response};
use memtide_wire::stats::Stat;

use super::kind::{Kind, Plainness};
use super::plain::PlainBalloon;
use crate::dma::Area;
use crate::virtio::balloon_queues::{self, BalloonQueues};
use crate::virtio::block_queue::{BlockQueue, QueueError, SendError};
use crate::virtio::transport::{Transport, TransportError};

/// One of the two, running.
#[derive(Debug)]
pub(super) enum Carrier {
    Gated(BlockQueue),
    Plain(Box<PlainBalloon>, Plainness),
}

/// What has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing.
    Nothing,
    /// The request is being carried out, and a part of it has been.
    Progress,
    /// It has been answered.
    Answer(Response),
}

impl Carrier {
    /// Sets a device of `kind` up, from a reset to just before `DRIVER_OK`.
    ///
    /// # Errors
    /// Why it cannot be. The area comes back with it: the device has not been started.
    pub(super) fn start(
        kind: Kind,
        transport: &Transport,
        area: Area,
    ) -> Result<Self, (TransportError, Area)> {
        let wanted = match kind {
            Kind::Gated(_) => 0,
            Kind::Plain(_) => balloon_queues::FEATURES,
        };
        let acked = match transport.negotiate(wanted) {
            Ok(acked) => acked,
            Err(error) => return Err((error, area)),
        };
        Ok(match kind {
            Kind::Gated(extension) => {
                Self::Gated(BlockQueue::start(transport, extension.block_queue.get(), area)?)
            }
            Kind::Plain(why) => {
                let queues = BalloonQueues::start(transport, acked, area)?;
                Self::Plain(Box::new(PlainBalloon::new(queues, acked)), why)
            }
        })
    }

    /// The memory, once the device has been reset.
    pub(super) fn into_area(self) -> Area {
        match self {
            Self::Gated(queue) => queue.into_area(),
            Self::Plain(balloon, _) => balloon.into_area(),
        }
    }

    /// Sends `request`, while the host wants `target` in the balloon. Whatever it says must hold
    /// until the answer has been read: a block named in a steal stays offline, one named in a return
    /// is not touched.
    ///
    /// # Errors
    /// [`SendError`]: nothing was sent.
    pub(super) fn send(
        &mut self,
        transport: &Transport,
        request: &Request,
        target: ByteSize,
    ) -> Result<(), SendError> {
        match self {
            Self::Gated(queue) => queue.send(transport, request),
            Self::Plain(balloon, _) => balloon.send(transport, request, target),
        }
    }

    /// What has come back since the last call.
    ///
    /// # Errors
    /// [`QueueError`]: the device must be reset before anything is believed again.
    pub(super) fn receive(&mut self, transport: &Transport) -> Result<Received, QueueError> {
        match self {
            Self::Gated(queue) => Ok(queue.receive()?.map_or(Received::Nothing, Received::Answer)),
            Self::Plain(balloon, _) => balloon.receive(transport),
        }
    }

    /// True where the device has used something that [`Self::receive`] would take in: a look at
    /// memory alone.
    pub(super) fn has_news(&self) -> bool {
        match self {
            Self::Gated(queue) => queue.has_used(),
            Self::Plain(balloon, _) => balloon.has_news(),
        }
    }

    /// Blocks that the last hello named and that the host was not told of since the device was
    /// started: a hello tells a Memtide device all of them, and any other balloon none.
    pub(super) fn untold(&self) -> Vec<GpaRange> {
        match self {
            Self::Gated(_) => Vec::new(),
            Self::Plain(balloon, _) => balloon.untold(),
        }
    }

    /// Whether the host asks for statistics.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub(super) fn wants_statistics(&mut self) -> Result<bool, QueueError> {
        match self {
            Self::Gated(_) => Ok(false),
            Self::Plain(balloon, _) => balloon.wants_statistics(),
        }
    }

    /// Hands statistics over, if the host asks for them.
    pub(super) fn send_statistics(&mut self, transport: &Transport, stats: &[Stat]) {
        if let Self::Plain(balloon, _) = self {
            balloon.send_statistics(transport, stats);
        }
    }
}
