//! The one return that may be pending: asked, held, granted, and the blocks put online.
//!
//! A block is put online only after the grant for it was read. So a ticket is not let go of, and
//! its blocks are not changed, while a question about it is on its way: the answer might be yes.

use std::time::Duration;

use memtide_policy::guest::{Answer, Ticket, Urgency};
use memtide_units::{BlockId, Instant};
use memtide_wire::block::{HoldReason, RefuseReason, Response, Verdict};

/// Bounds of the time after which a device may want to be asked again.
const RETRY_LEAST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct Held {
    ticket: Ticket,
    /// A question is queued or on its way.
    is_asked: bool,
    /// Blocks that are not online yet, once it is granted.
    left: usize,
    /// The reason of the last hold.
    reason: Option<HoldReason>,
}

/// What an answer calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it is held, or it was about a ticket that is no more.
    Wait,
    /// Put these online.
    PutOnline(Vec<BlockId>),
    /// The ticket is gone without a grant.
    Denied,
}

/// The pending return, if any.
#[derive(Clone, Debug, Default)]
pub struct Returns {
    held: Option<Held>,
}

impl Returns {
    /// The ticket, as the policy sees it.
    pub fn ticket(&self) -> Option<&Ticket> {
        self.held.as_ref().map(|held| &held.ticket)
    }

    /// Why the gate holds it, where it said so.
    pub fn reason(&self) -> Option<HoldReason> {
        self.held.as_ref().and_then(|held| held.reason)
    }

    /// Asks, for the first time or again. False where a question is on its way, or the ticket is
    /// granted: then nothing may change.
    #[must_use]
    pub fn ask(
        &mut self,
        now: Instant,
        ticket: u32,
        blocks: Vec<BlockId>,
        urgency: Urgency,
    ) -> bool {
        let fresh = Answer::Silence { since: now, retry: now + RETRY_MOST };
        let answer = match &self.held {
            Some(held) if held.is_asked || held.ticket.answer == Answer::Granted => return false,
            Some(held) if held.ticket.ticket == ticket => held.ticket.answer,
            _ => fresh,
        };
        let reason = self.reason();
        let ticket = Ticket { ticket, blocks, urgency, answer: later(answer, now + RETRY_MOST) };
        self.held = Some(Held { ticket, is_asked: true, left: 0, reason });
        true
    }

    /// Lets go of the ticket. False where a question is on its way, or it is granted.
    #[must_use]
    pub fn cancel(&mut self) -> bool {
        let may = self
            .held
            .as_ref()
            .is_some_and(|held| !held.is_asked && held.ticket.answer != Answer::Granted);
        if may {
            self.held = None;
        }
        may
    }

    /// The answer to a question about `ticket` has been read.
    pub fn answered(&mut self, now: Instant, ticket: u32, response: &Response) -> Effect {
        let Some(held) = self.held.as_mut().filter(|held| held.ticket.ticket == ticket) else {
            return Effect::Wait;
        };
        held.is_asked = false;
        if held.ticket.answer == Answer::Granted {
            // Too late: nobody answered, and the blocks are being put online.
            return Effect::Wait;
        }
        let retry =
            now + Duration::from_millis(response.retry_ms.into()).clamp(RETRY_LEAST, RETRY_MOST);
        match response.verdict {
            Verdict::Ok => {
                held.ticket.answer = Answer::Granted;
                held.left = held.ticket.blocks.len();
                return Effect::PutOnline(held.ticket.blocks.clone());
            }
            Verdict::Held(reason) => {
                held.reason = Some(reason);
                held.ticket.answer = match reason {
                    HoldReason::Asking => silence(held.ticket.answer, now, retry),
                    _ => Answer::Held { retry },
                };
            }
            // The hello that follows puts it right, and then the ticket is asked again.
            Verdict::Refused(RefuseReason::NoHello) => {
                held.ticket.answer = later(held.ticket.answer, retry);
            }
            Verdict::Denied(_) | Verdict::Refused(_) => {
                self.held = None;
                return Effect::Denied;
            }
        }
        Effect::Wait
    }

    /// Something has moved at the host: ask again now.
    pub fn hurry(&mut self, now: Instant) {
        if let Some(held) = self.held.as_mut().filter(|held| !held.is_asked) {
            held.ticket.answer = later(held.ticket.answer, now);
        }
    }

    /// The device was lost: what was asked will not be answered.
    pub fn lost(&mut self, now: Instant, retry: Instant) {
        let Some(held) = &mut self.held else { return };
        if held.ticket.answer != Answer::Granted {
            held.is_asked = false;
            held.ticket.answer = silence(held.ticket.answer, now, retry);
        }
    }

    /// One of the blocks is online, or will not be. True when it was the last one.
    #[must_use]
    pub fn one_done(&mut self, block: BlockId) -> bool {
        let granted = |held: &&mut Held| {
            held.ticket.answer == Answer::Granted && held.ticket.blocks.contains(&block)
        };
        let Some(held) = self.held.as_mut().filter(granted) else { return false };
        held.left = held.left.saturating_sub(1);
        let is_last = held.left == 0;
        if is_last {
            self.held = None;
        }
        is_last
    }

    /// Nobody decides: these blocks are put online as if they had been granted. What else was asked for may be
    /// asked for anew.
    pub fn granted_by_need(&mut self, taken: &[BlockId]) {
        let Some(mut held) = self.held.take() else { return };
        held.ticket.blocks.retain(|block| taken.contains(block));
        held.ticket.answer = Answer::Granted;
        held.is_asked = false;
        held.left = held.ticket.blocks.len();
        self.held = Some(held).filter(|held| held.left > 0);
    }

