//! A set of addresses as disjoint ranges: guest memory, and what of it is stolen.

use std::collections::BTreeMap;

use memtide_units::{ByteSize, Gpa, GpaRange};

/// Addresses, kept as ranges in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end of each range.
    ends: BTreeMap<Gpa, Gpa>,
}

impl RangeSet {
    /// The ranges, joined, in address order.
    pub fn iter(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.ends.iter().filter_map(|(start, end)| span(*start, *end))
    }

    /// How many ranges they are after joining.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True for no addresses.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes they cover.
    pub fn total(&self) -> ByteSize {
        self.iter().map(GpaRange::len).sum()
    }

    /// Adds `range`; what is in the set already stays.
    pub fn insert(&mut self, range: GpaRange) {
        let (mut start, mut end) = (range.start(), range.end());
        // Everything that overlaps or touches melts into the new range.
        while let Some((old_start, old_end)) = self.last_starting_up_to(end) {
            if old_end < start {
                break;
            }
            self.ends.remove(&old_start);
            start = start.min(old_start);
            end = end.max(old_end);
        }
        self.ends.insert(start, end);
    }

    /// Takes `range` out, as far as it is in, and says how many bytes that were.
    pub fn remove(&mut self, range: GpaRange) -> ByteSize {
        let mut removed = ByteSize::ZERO;
        for part in self.within(range) {
            let Some((start, end)) = self.last_starting_up_to(part.start()) else { continue };
            self.ends.remove(&start);
            if start < part.start() {
                self.ends.insert(start, part.start());
            }
            if part.end() < end {
                self.ends.insert(part.end(), end);
            }
            removed += part.len();
        }
        removed
    }

    /// True where every byte of `range` is in.
    pub fn contains(&self, range: GpaRange) -> bool {
        self.last_starting_up_to(range.start()).is_some_and(|(_, end)| range.end() <= end)
    }

    /// True where any byte of `range` is in.
    pub fn overlaps(&self, range: GpaRange) -> bool {
        self.touching(range).next().is_some()
    }

    /// The parts of `range` that are in, in address order.
    pub fn within(&self, range: GpaRange) -> Vec<GpaRange> {
        self.touching(range).collect()
    }

    /// The parts of `range` that are not in, in address order.
    pub fn missing(&self, range: GpaRange) -> Vec<GpaRange> {
        let mut gaps = Vec::new();
        let mut reached = range.start();
        for part in self.touching(range) {
            gaps.extend(span(reached, part.start()));
            reached = part.end();
        }
        gaps.extend(span(reached, range.end()));
        gaps
    }

    /// The range with the highest start that is not above `at`.
    fn last_starting_up_to(&self, at: Gpa) -> Option<(Gpa, Gpa)> {
        self.ends.range(..=at).next_back().map(|(start, end)| (*start, *end))
    }

    fn touching(&self, range: GpaRange) -> impl Iterator<Item = GpaRange> + '_ {
        let first =
            self.last_starting_up_to(range.start()).map_or(range.start(), |(start, _)| start);
        self.ends
            .range(first..range.end())
            .filter_map(move |(start, end)| span(*start, *end)?.intersection(range))
    }
}

impl FromIterator<GpaRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = GpaRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

/// `start..end` as a range, unless it is empty.
fn span(start: Gpa, end: Gpa) -> Option<GpaRange> {
    GpaRange::new(start, ByteSize::from_bytes(end.0.checked_sub(start.0)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), ByteSize::from_bytes(len)).unwrap()
    }

    #[test]
    fn neighbours_melt_and_holes_split() {
        let mut set: RangeSet = [range(0, 4), range(8, 4), range(4, 4)].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [range(0, 12)]);
        assert_eq!(set.remove(range(2, 4)), ByteSize::from_bytes(4));
        assert_eq!(set.iter().collect::<Vec<_>>(), [range(0, 2), range(6, 6)]);
        assert_eq!(set.missing(range(0, 20)), [range(2, 4), range(12, 8)]);
        assert!(set.contains(range(6, 6)) && !set.contains(range(1, 6)));
    }

    #[test]
    fn the_last_address_is_no_trap() {
        let mut set = RangeSet::default();
        let last = range(u64::MAX - 4, 4);
        set.insert(last);
        assert!(set.contains(last));
        assert_eq!(set.remove(last).bytes(), 4);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (any::<bool>(), 0_u64..60, 1_u64..20)
            .prop_map(|(add, s, l)| if add { Step::Insert(s, l) } else { Step::Remove(s, l) });
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        /// A set of single bytes, done the slow way, agrees on everything.
        #[test]
        fn it_is_a_set_of_bytes(steps in steps(), s in 0_u64..70, l in 1_u64..20) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(s, l) => {
                        set.insert(range(s, l));
                        model.extend(s..s + l);
                    }
                    Step::Remove(s, l) => {
                        let gone = (s..s + l).filter(|byte| model.remove(byte)).count();
                        prop_assert_eq!(set.remove(range(s, l)).bytes(), gone as u64);
                    }
                }
            }
            let bytes = |ranges: Vec<GpaRange>| -> Vec<u64> {
                ranges.iter().flat_map(|r| r.start().0..r.end().0).collect()
            };
            prop_assert_eq!(bytes(set.iter().collect()), model.iter().copied().collect::<Vec<_>>());
            let listed: Vec<GpaRange> = set.iter().collect();
            prop_assert!(listed.windows(2).all(|two| two[0].end() < two[1].start()));
            let (inside, outside): (Vec<u64>, Vec<u64>) = (s..s + l).partition(|b| model.contains(b));
            prop_assert_eq!(set.contains(range(s, l)), outside.is_empty());
            prop_assert_eq!(set.overlaps(range(s, l)), !inside.is_empty());
            prop_assert_eq!(bytes(set.within(range(s, l))), inside);
            prop_assert_eq!(bytes(set.missing(range(s, l))), outside);
        }
    }
}
