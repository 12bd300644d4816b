//! Chance that can be had again: the same seed draws the same.

/// `SplitMix64` (Steele, Lea, Flood 2014): a few lines, and good enough to pick moments by.
#[derive(Clone, Debug)]
pub(crate) struct Chance {
    state: u64,
}

impl Chance {
    /// Draws from this seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number from `low` to `high`, `high` included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low + self.next() % span
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_within_bounds() {
        let draw = |seed| {
            let mut chance = Chance::of(seed);
            (0..100).map(|_| chance.between(100, 2000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|drawn| (100..=2000).contains(drawn)));
    }
}
