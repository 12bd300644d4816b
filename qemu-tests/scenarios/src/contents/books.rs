//! What lay in blocks when they went, from looks at all blocks while they come and go.

use std::collections::{BTreeMap, BTreeSet};

use std::cmp::Reverse;

use memtide_units::{BlockId, Permille};

use crate::player::{BlockContents, BlockState};

/// Blocks that went, with what the last look before had found in them.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    /// By the last look at which they were online.
    online: BTreeMap<BlockId, BlockContents>,
    /// In the order in which they went. One that comes back and goes again is there twice.
    pub(super) gone: Vec<BlockContents>,
    /// Those that are out.
    out: BTreeSet<BlockId>,
    /// Those that somebody has tried to take since they came.
    tried: BTreeSet<BlockId>,
    /// The last look.
    pub(super) last: Vec<BlockContents>,
}

impl Books {
    /// Takes the next look.
    pub(super) fn look(&mut self, look: Vec<BlockContents>) {
        for seen in &look {
            match seen.state {
                BlockState::Online => self.is_online(*seen),
                // Half of it may have been moved away: what counts is what the look before said.
                BlockState::GoingOffline => _ = self.tried.insert(seen.block),
                BlockState::Offline if self.out.contains(&seen.block) => {}
                BlockState::Offline => {
                    self.out.insert(seen.block);
                    self.gone.extend(self.online.get(&seen.block));
                }
            }
        }
        self.last = look;
    }

    /// What a try in vain has left in a block is not what lay in it: that it was emptied for the most part
    /// is the thief's doing, too.
    fn is_online(&mut self, seen: BlockContents) {
        let is_back = self.out.remove(&seen.block);
        if is_back {
            self.tried.remove(&seen.block);
        }
        let before = self.online.get(&seen.block).map_or(0, |before| before.pages);
        if !self.tried.contains(&seen.block) || seen.pages >= before {
            self.online.insert(seen.block, seen);
        }
    }

    /// Pages that lay in what went, and how many of them were hot.
    pub(super) fn taken(&self) -> Pages {
        Pages::of(&self.gone)
    }

    /// What may be stolen, by the last look: those first that are emptied with the least effort, and of
    /// these the highest.
    pub(super) fn by_effort(&self) -> Vec<BlockContents> {
        let is_stealable = |seen: &&BlockContents| {
            seen.movable && seen.state == BlockState::Online && seen.pages > 0
        };
        let mut found: Vec<_> = self.last.iter().filter(is_stealable).copied().collect();
        found.sort_by_key(|seen| (seen.pages, Reverse(seen.block)));
        found
    }
}

/// Pages, and how many of them are hot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pages {
    pub(super) all: u64,
    pub(super) hot: u64,
}

impl Pages {
    /// In these blocks.
    pub(super) fn of<'a>(blocks: impl IntoIterator<Item = &'a BlockContents>) -> Self {
        let add = |sum: Self, block: &BlockContents| Self {
            all: sum.all + block.pages,
            hot: sum.hot + block.hot,
        };
        blocks.into_iter().fold(Self::default(), add)
    }

    /// Whether at most this share of them is hot.
    pub(super) fn is_within(self, most: Permille) -> bool {
        self.hot * 1000 <= self.all * u64::from(most.0)
    }
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = 100.0 * self.hot as f64 / self.all.max(1) as f64;
        write!(f, "{} of {} pages, {percent:.1} %", self.hot, self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BlockState::{GoingOffline, Offline, Online};

    fn seen(block: u64, state: BlockState, pages: u64, hot: u64) -> BlockContents {
        BlockContents { block: BlockId(block), state, movable: block > 1, pages, hot }
    }

    #[test]
    fn what_went_counts_as_it_was_before_anybody_began_to_empty_it() {
        let mut books = Books::default();
        books.look(vec![
            seen(2, Online, 900, 50),
            seen(3, Online, 1000, 30),
            seen(4, Offline, 0, 0),
        ]);
        books.look(vec![seen(2, Online, 1000, 60), seen(3, GoingOffline, 400, 400)]);
        books.look(vec![seen(2, GoingOffline, 7, 7), seen(3, Offline, 0, 0)]);
        assert_eq!(books.taken(), Pages { all: 1000, hot: 30 });
        // A try in vain has gone nowhere; what it has left is not what lay there before it.
        books.look(vec![seen(2, Online, 7, 7), seen(3, Offline, 0, 0)]);
        assert_eq!(books.taken(), Pages { all: 1000, hot: 30 });
        books.look(vec![seen(2, Offline, 0, 0), seen(3, Offline, 0, 0)]);
        assert_eq!(books.taken(), Pages { all: 2000, hot: 90 });
        // One that came back and goes again, with other contents.
        books.look(vec![seen(2, Online, 100, 90), seen(3, Offline, 0, 0)]);
        books.look(vec![seen(2, Offline, 0, 0), seen(3, Offline, 0, 0)]);
        assert_eq!(books.taken(), Pages { all: 2100, hot: 180 });
        assert_eq!(books.taken().to_string(), "180 of 2100 pages, 8.6 %");
    }

    #[test]
    fn somebody_blind_takes_what_is_emptied_with_the_least_effort() {
        let mut books = Books::default();
        let at = |block, pages, hot| seen(block, Online, pages, hot);
        let gone = seen(4, Offline, 0, 0);
        books.look(vec![at(1, 5, 5), at(2, 90, 1), at(3, 30, 2), gone, at(5, 30, 28), at(6, 0, 0)]);
        let found = books.by_effort();
        assert_eq!(found.iter().map(|seen| seen.block.0).collect::<Vec<_>>(), [5, 3, 2]);
        let blind = Pages::of(&found[..2]);
        assert!(blind.is_within(Permille(500)) && !blind.is_within(Permille(499)));
        assert!(Pages::default().is_within(Permille(0)));
    }
}
