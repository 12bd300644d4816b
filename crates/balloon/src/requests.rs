//! What the agent asks for, and when it gets it.

use std::time::Duration;

use memtide_units::{BlockSize, ByteSize, GpaRange, Instant};
use memtide_wire::block::{
    Hello, HoldReason, PIECE, RANGES_MAX, RefuseReason, Request, ReturnRequest, Telemetry, Verdict,
};

use crate::chain::Chain;
use crate::device::Balloon;
use crate::event::{Event, GrantedBy};
use crate::gate::{Floor, Say};
use crate::range_set::RangeSet;
use crate::reclaim::{ReclaimFailed, Reclaimed};
use crate::under_way::Todo;

/// When to ask again for a return that nobody has decided on. A decision rings the doorbell before
/// that, so this is for doorbells that were lost or cannot be heard.
const RETRY_ASKING_MS: u32 = 250;

/// When to ask again for a return that was held for a reason.
const RETRY_HELD_MS: u32 = 1000;

/// Telemetry is passed on this often at most, however often an agent sends it.
const TELEMETRY_APART: Duration = Duration::from_secs(1);

/// The part of a response that depends on the request.
pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    pub(crate) bytes: ByteSize,
    pub(crate) retry_ms: u32,
}

impl Answer {
    pub(crate) fn plain(verdict: Verdict) -> Self {
        Self { verdict, bytes: ByteSize::ZERO, retry_ms: 0 }
    }

    fn ok(bytes: ByteSize) -> Self {
        Self { bytes, ..Self::plain(Verdict::Ok) }
    }
}

/// What there is to do for a request.
pub(crate) enum Response {
    /// Nothing more than to say this.
    Answer(Answer),
    /// These are to go, and then [`Balloon::finish`].
    Drop(Todo, Then),
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

/// What is written down when a request's blocks have gone.
#[derive(Debug)]
pub(crate) enum Then {
    /// The map is what this hello says.
    Hello { hello: Hello, map: RangeSet },
    /// The map has these as well.
    Steal { ranges: Vec<GpaRange> },
}

/// A request whose blocks are on their way out.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) then: Then,
    pub(crate) sequence: u32,
    /// Where the response goes; nowhere where nobody waits in a ring.
    pub(crate) chain: Option<Chain>,
    pub(crate) reclaimed: ByteSize,
}

/// Why a request is not carried out: the reason that the agent learns, and a detail for the log.
pub(crate) struct Refusal {
    pub(crate) reason: RefuseReason,
    pub(crate) detail: String,
}

fn refused<T>(reason: RefuseReason, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, detail: detail.into() })
}

impl Balloon {
    /// Begins with a request: much of it is done with that.
    pub(crate) fn act(&mut self, request: Request, now: Instant) -> Result<Response, Refusal> {
        let request = match request {
            Request::Hello(hello) => return self.on_hello(hello),
            other => other,
        };
        let block = self.greeted_block_size()?;
        let answer = match request {
            // Answered above.
            Request::Hello(_) => Answer::plain(Verdict::Ok),
            Request::Steal(ranges) => return self.on_steal(ranges, block),
            Request::Return(wanted) => self.on_return(&wanted, block, now)?,
            Request::Cancel { ticket } => self.on_cancel(ticket),
            Request::Taken(ranges) => self.on_taken(&ranges, block)?,
            Request::Telemetry(telemetry) => self.on_telemetry(&telemetry, now),
            Request::Goodbye => self.on_goodbye(),
            Request::Eject(ranges) => self.on_eject(ranges, block)?,
            Request::Plug(ranges) => self.on_plug(ranges, block)?,
        };
        Ok(answer.into())
    }

    /// The block size of the agent's hello, if that is of the present epoch.
    fn greeted_block_size(&self) -> Result<BlockSize, Refusal> {
        let epoch = self.hello_epoch();
        match &self.agent {
            Some(hello) if hello.epoch == epoch => Ok(hello.block_size),
            _ => refused(RefuseReason::NoHello, format!("the epoch is {epoch}")),
        }
    }

