//! Balloon pages where the host's pages are larger: hugetlb, or a host of 16 or 64 KiB pages.
//!
//! A balloon hands over 4 KiB at a time. A larger host page can go when all of its balloon pages are
//! in, so those are remembered until they are deflated, for as long as the memory for it lasts. What
//! is forgotten stays resident, no more: this can err in that direction only.
//!
//! It relies on the guest to use no page before its deflate was answered, which is what
//! `VIRTIO_BALLOON_F_MUST_TELL_HOST` is. Without it a host page goes only where one request names
//! all of it. Reported pages are never remembered: a guest uses them again without a word.

use std::collections::BTreeMap;

use memtide_units::{ByteSize, Gpa, GpaRange, Pfn};

use crate::layout::{Layout, MemoryPart, append};
use crate::range_set::RangeSet;

/// Memory for all this: 6000 host pages of 2 MiB that are in in part. A guest that scatters its
/// balloon more widely than that gains nothing by it.
const BYTES_MAX: usize = 1 << 20;

/// What a host page costs besides its bits: its entries in two ordered maps, half filled.
const PARTIAL_BYTES: usize = 128;

/// What a range of whole pages costs.
const RANGE_BYTES: usize = 48;

/// The balloon pages of one host page.
#[derive(Clone, Debug)]
struct Partial {
    page: GpaRange,
    bits: Box<[u64]>,
    /// How many are in: neither none nor all.
    count: u32,
    age: u64,
}

/// Host pages that are in the balloon, wholly or in part.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostPages {
    whole: RangeSet,
    partial: BTreeMap<Gpa, Partial>,
    /// The same by age.
    ages: BTreeMap<u64, Gpa>,
    next_age: u64,
    partial_bytes: usize,
    /// Pages or ranges that were forgotten for want of room, and not told of yet.
    forgotten: u64,
}

impl HostPages {
    /// True where nothing is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.partial.is_empty()
    }

    /// Forgets everything: another driver, other features, or a deflate that cannot be read.
    pub(crate) fn clear(&mut self) {
        let forgotten = self.forgotten;
        *self = Self { forgotten, ..Self::default() };
    }

    /// How many pages were forgotten for want of room since this was last asked.
    pub(crate) fn take_forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }

    /// The balloon pages of `piece`, which lies in `part`, are in. Says which host pages are wholly
    /// in now, of those that it touches: these can go.
    pub(crate) fn insert(&mut self, piece: GpaRange, part: &MemoryPart) -> Vec<GpaRange> {
        let mut complete = Vec::new();
        for (page, coverage) in touched(piece, part) {
            let is_in = match coverage {
                Coverage::Whole => {
                    self.mark_whole(page);
                    true
                }
                Coverage::Part(frames) => self.add(page, frames),
            };
            if is_in {
                append(&mut complete, page);
            }
        }
        complete
    }

    /// The balloon pages of `range` are not in, or not any more.
    pub(crate) fn remove(&mut self, range: GpaRange, layout: &Layout) {
        if self.is_empty() {
            return;
        }
        for (piece, part) in layout.pieces(range) {
            for (page, coverage) in touched(piece, part) {
                match coverage {
                    Coverage::Whole => {
                        self.whole.remove(page);
                        self.drop_partials(page);
                    }
                    Coverage::Part(frames) => self.take(page, frames),
                }
            }
        }
    }

    /// Guest memory has changed: what is not a host page any more is forgotten.
    pub(crate) fn keep_within(&mut self, layout: &Layout) {
        let is_page = |page: GpaRange| {
            layout.pieces(page).any(|(_, part)| part.page_at(page.start()) == Some(page))
        };
        let gone = self.partial.values().map(|partial| partial.page).filter(|page| !is_page(*page));
        let gone: Vec<Gpa> = gone.map(GpaRange::start).collect();
        gone.into_iter().for_each(|start| self.forget_partial(start));
        let whole = self.whole.iter().flat_map(|range| {
            let coarse = layout.pieces(range).filter(|(_, part)| !part.is_fine());
            coarse.filter_map(|(piece, part)| part.whole_pages(piece))
        });
        self.whole = whole.collect();
    }

    fn mark_whole(&mut self, pages: GpaRange) {
        self.drop_partials(pages);
        self.whole.insert(pages);
        self.make_room();
    }

    /// Adds `frames` of a host page; true where it is wholly in then.
    fn add(&mut self, page: GpaRange, frames: GpaRange) -> bool {
        if self.whole.contains(page) {
            return true;
        }
        let partial = self.partial_of(page);
        partial.set(frames);
        if partial.is_whole() {
            self.mark_whole(page);
            return true;
        }
        self.make_room();
        false
    }

    /// Takes `frames` of a host page out.
    fn take(&mut self, page: GpaRange, frames: GpaRange) {
        if self.whole.contains(page) {
            self.whole.remove(page);
            self.partial_of(page).set(page);
        }
        if let Some(partial) = self.partial.get_mut(&page.start()) {
            partial.unset(frames);
            if partial.count == 0 {
                self.forget_partial(page.start());
            }
        }
        self.make_room();
    }

    fn partial_of(&mut self, page: GpaRange) -> &mut Partial {
        self.partial.entry(page.start()).or_insert_with(|| {
            let partial = Partial::empty(page, self.next_age);
            self.ages.insert(self.next_age, page.start());
            self.next_age += 1;
            self.partial_bytes += partial.bytes();
            partial
        })
    }

    fn forget_partial(&mut self, start: Gpa) {
        if let Some(partial) = self.partial.remove(&start) {
            self.ages.remove(&partial.age);
            self.partial_bytes -= partial.bytes();
        }
    }

    fn drop_partials(&mut self, pages: GpaRange) {
        let inside = self.partial.range(pages.start()..pages.end()).map(|(start, _)| *start);
        let inside: Vec<Gpa> = inside.collect();
        inside.into_iter().for_each(|start| self.forget_partial(start));
    }

    fn bytes(&self) -> usize {
        self.partial_bytes + self.whole.len() * RANGE_BYTES
    }

    /// Forgets the oldest until what is left is little enough.
    fn make_room(&mut self) {
        while self.bytes() > BYTES_MAX {
            self.forgotten += 1;
            let oldest = self.ages.values().next().copied();
            let first = self.whole.iter().next();
            match (oldest, first) {
                (Some(oldest), _) => self.forget_partial(oldest),
                (None, Some(first)) => _ = self.whole.remove(first),
                (None, None) => break,
            }
        }
    }
}

