//! Small changes to inputs, the same for the same seed: what libFuzzer does, as far as a smoke run
//! needs it.

/// A source of numbers that looks like chance (SplitMix64: Steele, Lea, Flood, "Fast splittable
/// pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; zero where that is zero.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }
}

/// Values at which programs go wrong more often than at others.
const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xfe, 0x10, 0x40];

/// A new input of at most `most` bytes: one of `corpus` with a few changes, or noise.
pub fn mutant(corpus: &[Vec<u8>], most: usize, chance: &mut Chance) -> Vec<u8> {
    let mut input = match corpus.get(chance.below(corpus.len() + 1)) {
        Some(input) => input.clone(),
        None => (0..chance.below(most.min(512))).map(|_| chance.next() as u8).collect(),
    };
    for _ in 0..=chance.below(6) {
        change(&mut input, corpus, chance);
    }
    input.truncate(most);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Chance) {
    let at = chance.below(input.len());
    match chance.below(7) {
        0 if !input.is_empty() => input[at] ^= 1 << chance.below(8),
        1 if !input.is_empty() => input[at] = chance.next() as u8,
        2 if !input.is_empty() => input[at] = EDGES[chance.below(EDGES.len())],
        3 => input.insert(at, chance.next() as u8),
        4 if !input.is_empty() => drop(input.remove(at)),
        5 => {
            let end = (at + chance.below(32)).min(input.len());
            let piece = input[at..end].to_vec();
            let to = chance.below(input.len());
            input.splice(to..to, piece);
        }
        // The head of this one and the tail of another.
        _ => {
            let Some(other) = corpus.get(chance.below(corpus.len())) else { return };
            input.truncate(at);
            input.extend_from_slice(&other[chance.below(other.len())..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_of_bounded_length() {
        let corpus = vec![b"one".to_vec(), vec![7; 300], Vec::new()];
        let inputs = |seed| {
            let mut chance = Chance::new(seed);
            (0..500).map(|_| mutant(&corpus, 256, &mut chance)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(3).iter().all(|input| input.len() <= 256));
    }
}
