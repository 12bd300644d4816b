//! Ratios as integers: floating point does not give the same digits everywhere.

use core::fmt;

use crate::ByteSize;

/// Thousandths, 0 to 1000 for a share of a whole; larger where a ratio may exceed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Permille(pub u32);

impl Permille {
    /// This share of `whole`, rounded down, saturating.
    pub fn of(self, whole: ByteSize) -> ByteSize {
        let bytes = u128::from(whole.bytes()) * u128::from(self.0) / 1000;
        ByteSize::from_bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

/// Millionths: the resolution in which pressure is kept, since the default goal, 0.1 %, is
/// 1000 of them and PSI's own counter is in microseconds per second of stall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct PpMillion(pub u32);

impl PpMillion {
    /// `part_us` microseconds out of `whole_us`, capped at one (a counter that was read a moment
    /// late can show more stall than time). Zero where no time has passed.
    pub fn of_time(part_us: u64, whole_us: u64) -> Self {
        let share = u128::from(part_us) * 1_000_000;
        let share = share.checked_div(u128::from(whole_us)).unwrap_or(0).min(1_000_000);
        Self(u32::try_from(share).unwrap_or(1_000_000))
    }
}

impl fmt::Display for PpMillion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = alloc::format!("{}.{:02} %", self.0 / 10_000, self.0 % 10_000 / 100);
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_a_share_of_time() {
        assert_eq!(PpMillion::of_time(1_000, 1_000_000), PpMillion(1_000));
        assert_eq!(PpMillion::of_time(2_000_000, 1_000_000), PpMillion(1_000_000));
        assert_eq!(PpMillion::of_time(5, 0), PpMillion(0));
        assert_eq!(PpMillion(1_000).to_string(), "0.10 %");
        assert_eq!(PpMillion(1_000_000).to_string(), "100.00 %");
    }

    #[test]
    fn a_share_of_everything_does_not_overflow() {
        assert_eq!(Permille(2000).of(ByteSize::MAX), ByteSize::MAX);
        assert_eq!(Permille(250).of(ByteSize::from_mib(8)), ByteSize::from_mib(2));
    }
}
