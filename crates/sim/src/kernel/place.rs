//! Which block a page comes from, and which it leaves.
//!
//! Pages are handed out in pieces of 4 MiB (the buddy allocator's largest order) from blocks that
//! chance picks. That is worse than Linux for whoever wants to empty a block: nothing gathers by
//! itself.

use super::block::{Block, Kind, Zone};
use super::{Kernel, Marks};

const PIECE: u64 = 1024;

/// How deep an allocation may go into what is kept back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Down to the minimum: what a program waits for.
    Min,
    /// Down to where kswapd wakes up: read-ahead.
    Low,
}

impl Kernel {
    /// Pages of this kind that can be handed out now without reclaim.
    pub(super) fn room_for(&self, kind: Kind, depth: Depth) -> u64 {
        let marks = self.marks();
        let kernel = self.free_in(Zone::Kernel);
        match kind {
            Kind::Kernel => kernel.saturating_sub(kept(marks, depth)),
            _ => self.free_in(Zone::Movable) + self.lent(kernel, marks, depth),
        }
    }

    /// What the kernel's zone lends to those who could live in `ZONE_MOVABLE`.
    fn lent(&self, kernel: u64, marks: Marks, depth: Depth) -> u64 {
        kernel.saturating_sub(kept(marks, depth) + marks.reserve)
    }

    /// Hands out up to `pages`: from `ZONE_MOVABLE` first, except for the kernel itself.
    pub(super) fn hand_out(&mut self, kind: Kind, pages: u64, depth: Depth) -> u64 {
        let marks = self.marks();
        let kernel = self.free_in(Zone::Kernel);
        let (from_movable, from_kernel) = match kind {
            Kind::Kernel => (0, pages.min(kernel.saturating_sub(kept(marks, depth)))),
            _ => {
                let first = pages.min(self.free_in(Zone::Movable));
                (first, (pages - first).min(self.lent(kernel, marks, depth)))
            }
        };
        self.fill(Zone::Movable, kind, from_movable);
        self.fill(Zone::Kernel, kind, from_kernel);
        from_movable + from_kernel
    }

    fn fill(&mut self, zone: Zone, kind: Kind, mut pages: u64) {
        while pages > 0 {
            let Some(n) = self.any_block(|block| block.zone == zone && block.free() > 0) else {
                unreachable!("what is free has been counted");
            };
            let piece = pages.min(PIECE).min(self.blocks[n].free());
            self.blocks[n].put(kind, piece);
            pages -= piece;
        }
    }

    /// Gives back up to `pages` of this kind, in this zone or in any; answers with how many.
    pub(super) fn let_go(&mut self, kind: Kind, pages: u64, zone: Option<Zone>) -> u64 {
        let is_there =
            |block: &Block| block.of(kind) > 0 && zone.is_none_or(|zone| block.zone == zone);
        let there: u64 =
            self.blocks.iter().filter(|block| is_there(block)).map(|block| block.of(kind)).sum();
        let mut left = pages.min(there);
        let all = left;
        while left > 0 {
            let Some(n) = self.any_block(is_there) else { break };
            let piece = left.min(PIECE).min(self.blocks[n].of(kind));
            self.blocks[n].take(kind, piece);
            left -= piece;
        }
        all - left
    }

    fn any_block(&mut self, fits: impl Fn(&Block) -> bool) -> Option<usize> {
        let count = self.blocks.len();
        let start = self.chance.between(0, count as u64 - 1) as usize;
        (start..count).chain(0..start).find(|n| fits(&self.blocks[*n]))
    }
}

fn kept(marks: Marks, depth: Depth) -> u64 {
    match depth {
        Depth::Min => marks.min,
        Depth::Low => marks.low,
    }
}
