//! Requests of the block queue, carried out on a balloon that has only the standard queues.
//!
//! ```text
//! steal    inflate every page of the blocks, then write `actual`
//! return   granted by the standard's own rule, after deflating every page; or held
//! taken    deflate, though the pages are used already
//! hello    write `actual`; the link has the blocks inflated again, one by one (`untold`)
//! others   nothing to do, and answered at once
//! ```
//! The host cannot answer a question, so nobody is asked: the standard says when a driver may use
//! pages of the balloon (virtio 1.3, 5.5.6, "Device Operation"). While less is in it than the host
//! wants it may not, unless `DEFLATE_ON_OOM` was negotiated and the guest's stability is at stake.

use std::collections::{BTreeSet, VecDeque};

use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange, Pfn};
use memtide_wire::block::{
    HoldReason, RefuseReason, Request, Response, ReturnRequest, Urgency, Verdict,
};
use memtide_wire::features;
use memtide_wire::stats::Stat;

use super::carrier::Received;
use crate::dma::Area;
use crate::virtio::balloon_queues::{BalloonQueues, Way};
use crate::virtio::block_queue::{QueueError, SendError};
use crate::virtio::transport::Transport;

/// `actual` in the configuration space (virtio 1.3, 5.5.4).
const ACTUAL: usize = 4;
/// A return that the host's target forbids is worth another look this soon; a new target is heard
/// of by an interrupt.
const RETRY_MS: u32 = 1_000;

/// What the driver may do about the host's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InNeed {
    /// Take pages back against it.
    Deflate,
    /// Do without them.
    Endure,
}

/// Pages on their way in or out, batch by batch.
#[derive(Debug)]
struct Work {
    way: Way,
    /// What the host has not been told yet.
    left: VecDeque<GpaRange>,
    /// What the request was about.
    blocks: Vec<BlockId>,
}

/// A running balloon, and what is in it.
#[derive(Debug)]
pub(super) struct PlainBalloon {
    queues: BalloonQueues,
    in_need: InNeed,
    size: BlockSize,
    /// Blocks in the balloon, as far as this guest is concerned.
    held: BTreeSet<BlockId>,
    /// Those of them that the host was told of since the device was started.
    told: BTreeSet<BlockId>,
    work: Option<Work>,
    answer: Option<Response>,
    /// The `actual` that was written last.
    stated: Option<u32>,
}

impl PlainBalloon {
    /// A balloon with nothing in it, over queues that were set up with the features `acked`.
    pub(super) fn new(queues: BalloonQueues, acked: u64) -> Self {
        let may_deflate = acked & features::DEFLATE_ON_OOM != 0;
        Self {
            queues,
            in_need: if may_deflate { InNeed::Deflate } else { InNeed::Endure },
            size: BlockSize::X86_SMALL,
            held: BTreeSet::new(),
            told: BTreeSet::new(),
            work: None,
            answer: None,
            stated: None,
        }
    }

    pub(super) fn into_area(self) -> Area {
        self.queues.into_area()
    }

    pub(super) fn has_news(&self) -> bool {
        self.answer.is_some() || self.queues.has_used()
    }

    /// See [`super::carrier::Carrier::untold`].
    pub(super) fn untold(&self) -> Vec<GpaRange> {
        self.held.difference(&self.told).filter_map(|block| self.size.range(*block)).collect()
    }

    /// Begins to carry `request` out; `target` is what the host wants in the balloon.
    pub(super) fn send(
        &mut self,
        transport: &Transport,
        request: &Request,
        target: ByteSize,
    ) -> Result<(), SendError> {
        if self.work.is_some() || self.answer.is_some() {
            return Err(SendError::Busy);
        }
        match request {
            Request::Hello(hello) => {
                self.size = hello.block_size;
                self.held = self.blocks(&hello.stolen).into_iter().collect();
                self.told.retain(|block| self.held.contains(block));
                self.state_actual(transport);
                self.answer = Some(says(Verdict::Ok, ByteSize::ZERO));
            }
            Request::Steal(ranges) => self.inflate(transport, ranges),
            Request::Return(asked) => match self.judge(asked, target) {
                Verdict::Ok => self.deflate(transport, &asked.ranges),
                held => self.answer = Some(says(held, ByteSize::ZERO)),
            },
            Request::Taken(ranges) => self.deflate(transport, ranges),
            // Its host knows nothing of memory that comes and goes.
            Request::Eject(_) | Request::Plug(_) => {
                let refused = Verdict::Refused(RefuseReason::NotPluggable);
                self.answer = Some(says(refused, ByteSize::ZERO));
            }
            Request::Cancel { .. } | Request::Telemetry(_) | Request::Goodbye => {
                self.answer = Some(says(Verdict::Ok, ByteSize::ZERO));
            }
        }
        Ok(())
    }

    /// The standard's rule.
    fn judge(&self, asked: &ReturnRequest, target: ByteSize) -> Verdict {
        let held = self.size.size().times(self.held.len() as u64);
        let asked_for = asked.ranges.iter().fold(ByteSize::ZERO, |sum, range| sum + range.len());
        let in_need = asked.urgency == Urgency::Emergency && self.in_need == InNeed::Deflate;
        if in_need || held >= target + asked_for {
            Verdict::Ok
        } else {
            Verdict::Held(HoldReason::VmLimit)
        }
    }