    /// The stolen map becomes what the agent says it is: the guest's kernel is the only one who
    /// knows which blocks are offline. All of it is reclaimed once more. Most of it is holes
    /// already, which costs microseconds; but an agent may have been killed between taking a block
    /// offline and reporting it, and a block may have been online, and filled, while no agent ran.
    ///
    /// A block that the host then fails to drop is stolen nevertheless; it costs memory, no more,
    /// and refusing the hello would leave the guest without its agent.
    fn on_hello(&mut self, hello: Hello) -> Result<Response, Refusal> {
        let epoch = self.hello_epoch();
        if hello.epoch != epoch {
            let detail = format!("the hello is of epoch {}, the device's is {epoch}", hello.epoch);
            return refused(RefuseReason::NoHello, detail);
        }
        let all = [&hello.stolen[..], &hello.ejected].concat();
        let map = self.checked_blocks(&all, hello.block_size)?;
        self.check_known(&all)?;
        // What was ejected was dropped before. Should it have come back meanwhile, its guest may use it.
        let there: RangeSet = hello.stolen.iter().copied().collect();
        Ok(Response::Drop(Todo::new(there.iter()), Then::Hello { hello, map }))
    }

    /// Drops the blocks, then writes them down, then answers. A block that is stolen already is
    /// dropped again: an agent that lost an answer may ask twice.
    ///
    /// Neighbours go as one range, so that blocks which are smaller than the host's pages go where
    /// one request names a whole page. What was stolen before is not added to that: a guest may
    /// have taken it unasked while this request waited in the ring.
    fn on_steal(&mut self, ranges: Vec<GpaRange>, block: BlockSize) -> Result<Response, Refusal> {
        let named = self.checked_blocks(&ranges, block)?;
        self.check_known(&ranges)?;
        check_count(&self.with_stolen(&ranges))?;
        Ok(Response::Drop(Todo::new(named.iter()), Then::Steal { ranges }))
    }

    fn with_stolen(&self, ranges: &[GpaRange]) -> RangeSet {
        let mut after = self.stolen.clone();
        ranges.iter().for_each(|range| after.insert(*range));
        after
    }

    /// A slice of a job's blocks has gone, or has not.
    pub(crate) fn note_slice(
        &mut self,
        job: &mut Job,
        slice: Result<Reclaimed, ReclaimFailed>,
        now: Instant,
    ) -> Result<(), Refusal> {
        match (slice, &job.then) {
            (Ok(reclaimed), _) => {
                self.counters.count_reclaim(reclaimed);
                job.reclaimed += reclaimed.bytes;
            }
            (Err(error), Then::Hello { .. }) => self.reclaim_failed(&error, now),
            (Err(error), Then::Steal { .. }) => {
                self.counters.count_failure(error.kind);
                return refused(RefuseReason::ReclaimFailed, error.to_string());
            }
        }
        Ok(())
    }

    /// All blocks of a job have gone: writes them down.
    pub(crate) fn finish(&mut self, then: Then, reclaimed: ByteSize) -> Answer {
        match then {
            Then::Hello { hello, map } => {
                self.forget_agent();
                self.stolen = map;
                // Whatever waited for the rest of its host page was another driver's.
                self.host_pages.clear();
                self.agent = Some(hello.clone());
                self.note_driver();
                self.events.push(Event::Hello(hello));
            }
            Then::Steal { ranges } => {
                let after = self.with_stolen(&ranges);
                self.counters.stolen += after.total() - self.stolen.total();
                self.stolen = after;
                self.events.push(Event::Stolen { ranges, stolen: self.stolen.total() });
            }
        }
        Answer::ok(reclaimed)
    }

