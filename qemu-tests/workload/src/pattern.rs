//! What a page must contain, and what it means when it contains something else.
//!
//! Every page carries a [`Stamp`]: whose it is, which one, and how often it was rewritten. The
//! stamp goes through a reversible mix and becomes the first word; each further word is the one
//! before it plus an odd stride, a quarter of the page long; the other quarters repeat the first, and
//! the last word of the page is the sum of all others. One addition and one comparison per word check
//! the whole page, and because the mix can be undone, a wrong page tells which page it really is: an
//! old copy of itself, or somebody else's. The quarters are alike so that a page shrinks in compressed
//! memory as programs' pages do.

/// Bytes of a page: x86's small page, whatever the kernel maps it with.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Words of a page.
pub(crate) const PAGE_WORDS: usize = PAGE_BYTES / size_of::<u64>();

/// One page as the processor reads it.
pub(crate) type Page = [u64; PAGE_WORDS];

/// Words that follow the stride; the sum is the one after them.
const BODY_WORDS: usize = PAGE_WORDS - 1;

/// Words after which a page repeats itself.
const PERIOD: usize = PAGE_WORDS / 4;

/// The difference of neighbouring words: 2^64 over the golden ratio, made odd. Odd keeps all words
/// of a quarter distinct, and its many set bits make every byte of a page change from word to word.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// Multiplier of the mix (any odd number with well-spread bits) and its inverse modulo 2^64.
const MIX: u64 = 0xD6E8_FEB8_6659_FD93;
const UNMIX: u64 = inverse(MIX);

/// Four times `0 + 1 + ... + (PERIOD - 1)` less the last, in whose place the sum itself is: how often
/// the stride is in the sum of a page.
const STRIDES_IN_SUM: u64 = (4 * (PERIOD * (PERIOD - 1) / 2) - (PERIOD - 1)) as u64;

/// Chosen once per run, so that a page which another run of this program left behind is no page of
/// ours even where its stamp agrees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Salt(u64);

impl Salt {
    /// The salt of the run that was started by process `pid` at `unix_nanos`.
    pub(crate) fn of_run(pid: u32, unix_nanos: u128) -> Self {
        // The low half of the nanoseconds changes between runs; the process tells two runs of one
        // instant apart.
        let nanos = (unix_nanos & u128::from(u64::MAX)) as u64;
        Self(mix(nanos ^ (u64::from(pid) << 32)))
    }
}

/// Whose page it is, which one, and how often it was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The mapping or file: a new number for each, so memory that was freed and mapped again is
    /// told apart from its earlier life (until 65536 mappings later).
    pub(crate) extent: u16,
    /// Index of the page in it.
    pub(crate) page: u32,
    /// Rewrites so far, modulo 65536.
    pub(crate) generation: u16,
}

impl Stamp {
    /// The first word of the page with this stamp.
    pub(crate) fn seed(self, salt: Salt) -> u64 {
        let packed = (u64::from(self.extent) << 48)
            | (u64::from(self.page) << 16)
            | u64::from(self.generation);
        mix(packed ^ salt.0)
    }

    /// The stamp of the page that begins with `seed`.
    fn of_seed(seed: u64, salt: Salt) -> Self {
        let packed = unmix(seed) ^ salt.0;
        Self {
            extent: (packed >> 48) as u16,
            page: (packed >> 16) as u32,
            generation: packed as u16,
        }
    }
}

/// How a page is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// All zero: its backing was dropped while it was in use.
    Zeroed,
    /// A whole, earlier version of this page: a write was lost.
    Stale {
        /// The generation that it is of.
        generation: u16,
    },
    /// A whole page, but another one (or one of another run).
    Foreign {
        /// The stamp that it carries, read with this run's salt.
        found: Stamp,
    },
    /// Neither zero nor any whole page.
    Corrupt {
        /// Byte offset in the page of the first word that is wrong.
        offset: usize,
        /// The word that should be there.
        expected: u64,
        /// The word that is.
        found: u64,
    },
}

/// Writes the page that begins with `seed`.
pub(crate) fn write(page: &mut Page, seed: u64) {
    for quarter in page[..BODY_WORDS].chunks_mut(PERIOD) {
        let mut word = seed;
        for slot in quarter {
            *slot = word;
            word = word.wrapping_add(STRIDE);
        }
    }
    page[BODY_WORDS] = sum(seed);
}

/// True where `page` is exactly the page that begins with `seed`: every byte of it is compared.
pub(crate) fn is_intact(page: &Page, seed: u64) -> bool {
    // Differences are collected instead of branched on, and eight words go to one turn of the
    // loop: emulated processors pay for branches, and debug builds do not unroll.
    let mut difference = page[BODY_WORDS] ^ sum(seed);
    for quarter in page[..BODY_WORDS].chunks(PERIOD) {
        let mut word = seed;
        let (groups, rest) = quarter.as_chunks::<8>();
        for group in groups {
            let mut step = word;
            for found in group {
                difference |= found ^ step;
                step = step.wrapping_add(STRIDE);
            }
            word = step;
        }
        for found in rest {
            difference |= found ^ word;
            word = word.wrapping_add(STRIDE);
        }
    }
    difference == 0
}

/// The word at `index` of the page that begins with `seed`.
pub(crate) fn word(seed: u64, index: usize) -> u64 {
    if index < BODY_WORDS {
        seed.wrapping_add(STRIDE.wrapping_mul((index % PERIOD) as u64))
    } else {
        sum(seed)
    }
}

