//! The agent's table of memory blocks: what the kernel says of each, and whose doing it is.
//!
//! The truth about what is stolen is the kernel's: a block that is offline, and was not offline
//! before the agent's first start, is the agent's. So a restarted agent knows all that it needs
//! from sysfs and from the short list of known and *foreign* blocks that it left in its runtime
//! directory. That list names the *removed* blocks too: the kernel has none of these any more, and
//! says only that it could have them again. And it says which making of each block was meant: other
//! memory may have been plugged in at the same place since, and that is nobody's.

mod latecomers;
mod own_structs;
mod refresh;
mod removed;

use std::collections::{BTreeMap, BTreeSet};

use memtide_policy::guest::{BlockState, BlockView, FixedReason, HeatMap};
use memtide_sysfs::memory::{Block, State, Zone};
use memtide_sysfs::{Root, memory};
use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange};

pub use self::refresh::Surprise;
pub use self::removed::Reach;

use self::latecomers::Latecomers;
use self::own_structs::{OwnStructs, Structs};
use crate::remove::{Plug, Removers, Unplugged};
use crate::runtime::Seen;

/// Whose doing it is that a block is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The kernel uses it.
    Online,
    /// The agent took it offline; the host has not heard of it for certain.
    Leaving,
    /// The agent took it offline, and the host knows.
    Stolen,
    /// It was granted, or never reported, and is being put online: the host must not hear of it
    /// as stolen any more.
    Returning,
    /// Somebody else took it offline.
    Foreign,
}

#[derive(Clone, Debug)]
struct Entry {
    hold: Hold,
    zone: Option<Zone>,
    never_offline: bool,
    structs: Structs,
    /// `Out` where it was removed.
    plug: Plug,
    /// Where what stands for it lies, if it was taken in pieces.
    pieces: Option<Taken>,
    /// Which making of it this is ([`Block::inode`]); `None` while it is removed.
    inode: Option<u64>,
}

/// Memory that was taken in the name of a block which cannot be emptied ([`crate::pieces`]).
#[derive(Clone, Debug)]
struct Taken {
    runs: Vec<GpaRange>,
    /// What of it the host has not heard of.
    untold: Vec<GpaRange>,
}

impl Taken {
    fn holds(&self, range: GpaRange) -> bool {
        self.runs.iter().any(|run| run.contains(range))
    }
}

/// Which blocks may be taken in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ByPieces {
    /// None.
    #[default]
    None,
    /// Those that never go offline.
    NeverOffline,
    /// And those in kernel zones: whatever could be made movable has been.
    KernelZones,
}

impl Entry {
    fn new(block: &Block, hold: Hold, structs: Structs) -> Self {
        let (zone, never_offline) = (block.current_zone(), block.never_offline());
        let (plug, pieces, inode) = (Plug::In, None, Some(block.inode));
        Self { hold, zone, never_offline, structs, plug, pieces, inode }
    }

    /// A block that the kernel has not.
    fn removed(hold: Hold) -> Self {
        let (zone, pieces, inode) = (None, None, None);
        let (never_offline, structs) = (false, Structs::NotTold);
        Self { hold, zone, never_offline, structs, plug: Plug::Out, pieces, inode }
    }

    /// Whether the block that has this number now was made after the one that this is about. What was
    /// removed comes back as another one, and is the same to the agent.
    fn is_made_anew(&self, inode: u64) -> bool {
        self.inode.is_some_and(|known| known != inode)
    }
}

/// The table.
#[derive(Clone, Debug)]
pub struct Blocks {
    size: BlockSize,
    entries: BTreeMap<BlockId, Entry>,
    /// Hold the agent's DMA memory.
    kept: BTreeSet<BlockId>,
    by_pieces: ByPieces,
    removers: Removers,
    /// What of the removed ones only the host brings back, and which of them it would now.
    ejected: BTreeSet<BlockId>,
    reach: Reach,
    latecomers: Latecomers,
}

