//! A return is pending.

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{BlockId, Instant};

use super::super::figures::Figures;
use super::super::observation::{Answer, DeviceState, Mode, Observation, Ticket};
use super::super::plan::{Action, Decision};
use super::super::returns::Wanted;
use super::{Controller, Next};

/// Once blocks had to be taken unasked, the gate gets this long to answer the next question.
const UNHEARD_PATIENCE: Duration = Duration::from_secs(1);

impl Controller {
    /// A return is pending: wait, ask again, raise it, drop it, or help oneself.
    pub(super) fn follow(
        &mut self,
        now: Instant,
        seen: &Observation,
        figures: &Figures,
        held: &Ticket,
    ) -> Next {
        let ticket = held.ticket;
        let need = figures.need(seen, &self.settings);
        let wanted = need.wanted();
        let retry = match held.answer {
            Answer::Granted => {
                self.granted.get_or_insert(now);
                self.is_unheard &= self.is_helping_itself;
                return (Vec::new(), Decision::PuttingOnline { ticket });
            }
            Answer::Held { retry } => {
                self.is_unheard = false;
                retry
            }
            Answer::Silence { retry, .. } => retry,
        };
        if let Some(less) = self.within_maximum(figures, held) {
            return less;
        }
        let is_due = figures.lacking > 0 || !self.due_back(seen, figures).is_empty();
        if seen.mode == Mode::Tune && need.is_satisfied() && !is_due {
            let report = Decision::Cancel { ticket, available: seen.memory.available };
            return (Vec::from([Action::CancelReturn { ticket }]), report);
        }
        let needed = self.needed(seen, figures, wanted, held);
        let silent = self.unanswered(now, seen, held).filter(|_| !needed.is_empty());
        if let Some(silent) = silent {
            (self.is_unheard, self.is_helping_itself) = (true, true);
            let report = Decision::TakeUnasked { count: needed.len(), silent };
            return (Vec::from([Action::TakeUnasked(needed)]), report);
        }
        let urgency = wanted.map_or(held.urgency, |wanted| wanted.urgency.max(held.urgency));
        let waiting = Decision::Waiting { ticket, urgency };
        if wanted.is_some() && needed.len() < held.blocks.len() {
            let action = Action::AskReturn { ticket, blocks: needed, urgency };
            return (Vec::from([action]), waiting);
        }
        if let Some(worse) = wanted.filter(|wanted| wanted.urgency > held.urgency) {
            let count = worse.count.max(held.blocks.len() as u64);
            let more = self.returnable(seen, figures, Wanted { count, ..worse });
            let blocks = if more.len() > held.blocks.len() { more } else { held.blocks.clone() };
            return (Vec::from([Action::AskReturn { ticket, blocks, urgency }]), waiting);
        }
        if retry <= now {
            let blocks = held.blocks.clone();
            return (Vec::from([Action::AskReturn { ticket, blocks, urgency }]), waiting);
        }
        (Vec::new(), waiting)
    }

    /// Of a ticket what the guest needs: all of it, but where it is for the minimum. A host that has no room for
    /// that, which nobody waits for, may have some for what is needed now; and nothing is taken unasked for it.
    fn needed(
        &self,
        seen: &Observation,
        figures: &Figures,
        wanted: Option<Wanted>,
        held: &Ticket,
    ) -> Vec<BlockId> {
        if figures.lacking == 0 || seen.mode != Mode::Tune {
            return held.blocks.clone();
        }
        let count = wanted.map_or(0, |wanted| wanted.count);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(held.blocks.len());
        held.blocks[..count].to_vec()
    }

    /// The ticket without what the maximum leaves no room for, where that was lowered since it was opened; or
    /// none at all.
    fn within_maximum(&self, figures: &Figures, held: &Ticket) -> Option<Next> {
        let Ticket { ticket, blocks, urgency, .. } = held;
        let (ticket, urgency) = (*ticket, *urgency);
        let room = usize::try_from(self.room_up_to_max(figures)).unwrap_or(usize::MAX);
        if blocks.len() <= room {
            return None;
        }
        if room == 0 {
            let report = Decision::CancelOverMaximum { ticket, max: self.settings.limits.max() };
            return Some((Vec::from([Action::CancelReturn { ticket }]), report));
        }
        let blocks = blocks[..room].to_vec();
        let action = Action::AskReturn { ticket, blocks, urgency };
        Some((Vec::from([action]), Decision::Waiting { ticket, urgency }))
    }

    /// How long nobody has decided, once that is longer than the guest waits. A device that was
    /// silent before the question counts from then on; and a gate that has been passed by once is
    /// not waited for as long again.
    fn unanswered(&self, now: Instant, seen: &Observation, held: &Ticket) -> Option<Duration> {
        let asked = held.answer.silent_for(now)?;
        let silent = match seen.device {
            DeviceState::Silent { since } => asked.max(now.since(since)),
            DeviceState::Ready => asked,
        };
        let deadline = self.settings.gate_deadline?;
        let is_late = silent >= deadline || (self.is_unheard && asked >= UNHEARD_PATIENCE);
        is_late.then_some(silent)
    }
}
