//! What DAMON says of one region, and how warm that makes it.

use std::time::Duration;

use memtide_units::{GpaRange, Permille};
use serde::{Deserialize, Serialize};

/// What one snapshot says about one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where.
    pub range: GpaRange,
    /// In how many of the samples of one aggregation it was found touched, as a share of them all.
    pub accessed: Permille,
    /// How long it has been like this.
    pub age: Duration,
}

impl Region {
    /// For how long it has not been touched: no time where it is being touched.
    pub fn idle(&self) -> Duration {
        if self.accessed > Permille(0) { Duration::ZERO } else { self.age }
    }
}

/// Access temperature as damo has it (damo's USAGE.md, "Access temperature"; `temperature_of` in its
/// `damo_report_access.py`): the weighted sum of size, access rate in percent and age in microseconds,
/// with damo's default weights 0, 100 and 100, and negative where the rate is zero. So a second of
/// idling is a hundred million degrees of frost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Temperature(pub i64);

/// damo's weight of a microsecond of age.
const AGE_WEIGHT: i64 = 100;
/// damo's weight of a percent of access rate is 100: 10 for a permille.
const PERMILLE_WEIGHT: i64 = 10;

impl Temperature {
    /// Of memory that is touched in `accessed` of the samples and has been so for `age`.
    pub fn new(accessed: Permille, age: Duration) -> Self {
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let rate = i64::from(accessed.0).saturating_mul(PERMILLE_WEIGHT);
        let score = rate.saturating_add(age.saturating_mul(AGE_WEIGHT));
        if accessed > Permille(0) { Self(score) } else { Self(-score) }
    }

    /// The time whose weight makes up its size: for memory that is not touched, how long it was not.
    pub fn millis(self) -> u64 {
        self.0.unsigned_abs() / (AGE_WEIGHT.unsigned_abs() * 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second line of the first example of damo's USAGE.md: -2,400,000,000 is 24 s of nothing.
    #[test]
    fn temperatures_are_those_that_damo_prints() {
        let cold = Temperature::new(Permille(0), Duration::from_secs(24));
        assert_eq!((cold.0, cold.millis()), (-2_400_000_000, 24_000));
        // "55 %" for no time, and 100 % for 500 ms.
        assert_eq!(Temperature::new(Permille(550), Duration::ZERO), Temperature(5_500));
        let hot = Temperature::new(Permille(1000), Duration::from_millis(500));
        assert_eq!(hot, Temperature(50_010_000));
    }

    #[test]
    fn no_age_overflows() {
        assert_eq!(Temperature::new(Permille(0), Duration::MAX), Temperature(-i64::MAX));
        assert_eq!(Temperature::new(Permille(u32::MAX), Duration::MAX), Temperature(i64::MAX));
        assert!(Temperature(i64::MIN).millis() > 0);
    }
}