impl Blocks {
    /// Reads all blocks. Those offline are the agent's, except the foreign ones; and so are the
    /// removed ones that could be plugged in again.
    ///
    /// # Errors
    /// What [`memory::list`] says: a kernel without memory hotplug has none.
    pub fn read(
        root: &Root,
        seen: &Seen,
        removers: &Removers,
    ) -> Result<Self, memtide_sysfs::Error> {
        let size = memory::block_size(root)?;
        let (entries, kept) = (BTreeMap::new(), BTreeSet::new());
        let mut table = Self {
            size,
            entries,
            kept,
            by_pieces: ByPieces::None,
            removers: removers.clone(),
            ejected: BTreeSet::new(),
            reach: Reach::Nothing,
            latecomers: Latecomers::known(&seen.late),
        };
        // First: a block may come meanwhile, and none goes.
        let unplugged =
            if seen.removed.is_empty() { Unplugged::default() } else { removers.unplugged()? };
        let own = OwnStructs::look(root, size);
        for block in memory::list(root)? {
            let structs = own.of(block.id);
            let hold = match block.state {
                State::Online | State::GoingOffline => Hold::Online,
                // The agent steals no block that may hold them: somebody else took it offline.
                State::Offline if structs == Structs::MayBeInside => Hold::Foreign,
                State::Offline if seen.foreign.contains(&block.id) => Hold::Foreign,
                // Not told yet: the hello tells.
                State::Offline => Hold::Leaving,
            };
            table.entries.insert(block.id, Entry::new(&block, hold, structs));
        }
        for block in unplugged.blocks.intersection(&seen.removed) {
            let is_coming = unplugged.by_host.contains(block)
                && table.entries.get(block).is_some_and(|entry| entry.hold != Hold::Online);
            if is_coming || !table.entries.contains_key(block) {
                table.entries.insert(*block, Entry::removed(Hold::Leaving));
            }
        }
        table.ejected = unplugged.by_host;
        Ok(table)
    }

    /// Size of each.
    pub fn size(&self) -> BlockSize {
        self.size
    }

    /// Never touch these: the device reads and writes in them.
    pub fn keep(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        self.kept.extend(blocks);
    }

    /// Says which may be taken in pieces; answers with which might before.
    pub fn allow_pieces(&mut self, which: ByPieces) -> ByPieces {
        std::mem::replace(&mut self.by_pieces, which)
    }

    /// What is known of one block.
    pub fn hold(&self, block: BlockId) -> Option<Hold> {
        self.entries.get(&block).map(|entry| entry.hold)
    }

    /// Whether the block is online in `ZONE_MOVABLE`.
    pub fn is_movable(&self, block: BlockId) -> bool {
        self.entries.get(&block).is_some_and(|entry| entry.zone == Some(Zone::Movable))
    }

    /// Which making of a block ([`Block::inode`]) is known not to hold its own `struct page`s, if one is.
    pub fn bare_making(&self, block: BlockId) -> Option<u64> {
        let entry = self.entries.get(&block)?;
        entry.inode.filter(|_| entry.structs == Structs::Elsewhere)
    }

    /// The agent has taken a block offline: it is in no zone. Which making of it that was is known where
    /// whoever took it looked; else it may have been made anew since the last look, and then taken.
    pub fn went_offline(&mut self, root: &Root, block: BlockId, making: Option<u64>) {
        let plug = self.entries.get(&block).map_or(Plug::In, |entry| entry.plug);
        let structs = making.map_or(Structs::NotTold, |_| Structs::Elsewhere);
        let inode = making.or_else(|| memory::inode(root, block).ok());
        let entry = Entry { plug, structs, inode, ..Entry::removed(Hold::Leaving) };
        self.latecomers.forget(block);
        self.entries.insert(block, entry);
    }

