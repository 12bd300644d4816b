//! What is stolen whole loses its `struct page`s ([`crate::remove`]).
//!
//! Only after the host has heard of every block of it: until then a steal may still be undone, and
//! that goes faster with blocks that are there. What is to be removed is on file before it is: an
//! agent that is killed in between has its successor find the blocks either offline or not at all,
//! and know in both cases that they are stolen.

use std::time::Duration;

use memtide_policy::guest::{DeviceState, Mode};
use memtide_units::{BlockId, Instant};

use super::Agent;
use crate::remove::{Plug, PluggedBy, Unit};
use crate::run::RunError;
use crate::worker::Failure;

/// What could not be removed is left alone for so long: somebody uses it.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

impl Agent {
    /// Removes one thing that can be; the next look finds the next. Call it while none of the
    /// agent's own changes is under way.
    pub(super) fn remove_what_is_stolen_whole(&mut self, now: Instant) -> Result<(), RunError> {
        let is_asked_for = self.mode == Mode::Restore || self.returns.ticket().is_some();
        let is_ready = self.parts.link.device_state() == DeviceState::Ready;
        if is_asked_for || !is_ready || now < self.due.removal {
            self.ejection.nothing_rests();
            return Ok(());
        }
        let units = match self.parts.removers.units() {
            Ok(units) => units,
            Err(error) => {
                tracing::warn!("nothing is removed: {error}");
                self.due.removal = now + AFTER_FAILURE;
                return Ok(());
            }
        };
        let blocks = &self.parts.blocks;
        let is_whole = |unit: &Unit| {
            unit.plug == Plug::In && unit.is_small() && blocks.can_be_removed(&unit.blocks)
        };
        let whole: Vec<Unit> = units.into_iter().filter(is_whole).collect();
        self.note_whole(&whole);
        self.ejection.has_looked();
        for unit in whole {
            if unit.by == PluggedBy::Guest {
                return self.remove_unit(now, &unit);
            }
            if self.may_eject(now, &unit) {
                self.ask_to_eject(unit);
                break;
            }
        }
        Ok(())
    }

    pub(super) fn remove_unit(&mut self, now: Instant, unit: &Unit) -> Result<(), RunError> {
        let parts = &mut self.parts;
        parts.seen.removed.extend(&unit.blocks);
        parts.runtime.set_seen(&parts.seen)?;
        parts.hands.remove(unit.blocks[0]);
        let Unit { name, blocks, .. } = unit;
        let text = format!("{name} is stolen whole and is removed: {} blocks", blocks.len());
        self.tell(now, text);
        Ok(())
    }

    pub(super) fn on_removed(&mut self, now: Instant, block: BlockId, result: Result<(), Failure>) {
        // Whatever came of it: what is not there any more is removed.
        self.parts.blocks.note_removed(&self.parts.root, &self.parts.seen.removed);
        let was_ejection = self.ejection_ended(now, result.is_ok());
        match result {
            Ok(()) => self.counters.removals += 1,
            Err(failure) => {
                tracing::warn!("what {block} belongs to was not removed: {}", failure.text);
                if !was_ejection {
                    self.due.removal = now + AFTER_FAILURE;
                }
            }
        }
    }
}
