//! Which kernel-zone blocks to make movable: of boot memory at start, of other memory once it is plugged
//! in.
//!
//! A block that was taken offline once can be put online again in `ZONE_MOVABLE`, where no kernel page
//! ever settles: from then on it can be stolen whenever its pages fit elsewhere.

use alloc::vec::Vec;

use memtide_units::BlockId;

use super::observation::{BlockState, BlockView, FixedReason};

/// Blocks in `ZONE_MOVABLE` for each block that the kernel may use for itself, at most: beyond 3:1
/// or 4:1 a guest can run out of kernel memory with much memory free
/// (Documentation/admin-guide/mm/memory-hotplug.rst, "ZONE_MOVABLE Sizing Considerations").
pub const MOVABLE_PER_KERNEL_MAX: usize = 3;
/// The higher of these two. Nothing is converted up to it; who has more has it by other hands, or because
/// memory in a kernel zone was unplugged, and should know.
const MOVABLE_PER_KERNEL_SAFE: usize = 4;

/// Which blocks to try, and how many of them to convert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversions {
    /// Blocks of kernel zones, highest first. Whether one can be emptied shows when it is tried: a
    /// census of all of them beforehand would cost more than the conversions.
    pub candidates: Vec<BlockId>,
    /// Stop after so many.
    pub most: usize,
}

/// The blocks to try, as many as the ratio allows.
pub fn conversions(blocks: &[BlockView]) -> Conversions {
    let in_kernel_zone = |view: &&BlockView| view.state == BlockState::Kernel;
    Conversions {
        candidates: blocks.iter().rev().filter(in_kernel_zone).map(|view| view.id).collect(),
        most: ZoneBalance::of(blocks).room() / (MOVABLE_PER_KERNEL_MAX + 1),
    }
}

/// How many blocks only programs can use, and how many the kernel can as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneBalance {
    /// In `ZONE_MOVABLE`, or coming back to it.
    pub movable: usize,
    /// In kernel zones.
    pub kernel: usize,
}

impl ZoneBalance {
    /// Blocks that are stolen count as movable, since they come back as that; so does what holds its own
    /// `struct page`s, which is memory that was plugged in later: whichever zone it is in, the kernel has
    /// not lived in it so far.
    pub fn of(blocks: &[BlockView]) -> Self {
        let count = |test: fn(BlockState) -> bool| blocks.iter().filter(|b| test(b.state)).count();
        let movable = count(|state| {
            use BlockState::{Fixed, InTransit, Movable, Stolen};
            matches!(state, Movable | InTransit | Stolen | Fixed(FixedReason::OwnStructs))
        });
        let kernel = count(|state| {
            use FixedReason::{AgentMemory, NeverOffline};
            matches!(state, BlockState::Kernel | BlockState::Fixed(NeverOffline | AgentMemory))
        });
        Self { movable, kernel }
    }

    /// Converting n blocks is right while movable + n <= 3 * (kernel - n), so while 4 * n are no more than
    /// this.
    fn room(self) -> usize {
        (MOVABLE_PER_KERNEL_MAX * self.kernel).saturating_sub(self.movable)
    }

    /// Whether the kernel could run out of memory while programs have much of it free.
    pub fn is_lopsided(self) -> bool {
        self.movable > MOVABLE_PER_KERNEL_SAFE * self.kernel
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(id: u64, state: BlockState) -> BlockView {
        BlockView { id: BlockId(id), state, heat: None, census: None }
    }

    #[test]
    fn a_fresh_two_gib_guest_gets_three_quarters_movable_from_the_top() {
        let fixed = BlockState::Fixed(FixedReason::NeverOffline);
        let mut blocks: Vec<_> = (0..16).map(|n| block(n, BlockState::Kernel)).collect();
        (blocks[0].state, blocks[15].state) = (fixed, fixed);
        let plan = conversions(&blocks);
        let candidates: Vec<_> = plan.candidates.iter().map(|id| id.0).collect();
        assert_eq!(candidates, (1..15).rev().collect::<Vec<_>>());
        assert_eq!(plan.most, 12);
    }

    #[test]
    fn plugged_memory_that_is_never_stolen_leaves_no_more_to_the_kernel() {
        let own = BlockState::Fixed(FixedReason::OwnStructs);
        let of = |n| block(n, if n < 8 { BlockState::Kernel } else { own });
        let blocks = |count| (0..count).map(of).collect::<Vec<_>>();
        assert_eq!([12, 16, 32].map(|count| conversions(&blocks(count)).most), [5, 4, 0]);
    }

    #[test]
    fn a_guest_with_too_little_for_its_kernel_is_known() {
        let of = |movable: u64| {
            let state = |n| if n < 2 { BlockState::Kernel } else { BlockState::Stolen };
            let blocks: Vec<_> = (0..2 + movable).map(|n| block(n, state(n))).collect();
            (conversions(&blocks).most, ZoneBalance::of(&blocks).is_lopsided())
        };
        assert_eq!([2, 6, 8, 9].map(of), [(1, false), (0, false), (0, false), (0, true)]);
    }

    proptest! {
        #[test]
        fn the_ratio_holds(states in prop::collection::vec(0_u8..5, 0..64)) {
            use BlockState::{Foreign, InTransit, Kernel, Movable, Stolen};
            let of = |n: u8| [Kernel, Movable, Stolen, InTransit, Foreign][usize::from(n)];
            let blocks: Vec<_> =
                states.iter().enumerate().map(|(n, s)| block(n as u64, of(*s))).collect();
            let most = conversions(&blocks).most;
            let movable = states.iter().filter(|s| matches!(s, 1..=3)).count() + most;
            let kernel = states.iter().filter(|s| **s == 0).count() - most;
            prop_assert!(most == 0 || movable <= 3 * kernel);
        }
    }
}
