//! A mapping together with what each of its pages must contain, and a region made of them.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::mapping::{Mapping, Thp};
use crate::pattern::{self, Fault, Salt, Stamp};
use crate::touches::Touches;

/// One mapping whose pages carry stamps.
#[derive(Debug)]
pub(crate) struct Extent {
    id: u16,
    salt: Salt,
    /// Dropped before the memory, whose addresses may be another mapping's right after.
    touches: Arc<Touches>,
    memory: Mapping,
    /// The generation of each page: two bytes per 4 KiB, kept apart from the pages so that an old
    /// page cannot bring its old generation along.
    generations: Vec<u16>,
}

impl Extent {
    /// Maps `pages` pages; [`Extent::fill`] each before it is checked.
    ///
    /// # Errors
    /// As [`Mapping::new`]; `InvalidInput` for more pages than a stamp can number.
    pub(crate) fn new(id: u16, pages: usize, salt: Salt, thp: Thp) -> io::Result<Self> {
        u32::try_from(pages).map_err(|_| io::ErrorKind::InvalidInput)?;
        let memory = Mapping::new(pages, thp)?;
        let touches = Arc::new(Touches::new(memory.address(0), pages));
        Ok(Self { id, salt, touches, memory, generations: vec![0; pages] })
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.memory.pages()
    }

    /// The address of page `index`.
    pub(crate) fn address(&self, index: usize) -> usize {
        self.memory.address(index)
    }

    /// The generation that page `index` must have.
    pub(crate) fn generation(&self, index: usize) -> u16 {
        self.generations[index]
    }

    /// Writes page `index` in its present generation.
    pub(crate) fn fill(&mut self, index: usize) {
        let seed = self.stamp(index).seed(self.salt);
        pattern::write(self.memory.page_mut(index), seed);
    }

    /// Writes page `index` anew, one generation on.
    pub(crate) fn rewrite(&mut self, index: usize) {
        self.generations[index] = self.generations[index].wrapping_add(1);
        self.fill(index);
    }

    /// Verifies every byte of page `index`.
    pub(crate) fn check(&self, index: usize) -> Option<Fault> {
        let (page, stamp) = (self.memory.page(index), self.stamp(index));
        if pattern::is_intact(page, stamp.seed(self.salt)) {
            None
        } else {
            pattern::diagnose(page, stamp, self.salt)
        }
    }

    /// Reads one word of page `index`; true where it is right. A touch, not a verification.
    pub(crate) fn glance(&self, index: usize, word: usize) -> bool {
        let seed = self.stamp(index).seed(self.salt);
        self.memory.page(index)[word] == pattern::word(seed, word)
    }

    /// These pages have been touched, at `now`.
    pub(crate) fn touched(&self, pages: Range<usize>, now: Instant) {
        self.touches.note(pages, now);
    }

    /// When its pages were touched.
    pub(crate) fn touches(&self) -> &Arc<Touches> {
        &self.touches
    }

    /// Unmaps all pages from `pages` on; `pages` is at least one.
    ///
    /// # Errors
    /// As [`Mapping::truncate`].
    pub(crate) fn truncate(&mut self, pages: usize) -> io::Result<()> {
        self.touches.truncate(pages);
        self.memory.truncate(pages)?;
        self.generations.truncate(pages);
        self.generations.shrink_to_fit();
        Ok(())
    }

    fn stamp(&self, index: usize) -> Stamp {
        // Lossless: `new` refuses more pages than 32 bits number.
        Stamp { extent: self.id, page: index as u32, generation: self.generations[index] }
    }

    /// The memory itself, for tests that damage it.
    #[cfg(test)]
    pub(crate) fn memory_mut(&mut self) -> &mut Mapping {
        &mut self.memory
    }
}

/// A named region: its extents in the order in which they were mapped.
#[derive(Debug, Default)]
pub(crate) struct Region {
    /// Never empty ones.
    pub(crate) extents: Vec<Extent>,
}

impl Region {
    /// Unmaps `pages` pages from the end, or all where it has fewer; returns how many.
    ///
    /// # Errors
    /// As [`Extent::truncate`]; what was unmapped before stays so.
    pub(crate) fn free(&mut self, pages: usize) -> io::Result<usize> {
        let mut left = pages;
        while left > 0 {
            let Some(last) = self.extents.last_mut() else { break };
            if last.pages() > left {
                last.truncate(last.pages() - left)?;
                return Ok(pages);
            }
            left -= last.pages();
            self.extents.pop();
        }
        Ok(pages - left)
    }

    /// All pages of all extents.
    pub(crate) fn pages(&self) -> usize {
        self.extents.iter().map(Extent::pages).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(id: u16, pages: usize) -> Extent {
        let salt = Salt::of_run(1, 2);
        let mut extent = Extent::new(id, pages, salt, Thp::Default).unwrap();
        (0..pages).for_each(|index| extent.fill(index));
        extent
    }

    #[test]
    fn rewritten_pages_are_good_and_their_old_selves_stale() {
        let mut extent = filled(1, 2);
        let old = *extent.memory_mut().page(1);
        extent.rewrite(1);
        assert_eq!((extent.check(0), extent.check(1)), (None, None));
        assert!((0..512).all(|word| extent.glance(1, word)));
        *extent.memory_mut().page_mut(1) = old;
        assert_eq!(extent.check(1), Some(Fault::Stale { generation: 0 }));
        assert!(!extent.glance(1, 3));
    }

    #[test]
    fn swapped_pages_are_foreign_and_dropped_ones_zeroed() {
        let mut extent = filled(4, 3);
        let first = *extent.memory_mut().page(0);
        *extent.memory_mut().page_mut(1) = first;
        extent.memory_mut().page_mut(2).fill(0);
        let found = Stamp { extent: 4, page: 0, generation: 0 };
        assert_eq!(extent.check(1), Some(Fault::Foreign { found }));
        assert_eq!(extent.check(2), Some(Fault::Zeroed));
    }

    #[test]
    fn freeing_takes_the_end_first_across_extents() {
        let mut region = Region { extents: vec![filled(1, 4), filled(2, 2)] };
        assert_eq!(region.free(3).unwrap(), 3);
        assert_eq!((region.extents.len(), region.pages()), (1, 3));
        assert_eq!(region.extents[0].check(2), None);
        assert_eq!(region.free(99).unwrap(), 3);
        assert!(region.extents.is_empty());
    }
}