impl Partial {
    fn empty(page: GpaRange, age: u64) -> Self {
        let words = frames_in(page.len()).div_ceil(64) as usize;
        Self { page, bits: vec![0; words].into(), count: 0, age }
    }

    fn bytes(&self) -> usize {
        PARTIAL_BYTES + size_of_val(&*self.bits)
    }

    fn is_whole(&self) -> bool {
        u64::from(self.count) == frames_in(self.page.len())
    }

    fn set(&mut self, frames: GpaRange) {
        self.change(frames, |word, mask| word | mask);
    }

    fn unset(&mut self, frames: GpaRange) {
        self.change(frames, |word, mask| word & !mask);
    }

    fn change(&mut self, frames: GpaRange, change: impl Fn(u64, u64) -> u64) {
        let number = |at: Gpa| (at.0 - self.page.start().0) / Pfn::SIZE.bytes();
        let (from, to) = (number(frames.start()), number(frames.end()));
        for index in from / 64..to.div_ceil(64) {
            let low = from.saturating_sub(index * 64);
            let high = (to - index * 64).min(64);
            let mask = (u64::MAX >> (64 - (high - low))) << low;
            let word = &mut self.bits[index as usize];
            let before = word.count_ones();
            *word = change(*word, mask);
            self.count = self.count + word.count_ones() - before;
        }
    }
}

fn frames_in(len: ByteSize) -> u64 {
    len.bytes() / Pfn::SIZE.bytes()
}

/// How much of a host page, or of several, a request names.
enum Coverage {
    Whole,
    /// These balloon pages of one host page.
    Part(GpaRange),
}

/// The host pages that `piece` touches, in address order: a first that is cut, whole ones as one
/// range, a last that is cut. Pages that reach out of their part are left out.
fn touched(piece: GpaRange, part: &MemoryPart) -> impl Iterator<Item = (GpaRange, Coverage)> {
    let whole = part.whole_pages(piece);
    let remembers = !part.is_fine() && part.holds_whole_frames();
    let cut = |at: Gpa| {
        let page = part.page_at(at).filter(|page| remembers && !piece.contains(*page))?;
        Some((page, Coverage::Part(whole_frames(page.intersection(piece)?)?)))
    };
    let first = cut(piece.start());
    let last = cut(Gpa(piece.end().0 - 1));
    let last = last.filter(|(page, _)| first.as_ref().is_none_or(|(other, _)| other != page));
    first.into_iter().chain(whole.map(|pages| (pages, Coverage::Whole))).chain(last)
}

/// The balloon pages that lie wholly in `range`.
fn whole_frames(range: GpaRange) -> Option<GpaRange> {
    let start = range.start().0.next_multiple_of(Pfn::SIZE.bytes());
    let end = range.end().0 / Pfn::SIZE.bytes() * Pfn::SIZE.bytes();
    GpaRange::new(Gpa(start), ByteSize::from_bytes(end.checked_sub(start)?)).ok()
}
