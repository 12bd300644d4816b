//! From single turns to figures with their spread.

use serde::Serialize;

use crate::meter::{Moved, Round};

/// The middle of what was measured, and its ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these values; all zero where there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let (lower, upper) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Self { median: (lower + upper) / 2.0, min: *min, max: *max }
    }
}

/// What one means of moving memory did: medians over all turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// GiB a second, guest to host: from the word that it shall go to the last byte gone.
    pub reclaim_gib_s: f64,
    /// GiB a second, host to guest: from the word that it may come to all of it online.
    pub return_gib_s: f64,
    /// Processor seconds of QEMU and of our own processes for each GiB reclaimed. Under emulation
    /// the guest's own work is among them.
    pub host_cpu_s_per_gib: f64,
    /// Busy seconds of the guest's processors for each GiB reclaimed.
    pub guest_cpu_s_per_gib: f64,
    /// The same as for reclaiming, for returning.
    pub return_host_cpu_s_per_gib: f64,
    /// The same as for reclaiming, for returning.
    pub return_guest_cpu_s_per_gib: f64,
    /// How far the turns lie apart.
    pub reclaim_spread: Spread,
    /// How far the turns lie apart.
    pub return_spread: Spread,
}

impl Figures {
    /// Of these turns.
    pub(crate) fn of(rounds: &[Round]) -> Self {
        let reclaim =
            |value: fn(&Moved) -> f64| Spread::of(rounds.iter().map(|r| value(&r.reclaim)));
        let back =
            |value: fn(&Moved) -> f64| Spread::of(rounds.iter().map(|r| value(&r.give_back)));
        Self {
            reclaim_gib_s: reclaim(Moved::rate).median,
            return_gib_s: back(Moved::rate).median,
            host_cpu_s_per_gib: reclaim(Moved::host_cost).median,
            guest_cpu_s_per_gib: reclaim(Moved::guest_cost).median,
            return_host_cpu_s_per_gib: back(Moved::host_cost).median,
            return_guest_cpu_s_per_gib: back(Moved::guest_cost).median,
            reclaim_spread: reclaim(Moved::rate),
            return_spread: back(Moved::rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_median_is_the_middle_and_between_two_their_mean() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 9.0]), Spread { median: 3.0, min: 1.0, max: 9.0 });
        assert_eq!(of(&[4.0, 1.0, 2.0, 9.0]).median, 3.0);
        assert_eq!(of(&[]), Spread::default());
    }

    #[test]
    fn figures_are_medians_of_rates_and_costs() {
        let moved = |ms, cpu_ms| Moved {
            bytes: 1 << 30,
            time: Duration::from_millis(ms),
            host_cpu: Duration::from_millis(cpu_ms),
            guest_cpu: Duration::from_millis(cpu_ms / 2),
        };
        let round = |ms| Round { reclaim: moved(ms, 400), give_back: moved(ms / 10, 40) };
        let figures = Figures::of(&[round(1000), round(500), round(2000)]);
        assert_eq!((figures.reclaim_gib_s, figures.return_gib_s), (1.0, 10.0));
        assert_eq!((figures.host_cpu_s_per_gib, figures.guest_cpu_s_per_gib), (0.4, 0.2));
        assert_eq!(figures.return_host_cpu_s_per_gib, 0.04);
        assert_eq!((figures.reclaim_spread.min, figures.reclaim_spread.max), (0.5, 2.0));
    }
}
