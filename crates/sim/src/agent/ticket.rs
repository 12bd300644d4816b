//! The one return that may be pending, by the rules of guest-agent's `returns.rs`: a ticket is not
//! let go of, and its blocks are not changed, while a question about it is on its way.

use std::time::Duration;

use memtide_policy::guest::{Answer, Ticket, Urgency};
use memtide_units::{BlockId, Instant};

use crate::host::Verdict;

const RETRY_MOST: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct Held {
    ticket: Ticket,
    is_asked: bool,
    left: usize,
}

/// What an answer calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    Wait,
    /// Put the blocks online.
    PutOnline,
    /// The ticket is gone.
    Denied,
}

/// The pending return, if any.
#[derive(Clone, Debug, Default)]
pub(super) struct Returns {
    held: Option<Held>,
}

impl Returns {
    pub(super) fn ticket(&self) -> Option<&Ticket> {
        self.held.as_ref().map(|held| &held.ticket)
    }

    /// Asks, for the first time or again. False where nothing may change now.
    #[must_use]
    pub(super) fn ask(
        &mut self,
        now: Instant,
        ticket: u32,
        blocks: Vec<BlockId>,
        urgency: Urgency,
    ) -> bool {
        let answer = match &self.held {
            Some(held) if held.is_asked || held.ticket.answer == Answer::Granted => return false,
            Some(held) if held.ticket.ticket == ticket => held.ticket.answer,
            _ => Answer::Silence { since: now, retry: now },
        };
        let ticket = Ticket { ticket, blocks, urgency, answer: later(answer, now + RETRY_MOST) };
        self.held = Some(Held { ticket, is_asked: true, left: 0 });
        true
    }

    /// Lets go of the ticket. False where that may not be.
    #[must_use]
    pub(super) fn cancel(&mut self) -> bool {
        let may = |held: &Held| !held.is_asked && held.ticket.answer != Answer::Granted;
        let may = self.held.as_ref().is_some_and(may);
        if may {
            self.held = None;
        }
        may
    }

    pub(super) fn answered(&mut self, now: Instant, ticket: u32, verdict: Verdict) -> Effect {
        let Some(held) = self.held.as_mut().filter(|held| held.ticket.ticket == ticket) else {
            return Effect::Wait;
        };
        held.is_asked = false;
        if held.ticket.answer == Answer::Granted {
            return Effect::Wait;
        }
        match verdict {
            Verdict::Granted => {
                held.ticket.answer = Answer::Granted;
                held.left = held.ticket.blocks.len();
                return Effect::PutOnline;
            }
            Verdict::Held { retry } => held.ticket.answer = Answer::Held { retry: now + retry },
            Verdict::Asking { retry } => {
                held.ticket.answer = silence(held.ticket.answer, now, now + retry);
            }
            Verdict::Denied => {
                self.held = None;
                return Effect::Denied;
            }
        }
        Effect::Wait
    }

    /// Something has moved at the host: ask again now.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(held) = self.held.as_mut().filter(|held| !held.is_asked) {
            held.ticket.answer = later(held.ticket.answer, now);
        }
    }

    /// The device was lost: what was asked will not be answered.
    pub(super) fn lost(&mut self, now: Instant, retry: Instant) {
        let Some(held) = &mut self.held else { return };
        if held.ticket.answer != Answer::Granted {
            held.is_asked = false;
            held.ticket.answer = silence(held.ticket.answer, now, retry);
        }
    }

    /// One of the blocks is online. True when it was the last one.
    #[must_use]
    pub(super) fn one_done(&mut self, block: BlockId) -> bool {
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

    /// Nobody decides: the blocks are put online as if it had been granted.
    pub(super) fn granted_by_need(&mut self) {
        if let Some(held) = &mut self.held {
            held.ticket.answer = Answer::Granted;
            held.left = held.ticket.blocks.len();
        }
    }

    /// True while a question is on its way.
    pub(super) fn is_asked(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.is_asked)
    }
}

fn silence(answer: Answer, now: Instant, retry: Instant) -> Answer {
    match answer {
        Answer::Silence { since, .. } => Answer::Silence { since, retry },
        _ => Answer::Silence { since: now, retry },
    }
}

fn later(answer: Answer, retry: Instant) -> Answer {
    match answer {
        Answer::Silence { since, .. } => Answer::Silence { since, retry },
        Answer::Held { .. } => Answer::Held { retry },
        Answer::Granted => Answer::Granted,
    }
}