/// What is wrong with a page that should carry `expected`; `None` where nothing is.
pub(crate) fn diagnose(page: &Page, expected: Stamp, salt: Salt) -> Option<Fault> {
    let seed = expected.seed(salt);
    let wrong = page.iter().enumerate().find(|(index, found)| **found != word(seed, *index));
    let (index, &found) = wrong?;
    if page.iter().all(|&word| word == 0) {
        return Some(Fault::Zeroed);
    }
    if is_intact(page, page[0]) {
        return Some(misplaced(Stamp::of_seed(page[0], salt), expected));
    }
    let offset = index * size_of::<u64>();
    Some(Fault::Corrupt { offset, expected: word(seed, index), found })
}

/// A whole page with the wrong stamp: the same page at another time, or another page.
fn misplaced(found: Stamp, expected: Stamp) -> Fault {
    if (found.extent, found.page) == (expected.extent, expected.page) {
        Fault::Stale { generation: found.generation }
    } else {
        Fault::Foreign { found }
    }
}

/// The sum of the body of the page that begins with `seed`.
fn sum(seed: u64) -> u64 {
    seed.wrapping_mul(BODY_WORDS as u64).wrapping_add(STRIDE.wrapping_mul(STRIDES_IN_SUM))
}

fn mix(value: u64) -> u64 {
    fold(fold(value).wrapping_mul(MIX))
}

fn unmix(value: u64) -> u64 {
    fold(fold(value).wrapping_mul(UNMIX))
}

/// Its own inverse, since it leaves the upper half alone.
fn fold(value: u64) -> u64 {
    value ^ (value >> 32)
}

/// The inverse of an odd number modulo 2^64 by Newton's method: an odd number is its own inverse
/// modulo 8, and each round doubles the bits that are right (3, 6, 12, 24, 48, 96).
const fn inverse(odd: u64) -> u64 {
    let mut guess = odd;
    let mut round = 0;
    while round < 5 {
        guess = guess.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(guess)));
        round += 1;
    }
    guess
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SALT: Salt = Salt(0x1234_5678_9ABC_DEF0);
    const HERE: Stamp = Stamp { extent: 3, page: 70_000, generation: 5 };

    fn page_of(stamp: Stamp) -> Page {
        let mut page = [0; PAGE_WORDS];
        write(&mut page, stamp.seed(SALT));
        page
    }

    #[test]
    fn a_good_page_has_no_fault() {
        let page = page_of(HERE);
        assert!(is_intact(&page, HERE.seed(SALT)));
        assert_eq!(diagnose(&page, HERE, SALT), None);
        for (index, found) in page.iter().enumerate() {
            assert_eq!(*found, word(HERE.seed(SALT), index), "word {index}");
        }
    }

    #[test]
    fn the_last_word_is_the_sum_of_the_others() {
        let page = page_of(HERE);
        let total = page[..BODY_WORDS].iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
        assert_eq!(page[BODY_WORDS], total);
    }

    #[test]
    fn a_zero_page_is_named_zeroed() {
        let page = [0; PAGE_WORDS];
        assert!(!is_intact(&page, HERE.seed(SALT)));
        assert_eq!(diagnose(&page, HERE, SALT), Some(Fault::Zeroed));
    }

    #[test]
    fn an_old_generation_is_named_stale() {
        let page = page_of(Stamp { generation: 4, ..HERE });
        assert!(!is_intact(&page, HERE.seed(SALT)));
        assert_eq!(diagnose(&page, HERE, SALT), Some(Fault::Stale { generation: 4 }));
    }

    #[test]
    fn a_page_of_another_place_is_named_foreign() {
        for found in [Stamp { page: 70_001, ..HERE }, Stamp { extent: 2, ..HERE }] {
            let page = page_of(found);
            assert!(!is_intact(&page, HERE.seed(SALT)));
            assert_eq!(diagnose(&page, HERE, SALT), Some(Fault::Foreign { found }));
        }
    }

    #[test]
    fn the_same_page_of_another_run_is_foreign() {
        let mut page = [0; PAGE_WORDS];
        write(&mut page, HERE.seed(Salt::of_run(17, 1)));
        assert!(matches!(diagnose(&page, HERE, SALT), Some(Fault::Foreign { .. })));
    }

    #[test]
    fn a_page_of_two_halves_is_corrupt_where_they_meet() {
        let (mut page, old) = (page_of(HERE), page_of(Stamp { generation: 4, ..HERE }));
        page[256..].copy_from_slice(&old[256..]);
        let fault = diagnose(&page, HERE, SALT);
        assert!(matches!(fault, Some(Fault::Corrupt { offset: 2048, .. })), "{fault:?}");
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_named_corrupt_at_its_word(at in 0..PAGE_WORDS, bit in 0..64_u32) {
            let mut page = page_of(HERE);
            let expected = page[at];
            page[at] ^= 1 << bit;
            prop_assert!(!is_intact(&page, HERE.seed(SALT)));
            let fault = Fault::Corrupt { offset: at * 8, expected, found: page[at] };
            prop_assert_eq!(diagnose(&page, HERE, SALT), Some(fault));
        }

        #[test]
        fn a_stamp_survives_its_seed(extent: u16, page: u32, generation: u16, salt: u64) {
            let stamp = Stamp { extent, page, generation };
            prop_assert_eq!(Stamp::of_seed(stamp.seed(Salt(salt)), Salt(salt)), stamp);
        }

        #[test]
        fn the_quick_check_and_the_diagnosis_agree(words in prop::collection::vec(any::<u64>(), PAGE_WORDS)) {
            let page: Page = words.try_into().expect("the vector has the length of a page");
            prop_assert_eq!(is_intact(&page, HERE.seed(SALT)), diagnose(&page, HERE, SALT).is_none());
        }
    }
}