    /// True while a question is on its way.
    pub fn is_asked(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.is_asked)
    }
}

/// The silence goes on, or begins.
fn silence(answer: Answer, now: Instant, retry: Instant) -> Answer {
    match answer {
        Answer::Silence { since, .. } => Answer::Silence { since, retry },
        _ => Answer::Silence { since: now, retry },
    }
}

/// The same answer, to be asked about again at `retry`.
fn later(answer: Answer, retry: Instant) -> Answer {
    match answer {
        Answer::Silence { since, .. } => Answer::Silence { since, retry },
        Answer::Held { .. } => Answer::Held { retry },
        Answer::Granted => Answer::Granted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::ByteSize;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn says(verdict: Verdict) -> Response {
        let (bytes, min) = (ByteSize::ZERO, ByteSize::ZERO);
        Response { sequence: 1, verdict, bytes, retry_ms: 250, min, generation: 1 }
    }

    fn blocks() -> Vec<BlockId> {
        vec![BlockId(4), BlockId(5)]
    }

    fn asked() -> Returns {
        let mut returns = Returns::default();
        assert!(returns.ask(at(1_000), 7, blocks(), Urgency::Comfort));
        returns
    }

    fn answer(returns: &Returns) -> Answer {
        returns.ticket().unwrap().answer
    }

    #[test]
    fn a_grant_is_carried_out_block_by_block() {
        let mut returns = asked();
        let effect = returns.answered(at(1_010), 7, &says(Verdict::Ok));
        assert_eq!(effect, Effect::PutOnline(blocks()));
        assert!(!returns.cancel() && !returns.ask(at(1_011), 8, blocks(), Urgency::Emergency));
        assert!(!returns.one_done(BlockId(4)));
        assert!(!returns.one_done(BlockId(9)));
        assert!(returns.one_done(BlockId(5)));
        assert_eq!(returns.ticket(), None);
    }

    #[test]
    fn an_answer_that_comes_after_the_blocks_were_taken_changes_nothing() {
        let late = [Verdict::Ok, Verdict::Held(HoldReason::HostBudget)];
        for verdict in late {
            let mut returns = asked();
            returns.granted_by_need(&blocks());
            assert!(!returns.one_done(BlockId(4)));
            assert_eq!(returns.answered(at(20_000), 7, &says(verdict)), Effect::Wait);
            assert!(returns.one_done(BlockId(5)), "{verdict:?}");
        }
    }

    #[test]
    fn what_could_not_be_taken_without_a_grant_keeps_no_ticket_open() {
        let mut returns = asked();
        returns.granted_by_need(&blocks()[..1]);
        assert!(returns.one_done(BlockId(4)));
        let mut returns = asked();
        returns.granted_by_need(&[]);
        assert_eq!(returns.ticket(), None);
        assert!(returns.ask(at(2_000), 8, blocks(), Urgency::Emergency));
    }

    #[test]
    fn nothing_changes_while_a_question_is_on_its_way() {
        let mut returns = asked();
        assert!(!returns.cancel());
        assert!(!returns.ask(at(1_001), 7, vec![BlockId(4)], Urgency::Emergency));
        returns.answered(at(1_010), 7, &says(Verdict::Held(HoldReason::HostBudget)));
        assert_eq!(answer(&returns), Answer::Held { retry: at(1_260) });
        assert!(returns.ask(at(1_011), 7, blocks(), Urgency::Emergency));
        returns.answered(at(1_012), 7, &says(Verdict::Held(HoldReason::HostBudget)));
        assert!(returns.cancel());
        assert_eq!(returns.answered(at(1_013), 7, &says(Verdict::Ok)), Effect::Wait);
    }

    #[test]
    fn being_asked_is_no_answer_and_a_lost_device_is_none_either() {
        let mut returns = asked();
        returns.answered(at(1_010), 7, &says(Verdict::Held(HoldReason::Asking)));
        let silence = |retry| Answer::Silence { since: at(1_000), retry: at(retry) };
        assert_eq!(answer(&returns), silence(1_260));
        returns.hurry(at(1_100));
        assert_eq!(answer(&returns), silence(1_100));
        assert!(returns.ask(at(1_100), 7, blocks(), Urgency::Comfort));
        returns.lost(at(1_200), at(1_700));
        assert_eq!(answer(&returns), silence(1_700));
        assert!(!returns.is_asked());
    }

    #[test]
    fn silence_counts_from_the_last_answer() {
        let mut returns = asked();
        returns.answered(at(1_010), 7, &says(Verdict::Held(HoldReason::HostPressure)));
        returns.lost(at(9_000), at(9_500));
        assert_eq!(answer(&returns), Answer::Silence { since: at(9_000), retry: at(9_500) });
    }

    #[test]
    fn a_denial_ends_the_ticket_and_a_missing_hello_does_not() {
        let mut returns = asked();
        let no_hello = says(Verdict::Refused(RefuseReason::NoHello));
        assert_eq!(returns.answered(at(1_010), 7, &no_hello), Effect::Wait);
        assert!(returns.ask(at(1_300), 7, blocks(), Urgency::Comfort));
        let denied = says(Verdict::Denied(HoldReason::VmLimit));
        assert_eq!(returns.answered(at(1_310), 7, &denied), Effect::Denied);
        assert_eq!(returns.ticket(), None);
    }
}
