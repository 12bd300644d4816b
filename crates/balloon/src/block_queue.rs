//! The block queue: one request in, one response out, for each chain.

use memtide_units::ByteSize;
use memtide_wire::block::{REQUEST_MAX, RESPONSE_LEN, Request, Response, Verdict};

use crate::chain::{Chain, ChainError};
use crate::device::Balloon;
use crate::memory::RequestMemory;
use crate::reclaim::Reclaim;
use crate::requests::{self, Answer, Job, Refusal};
use crate::ring::{Begun, Moment};
use crate::under_way::{End, Todo};

/// What became of a request so far.
enum Served {
    Answered(Response),
    Drops(Todo, Job),
}

impl Balloon {
    /// Reads the request of a chain and begins with it; writes the response if that is all.
    ///
    /// A chain without room for its response is not carried out at all: its driver would never
    /// learn what it may touch.
    pub(crate) fn begin_request<M: RequestMemory, R: Reclaim>(
        &mut self,
        chain: Chain,
        memory: &M,
        moment: &Moment<'_, R>,
    ) -> Result<Begun, ChainError> {
        chain.require_room(memory, RESPONSE_LEN)?;
        let request = chain.read_all(memory, REQUEST_MAX)?;
        Ok(match self.serve(&request, moment) {
            Served::Answered(response) => Begun::Done(chain.write(memory, &response.encode())?),
            Served::Drops(todo, job) => {
                Begun::Drops(todo, End::Block(Box::new(Job { chain: Some(chain), ..job })))
            }
        })
    }

    fn serve<R>(&mut self, request: &[u8], moment: &Moment<'_, R>) -> Served {
        let (sequence, begun) = match Request::decode(request) {
            Ok((sequence, request)) => (sequence, self.act(request, moment.now)),
            Err((sequence, error)) => {
                (sequence, Err(Refusal { reason: error.reason(), detail: error.to_string() }))
            }
        };
        match begun {
            Ok(requests::Response::Drop(todo, then)) => {
                Served::Drops(todo, Job { then, sequence, chain: None, reclaimed: ByteSize::ZERO })
            }
            Ok(requests::Response::Answer(answer)) => {
                Served::Answered(self.response(sequence, Ok(answer), moment))
            }
            Err(refusal) => Served::Answered(self.response(sequence, Err(refusal), moment)),
        }
    }

    /// The response to a request that came to this end.
    fn response<R>(
        &mut self,
        sequence: u32,
        outcome: Result<Answer, Refusal>,
        moment: &Moment<'_, R>,
    ) -> Response {
        let Answer { verdict, bytes, retry_ms } = outcome.unwrap_or_else(|refusal| {
            self.refuse(refusal.reason.name(), moment.now, || {
                format!("a request of the agent is refused: {}: {}", refusal.reason, refusal.detail)
            });
            Answer::plain(Verdict::Refused(refusal.reason))
        });
        let generation = self.config.extension.generation.get();
        Response { sequence, verdict, bytes, retry_ms, min: self.min(), generation }
    }

    /// Carries out one request of the block queue, all of it, for whoever has no ring. Whatever the
    /// bytes are, there is an answer.
    pub fn answer<R: Reclaim>(&mut self, request: &[u8], moment: &mut Moment<'_, R>) -> Response {
        let (mut todo, mut job) = match self.serve(request, moment) {
            Served::Answered(response) => return response,
            Served::Drops(todo, job) => (todo, job),
        };
        let mut outcome = Ok(());
        while outcome.is_ok()
            && let Some(slice) = todo.next_slice(&self.memory)
        {
            let gone = moment.host.reclaim(slice);
            outcome = self.note_slice(&mut job, gone, moment.now);
        }
        self.conclude(job, outcome, moment).1
    }

    /// What there is to say at a job's end, and where.
    fn conclude<R>(
        &mut self,
        job: Job,
        outcome: Result<(), Refusal>,
        moment: &Moment<'_, R>,
    ) -> (Option<Chain>, Response) {
        let Job { then, sequence, chain, reclaimed } = job;
        let outcome = outcome.map(|()| self.finish(then, reclaimed));
        (chain, self.response(sequence, outcome, moment))
    }

    /// Ends a job that a chain waits for: writes the response, and says how much that was. A buffer
    /// that is not memory any more is the driver's loss.
    pub(crate) fn end_job<M: RequestMemory, R>(
        &mut self,
        job: Job,
        outcome: Result<(), Refusal>,
        memory: &M,
        moment: &Moment<'_, R>,
    ) -> u32 {
        let (chain, response) = self.conclude(job, outcome, moment);
        let written = chain.map_or(Ok(0), |chain| chain.write(memory, &response.encode()));
        written.unwrap_or_else(|error| {
            self.refuse(error.name(), moment.now, || format!("a response is lost: {error}"));
            0
        })
    }
}