    fn inflate(&mut self, transport: &Transport, ranges: &[GpaRange]) {
        if ranges.iter().any(|range| !range.is_aligned_to(self.size.size())) {
            // What is told is whole blocks: one that lies in this only in part may be in use.
            let refused = Verdict::Refused(RefuseReason::Misaligned);
            self.answer = Some(says(refused, ByteSize::ZERO));
            return;
        }
        let last = |range: &GpaRange| memtide_units::Gpa(range.end().0 - 1);
        if ranges.iter().any(|range| Pfn::of(last(range)).is_none()) {
            // 32 bits of page number end there (16 TiB).
            let refused = Verdict::Refused(RefuseReason::OutsideMemory);
            self.answer = Some(says(refused, ByteSize::ZERO));
            return;
        }
        let blocks = self.blocks(ranges);
        self.begin(transport, Work { way: Way::Inflate, left: self.ranges(&blocks), blocks });
    }

    /// What the host was never told of needs no deflating, and must not be deflated.
    fn deflate(&mut self, transport: &Transport, ranges: &[GpaRange]) {
        let blocks = self.blocks(ranges);
        let told: Vec<_> =
            blocks.iter().filter(|block| self.told.contains(block)).copied().collect();
        self.begin(transport, Work { way: Way::Deflate, left: self.ranges(&told), blocks });
    }

    fn begin(&mut self, transport: &Transport, work: Work) {
        self.work = Some(work);
        self.proceed(transport);
    }

    /// Sends the next batch, or ends the work.
    fn proceed(&mut self, transport: &Transport) {
        let Some(work) = &mut self.work else { return };
        let batch = work.next(self.queues.batch());
        if batch.is_empty() {
            self.finish(transport);
        } else if !self.queues.send(transport, work.way, &batch) {
            tracing::error!("a batch of {} pages was not sent", batch.len());
        }
    }

    fn finish(&mut self, transport: &Transport) {
        let Some(work) = self.work.take() else { return };
        let bytes = self.size.size().times(work.blocks.len() as u64);
        for block in work.blocks {
            match work.way {
                Way::Inflate => {
                    self.held.insert(block);
                    self.told.insert(block);
                }
                Way::Deflate => {
                    self.held.remove(&block);
                    self.told.remove(&block);
                }
            }
        }
        self.state_actual(transport);
        self.answer = Some(says(Verdict::Ok, bytes));
    }

    /// Writes `actual`, if it is another than before.
    fn state_actual(&mut self, transport: &Transport) {
        let bytes = self.size.size().times(self.held.len() as u64).bytes();
        let pages = u32::try_from(bytes / Pfn::SIZE.bytes()).unwrap_or(u32::MAX);
        if self.stated != Some(pages) {
            transport.set_config_u32(ACTUAL, pages);
            self.stated = Some(pages);
        }
    }

    /// See [`super::carrier::Carrier::receive`].
    pub(super) fn receive(&mut self, transport: &Transport) -> Result<Received, QueueError> {
        if self.queues.receive()? {
            self.proceed(transport);
            return Ok(self.answer.take().map_or(Received::Progress, Received::Answer));
        }
        Ok(self.answer.take().map_or(Received::Nothing, Received::Answer))
    }

    pub(super) fn wants_statistics(&mut self) -> Result<bool, QueueError> {
        Ok(self.queues.wants_statistics()?)
    }

    pub(super) fn send_statistics(&mut self, transport: &Transport, stats: &[Stat]) {
        self.queues.send_statistics(transport, stats);
    }

    /// The blocks of `ranges`. What is not made of whole ones is in nobody's balloon here.
    fn blocks(&self, ranges: &[GpaRange]) -> Vec<BlockId> {
        let of = |range: &GpaRange| {
            let first = self.size.block_of(range.start()).0;
            (first..first + self.size.count_in(range.len())).map(BlockId)
        };
        ranges.iter().filter(|range| range.is_aligned_to(self.size.size())).flat_map(of).collect()
    }

    fn ranges(&self, blocks: &[BlockId]) -> VecDeque<GpaRange> {
        blocks.iter().filter_map(|block| self.size.range(*block)).collect()
    }
}

impl Work {
    /// The next pages to tell the host of, at most `most`.
    fn next(&mut self, most: usize) -> Vec<Pfn> {
        let mut batch = Vec::with_capacity(most);
        while let Some(range) = self.left.pop_front() {
            let pages = range.len().bytes() / Pfn::SIZE.bytes();
            let take = pages.min((most - batch.len()) as u64);
            let first = range.start().0 / Pfn::SIZE.bytes();
            // Above 16 TiB nothing is ever inflated, so nothing is left out here.
            batch.extend((first..first + take).filter_map(|n| u32::try_from(n).ok()).map(Pfn));
            let rest = range
                .start()
                .checked_add(Pfn::SIZE.times(take))
                .and_then(|start| GpaRange::new(start, range.len() - Pfn::SIZE.times(take)).ok());
            if let Some(rest) = rest {
                self.left.push_front(rest);
                break;
            }
        }
        batch
    }
}

/// The answer that a gate would have given. The sequence number is nobody's here.
fn says(verdict: Verdict, bytes: ByteSize) -> Response {
    let retry_ms = if matches!(verdict, Verdict::Held(_)) { RETRY_MS } else { 0 };
    Response { sequence: 0, verdict, bytes, retry_ms, min: ByteSize::ZERO, generation: 0 }
}

#[cfg(test)]
mod tests;
