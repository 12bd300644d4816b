//! A quarter of the guest at once, for some seconds: a build, a report, a backup.

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;
use std::time::Duration;

/// What a burst wants: the surge that Memtide promises to survive.
const BURST: u64 = 250;

#[derive(Debug, Default)]
pub(super) struct Bursty {
    is_bursting: bool,
    next: Option<Instant>,
}

impl Life for Bursty {
    fn wants(&mut self, now: Instant, share: &Share, chance: &mut Chance) -> Demand {
        match self.next {
            None => self.next = Some(now + Duration::from_secs(chance.between(40, 90))),
            Some(next) if now >= next => {
                self.is_bursting = !self.is_bursting;
                let (low, high) = if self.is_bursting { (4, 30) } else { (30, 200) };
                self.next = Some(now + Duration::from_secs(chance.between(low, high)));
            }
            Some(_) => {}
        }
        Demand {
            hot: share.permille(100 + if self.is_bursting { BURST } else { 0 }),
            cold: share.permille(100),
            cache: share.permille(50),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, now: Instant) {
        (self.is_bursting, self.next) = (false, Some(now + Duration::from_secs(30)));
    }
}
