//! What is known of one piece of memory at one time, in two bytes.

use memtide_units::Permille;

use crate::ladder;
use crate::region::Temperature;

/// Where half of all is one thing, it is drawn as that; unless so much of it is touched in the mean.
const TOUCHED: Permille = Permille(10);

/// Rates are kept in half percents.
const RATE_UNIT: u32 = 5;
const RATE_MOST: u8 = 200;
const FREE: u8 = 252;
const KERNEL: u8 = 253;
const UNWATCHED: u8 = 254;
const STOLEN: u8 = 255;

/// One piece of memory at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    rate: u8,
    warmth: i8,
}

/// What most of a piece of memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of programs and of the page cache.
    Used(Permille, Temperature),
    /// Free: it only looks cold.
    Free,
    /// The kernel's own and huge pages set aside: DAMON does not see who touches them.
    Kernel,
    /// Stolen: the guest does not have it.
    Stolen,
    /// Nobody knows.
    Unwatched,
}

/// How a piece of memory is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shade {
    /// Used. 9 to 6: touched in half, a fifth, a twentieth, a hundredth of the samples, or more often; 5:
    /// touched less, or within the last 30 s; 4 to 0: not touched for 30 s, 1, 2, 5, 10 min, or longer.
    Level(u8),
    /// Free.
    Free,
    /// The kernel's.
    Kernel,
    /// Stolen.
    Stolen,
    /// Not known.
    Unwatched,
}

impl Cell {
    /// Nobody knows.
    pub const UNWATCHED: Self = Self { rate: UNWATCHED, warmth: 0 };

    /// A cell of this kind; rates and temperatures are rounded.
    pub fn new(kind: Kind) -> Self {
        let rate = match kind {
            Kind::Used(rate, temperature) => return Self::used(rate, temperature),
            Kind::Free => FREE,
            Kind::Kernel => KERNEL,
            Kind::Unwatched => UNWATCHED,
            Kind::Stolen => STOLEN,
        };
        Self { rate, warmth: 0 }
    }

    fn used(rate: Permille, temperature: Temperature) -> Self {
        let halves = (rate.0.saturating_add(RATE_UNIT / 2) / RATE_UNIT).min(u32::from(RATE_MOST));
        // What is touched a little is not what is not touched.
        let halves = if rate > Permille(0) { halves.max(1) } else { 0 };
        let step = ladder::step(temperature.millis());
        let warmth = if temperature < Temperature(0) { -step } else { step };
        Self { rate: halves as u8, warmth }
    }

    /// What it is.
    pub fn kind(self) -> Kind {
        match self.rate {
            STOLEN => Kind::Stolen,
            FREE => Kind::Free,
            KERNEL => Kind::Kernel,
            rate @ 0..=RATE_MOST => {
                let rate = Permille(u32::from(rate) * RATE_UNIT);
                Kind::Used(rate, self.temperature(rate))
            }
            _ => Kind::Unwatched,
        }
    }

    fn temperature(self, rate: Permille) -> Temperature {
        let age = std::time::Duration::from_millis(ladder::millis(self.warmth));
        // Of a mixture the sign is that of its mean.
        match self.warmth {
            ..0 => Temperature::new(Permille(0), age),
            _ => Temperature::new(rate, age),
        }
    }

    /// How it is drawn.
    pub fn shade(self) -> Shade {
        let (rate, temperature) = match self.kind() {
            Kind::Used(rate, temperature) => (rate, temperature),
            Kind::Free => return Shade::Free,
            Kind::Kernel => return Shade::Kernel,
            Kind::Stolen => return Shade::Stolen,
            Kind::Unwatched => return Shade::Unwatched,
        };
        let idle = if temperature < Temperature(0) { temperature.millis() } else { 0 };
        Shade::Level(match (rate.0, idle / 1000) {
            (500.., _) => 9,
            (200.., _) => 8,
            (50.., _) => 7,
            (10.., _) => 6,
            (_, 0..30) => 5,
            (_, 30..60) => 4,
            (_, 60..120) => 3,
            (_, 120..300) => 2,
            (_, 300..600) => 1,
            (_, 600..) => 0,
        })
    }

    /// The two bytes.
    pub const fn to_bytes(self) -> [u8; 2] {
        [self.rate, self.warmth.cast_unsigned()]
    }

    /// Of two bytes, whatever they are: those that nobody writes say that nobody knows.
    pub const fn from_bytes([rate, warmth]: [u8; 2]) -> Self {
        match rate {
            0..=RATE_MOST => Self { rate, warmth: warmth.cast_signed() },
            FREE | KERNEL | STOLEN => Self { rate, warmth: 0 },
            _ => Self::UNWATCHED,
        }
    }

    /// What several together are, each counted `weight` times.
    pub fn mean(cells: impl IntoIterator<Item = (Self, u64)>) -> Self {
        let mut sum = Sum::default();
        for (cell, weight) in cells {
            sum.add(cell.kind(), weight);
        }
        Self::new(sum.kind())
    }
}

/// Kinds and how much of each there is: what a whole is, is decided in one place.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) stolen: u64,
    pub(crate) free: u64,
    pub(crate) kernel: u64,
    pub(crate) used: u64,
    pub(crate) unwatched: u64,
    /// Permille times weight.
    pub(crate) rate: u128,
    /// Temperature times weight.
    pub(crate) temperature: i128,
}

