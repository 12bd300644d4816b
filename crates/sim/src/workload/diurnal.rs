//! Day and night, in twenty minutes.

use std::time::Duration;

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

const DAY: Duration = Duration::from_secs(20 * 60);

#[derive(Debug)]
pub(super) struct Diurnal;

impl Life for Diurnal {
    fn wants(&mut self, now: Instant, share: &Share, _chance: &mut Chance) -> Demand {
        let height = height(now);
        Demand {
            hot: share.permille(80 + 220 * height / 1000),
            cold: share.permille(100 + 150 * height / 1000),
            cache: share.permille(40 + 60 * height / 1000),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}

/// How high the sun stands, in permille: a smooth step up and down again, in integers.
fn height(now: Instant) -> u64 {
    let day = DAY.as_millis() as u64;
    let at = now.as_millis() % day * 2000 / day;
    let up = if at <= 1000 { at } else { 2000 - at };
    // 3x^2 - 2x^3
    up * up * (3000 - 2 * up) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noon_is_high_and_midnight_low_and_nothing_jumps() {
        let at = |s: u64| height(Instant::from_millis(s * 1000));
        assert_eq!([at(0), at(300), at(600), at(900), at(1200)], [0, 500, 1000, 500, 0]);
        assert!((0..1200).all(|s| at(s).abs_diff(at(s + 1)) <= 3));
    }
}
