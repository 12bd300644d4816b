//! Byte counts, printed and read with binary units.

use core::fmt;
use core::iter::Sum;
use core::ops::{Add, AddAssign, Sub, SubAssign};
use core::str::FromStr;

/// A number of bytes. Prints as `1.5 GiB`; reads `512MiB`, `1.5 GiB`, `4096 B` (a unit is required:
/// a bare number in a configuration file has meant kilobytes to some and bytes to others).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct ByteSize(u64);

const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl ByteSize {
    /// No bytes.
    pub const ZERO: Self = Self(0);
    /// More than any machine has: "no limit".
    pub const MAX: Self = Self(u64::MAX);

    /// `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// `kib` times 1024 bytes, saturating.
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib.saturating_mul(1 << 10))
    }

    /// `mib` times 1024 KiB, saturating.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// `gib` times 1024 MiB, saturating.
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// The count in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Whole KiB, rounded down.
    pub const fn kib(self) -> u64 {
        self.0 >> 10
    }

    /// Whole MiB, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }

    /// True for zero bytes.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The difference, or zero where `other` is larger.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or [`ByteSize::MAX`].
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// `count` times as much, saturating.
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }

    /// The largest multiple of `unit` that is not above it; itself where `unit` is zero.
    pub const fn round_down_to(self, unit: Self) -> Self {
        match self.0.checked_rem(unit.0) {
            Some(rest) => Self(self.0 - rest),
            None => self,
        }
    }

    /// The smallest multiple of `unit` that is not below it, saturating; itself where `unit` is zero.
    pub const fn round_up_to(self, unit: Self) -> Self {
        let down = self.round_down_to(unit);
        if down.0 == self.0 { down } else { Self(down.0.saturating_add(unit.0)) }
    }
}

impl Add for ByteSize {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl AddAssign for ByteSize {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for ByteSize {
    type Output = Self;
    /// Saturates at zero: books that briefly disagree must not stop a host.
    fn sub(self, other: Self) -> Self {
        self.saturating_sub(other)
    }
}

impl SubAssign for ByteSize {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for ByteSize {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) =
            UNITS.into_iter().find(|(_, shift)| self.0 >> shift != 0).unwrap_or(("B", 0));
        let (whole, rest) = (self.0 >> shift, self.0 & ((1 << shift) - 1));
        let tenth = (u128::from(rest) * 10) >> shift;
        let text = if tenth == 0 {
            alloc::format!("{whole} {unit}")
        } else {
            alloc::format!("{whole}.{tenth} {unit}")
        };
        f.pad(&text)
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// A number without a unit.
    #[error("the size \"{0}\" has no unit: write for example {0}MiB (B, KiB, MiB, GiB, TiB)")]
    NoUnit(alloc::string::String),
    /// A unit that is not one of B, KiB, MiB, GiB, TiB.
    #[error("the size \"{0}\" has an unknown unit: use B, KiB, MiB, GiB or TiB (powers of 1024)")]
    UnknownUnit(alloc::string::String),
    /// No number before the unit.
    #[error("the size \"{0}\" does not start with a number such as 512 or 1.5")]
    NoNumber(alloc::string::String),
    /// More bytes than 64 bits count.
    #[error("the size \"{0}\" is larger than 16 EiB")]
    TooLarge(alloc::string::String),
}

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let trimmed = text.trim();
        let split =
            trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..split], trimmed[split..].trim());
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(ParseSizeError::NoNumber(text.into()));
        }
        if unit.is_empty() {
            return Err(ParseSizeError::NoUnit(text.into()));
        }
        let (_, shift) = UNITS
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(|| ParseSizeError::UnknownUnit(text.into()))?;
        scaled(whole, fraction, shift)
            .map(Self)
            .ok_or_else(|| ParseSizeError::TooLarge(text.into()))
    }
}

/// `whole.fraction` times two to the `shift`; digits past the ninth behind the point count nothing.
fn scaled(whole: &str, fraction: &str, shift: u32) -> Option<u64> {
    let whole: u64 = whole.parse().ok()?;
    let fraction = &fraction[..fraction.len().min(9)];
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let numerator: u128 = fraction.parse().ok()?;
    let bytes = (u128::from(whole) << shift) + ((numerator << shift) / denominator);
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prints_the_way_people_write_sizes() {
        assert_eq!(ByteSize::from_mib(1536).to_string(), "1.5 GiB");
        assert_eq!(ByteSize::from_mib(128).to_string(), "128 MiB");
        assert_eq!(ByteSize::from_bytes(17).to_string(), "17 B");
        assert_eq!(format!("{:>9}", ByteSize::from_mib(1)), "    1 MiB");
    }

    #[test]
    fn reads_units_and_refuses_numbers_without_one() {
        assert_eq!("512MiB".parse(), Ok(ByteSize::from_mib(512)));
        assert_eq!(" 1.5 GiB ".parse(), Ok(ByteSize::from_mib(1536)));
        assert_eq!("4096".parse::<ByteSize>(), Err(ParseSizeError::NoUnit("4096".into())));
        assert_eq!("1GB".parse::<ByteSize>(), Err(ParseSizeError::UnknownUnit("1GB".into())));
        assert_eq!("MiB".parse::<ByteSize>(), Err(ParseSizeError::NoNumber("MiB".into())));
        assert_eq!("1..5MiB".parse::<ByteSize>(), Err(ParseSizeError::NoNumber("1..5MiB".into())));
        assert!("99999999999TiB".parse::<ByteSize>().is_err());
    }

    proptest! {
        #[test]
        fn whole_units_survive_printing(mib in 0_u64..(1 << 40)) {
            let size = ByteSize::from_mib(mib);
            prop_assert_eq!(alloc::format!("{mib}MiB").parse(), Ok(size));
        }

        #[test]
        fn reading_never_panics(text in ".{0,24}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn rounding_brackets(bytes in 0_u64..(1 << 50), unit in 1_u64..(1 << 30)) {
            let (size, unit) = (ByteSize(bytes), ByteSize(unit));
            prop_assert!(size.round_down_to(unit) <= size && size <= size.round_up_to(unit));
            prop_assert!(size.round_up_to(unit) - size.round_down_to(unit) <= unit);
        }
    }
}
