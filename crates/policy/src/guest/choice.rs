//! What speaks for the blocks that are stolen, as far as anybody knows: for people.

use core::fmt;

use memtide_units::{BlockId, ByteSize};

use super::heat::Heat;
use super::observation::BlockView;

/// Of the blocks of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// How warm the warmest of them is; `None` where nobody watches.
    pub heat: Option<Heat>,
    /// How much has to be moved out of all of them at most, by the last count of their pages; `None` where one
    /// of them was not counted.
    pub to_move: Option<ByteSize>,
}

impl Choice {
    /// What is known of these blocks, out of all in ascending order: the first of them waits for this.
    pub(super) fn of(blocks: &[BlockView], chosen: &[BlockId]) -> Self {
        let view = |id: &BlockId| blocks.binary_search_by_key(id, |view| view.id).ok();
        let views = || chosen.iter().filter_map(view).map(|at| &blocks[at]);
        Self {
            heat: views().filter_map(|view| view.heat).max(),
            to_move: views().map(|view| Some(view.census?.to_migrate)).sum(),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heat = self.heat.map(|heat| match heat {
            Heat::Cold => "cold",
            Heat::Warm => "warm at most",
            Heat::Hot | Heat::Awaited => "some hot, since nothing else is left",
        });
        match (heat, self.to_move) {
            (None, None) => Ok(()),
            (Some(heat), None) => write!(f, " ({heat})"),
            (None, Some(to_move)) => write!(f, " ({to_move} to move)"),
            (Some(heat), Some(to_move)) => write!(f, " ({heat}; {to_move} to move)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{BlockState, Census};
    use alloc::string::ToString;

    fn view(id: u64, heat: Option<Heat>, mib: Option<u64>) -> BlockView {
        let census = |mib| Census { unmovable_pages: 0, to_migrate: ByteSize::from_mib(mib) };
        BlockView { id: BlockId(id), state: BlockState::Movable, heat, census: mib.map(census) }
    }

    #[test]
    fn the_warmest_and_all_that_has_to_be_moved_are_told() {
        let blocks = [
            view(1, Some(Heat::Cold), Some(3)),
            view(2, Some(Heat::Warm), Some(4)),
            view(3, Some(Heat::Hot), None),
        ];
        let said = |chosen: &[u64]| {
            let chosen: alloc::vec::Vec<_> = chosen.iter().copied().map(BlockId).collect();
            Choice::of(&blocks, &chosen).to_string()
        };
        assert_eq!(said(&[1]), " (cold; 3 MiB to move)");
        assert_eq!(said(&[1, 2]), " (warm at most; 7 MiB to move)");
        assert_eq!(said(&[2, 3]), " (some hot, since nothing else is left)", "one was not counted");
        assert_eq!(Choice::default().to_string(), "");
        let unwatched = [view(1, None, Some(3))];
        assert_eq!(Choice::of(&unwatched, &[BlockId(1)]).to_string(), " (3 MiB to move)");
    }
}