    /// The agent has taken memory that lies in `runs` in the name of a block.
    pub fn went_in_pieces(&mut self, block: BlockId, runs: Vec<GpaRange>) {
        if let Some(entry) = self.entries.get_mut(&block) {
            entry.hold = Hold::Leaving;
            entry.pieces = Some(Taken { untold: runs.clone(), runs });
        }
        self.latecomers.awaits_no_more(block);
    }

    /// Whether pieces stand for the block, or would.
    pub fn goes_by_pieces(&self, block: BlockId) -> bool {
        let is_so = |entry: &Entry| {
            entry.pieces.is_some() || self.state(block, entry) == BlockState::ByPieces
        };
        self.entries.get(&block).is_some_and(is_so)
    }

    /// Blocks that pieces stand for.
    pub fn in_pieces(&self) -> Vec<BlockId> {
        let taken = self.entries.iter().filter(|(_, entry)| entry.pieces.is_some());
        taken.map(|(id, _)| *id).collect()
    }

    /// Something was done to a block. The kernel says what zone it is in now.
    pub fn set(&mut self, root: &Root, block: BlockId, hold: Hold) {
        match memory::read(root, block) {
            Ok(now) => {
                let before = self.entries.get(&block);
                let is_same = |entry: &&Entry| entry.inode == Some(now.inode);
                let structs =
                    before.filter(is_same).map_or(Structs::NotTold, |entry| entry.structs);
                let pieces = before.and_then(|entry| entry.pieces.clone());
                let pieces = pieces.filter(|_| hold != Hold::Online);
                let entry = Entry { pieces, ..Entry::new(&now, hold, structs) };
                self.latecomers.set(block, before, &entry);
                self.entries.insert(block, entry);
            }
            // Unplugged in this moment: the next refresh finds out. Whose doing it is counts all
            // the same: a hello must not name a block that is on its way back.
            Err(error) => {
                if !self.is_removed(block) {
                    tracing::warn!("{block}: {error}");
                }
                if let Some(entry) = self.entries.get_mut(&block) {
                    entry.hold = hold;
                    entry.pieces = entry.pieces.take().filter(|_| hold != Hold::Online);
                }
            }
        }
    }

    /// The host has heard of these.
    pub fn told(&mut self, stolen: &[GpaRange]) {
        let is_told = |range: GpaRange| stolen.iter().any(|told| told.contains(range));
        for (id, entry) in &mut self.entries {
            let named = match &mut entry.pieces {
                Some(pieces) => {
                    pieces.untold.retain(|run| !is_told(*run));
                    pieces.untold.is_empty()
                }
                None => self.size.range(*id).is_some_and(is_told),
            };
            if named && entry.hold == Hold::Leaving {
                entry.hold = Hold::Stolen;
            }
        }
    }

    /// The policy's view, with heat where it is known.
    pub fn views(&self, heat: &HeatMap) -> Vec<BlockView> {
        let view = |(id, entry): (&BlockId, &Entry)| BlockView {
            id: *id,
            state: self.state(*id, entry),
            heat: heat.heat(*id),
            census: None,
        };
        self.entries.iter().map(view).collect()
    }

    fn state(&self, id: BlockId, entry: &Entry) -> BlockState {
        let by_pieces = if self.latecomers.awaits(id) { ByPieces::None } else { self.by_pieces };
        self.state_where(by_pieces, id, entry)
    }

    fn state_where(&self, by_pieces: ByPieces, id: BlockId, entry: &Entry) -> BlockState {
        match entry.hold {
            Hold::Leaving | Hold::Returning => BlockState::InTransit,
            // Nobody could bring it back now.
            Hold::Stolen if self.is_ejected(id) && !self.reach.includes(id) => BlockState::Foreign,
            Hold::Stolen => BlockState::Stolen,
            Hold::Foreign => BlockState::Foreign,
            Hold::Online if entry.structs == Structs::MayBeInside => {
                BlockState::Fixed(FixedReason::OwnStructs)
            }
            Hold::Online if entry.never_offline || self.kept.contains(&id) => match by_pieces {
                ByPieces::NeverOffline | ByPieces::KernelZones => BlockState::ByPieces,
                ByPieces::None if entry.never_offline => {
                    BlockState::Fixed(FixedReason::NeverOffline)
                }
                ByPieces::None => BlockState::Fixed(FixedReason::AgentMemory),
            },
            Hold::Online if entry.zone == Some(Zone::Movable) => BlockState::Movable,
            Hold::Online if by_pieces == ByPieces::KernelZones => BlockState::ByPieces,
            Hold::Online => BlockState::Kernel,
        }
    }

