//! Guest-physical addresses, page frames, and ranges of them.

use core::fmt;

use crate::ByteSize;

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `offset` bytes on, or `None` past the end of the 64-bit space.
    pub fn checked_add(self, offset: ByteSize) -> Option<Self> {
        self.0.checked_add(offset.bytes()).map(Self)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A balloon page frame number: the guest-physical address divided by 4096, whatever the guest's
/// own page size (virtio 1.3, 5.5.6: `VIRTIO_BALLOON_PFN_SHIFT` is 12), in 32 bits: up to 16 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u32);

impl Pfn {
    /// Bytes that one balloon PFN stands for.
    pub const SIZE: ByteSize = ByteSize::from_bytes(1 << 12);

    /// The frame that holds `gpa`, or `None` from 16 TiB on.
    pub fn of(gpa: Gpa) -> Option<Self> {
        u32::try_from(gpa.0 >> 12).ok().map(Self)
    }

    /// Where the frame starts.
    pub fn gpa(self) -> Gpa {
        Gpa(u64::from(self.0) << 12)
    }
}

/// Why two numbers make no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// A range of no bytes.
    #[error("the range at {0} is empty")]
    Empty(Gpa),
    /// `start + length` does not fit 64 bits.
    #[error("the range of {1} bytes at {0} passes the end of the address space")]
    Overflow(Gpa, u64),
}

/// A non-empty range of guest-physical addresses that does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawRange", into = "RawRange"))]
pub struct GpaRange {
    start: Gpa,
    len: ByteSize,
}

/// What a range looks like before anybody has checked it.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    start: Gpa,
    len: ByteSize,
}

#[cfg(feature = "serde")]
impl TryFrom<RawRange> for GpaRange {
    type Error = RangeError;
    fn try_from(raw: RawRange) -> Result<Self, RangeError> {
        Self::new(raw.start, raw.len)
    }
}

#[cfg(feature = "serde")]
impl From<GpaRange> for RawRange {
    fn from(range: GpaRange) -> Self {
        Self { start: range.start, len: range.len }
    }
}

impl GpaRange {
    /// The `len` bytes from `start` on.
    ///
    /// # Errors
    /// [`RangeError`] for no bytes, or an end past 2^64 - 1.
    pub const fn new(start: Gpa, len: ByteSize) -> Result<Self, RangeError> {
        if len.is_zero() {
            return Err(RangeError::Empty(start));
        }
        match start.0.checked_add(len.bytes()) {
            Some(_) => Ok(Self { start, len }),
            None => Err(RangeError::Overflow(start, len.bytes())),
        }
    }

    /// The frame that `pfn` names.
    pub fn of_pfn(pfn: Pfn) -> Self {
        Self { start: pfn.gpa(), len: Pfn::SIZE }
    }

    /// First address in it.
    pub const fn start(self) -> Gpa {
        self.start
    }

    /// First address behind it.
    pub const fn end(self) -> Gpa {
        Gpa(self.start.0 + self.len.bytes())
    }

    /// How many bytes it covers, at least one.
    pub const fn len(self) -> ByteSize {
        self.len
    }

    /// Never: an empty range cannot be made.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// True where every byte of `other` is in it.
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The bytes that are in both.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end().min(other.end()));
        (start < end).then(|| Self { start, len: ByteSize::from_bytes(end.0 - start.0) })
    }

    /// True where start and end are multiples of `unit`.
    pub fn is_aligned_to(self, unit: ByteSize) -> bool {
        let unit = unit.bytes();
        unit != 0 && self.start.0.is_multiple_of(unit) && self.len.bytes().is_multiple_of(unit)
    }

    /// Both as one range, where `next` starts just where this one ends.
    pub fn joined_with(self, next: Self) -> Option<Self> {
        (self.end() == next.start)
            .then(|| Self { start: self.start, len: self.len + next.len })
            .filter(|joined| joined.start.0.checked_add(joined.len.bytes()).is_some())
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{}", self.start.0, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_end_at_sixteen_tebibytes() {
        assert_eq!(Pfn::of(Gpa(0x1234_5678)), Some(Pfn(0x1_2345)));
        assert_eq!(Pfn::of(Gpa((16 << 40) - 1)), Some(Pfn(u32::MAX)));
        assert_eq!(Pfn::of(Gpa(16 << 40)), None);
    }
    use proptest::prelude::*;

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), ByteSize::from_bytes(len)).unwrap()
    }

    #[test]
    fn refuses_empty_and_wrapping_ranges() {
        assert_eq!(GpaRange::new(Gpa(5), ByteSize::ZERO), Err(RangeError::Empty(Gpa(5))));
        assert!(GpaRange::new(Gpa(u64::MAX), ByteSize::from_bytes(1)).is_err());
        assert!(GpaRange::new(Gpa(u64::MAX), ByteSize::from_bytes(2)).is_err());
    }

    #[test]
    fn joins_only_neighbours() {
        assert_eq!(range(0, 4096).joined_with(range(4096, 4096)), Some(range(0, 8192)));
        assert_eq!(range(0, 4096).joined_with(range(8192, 4096)), None);
        assert_eq!(range(4096, 4096).joined_with(range(0, 4096)), None);
    }

    #[test]
    fn a_range_from_json_is_checked() {
        assert_eq!(
            serde_json::from_str::<GpaRange>(r#"{"start":4096,"len":4096}"#).unwrap(),
            range(4096, 4096)
        );
        assert!(serde_json::from_str::<GpaRange>(r#"{"start":4096,"len":0}"#).is_err());
        let wraps = r#"{"start":18446744073709551615,"len":4096}"#;
        assert!(serde_json::from_str::<GpaRange>(wraps).is_err());
    }

    proptest! {
        #[test]
        fn the_intersection_is_in_both(a in 0_u64..1000, b in 1_u64..1000, c in 0_u64..1000, d in 1_u64..1000) {
            let (x, y) = (range(a, b), range(c, d));
            match x.intersection(y) {
                Some(both) => prop_assert!(x.contains(both) && y.contains(both)),
                None => prop_assert!(x.end() <= y.start() || y.end() <= x.start()),
            }
        }
    }
}
