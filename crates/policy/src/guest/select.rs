//! Which blocks to steal next, and the last look before one is taken.

use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;

use memtide_units::{BlockId, BlockSize, ByteSize, Instant};

use super::controller::KernelZone;
use super::cooldown::Cooldowns;
use super::heat::Heat;
use super::observation::{BlockState, BlockView, Census, Memory};

/// What it costs to empty a block is told apart in eighths of it: of blocks that cost much the same the
/// highest goes, so that what is stolen stays in one piece.
const COSTS: u64 = 8;

/// To move a page out of a warm block costs four times as much as out of a cold one, since some are being
/// used: with twice as much a block that is half empty, and used in all of what is left, would cost no more
/// than a full one that nobody touches. One that holds next to nothing goes cheaply all the same.
const WARM_COSTS: u64 = 4;

/// Blocks that may be stolen, best first: hot ones last, then those that are emptied with the least
/// effort, and where that is much the same the colder and then the highest, since the top of memory is
/// where ACMA wants the hole to be. A block that nobody watches counts as cold, one that nobody counted as
/// full. While a first look is about to come nothing goes. Pieces come last: what goes whole leaves the
/// guest the fewest holes.
pub(super) fn candidates(
    now: Instant,
    blocks: &[BlockView],
    block: ByteSize,
    cooldowns: &Cooldowns,
    kernel_zone: KernelZone,
) -> Vec<BlockId> {
    let stealable = |view: &&BlockView| match view.state {
        BlockState::Movable | BlockState::ByPieces => true,
        BlockState::Kernel => kernel_zone == KernelZone::Steal,
        BlockState::Fixed(_) | BlockState::InTransit | BlockState::Stolen | BlockState::Foreign => {
            false
        }
    };
    let emptiable = |view: &&BlockView| {
        view.state == BlockState::ByPieces
            || view.census.is_none_or(|census| census.unmovable_pages == 0)
    };
    let mut found: Vec<&BlockView> = blocks
        .iter()
        .filter(stealable)
        .filter(emptiable)
        .filter(|view| view.heat != Some(Heat::Awaited))
        .filter(|view| !cooldowns.rests(now, view.id))
        .collect();
    found.sort_by_cached_key(|view| {
        (view.state == BlockState::ByPieces, price(view, block), Reverse(view.id))
    });
    found.into_iter().map(|view| view.id).collect()
}

/// Whether it is hot, then the effort, and where that is the same how warm it is. In one that held nothing
/// when its pages were looked at there is nothing warm either; but that is minutes ago at times, and what
/// is hot now is in use.
fn price(view: &BlockView, block: ByteSize) -> (bool, u64, Heat) {
    let to_migrate = view.census.map_or(block, |census| census.to_migrate);
    let eighths = (to_migrate.bytes().saturating_mul(COSTS)).div_ceil(block.bytes().max(1));
    match view.heat.unwrap_or(Heat::Cold) {
        Heat::Cold | Heat::Warm if eighths == 0 => (false, 0, Heat::Cold),
        Heat::Cold => (false, eighths, Heat::Cold),
        Heat::Warm => (false, eighths * WARM_COSTS, Heat::Warm),
        heat @ (Heat::Hot | Heat::Awaited) => (true, eighths, heat),
    }
}

/// Why a block is not taken after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// Pages lie in it that do not move.
    Unmovable {
        /// How many.
        pages: u64,
    },
    /// Its pages would find no room, and the kernel would try for ever (measured: with -ENOMEM
    /// from migration the write to `state` never returns).
    NoRoom {
        /// What has to move.
        to_migrate: ByteSize,
        /// What is available outside of the block.
        room: ByteSize,
    },
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unmovable { pages } => write!(f, "{pages} of its pages do not move"),
            Self::NoRoom { to_migrate, room } => {
                write!(
                    f,
                    "up to {to_migrate} would have to move, there is room for {room}, and with the block too little would be left"
                )
            }
        }
    }
}