    /// Blocks with this hold, ascending.
    pub fn with(&self, hold: Hold) -> Vec<BlockId> {
        self.entries.iter().filter(|(_, entry)| entry.hold == hold).map(|(id, _)| *id).collect()
    }

    /// All blocks, ascending.
    pub fn all(&self) -> Vec<BlockId> {
        self.entries.keys().copied().collect()
    }

    /// All that the kernel does not use, whoever took it, ascending.
    pub fn offline(&self) -> Vec<BlockId> {
        let is_offline = |entry: &Entry| entry.hold != Hold::Online;
        self.entries.iter().filter(|(_, entry)| is_offline(entry)).map(|(id, _)| *id).collect()
    }

    /// All that is offline by the agent's doing and stays so, whether the host knows or not: what a
    /// hello says. A block that is being put online is not among it, or the host would drop what
    /// the guest has begun to use.
    pub fn offline_by_us(&self) -> Vec<BlockId> {
        let ours = |entry: &Entry| matches!(entry.hold, Hold::Leaving | Hold::Stolen);
        self.entries.iter().filter(|(_, entry)| ours(entry)).map(|(id, _)| *id).collect()
    }

    /// Those of [`Self::offline_by_us`] that the kernel says are offline at this moment: somebody
    /// else may have put one online since the last refresh, and the host would drop it in use. Nor are
    /// those among them in whose place there is other memory now.
    pub fn offline_still(&self, root: &Root) -> Vec<BlockId> {
        self.entries.keys().copied().filter(|block| self.is_still_out(root, *block)).collect()
    }

    /// Whether a block is offline by the agent's doing, and is at this moment, and is the one that was
    /// taken.
    pub fn is_still_out(&self, root: &Root, block: BlockId) -> bool {
        let is_ours = matches!(self.hold(block), Some(Hold::Leaving | Hold::Stolen));
        is_ours && self.is_out(root, block) && self.is_same(root, block)
    }

    fn is_same(&self, root: &Root, block: BlockId) -> bool {
        let entry = self.entries.get(&block);
        let is_other = |inode| entry.is_some_and(|entry| entry.is_made_anew(inode));
        !memory::inode(root, block).is_ok_and(is_other)
    }

    /// Whether all of a range is offline at this moment, by the kernel's word and the agent's doing, or in
    /// pieces that are held.
    pub fn is_offline(&self, root: &Root, range: GpaRange) -> bool {
        let ours = self.offline_by_us();
        let pieces = ours.iter().filter_map(|block| self.entries.get(block)?.pieces.as_ref());
        if pieces.into_iter().any(|pieces| pieces.holds(range)) {
            return true;
        }
        let blocks = self.in_ranges(&[range]);
        let size = self.size.size().times(blocks.len() as u64);
        size == range.len() && blocks.into_iter().all(|block| self.is_still_out(root, block))
    }

    /// Offline, or not even there because it was removed; or taken in pieces, which are pinned.
    fn is_out(&self, root: &Root, block: BlockId) -> bool {
        if self.entries.get(&block).is_some_and(|entry| entry.pieces.is_some()) {
            return true;
        }
        match memory::state(root, block) {
            Ok(state) => state == State::Offline,
            Err(error) => error.is_missing() && self.is_removed(block),
        }
    }

    /// Forgets a block whose memory is not the VM's any more.
    pub fn forget(&mut self, block: BlockId) {
        self.entries.remove(&block);
    }

