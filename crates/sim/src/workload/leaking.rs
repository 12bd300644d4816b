//! What is never freed: it grows slowly, until somebody restarts it.

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

/// A restart comes when it has leaked so much of the guest.
const ENOUGH: u64 = 500;
/// In so many milliseconds it leaks a thousandth of the guest: 500 of them in four minutes.
const MS_PER_PERMILLE: u64 = 480;

#[derive(Debug, Default)]
pub(super) struct Leaking {
    born: Instant,
}

impl Life for Leaking {
    fn wants(&mut self, now: Instant, share: &Share, _chance: &mut Chance) -> Demand {
        let leaked = now.since(self.born).as_millis() as u64 / MS_PER_PERMILLE;
        if leaked > ENOUGH {
            self.born = now;
        }
        Demand {
            hot: share.permille(100),
            cold: share.permille(50 + leaked.min(ENOUGH)),
            cache: share.permille(50),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, now: Instant) {
        self.born = now;
    }
}
