//! The same all the time: a service under an even load.

use std::time::Duration;

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

/// It trembles once in a while, by less than a hundredth of the guest.
const BREATH: Duration = Duration::from_secs(3);
const TREMBLE: u64 = 8;

#[derive(Debug, Default)]
pub(super) struct Steady {
    tremble: u64,
    next: Instant,
}

impl Life for Steady {
    fn wants(&mut self, now: Instant, share: &Share, chance: &mut Chance) -> Demand {
        if now >= self.next {
            self.next = now + BREATH;
            self.tremble = chance.between(0, TREMBLE);
        }
        Demand {
            hot: share.permille(150 + self.tremble),
            cold: share.permille(200),
            cache: share.permille(60),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}
