//! Most of what it has lies idle for eight minutes, and is then used for four: a service with rare visitors.

use std::time::Duration;

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

const SLEEPS: Duration = Duration::from_secs(8 * 60);
const IS_UP: Duration = Duration::from_secs(4 * 60);

#[derive(Debug)]
pub(super) struct Waking;

impl Life for Waking {
    fn wants(&mut self, now: Instant, share: &Share, _chance: &mut Chance) -> Demand {
        let at = now.as_millis() % (SLEEPS + IS_UP).as_millis() as u64;
        let (hot, cold) = if at < SLEEPS.as_millis() as u64 { (60, 340) } else { (300, 100) };
        Demand {
            hot: share.permille(hot),
            cold: share.permille(cold),
            cache: share.permille(40),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}