    /// Blocks that may hold their own `struct page`s, and are never stolen for that.
    pub fn with_own_structs(&self) -> usize {
        let may = |entry: &&Entry| entry.structs == Structs::MayBeInside;
        self.entries.values().filter(may).count()
    }

    /// All memory that the guest has, online or not.
    pub fn present(&self) -> ByteSize {
        self.size.size().times(self.entries.len() as u64)
    }

    /// Memory that is online.
    pub fn online(&self) -> ByteSize {
        self.size.size().times(self.with(Hold::Online).len() as u64)
    }

    /// What an agent that comes later must know of them.
    pub fn seen(&self) -> Seen {
        let known = self.entries.keys().copied().collect();
        let foreign = self.with(Hold::Foreign).into_iter().collect();
        let inode = |(id, entry): (&BlockId, &Entry)| Some((*id, entry.inode?));
        let inodes = self.entries.iter().filter_map(inode).collect();
        let removed = self.removed().into_iter().collect();
        Seen { known, foreign, removed, inodes, late: self.latecomers().into_iter().collect() }
    }

    /// How many blocks there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// How many are in `ZONE_MOVABLE`, or will come back to it.
    pub fn movable_count(&self) -> usize {
        let movable = |entry: &&Entry| match entry.hold {
            Hold::Online => entry.zone == Some(Zone::Movable),
            Hold::Leaving | Hold::Stolen | Hold::Returning => entry.pieces.is_none(),
            Hold::Foreign => false,
        };
        self.entries.values().filter(movable).count()
    }

    /// What the host is told of when `blocks` (ascending) are stolen, or asked back: the blocks,
    /// neighbours joined, and the pieces that stand for others.
    pub fn given(&self, blocks: &[BlockId]) -> Vec<GpaRange> {
        let pieces = |block: &BlockId| self.entries.get(block)?.pieces.as_ref();
        let whole: Vec<BlockId> = blocks.iter().copied().filter(|b| pieces(b).is_none()).collect();
        let runs = blocks.iter().filter_map(pieces).flat_map(|pieces| pieces.runs.iter().copied());
        let mut given: Vec<GpaRange> = self.ranges(&whole).into_iter().chain(runs).collect();
        given.sort_unstable_by_key(|range| range.start());
        given
    }

    /// Blocks whose own memory programs use: those online, and those that pieces stand for.
    pub fn in_use(&self) -> Vec<BlockId> {
        let is_so = |entry: &Entry| entry.hold == Hold::Online || entry.pieces.is_some();
        self.entries.iter().filter(|(_, entry)| is_so(entry)).map(|(id, _)| *id).collect()
    }

    /// How many these are.
    pub fn count_in_use(&self) -> usize {
        let is_so = |entry: &&Entry| entry.hold == Hold::Online || entry.pieces.is_some();
        self.entries.values().filter(is_so).count()
    }

    /// The addresses of `blocks` (ascending), neighbours joined.
    pub fn ranges(&self, blocks: &[BlockId]) -> Vec<GpaRange> {
        let mut ranges: Vec<GpaRange> = Vec::new();
        for range in blocks.iter().filter_map(|block| self.size.range(*block)) {
            match ranges.last().and_then(|last| last.joined_with(range)) {
                Some(joined) => *ranges.last_mut().expect("it has just been looked at") = joined,
                None => ranges.push(range),
            }
        }
        ranges
    }

    /// The blocks of `ranges`, and those that a piece in them stands for.
    pub fn in_ranges(&self, ranges: &[GpaRange]) -> Vec<BlockId> {
        let has = |range: GpaRange| ranges.iter().any(|wanted| wanted.contains(range));
        let named = |(id, entry): &(&BlockId, &Entry)| match &entry.pieces {
            Some(pieces) => pieces.runs.iter().any(|run| has(*run)),
            None => self.size.range(**id).is_some_and(has),
        };
        self.entries.iter().filter(named).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests;