/// The last look, just before a block is taken: can it be emptied, and does what is in it fit
/// elsewhere with `keep` left over?
///
/// # Errors
/// [`SkipReason`] says why not.
pub fn precheck(
    memory: &Memory,
    census: &Census,
    block: BlockSize,
    keep: ByteSize,
) -> Result<(), SkipReason> {
    if census.unmovable_pages > 0 {
        return Err(SkipReason::Unmovable { pages: census.unmovable_pages });
    }
    // What is not moved out of the block is free in it, and goes with it. `room` is for telling
    // people; the comparison is made before anything saturates.
    let free_inside = block.size() - census.to_migrate;
    if memory.available < free_inside + census.to_migrate + keep {
        let room = memory.available - free_inside - keep;
        return Err(SkipReason::NoRoom { to_migrate: census.to_migrate, room });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(id: u64, state: BlockState, heat: Option<Heat>) -> BlockView {
        BlockView { id: BlockId(id), state, heat, census: None }
    }

    #[test]
    fn coldest_first_then_from_the_top() {
        use BlockState::{Foreign, Kernel, Movable, Stolen};
        let blocks = [
            view(1, Kernel, None),
            view(2, Movable, Some(Heat::Cold)),
            view(3, Movable, Some(Heat::Hot)),
            view(4, Movable, None),
            view(5, Movable, Some(Heat::Warm)),
            view(6, Stolen, None),
            view(7, Foreign, None),
        ];
        let order = |zone| {
            let (now, rests) = (Instant::default(), Cooldowns::default());
            let size = BlockSize::X86_SMALL.size();
            let found = candidates(now, &blocks, size, &rests, zone);
            found.into_iter().map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(order(KernelZone::Leave), [4, 2, 5, 3]);
        assert_eq!(order(KernelZone::Steal), [4, 2, 1, 5, 3]);
    }

    #[test]
    fn what_is_emptied_with_little_effort_goes_first_but_never_what_is_hot() {
        let counted = |id, heat, mib| BlockView {
            census: Some(Census { to_migrate: ByteSize::from_mib(mib), unmovable_pages: 0 }),
            ..view(id, BlockState::Movable, Some(heat))
        };
        let blocks = [
            counted(1, Heat::Hot, 1),
            counted(2, Heat::Cold, 0),
            counted(3, Heat::Warm, 16),
            counted(4, Heat::Cold, 100),
            counted(5, Heat::Cold, 97),
            counted(6, Heat::Warm, 100),
            view(7, BlockState::Movable, None),
            counted(8, Heat::Cold, 32),
            counted(9, Heat::Hot, 0),
            counted(10, Heat::Warm, 32),
        ];
        let (now, rests) = (Instant::default(), Cooldowns::default());
        let size = BlockSize::X86_SMALL.size();
        let found = candidates(now, &blocks, size, &rests, KernelZone::Leave);
        let order: Vec<_> = found.into_iter().map(|id| id.0).collect();
        assert_eq!(order, [2, 8, 3, 5, 4, 7, 10, 6, 9, 1]);
    }

    #[test]
    fn nothing_goes_while_a_first_look_is_about_to_come() {
        let blocks = [3, 4].map(|id| view(id, BlockState::Movable, Some(Heat::Awaited)));
        let (now, rests) = (Instant::default(), Cooldowns::default());
        let size = BlockSize::X86_SMALL.size();
        assert_eq!(candidates(now, &blocks, size, &rests, KernelZone::Steal), []);
    }

    #[test]
    fn pieces_come_after_all_that_goes_whole_and_from_blocks_that_cannot_be_emptied() {
        let unmovable = Census { to_migrate: ByteSize::ZERO, unmovable_pages: 9 };
        let blocks = [
            BlockView { census: Some(unmovable), ..view(1, BlockState::ByPieces, None) },
            view(2, BlockState::Movable, Some(Heat::Hot)),
            view(3, BlockState::ByPieces, Some(Heat::Hot)),
        ];
        let (now, rests) = (Instant::default(), Cooldowns::default());
        let size = BlockSize::X86_SMALL.size();
        let found = candidates(now, &blocks, size, &rests, KernelZone::Leave);
        assert_eq!(found, [2, 1, 3].map(BlockId));
    }

    #[test]
    fn a_full_block_is_not_taken_when_its_pages_do_not_fit_elsewhere() {
        let mib = ByteSize::from_mib;
        let block = BlockSize::X86_SMALL;
        let memory = |available| Memory { available: mib(available), ..Memory::default() };
        let full = Census { to_migrate: mib(128), unmovable_pages: 0 };
        assert_eq!(precheck(&memory(192), &full, block, mib(64)), Ok(()));
        let no_room = SkipReason::NoRoom { to_migrate: mib(128), room: mib(127) };
        assert_eq!(precheck(&memory(191), &full, block, mib(64)), Err(no_room));
        let empty = Census::default();
        assert_eq!(precheck(&memory(192), &empty, block, mib(64)), Ok(()));
        let gone = SkipReason::NoRoom { to_migrate: mib(0), room: mib(0) };
        assert_eq!(precheck(&memory(191), &empty, block, mib(64)), Err(gone));
        let kernel = Census { to_migrate: mib(1), unmovable_pages: 3 };
        let unmovable = Err(SkipReason::Unmovable { pages: 3 });
        assert_eq!(precheck(&memory(9_000), &kernel, block, mib(64)), unmovable);
    }
}
