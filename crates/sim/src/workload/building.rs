//! Somebody builds, looks at what came of it, and builds again.

use std::time::Duration;

use memtide_units::Instant;

use super::{Life, Share};
use crate::chance::Chance;
use crate::kernel::Demand;

/// It builds so long, and then nothing happens for so long.
const BUILD: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(20);
/// The first build comes when the guest has settled.
const FIRST: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub(super) struct Building;

impl Life for Building {
    fn wants(&mut self, now: Instant, share: &Share, _chance: &mut Chance) -> Demand {
        let since = now.since(Instant::default() + FIRST).as_millis();
        let at = since % (BUILD + IDLE).as_millis();
        let is_building = since > 0 && at < BUILD.as_millis();
        Demand {
            hot: share.permille(60 + if is_building { 250 } else { 0 }),
            cold: share.permille(60),
            cache: share.permille(if is_building { 120 } else { 30 }),
            kernel: share.permille(if is_building { 15 } else { 5 }),
            ..Demand::default()
        }
    }

    fn reborn(&mut self, _now: Instant) {}
}
