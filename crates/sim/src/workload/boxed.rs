//! A container with a limit that is too small for it: it stalls, and nothing that the guest has
//! would help.

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

/// Thousandths of the time in which its tasks stall.
const STALLS: u32 = 80;

#[derive(Debug)]
pub(super) struct Boxed;

impl Life for Boxed {
    fn wants(&mut self, _now: Instant, share: &Share, _chance: &mut Chance) -> Demand {
        Demand {
            hot: share.permille(100),
            cold: share.permille(80),
            cache: share.permille(40),
            boxed: STALLS,
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}
