//! What somebody else did to blocks since the last look.

use std::collections::BTreeSet;

use memtide_sysfs::memory::{Block, State};
use memtide_sysfs::{Root, memory};
use memtide_units::BlockId;

use super::{Blocks, Entry, Hold, OwnStructs, Structs};
use crate::remove::{Plug, Unplugged};

/// What somebody else did to a block since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surprise {
    /// A block of the agent's is online: the host must be told.
    CameOnline(BlockId),
    /// A block went offline without the agent: it is foreign from now on.
    WentOffline(BlockId),
    /// The memory of a block of the agent's has been unplugged: the host must be told what is stolen
    /// still.
    Gone(BlockId),
    /// So it has, and other memory has been plugged in at its place, which is not the agent's: foreign
    /// where it is offline.
    Replaced(BlockId),
}

impl Blocks {
    /// Reads all blocks again and says what changed without the agent. Call it while none of the
    /// agent's own changes is under way.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn refresh(&mut self, root: &Root) -> Result<Vec<Surprise>, memtide_sysfs::Error> {
        // First: a block may come meanwhile, and none goes.
        let unplugged = if self.entries.values().any(|entry| entry.plug == Plug::Out) {
            self.removers.unplugged()?
        } else {
            Unplugged::default()
        };
        let mut blocks = memory::list(root)?;
        let present: BTreeSet<BlockId> = blocks.iter().map(|block| block.id).collect();
        let mut surprises: Vec<Surprise> =
            self.drop_unplugged(&present, unplugged).into_iter().map(Surprise::Gone).collect();
        // The kernel is not done with these: they are out still.
        blocks.retain(|block| block.state == State::Online || !self.is_ejected(block.id));
        let own = OwnStructs::look(root, self.size);
        let in_pieces = self.in_pieces();
        // What becomes of a block that pieces stand for is not the pieces' business.
        for block in blocks.into_iter().filter(|block| !in_pieces.contains(&block.id)) {
            let structs = own.of(block.id);
            let (hold, surprise) = self.found(&block, structs);
            surprises.extend(surprise);
            let entry = Entry::new(&block, hold, structs);
            self.latecomers.look(block.id, self.entries.get(&block.id), &entry);
            self.entries.insert(block.id, entry);
        }
        Ok(surprises)
    }

    /// Forgets blocks that are neither there nor removed by the agent; answers with those that it had
    /// stolen.
    fn drop_unplugged(
        &mut self,
        present: &BTreeSet<BlockId>,
        unplugged: Unplugged,
    ) -> Vec<BlockId> {
        let is_known = |id: &BlockId, entry: &Entry| {
            present.contains(id)
                || entry.plug == Plug::Out && unplugged.blocks.contains(id)
                || entry.pieces.is_some()
        };
        let mut gone = self.offline_by_us();
        self.entries.retain(|id, entry| is_known(id, entry));
        self.latecomers.retain(|id| self.entries.contains_key(id));
        gone.retain(|id| !self.entries.contains_key(id));
        self.ejected = unplugged.by_host;
        gone
    }

    /// Whose doing it is that a block is as it was found, and what is strange about that.
    fn found(&self, block: &Block, structs: Structs) -> (Hold, Option<Surprise>) {
        let before = self.entries.get(&block.id);
        let hold = before.map_or(Hold::Online, |entry| entry.hold);
        // What was removed and came back with its own `struct page`s is not what was stolen either.
        let is_other = self.is_removed(block.id) && structs == Structs::MayBeInside;
        let is_made_anew = is_other || before.is_some_and(|e| e.is_made_anew(block.inode));
        match (hold, block.state) {
            (Hold::Leaving | Hold::Stolen | Hold::Returning, state) if is_made_anew => {
                let hold = if state == State::Offline { Hold::Foreign } else { Hold::Online };
                (hold, Some(Surprise::Replaced(block.id)))
            }
            (Hold::Online, State::Offline) => {
                (Hold::Foreign, Some(Surprise::WentOffline(block.id)))
            }
            (Hold::Leaving | Hold::Stolen | Hold::Returning, State::Online) => {
                (Hold::Online, Some(Surprise::CameOnline(block.id)))
            }
            (Hold::Foreign, State::Online) => (Hold::Online, None),
            (same, _) => (same, None),
        }
    }
}
