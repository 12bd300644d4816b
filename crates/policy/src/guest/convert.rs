//! Which kernel-zone blocks to make movable at start.
//!
//! A boot block that was taken offline once can be put online again in `ZONE_MOVABLE`, where no
//! kernel page ever settles: from then on it can be stolen whenever its pages fit elsewhere.

use alloc::vec::Vec;

use memtide_units::BlockId;

use super::observation::{BlockState, BlockView};

/// Blocks in `ZONE_MOVABLE` for each block that the kernel may use for itself, at most: beyond 3:1
/// or 4:1 a guest can run out of kernel memory with much memory free
/// (Documentation/admin-guide/mm/memory-hotplug.rst, "ZONE_MOVABLE Sizing Considerations").
pub const MOVABLE_PER_KERNEL_MAX: usize = 3;

/// Blocks to convert, highest first: those whose census found no page that stays, as many as the
/// ratio allows. Blocks that are stolen count as movable, since they come back as that.
pub fn conversions(blocks: &[BlockView]) -> Vec<BlockId> {
    let count = |test: fn(BlockState) -> bool| blocks.iter().filter(|b| test(b.state)).count();
    let movable = count(|state| {
        matches!(state, BlockState::Movable | BlockState::InTransit | BlockState::Stolen)
    });
    let kernel = count(|state| matches!(state, BlockState::Kernel | BlockState::Fixed(_)));
    // Converting n blocks is right while movable + n <= 3 * (kernel - n).
    let most = (MOVABLE_PER_KERNEL_MAX * kernel).saturating_sub(movable);
    let clean = |view: &&BlockView| {
        view.state == BlockState::Kernel
            && view.census.is_some_and(|census| census.unmovable_pages == 0)
    };
    blocks
        .iter()
        .rev()
        .filter(clean)
        .map(|view| view.id)
        .take(most / (MOVABLE_PER_KERNEL_MAX + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::observation::{Census, FixedReason};
    use super::*;
    use proptest::prelude::*;

    fn block(id: u64, state: BlockState, unmovable_pages: u64) -> BlockView {
        let census = Some(Census { unmovable_pages, ..Census::default() });
        BlockView { id: BlockId(id), state, heat: None, census }
    }

    #[test]
    fn a_fresh_two_gib_guest_gets_three_quarters_movable_from_the_top() {
        let fixed = BlockState::Fixed(FixedReason::NeverOffline);
        let mut blocks: Vec<_> = (0..16).map(|n| block(n, BlockState::Kernel, 0)).collect();
        (blocks[0].state, blocks[15].state) = (fixed, fixed);
        let chosen: Vec<_> = conversions(&blocks).into_iter().map(|id| id.0).collect();
        assert_eq!(chosen, [14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3]);
    }

    #[test]
    fn blocks_with_kernel_pages_and_blocks_nobody_counted_stay() {
        let mut blocks: Vec<_> = (0..8).map(|n| block(n, BlockState::Kernel, n % 2)).collect();
        blocks[6].census = None;
        assert_eq!(conversions(&blocks), [BlockId(4), BlockId(2), BlockId(0)]);
    }

    proptest! {
        #[test]
        fn the_ratio_holds(states in prop::collection::vec(0_u8..4, 0..64)) {
            let of = |n: u8| [BlockState::Kernel, BlockState::Movable, BlockState::Stolen, BlockState::Foreign][n as usize];
            let blocks: Vec<_> = states.iter().enumerate().map(|(n, s)| block(n as u64, of(*s), 0)).collect();
            let chosen = conversions(&blocks).len();
            let movable = states.iter().filter(|s| matches!(s, 1 | 2)).count() + chosen;
            let kernel = states.iter().filter(|s| **s == 0).count() - chosen;
            prop_assert!(chosen == 0 || movable <= 3 * kernel);
        }
    }
}
