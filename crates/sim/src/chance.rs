//! Chance that can be had again: the same seed draws the same.

/// What draws. Each has a stream of its own, so that one draw more in one place does not change
/// what happens everywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// What kind of guest it is.
    Scenario = 1,
    /// Where pages lie, which of them do not move, how long things take.
    Kernel = 2,
    /// What the workload does next.
    Workload = 3,
    /// What the access monitor happens to look at.
    Monitor = 4,
    /// When something goes wrong.
    Faults = 5,
    /// How long the host takes.
    Host = 6,
    /// Which pages the monitor's sample is made of.
    Pages = 7,
    /// When an operator changes the limits, and to what.
    Limits = 8,
}

/// `SplitMix64` (Steele, Lea, Flood 2014): a few lines whose values never change with a library.
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// What `stream` draws under `seed`.
    pub fn of(seed: u64, stream: Stream) -> Self {
        let mut chance = Self { state: seed };
        let start = chance.next();
        Self { state: start ^ (stream as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low + self.next() % span
    }

    /// True in so many of a thousand cases.
    pub fn happens(&mut self, permille: u64) -> bool {
        self.next() % 1000 < permille
    }

    /// One of `choices`, which must not be empty.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.next() % choices.len() as u64) as usize]
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
    fn a_seed_draws_the_same_and_streams_differ() {
        let draw = |seed, stream| {
            let mut chance = Chance::of(seed, stream);
            (0..100).map(|_| chance.between(10, 2000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, Stream::Kernel), draw(7, Stream::Kernel));
        assert_ne!(draw(7, Stream::Kernel), draw(8, Stream::Kernel));
        assert_ne!(draw(7, Stream::Kernel), draw(7, Stream::Faults));
        assert!(draw(7, Stream::Host).iter().all(|drawn| (10..=2000).contains(drawn)));
    }
}