    /// Grants a return, or says that it has to wait.
    fn on_return(
        &mut self,
        wanted: &ReturnRequest,
        block: BlockSize,
        now: Instant,
    ) -> Result<Answer, Refusal> {
        let asked = self.checked_blocks(&wanted.ranges, block)?.total();
        if wanted.ranges.is_empty() {
            return refused(RefuseReason::Malformed, "a return names no blocks");
        }
        if let Some(range) = wanted.ranges.iter().find(|range| !self.stolen.contains(**range)) {
            return refused(RefuseReason::NotStolen, range.to_string());
        }
        let mut after = self.stolen.clone();
        wanted.ranges.iter().for_each(|range| _ = after.remove(*range));
        check_count(&after)?;
        if self.gate.ticket() != Some(wanted.ticket) {
            self.counters.returns_asked += 1;
        }
        match self.gate.ask(wanted, self.floor_after(asked, &after), now, &mut self.events) {
            Say::Grant(by) => Ok(self.grant(wanted, after, by)),
            Say::Wait(reason) => Ok(self.held(reason)),
            Say::Deny(reason) => Ok(Answer::plain(Verdict::Denied(reason))),
        }
    }

    /// What would the guest hold with `asked` more, when `after` is stolen still?
    fn floor_after(&self, asked: ByteSize, after: &RangeSet) -> Floor {
        let held = self.whole_memory().total() - self.stolen.total();
        if held + asked <= self.min() {
            Floor::WithinMinimum
        } else if after.total() >= self.target() {
            Floor::WithinTarget
        } else {
            Floor::Above
        }
    }

    fn grant(&mut self, wanted: &ReturnRequest, after: RangeSet, by: GrantedBy) -> Answer {
        let bytes = self.stolen.total() - after.total();
        self.stolen = after;
        self.back_in_use(&wanted.ranges);
        self.counters.returned += bytes;
        self.counters.returns_granted += 1;
        self.events.push(Event::Returned {
            ticket: wanted.ticket,
            ranges: wanted.ranges.clone(),
            by,
            stolen: self.stolen.total(),
        });
        Answer::ok(bytes)
    }

    /// The guest uses these again: an agent that also inflated pages of them does not any more.
    fn back_in_use(&mut self, ranges: &[GpaRange]) {
        ranges.iter().for_each(|range| self.host_pages.remove(*range, &self.memory));
    }

    fn held(&self, reason: HoldReason) -> Answer {
        let retry_ms = match reason {
            HoldReason::Asking => RETRY_ASKING_MS,
            _ => RETRY_HELD_MS,
        };
        Answer { retry_ms, ..Answer::plain(Verdict::Held(reason)) }
    }

    fn on_cancel(&mut self, ticket: u32) -> Answer {
        if self.gate.ticket() == Some(ticket) {
            self.gate.cancel();
            self.events.push(Event::ReturnCancelled { ticket });
        }
        Answer::plain(Verdict::Ok)
    }

    /// The blocks are online again, whatever anybody says. Parts that were not stolen are no news.
    fn on_taken(&mut self, ranges: &[GpaRange], block: BlockSize) -> Result<Answer, Refusal> {
        self.checked_blocks(ranges, block)?;
        let mut after = self.stolen.clone();
        let taken: ByteSize = ranges.iter().map(|range| after.remove(*range)).sum();
        check_count(&after)?;
        self.stolen = after;
        self.back_in_use(ranges);
        self.counters.taken += taken;
        let asked = self.gate.ranges().iter().all(|range| self.stolen.contains(*range));
        if let Some(ticket) = self.gate.ticket().filter(|_| !asked) {
            self.on_cancel(ticket);
        }
        self.events.push(Event::Taken { ranges: ranges.to_vec(), stolen: self.stolen.total() });
        Ok(Answer::ok(taken))
    }

    fn on_telemetry(&mut self, telemetry: &Telemetry, now: Instant) -> Answer {
        self.telemetry = Some(telemetry.clone());
        self.telemetry_heard = Some(now);
        if self.telemetry_told.is_none_or(|told| now.since(told) >= TELEMETRY_APART) {
            self.telemetry_told = Some(now);
            self.events.push(Event::Telemetry(telemetry.clone()));
        }
        Answer::plain(Verdict::Ok)
    }

