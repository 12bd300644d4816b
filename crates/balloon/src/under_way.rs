//! A request that takes longer than one pass may: what it names goes slice by slice.
//!
//! The kernel drops a resident range at some GiB a second and cannot be interrupted meanwhile, so a
//! request that names a whole guest would keep this thread, and a VMM that stops the ring waits for
//! it with its big lock held. Such a request stays between passes, copied from the guest once; its
//! chain is answered when all of it is done. When the ring stops first, the chain is un-taken like
//! the statistics buffer: the ring's position goes back by one, and whoever finds the chain there
//! carries it out from the start. Dropping the same pages again before the answer harms nobody.

use memtide_units::{ByteSize, Gpa, GpaRange};
use memtide_wire::features::QueueRole;

use crate::layout::Layout;
use crate::requests::Job;

/// Bytes that are dropped at once: 20 to 60 ms where all of them are there (docs/performance.md).
/// Where a host page is larger, that.
const SLICE: ByteSize = ByteSize::from_mib(256);

/// A chain that was taken and not answered.
#[derive(Debug)]
pub(crate) struct UnderWay {
    pub(crate) head: u16,
    pub(crate) todo: Todo,
    pub(crate) end: End,
}

/// What follows when all has gone.
#[derive(Debug)]
pub(crate) enum End {
    /// A report has no answer.
    Report,
    /// One of the block queue has: for this request, into these buffers.
    Block(Box<Job>),
}

/// One request at most for each queue that can have one.
#[derive(Debug, Default)]
pub(crate) struct UnderWays {
    report: Option<UnderWay>,
    block: Option<UnderWay>,
}

impl UnderWays {
    pub(crate) fn of(&mut self, role: QueueRole) -> Option<&mut Option<UnderWay>> {
        match role {
            QueueRole::Reporting => Some(&mut self.report),
            QueueRole::Block => Some(&mut self.block),
            QueueRole::Inflate | QueueRole::Deflate | QueueRole::Stats | QueueRole::Hinting => None,
        }
    }

    pub(crate) fn take(&mut self, role: QueueRole) -> Option<UnderWay> {
        self.of(role)?.take()
    }
}

/// Ranges that are to go, of which the host can drop what are whole pages of its own.
#[derive(Debug, Default)]
pub(crate) struct Todo {
    /// Last first.
    ranges: Vec<GpaRange>,
    /// What can be dropped of the range before these. Last first.
    pieces: Vec<GpaRange>,
}

impl Todo {
    pub(crate) fn new(ranges: impl IntoIterator<Item = GpaRange>) -> Self {
        let mut ranges: Vec<GpaRange> = ranges.into_iter().collect();
        ranges.reverse();
        Self { ranges, pieces: Vec::new() }
    }

    /// Has all of it been handed out?
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.pieces.is_empty()
    }

    /// What is to be dropped next, as much as may be at once.
    pub(crate) fn next_slice(&mut self, memory: &Layout) -> Option<GpaRange> {
        while self.pieces.is_empty() {
            self.pieces = memory.droppable(self.ranges.pop()?);
            self.pieces.reverse();
        }
        let piece = self.pieces.pop()?;
        let (slice, rest) = cut(piece, SLICE.max(memory.largest_unit()));
        self.pieces.extend(rest);
        Some(slice)
    }
}

/// The first `len` bytes of a range, and what is behind them.
fn cut(range: GpaRange, len: ByteSize) -> (GpaRange, Option<GpaRange>) {
    if range.len() <= len {
        return (range, None);
    }
    let first = GpaRange::new(range.start(), len);
    let rest = GpaRange::new(Gpa(range.start().0 + len.bytes()), range.len() - len);
    match (first, rest) {
        (Ok(first), Ok(rest)) => (first, Some(rest)),
        // Parts of a range are ranges.
        _ => (range, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MemoryPart;
    use proptest::prelude::*;

    const UNIT: u64 = 2 << 20;

    proptest! {
        /// All that the host can drop goes, once, in order, and no slice cuts a host page.
        #[test]
        fn slices_make_the_whole(ranges in prop::collection::vec((0_u64..2000, 1_u64..1500), 0..6)) {
            let range = |start: u64, len: u64| {
                GpaRange::new(Gpa(start << 20), ByteSize::from_mib(len)).unwrap()
            };
            let unit = ByteSize::from_bytes(UNIT);
            let memory =
                Layout::new([range(0, 1000), range(1001, 1500)].map(|r| MemoryPart::new(r, unit)));
            let ranges: Vec<GpaRange> = ranges.into_iter().map(|(s, l)| range(s, l)).collect();
            let mut todo = Todo::new(ranges.clone());
            let slices: Vec<GpaRange> =
                std::iter::from_fn(|| todo.next_slice(&memory)).collect();
            prop_assert!(slices.iter().all(|slice| slice.len() <= SLICE));
            prop_assert!(slices.iter().all(|slice| slice.is_aligned_to(unit) || slice.start().0 > 1000 << 20));
            let wanted: ByteSize = ranges
                .iter()
                .flat_map(|range| memory.droppable(*range))
                .map(|range| range.len())
                .sum();
            prop_assert_eq!(slices.iter().map(|slice| slice.len()).sum::<ByteSize>(), wanted);
        }
    }

    #[test]
    fn a_host_page_that_is_larger_than_a_slice_goes_whole() {
        let gib = ByteSize::from_gib(1);
        let all = GpaRange::new(Gpa(0), ByteSize::from_gib(4)).unwrap();
        let memory = Layout::new([MemoryPart::new(all, gib)]);
        let mut todo = Todo::new([all]);
        let first = todo.next_slice(&memory).unwrap();
        assert_eq!((first.start(), first.len()), (Gpa(0), gib));
    }
}
