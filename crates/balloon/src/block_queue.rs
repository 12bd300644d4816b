//! The block queue: one request in, one response out, for each chain.

use memtide_units::ByteSize;
use memtide_wire::block::{REQUEST_MAX, RESPONSE_LEN, Request, Response, Verdict};

use crate::chain::{Chain, ChainError};
use crate::device::Balloon;
use crate::memory::RequestMemory;
use crate::reclaim::Reclaim;
use crate::requests::{Answer, Refusal};
use crate::ring::{Done, Moment};

impl Balloon {
    /// Reads the request of a chain, carries it out, and writes the response.
    ///
    /// A chain without room for its response is not carried out at all: its driver would never
    /// learn what it may touch.
    pub(crate) fn serve_block_queue<M: RequestMemory, R: Reclaim>(
        &mut self,
        chain: &Chain,
        memory: &M,
        moment: &mut Moment<'_, R>,
    ) -> Result<Done, ChainError> {
        chain.require_room(RESPONSE_LEN)?;
        let request = chain.read_all(memory, REQUEST_MAX)?;
        let response = self.answer(&request, moment);
        let written = chain.write(memory, &response.encode())?;
        // What a return grants is no work; what a steal reclaims is.
        let reclaimed =
            if response.verdict == Verdict::Ok { response.bytes } else { ByteSize::ZERO };
        Ok(Done { written, reclaimed })
    }

    /// Carries out one request of the block queue. Whatever the bytes are, there is an answer.
    pub fn answer<R: Reclaim>(&mut self, request: &[u8], moment: &mut Moment<'_, R>) -> Response {
        let (sequence, outcome) = match Request::decode(request) {
            Ok((sequence, request)) => (sequence, self.act(&request, moment)),
            Err((sequence, error)) => {
                (sequence, Err(Refusal { reason: error.reason(), detail: error.to_string() }))
            }
        };
        let Answer { verdict, bytes, retry_ms } = outcome.unwrap_or_else(|refusal| {
            self.refuse(refusal.reason.name(), moment.now, || {
                format!("a request of the agent is refused: {}: {}", refusal.reason, refusal.detail)
            });
            Answer::plain(Verdict::Refused(refusal.reason))
        });
        Response { sequence, verdict, bytes, retry_ms, min: self.min() }
    }
}
