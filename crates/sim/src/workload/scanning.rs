//! Files larger than memory, read once each: a backup, a search.

use std::time::Duration;

use memtide_units::{ByteSize, Instant};

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::{Demand, in_pages};

/// A fast virtual disk.
const PER_SECOND: ByteSize = ByteSize::from_mib(150);

#[derive(Debug, Default)]
pub(super) struct Scanning {
    is_reading: bool,
    next: Instant,
}

impl Life for Scanning {
    fn wants(&mut self, now: Instant, share: &Share, chance: &mut Chance) -> Demand {
        if now >= self.next {
            self.is_reading = !self.is_reading;
            self.next = now + Duration::from_secs(chance.between(20, 120));
        }
        Demand {
            hot: share.permille(100),
            cold: share.permille(100),
            cache: share.permille(80),
            streamed: if self.is_reading { in_pages(PER_SECOND) } else { 0 },
            kernel: share.permille(if self.is_reading { 8 } else { 4 }),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}
