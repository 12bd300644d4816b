//! A database whose index lies in files: it reads them again and again, and each page of them once
//! every ten seconds.

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

#[derive(Debug)]
pub(super) struct Caching;

impl Life for Caching {
    fn wants(&mut self, _now: Instant, share: &Share, _chance: &mut Chance) -> Demand {
        Demand {
            hot: share.permille(80),
            cold: share.permille(60),
            cache: share.permille(400),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}