    /// The guest is about to eject what is stolen: may it, and does somebody plug it in again?
    fn on_eject(&mut self, ranges: Vec<GpaRange>, block: BlockSize) -> Result<Answer, Refusal> {
        self.check_plugging(&ranges, block)?;
        if let Some(range) = ranges.iter().find(|range| !self.stolen.contains(**range)) {
            return refused(RefuseReason::NotStolen, range.to_string());
        }
        self.events.push(Event::Ejecting { ranges });
        Ok(Answer::plain(Verdict::Ok))
    }

    /// The guest waits for what it has ejected. Who plugs in looks whether that is so: here it may be there
    /// already. Some of it must be the guest's: what is stolen whole comes back by a grant alone.
    fn on_plug(&mut self, ranges: Vec<GpaRange>, block: BlockSize) -> Result<Answer, Refusal> {
        self.check_plugging(&ranges, block)?;
        if ranges.iter().all(|range| self.stolen.contains(*range)) {
            return refused(
                RefuseReason::Malformed,
                "all that is to be plugged in is stolen still",
            );
        }
        self.events.push(Event::PlugWanted { ranges });
        Ok(Answer::plain(Verdict::Ok))
    }

    fn check_plugging(&self, ranges: &[GpaRange], block: BlockSize) -> Result<(), Refusal> {
        self.checked_blocks(ranges, block)?;
        if ranges.is_empty() {
            return refused(RefuseReason::Malformed, "no memory is named");
        }
        if !self.gate.has_controller() {
            return refused(RefuseReason::NotPluggable, "no controller is attached");
        }
        match ranges.iter().find(|range| !self.pluggable.contains(**range)) {
            Some(range) => refused(RefuseReason::NotPluggable, range.to_string()),
            None => Ok(()),
        }
    }

    fn on_goodbye(&mut self) -> Answer {
        self.forget_agent();
        self.note_driver();
        Answer::plain(Verdict::Ok)
    }

    /// Whole blocks, or pieces of them, each named once. They come back as a set, which has no more
    /// ranges than a hello can carry.
    fn checked_blocks(&self, ranges: &[GpaRange], block: BlockSize) -> Result<RangeSet, Refusal> {
        let unit = block.size().min(PIECE);
        let mut set = RangeSet::default();
        for range in ranges {
            if !range.is_aligned_to(unit) {
                let detail = format!("{range} is not made of pieces of {unit}");
                return refused(RefuseReason::Misaligned, detail);
            }
            if set.overlaps(*range) {
                return refused(RefuseReason::Overlap, range.to_string());
            }
            set.insert(*range);
        }
        Ok(set)
    }

    /// All that counts as the guest's memory, whether the VMM has it in the VM now or not: regions come and
    /// go, and what was ejected is stolen like any other.
    fn whole_memory(&self) -> RangeSet {
        let ejected = self.pluggable.iter().chain(self.stolen.iter());
        self.memory.ranges().chain(ejected).collect()
    }

    /// Ranges that are in the VM, or that somebody plugs in again.
    fn check_known(&self, ranges: &[GpaRange]) -> Result<(), Refusal> {
        let memory: RangeSet = self.memory.ranges().chain(self.pluggable.iter()).collect();
        match ranges.iter().find(|range| !memory.contains(**range)) {
            Some(range) => refused(RefuseReason::OutsideMemory, range.to_string()),
            None => Ok(()),
        }
    }

    /// Counts a failure that has nobody to be told to, and logs it.
    pub(crate) fn reclaim_failed(&mut self, error: &ReclaimFailed, now: Instant) {
        self.counters.punch_errors += 1;
        self.refuse(error.kind.name(), now, || error.to_string());
    }
}

/// The map must fit the next hello; it would otherwise be one that no agent could ever repeat, and
/// a guest that fragments it could make the host hold a map of any size.
fn check_count(map: &RangeSet) -> Result<(), Refusal> {
    if map.len() > RANGES_MAX {
        let detail = format!("the map would have {} ranges", map.len());
        return refused(RefuseReason::TooManyRanges, detail);
    }
    Ok(())
}
