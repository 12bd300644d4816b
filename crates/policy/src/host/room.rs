//! What can still be granted while one step walks along the line.

use core::time::Duration;

use memtide_units::ByteSize;

use super::gate::Ask;
use super::obstacle::{Obstacle, Turn};
use super::{Account, HostObservation, Ledger, VmId};

/// After so long at its place a return that does not fit is overtaken no more: what is given up
/// from then on is kept for it. Long enough for small returns to use the gaps, short against the
/// minutes in which a guest's working set moves.
pub(super) const RESERVE_AFTER: Duration = Duration::from_secs(10);

/// Room under the budget and on the host, shrinking grant by grant.
pub(super) struct Room<'a> {
    seen: &'a HostObservation<'a>,
    budget: ByteSize,
    /// Under the budget.
    free: ByteSize,
    /// On the host, above its reserve.
    spare: ByteSize,
    /// What somebody who waits for long is saving up for.
    kept_for: Option<ByteSize>,
}

impl<'a> Room<'a> {
    /// The room that is left after `promised` bytes: granted, and not yet in the ledger.
    pub(super) fn new(seen: &'a HostObservation<'a>, promised: ByteSize) -> Self {
        let budget = seen.budget_bytes();
        Self {
            seen,
            budget,
            free: budget.saturating_sub(seen.ledger.committed()).saturating_sub(promised),
            spare: seen.memory.spare().saturating_sub(promised),
            kept_for: None,
        }
    }

    /// Grants `ask` out of the room, or says what is in the way.
    pub(super) fn judge(&mut self, ask: &Ask, waited: Duration) -> Result<(), Obstacle> {
        let Some(account) = self.seen.ledger.account(ask.vm) else {
            return Err(Obstacle::Unheard { vms: 1 });
        };
        if !within_min(account, ask) {
            let obstacle = self.obstacle(account, ask, waited);
            if let Some(obstacle) = obstacle {
                self.keep_for(ask, &obstacle, waited);
                return Err(obstacle);
            }
        }
        self.free -= ask.bytes;
        self.spare -= ask.bytes;
        Ok(())
    }

    fn obstacle(&self, account: &Account, ask: &Ask, waited: Duration) -> Option<Obstacle> {
        let (needs, holds, max) = (ask.bytes, account.committed(), account.limits.max());
        let unheard = self.seen.ledger.unheard();
        if holds + needs > max {
            return Some(Obstacle::Limit { needs, holds, max });
        }
        if unheard > 0 {
            return Some(Obstacle::Unheard { vms: unheard });
        }
        if needs > self.spare {
            let reserve = self.seen.memory.reserve();
            let available = if self.spare.is_zero() {
                self.seen.memory.available.min(reserve)
            } else {
                self.spare + reserve
            };
            return Some(Obstacle::Pressure { needs, available, reserve });
        }
        if needs > self.free {
            return Some(self.over_budget(account, ask, waited));
        }
        let kept_for = self.kept_for?;
        Some(Obstacle::Behind { needs, free: self.free, kept_for })
    }

    fn over_budget(&self, account: &Account, ask: &Ask, waited: Duration) -> Obstacle {
        let (needs, free, budget) = (ask.bytes, self.free, self.budget);
        let others = guaranteed_to_others(self.seen.ledger, ask.vm);
        if account.committed() + needs + others > budget {
            return Obstacle::TooMuch { needs, free, others, budget };
        }
        let first = self.kept_for.is_none() && waited >= RESERVE_AFTER;
        let turn = if first { Turn::Reserving } else { Turn::Open };
        Obstacle::Budget { needs, free, budget, turn }
    }

    /// Whoever waits long enough for something that can come to pass stops those behind it.
    fn keep_for(&mut self, ask: &Ask, obstacle: &Obstacle, waited: Duration) {
        let memory = self.seen.memory;
        let can_come = match obstacle {
            Obstacle::Budget { .. } => true,
            Obstacle::Pressure { .. } => ask.bytes <= memory.total.saturating_sub(memory.reserve()),
            _ => false,
        };
        if can_come && waited >= RESERVE_AFTER && self.kept_for.is_none() {
            self.kept_for = Some(ask.bytes);
        }
    }
}

/// True where the VM would still hold no more than it is guaranteed.
fn within_min(account: &Account, ask: &Ask) -> bool {
    account.committed() + ask.bytes <= account.limits.min()
}

/// What the other VMs would still hold if each gave up all that it can be asked for.
fn guaranteed_to_others(ledger: &Ledger, vm: VmId) -> ByteSize {
    ledger
        .accounts()
        .filter(|(other, _)| *other != vm)
        .map(|(_, account)| account.committed().min(account.limits.min()))
        .sum()
}
