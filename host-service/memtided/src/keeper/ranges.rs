//! Memory as lists of ranges: joined, in address order.

use memtide_units::{ByteSize, GpaRange};

/// The same memory in as few ranges as can be: in address order, and none touches another.
pub(super) fn joined(ranges: impl IntoIterator<Item = GpaRange>) -> Vec<GpaRange> {
    let mut ranges: Vec<GpaRange> = ranges.into_iter().collect();
    ranges.sort_unstable();
    let mut joined: Vec<GpaRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start() <= last.end() => *last = both(*last, range),
            _ => joined.push(range),
        }
    }
    joined
}

/// Two ranges that touch, as one; `next` starts no earlier than `first`.
fn both(first: GpaRange, next: GpaRange) -> GpaRange {
    let end = first.end().max(next.end());
    let len = ByteSize::from_bytes(end.0 - first.start().0);
    GpaRange::new(first.start(), len).unwrap_or(first)
}

/// How much that is; of [`joined`] ranges nothing counts twice.
pub(super) fn total(ranges: &[GpaRange]) -> ByteSize {
    ranges.iter().map(|range| range.len()).sum()
}

/// Is every byte of `range` in it?
pub(super) fn covers(joined: &[GpaRange], range: GpaRange) -> bool {
    joined.iter().any(|part| part.contains(range))
}

/// Is any byte of `range` in it?
pub(super) fn touches(ranges: &[GpaRange], range: GpaRange) -> bool {
    ranges.iter().any(|part| part.intersection(range).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::Gpa;

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), ByteSize::from_bytes(len)).unwrap()
    }

    #[test]
    fn what_touches_or_overlaps_is_joined_and_counted_once() {
        let set = joined([range(20, 10), range(0, 10), range(10, 5), range(22, 2), range(28, 4)]);
        assert_eq!(set, [range(0, 15), range(20, 12)]);
        assert_eq!(total(&set), ByteSize::from_bytes(27));
        assert!(covers(&set, range(5, 10)) && !covers(&set, range(5, 11)));
        assert!(touches(&set, range(14, 2)) && !touches(&set, range(15, 5)));
        assert_eq!(joined([range(u64::MAX - 5, 5), range(1, 1)]).len(), 2);
    }
}
