//! What the guest has given up, and the host that must drop nothing else.

use std::cell::RefCell;
use std::collections::BTreeSet;

use memtide_balloon::{FailKind, Reclaim, ReclaimFailed, Reclaimed};
use memtide_units::{GpaRange, Pfn};

use super::{FIRST_PAGE, PAGES};
use crate::device::memory::block;

pub(super) fn page(number: u64) -> GpaRange {
    let last = Pfn(u32::MAX);
    if number == PAGES - 1 {
        return GpaRange::of_pfn(last);
    }
    GpaRange::of_pfn(Pfn((FIRST_PAGE / 4096 + number) as u32))
}

/// What the guest has given up, and may not be surprised to find empty.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// Blocks that are offline in its kernel.
    pub(super) offline: BTreeSet<u64>,
    /// Pages that are in the balloon, or on their way there.
    pub(super) pages: BTreeSet<u64>,
    /// Pages that are reported free and not yet handed back.
    pub(super) reported: BTreeSet<u64>,
    /// It will look for a value other than zero in them: they must stay as they are.
    pub(super) poisoned: bool,
}

impl Given {
    fn covers(&self, range: GpaRange) -> bool {
        let blocks = self.offline.iter().map(|number| block(*number));
        let reported = self.reported.iter().filter(|_| !self.poisoned);
        let pages = self.pages.iter().chain(reported).map(|number| page(*number));
        let given: memtide_balloon::RangeSet = blocks.chain(pages).collect();
        given.contains(range)
    }
}

pub(super) struct Host<'g> {
    pub(super) given: &'g RefCell<Given>,
    pub(super) fails: bool,
}

impl Reclaim for Host<'_> {
    fn reclaim(&mut self, range: GpaRange) -> Result<Reclaimed, ReclaimFailed> {
        let given = self.given.borrow();
        assert!(given.covers(range), "{range} is dropped and the guest uses it: {given:?}");
        if self.fails {
            let text = "the host was told to fail".into();
            return Err(ReclaimFailed { kind: FailKind::Io, text });
        }
        Ok(Reclaimed { bytes: range.len(), punches: 1 })
    }
}
