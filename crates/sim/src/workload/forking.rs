//! Many short processes: page tables and stacks come and go with them.

use std::time::Duration;

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

#[derive(Debug, Default)]
pub(super) struct Forking {
    /// What the processes of this moment have, in thousandths of the guest.
    children: u64,
    next: Instant,
}

impl Life for Forking {
    fn wants(&mut self, now: Instant, share: &Share, chance: &mut Chance) -> Demand {
        if now >= self.next {
            self.children = chance.between(0, 120);
            self.next = now + Duration::from_millis(chance.between(300, 3_000));
        }
        Demand {
            hot: share.permille(100 + self.children),
            cold: share.permille(120),
            cache: share.permille(60),
            // A small process has 20 KiB of stack and page tables to some 100 KiB of its own.
            kernel: share.permille(10 + self.children / 6),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}
