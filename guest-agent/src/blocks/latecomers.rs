//! Blocks that came to a kernel zone after the boot memory had been converted.
//!
//! Where memory is plugged in while `auto_online_blocks` is `online`, as it is on most kernels, it goes
//! to a kernel zone (mm/memory_hotplug.c, `default_zone_for_pfn`, under the policy `contig-zones`), and so
//! does a block of the agent's that somebody else puts online. What was in a kernel zone when boot memory
//! had been converted is none of these: that could not be made movable, or is the kernel's share.

use std::collections::BTreeSet;

use memtide_policy::guest::{BlockState, BlockView, FixedReason};
use memtide_sysfs::memory::Zone;
use memtide_units::BlockId;

use super::{Blocks, ByPieces, Entry, Hold};

/// Which blocks these are.
#[derive(Clone, Debug, Default)]
pub(super) struct Latecomers {
    all: BTreeSet<BlockId>,
    /// Those of them that are to be made movable.
    awaited: BTreeSet<BlockId>,
}

impl Latecomers {
    /// With those that an agent before this one has left, or that came while none ran.
    pub(super) fn known(all: &BTreeSet<BlockId>) -> Self {
        Self { all: all.clone(), awaited: BTreeSet::new() }
    }

    /// Whether a block is to be made movable: till then nothing else is taken for it.
    pub(super) fn awaits(&self, block: BlockId) -> bool {
        self.awaited.contains(&block)
    }

    /// A block was looked at, and is what `now` says. What was `before` tells whether it has just come.
    pub(super) fn look(&mut self, block: BlockId, before: Option<&Entry>, now: &Entry) {
        let has_come = before.is_none_or(|before| {
            let is_same = before.inode == now.inode;
            !(is_same && before.hold == Hold::Online && before.zone != Some(Zone::Movable))
        });
        if !is_in_kernel_zone(now) {
            self.forget(block);
        } else if has_come {
            self.all.insert(block);
        }
    }

    /// The agent has done something to a block, or heard of it: one that was out and is online in a kernel zone
    /// has come there.
    pub(super) fn set(&mut self, block: BlockId, before: Option<&Entry>, now: &Entry) {
        let was_out = before.is_some_and(|before| before.hold != Hold::Online);
        if now.hold != Hold::Online || now.zone == Some(Zone::Movable) {
            self.forget(block);
        } else if was_out && is_in_kernel_zone(now) {
            self.all.insert(block);
        }
    }

    /// Pieces stand for the block now.
    pub(super) fn awaits_no_more(&mut self, block: BlockId) {
        self.awaited.remove(&block);
    }

    /// The block is stolen, unplugged, or movable.
    pub(super) fn forget(&mut self, block: BlockId) {
        self.all.remove(&block);
        self.awaited.remove(&block);
    }

    /// Forgets all that are not so.
    pub(super) fn retain(&mut self, is_so: impl Fn(&BlockId) -> bool) {
        self.all.retain(&is_so);
        self.awaited.retain(&is_so);
    }
}

fn is_in_kernel_zone(entry: &Entry) -> bool {
    let is_kernels = entry.zone.is_some_and(|zone| zone != Zone::Movable);
    is_kernels && entry.hold == Hold::Online && !entry.never_offline
}

impl Blocks {
    /// Blocks that came to a kernel zone after the boot memory had been converted, and are there still,
    /// ascending. Those that cannot be stolen in any zone are not among them.
    pub fn latecomers(&self) -> Vec<BlockId> {
        let is_so = |view: &BlockView| {
            view.state == BlockState::Kernel && self.latecomers.all.contains(&view.id)
        };
        self.by_zone().iter().filter(|view| is_so(view)).map(|view| view.id).collect()
    }

    /// What is in a kernel zone now stays there, but for what can be unplugged: that was plugged in, and
    /// whoever did it should know.
    pub fn settle(&mut self, pluggable: &BTreeSet<BlockId>) {
        let is_in_it = |block: &BlockId| self.entries.get(block).is_some_and(is_in_kernel_zone);
        let all = pluggable.iter().copied().filter(is_in_it).collect();
        self.latecomers = Latecomers { all, awaited: BTreeSet::new() };
    }

    /// These are to be made movable, and no others: none of them is taken in pieces meanwhile.
    pub fn await_conversion(&mut self, blocks: BTreeSet<BlockId>) {
        self.latecomers.awaited = blocks;
    }

    /// Those, ascending.
    pub fn awaiting_conversion(&self) -> impl DoubleEndedIterator<Item = BlockId> + '_ {
        self.latecomers.awaited.iter().copied()
    }

    /// Which making of a block is known.
    pub fn making(&self, block: BlockId) -> Option<u64> {
        self.entries.get(&block)?.inode
    }

    /// The policy's view by zones alone, in which nothing goes in pieces. A block that pieces stand for is
    /// in use where it is.
    pub fn by_zone(&self) -> Vec<BlockView> {
        let state = |(id, entry): (&BlockId, &Entry)| match &entry.pieces {
            Some(_) => BlockState::Fixed(FixedReason::NeverOffline),
            None => self.state_where(ByPieces::None, *id, entry),
        };
        let view = |it: (&BlockId, &Entry)| BlockView {
            id: *it.0,
            state: state(it),
            heat: None,
            census: None,
        };
        self.entries.iter().map(view).collect()
    }

    /// Whether pieces lie in the block: pinned pages, which the kernel would try to move for ever.
    pub fn has_pieces_in(&self, block: BlockId) -> bool {
        let Some(range) = self.size.range(block) else { return false };
        let pieces = self.entries.values().filter_map(|entry| entry.pieces.as_ref());
        pieces.flat_map(|pieces| &pieces.runs).any(|run| run.intersection(range).is_some())
    }
}

#[cfg(test)]
mod tests;