impl Sum {
    fn add(&mut self, kind: Kind, weight: u64) {
        let part = match kind {
            Kind::Used(rate, temperature) => {
                self.rate += u128::from(rate.0) * u128::from(weight);
                self.temperature += i128::from(temperature.0) * i128::from(weight);
                &mut self.used
            }
            Kind::Free => &mut self.free,
            Kind::Kernel => &mut self.kernel,
            Kind::Stolen => &mut self.stolen,
            Kind::Unwatched => &mut self.unwatched,
        };
        *part = part.saturating_add(weight);
    }

    /// What most of it is, except that touched memory shows through all else that a guest has.
    pub(crate) fn kind(&self) -> Kind {
        let is_half = |part: u64, whole: u64| part > 0 && part >= whole - whole / 2;
        let known = self.used.saturating_add(self.free).saturating_add(self.kernel);
        if is_half(self.stolen, known.saturating_add(self.stolen)) {
            return Kind::Stolen;
        }
        if known == 0 {
            return Kind::Unwatched;
        }
        let rate = self.rate.div_ceil(u128::from(known));
        let rate = Permille(u32::try_from(rate).unwrap_or(u32::MAX));
        if self.used > 0 && rate >= TOUCHED {
            return Kind::Used(rate, self.temperature());
        }
        if is_half(self.free, known) {
            return Kind::Free;
        }
        if is_half(self.kernel, known) || self.used == 0 {
            return Kind::Kernel;
        }
        Kind::Used(rate, self.temperature())
    }

    fn temperature(&self) -> Temperature {
        let mean = self.temperature / i128::from(self.used.max(1));
        Temperature(i64::try_from(mean).unwrap_or(if mean < 0 { i64::MIN } else { i64::MAX }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn idle(seconds: u64) -> Cell {
        let temperature = Temperature::new(Permille(0), Duration::from_secs(seconds));
        Cell::new(Kind::Used(Permille(0), temperature))
    }

    fn touched(permille: u32) -> Cell {
        let rate = Permille(permille);
        Cell::new(Kind::Used(rate, Temperature::new(rate, Duration::from_secs(5))))
    }

    #[test]
    fn levels_are_what_the_legend_says() {
        let levels = |cells: Vec<Cell>| -> Vec<Shade> { cells.iter().map(|c| c.shade()).collect() };
        let hot = [1000, 500, 200, 50, 10, 1].map(touched).to_vec();
        assert_eq!(levels(hot), [9, 9, 8, 7, 6, 5].map(Shade::Level));
        let cold = [5, 36, 66, 130, 330, 660, 90_000].map(idle).to_vec();
        assert_eq!(levels(cold), [5, 4, 3, 2, 1, 0, 0].map(Shade::Level));
    }

    #[test]
    fn what_half_of_it_is_it_is_drawn_as() {
        let mean = |cells: &[(Cell, u64)]| Cell::mean(cells.iter().copied()).shade();
        let of = Cell::new;
        assert_eq!(mean(&[(of(Kind::Stolen), 1), (touched(1000), 1)]), Shade::Stolen);
        assert_eq!(mean(&[(of(Kind::Free), 1), (idle(700), 1)]), Shade::Free);
        assert_eq!(mean(&[(of(Kind::Kernel), 3), (idle(700), 2)]), Shade::Kernel);
        assert_eq!(mean(&[(of(Kind::Free), 9), (touched(1000), 1)]), Shade::Level(7));
        assert_eq!(mean(&[(Cell::UNWATCHED, 9), (idle(700), 1)]), Shade::Level(0));
        assert_eq!(mean(&[]), Shade::Unwatched);
    }

    /// Nine tenths cold for long: the rate says that a tenth is hot, the temperature that most is not.
    #[test]
    fn a_mixture_has_the_mean_rate_and_the_mean_temperature() {
        let Kind::Used(rate, temperature) = Cell::mean([(idle(660), 9), (touched(1000), 1)]).kind()
        else {
            panic!("memory of programs is used")
        };
        assert_eq!(rate, Permille(100));
        assert!(temperature < Temperature::new(Permille(0), Duration::from_secs(500)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_cell_and_written_back(bytes: [u8; 2], more in prop::collection::vec(any::<([u8; 2], u64)>(), 0..9)) {
            let cell = Cell::from_bytes(bytes);
            prop_assert_eq!(Cell::from_bytes(cell.to_bytes()), cell);
            // A warmth of -128 is 127 steps all the same.
            prop_assert_eq!(Cell::new(cell.kind()).shade(), cell.shade());
            let _ = Cell::mean(more.into_iter().map(|(bytes, weight)| (Cell::from_bytes(bytes), weight))).shade();
        }

        #[test]
        fn the_mean_of_equals_is_drawn_like_each(bytes: [u8; 2], weights in prop::collection::vec(1_u64..1 << 40, 1..9)) {
            let cell = Cell::from_bytes(bytes);
            let mean = Cell::mean(weights.into_iter().map(|weight| (cell, weight)));
            if !matches!(cell.kind(), Kind::Used(Permille(1..), Temperature(..0))) {
                prop_assert_eq!(mean.shade(), cell.shade());
            }
        }
    }
}
