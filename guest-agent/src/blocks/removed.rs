//! Blocks that the kernel has not, since the agent has removed them.

use std::collections::BTreeSet;

use memtide_sysfs::{Error, Root, memory};
use memtide_units::BlockId;

use super::{Blocks, Hold, Structs};
use crate::remove::Plug;

/// What of that which was ejected somebody on the host would bring back now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nobody is there who could.
    Nothing,
    /// All of it, but for these blocks.
    AllBut(BTreeSet<BlockId>),
}

impl Reach {
    /// Whether this block would be brought back.
    pub fn includes(&self, block: BlockId) -> bool {
        match self {
            Self::Nothing => false,
            Self::AllBut(others) => !others.contains(&block),
        }
    }
}

impl Blocks {
    /// Whether a block's memory is not the VM's any more. What was removed could come back.
    ///
    /// # Errors
    /// That the kernel cannot be asked.
    pub fn is_gone(&self, root: &Root, block: BlockId) -> Result<bool, Error> {
        if !memory::state(root, block).is_err_and(|error| error.is_missing()) {
            return Ok(false);
        }
        Ok(!self.is_removed(block) || !self.removers.unplugged()?.blocks.contains(&block))
    }

    /// Whether a block was ejected: only the host brings it back.
    pub fn is_ejected(&self, block: BlockId) -> bool {
        self.is_removed(block) && self.ejected.contains(&block)
    }

    /// Blocks that were ejected.
    pub fn ejected(&self) -> Vec<BlockId> {
        self.ejected.iter().copied().filter(|block| self.is_ejected(*block)).collect()
    }

    /// What of it somebody on the host would bring back now.
    pub fn set_reach(&mut self, reach: Reach) {
        self.reach = reach;
    }

    pub(super) fn is_removed(&self, block: BlockId) -> bool {
        self.entries.get(&block).is_some_and(|entry| entry.plug == Plug::Out)
    }

    /// Blocks that are stolen and removed.
    pub fn removed(&self) -> Vec<BlockId> {
        self.entries.keys().copied().filter(|block| self.is_removed(*block)).collect()
    }

    /// Whether all of these are stolen, the host knows, and the kernel still has them.
    pub fn can_be_removed(&self, blocks: &[BlockId]) -> bool {
        let in_pieces = self.in_pieces();
        let is_so = |block: &BlockId| {
            self.hold(*block) == Some(Hold::Stolen)
                && !self.is_removed(*block)
                && !in_pieces.contains(block)
        };
        !blocks.is_empty() && blocks.iter().all(is_so)
    }

    /// Those of `blocks` that the kernel has not any more were removed.
    pub fn note_removed(&mut self, root: &Root, blocks: &BTreeSet<BlockId>) {
        for block in blocks {
            let is_gone = memory::state(root, *block).is_err_and(|error| error.is_missing());
            if let Some(entry) = self.entries.get_mut(block).filter(|_| is_gone) {
                (entry.plug, entry.inode, entry.structs) = (Plug::Out, None, Structs::NotTold);
            }
        }
        match self.removers.unplugged() {
            Ok(unplugged) => self.ejected = unplugged.by_host,
            Err(error) => tracing::warn!("what was ejected is not known: {error}"),
        }
    }
}
