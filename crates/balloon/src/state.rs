//! What of a device goes along when its guest is migrated, or restored from a snapshot.
//!
//! Only what cannot be asked again, and what the guest has seen and must not see jump. The rings'
//! places are the VMM's, features are negotiated anew, statistics and telemetry come again within
//! seconds, and an agent repeats its hello and its question. The stolen map would come with that
//! hello; until then it keeps the books of the host right.
//!
//! ```text
//! "MTDS" u32 | version u16 = 1 | flags u16 | num_pages u32 | actual u32 | poison_val u32
//! generation u32 | hello_epoch u32 | ranges u32 | then for each: start u64 | length u64
//! ```
//! All little-endian; flag 1: the driver has said its poison value. What the guest is guaranteed does
//! not go along: a host gives its own word on that, and nobody who writes a snapshot does.
//!
//! Whoever hands the bytes over is not trusted: a state that makes no sense changes nothing, and none
//! can make the device drop memory.

use memtide_units::{ByteSize, Gpa, GpaRange};
use memtide_wire::block::RANGES_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::device::{Balloon, Rings};
use crate::range_set::RangeSet;
use crate::said::Poison;

const MAGIC: u32 = u32::from_le_bytes(*b"MTDS");

/// A device that knows another version must not guess.
const VERSION: u16 = 1;

/// The driver has said its poison value.
const POISON_TOLD: u16 = 1;

/// Bytes of the largest state: the map of stolen blocks is as limited as a hello's.
pub const STATE_MAX: usize = size_of::<Head>() + RANGES_MAX * size_of::<Span>();

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: U32,
    version: U16,
    flags: U16,
    num_pages: U32,
    actual: U32,
    poison_val: U32,
    generation: U32,
    hello_epoch: U32,
    ranges: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Span {
    start: U64,
    len: U64,
}

/// Why a state is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The device has a driver.
    #[error("the device runs: a state is taken while all its rings are stopped")]
    Running,
    /// Other bytes stand where the magic should.
    #[error("{0} bytes that do not begin like the state of a balloon")]
    NoState(usize),
    /// A device of another version wrote it.
    #[error("the state is of version {0}, this program reads version {VERSION}")]
    Version(u16),
    /// It is cut, or has something behind its end.
    #[error("the state has {0} bytes, and by what it says of itself {1}")]
    Size(usize, usize),
    /// More stolen ranges than an agent can name.
    #[error("the state names {0} ranges, more than {RANGES_MAX}")]
    TooManyRanges(u32),
    /// A range that is none, or one that overlaps another.
    #[error("the state's range {0} is empty, too high, or named twice")]
    BadRange(usize),
}

impl Balloon {
    /// The state, to be loaded into the device that takes this one's place.
    pub fn save_state(&self) -> Vec<u8> {
        let balloon = &self.config.balloon;
        let extension = &self.config.extension;
        let head = Head {
            magic: U32::new(MAGIC),
            version: U16::new(VERSION),
            flags: U16::new(if self.poison_is() == Poison::Told { POISON_TOLD } else { 0 }),
            num_pages: balloon.num_pages,
            actual: balloon.actual,
            poison_val: balloon.poison_val,
            generation: extension.generation,
            hello_epoch: extension.hello_epoch,
            ranges: U32::new(self.stolen.len() as u32),
        };
        let mut bytes = head.as_bytes().to_vec();
        for range in self.stolen.iter() {
            let (start, len) = (U64::new(range.start().0), U64::new(range.len().bytes()));
            bytes.extend_from_slice(Span { start, len }.as_bytes());
        }
        bytes
    }

    /// Takes the place of the device that saved this state. A balloon's size that somebody has
    /// already set here counts more: it is this host's word, and later.
    ///
    /// The agent has to say hello again, and the driver is told to look at the configuration as
    /// soon as a ring runs.
    ///
    /// # Errors
    /// [`StateError`]; the device is as it was.
    pub fn load_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        if self.rings() != Rings::Stopped {
            return Err(StateError::Running);
        }
        let (head, stolen) = decode(bytes)?;
        let config = &mut self.config;
        if config.balloon.num_pages.get() == 0 {
            config.balloon.num_pages = head.num_pages;
        }
        config.extension.generation = head.generation;
        config.extension.hello_epoch = head.hello_epoch;
        let is_told = head.flags.get() & POISON_TOLD != 0;
        let poison = if is_told { Poison::Told } else { Poison::Unknown };
        self.set_poison(head.poison_val.get(), poison);
        self.set_actual(head.actual.get());
        self.stolen = stolen;
        self.ask_hello();
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<(Head, RangeSet), StateError> {
    let no_state = || StateError::NoState(bytes.len());
    let (head, rest) = Head::read_from_prefix(bytes).map_err(|_| no_state())?;
    if head.magic.get() != MAGIC {
        return Err(no_state());
    }
    if (head.version.get(), head.flags.get() & !POISON_TOLD) != (VERSION, 0) {
        return Err(StateError::Version(head.version.get()));
    }
    let count = head.ranges.get();
    if count as usize > RANGES_MAX {
        return Err(StateError::TooManyRanges(count));
    }
    let wanted = count as usize * size_of::<Span>();
    if rest.len() != wanted {
        return Err(StateError::Size(bytes.len(), size_of::<Head>() + wanted));
    }
    let mut stolen = RangeSet::default();
    for (index, bytes) in rest.chunks_exact(size_of::<Span>()).enumerate() {
        let range = range_of(bytes).filter(|range| !stolen.overlaps(*range));
        stolen.insert(range.ok_or(StateError::BadRange(index))?);
    }
    Ok((head, stolen))
}

fn range_of(bytes: &[u8]) -> Option<GpaRange> {
    let span = Span::read_from_bytes(bytes).ok()?;
    GpaRange::new(Gpa(span.start.get()), ByteSize::from_bytes(span.len.get())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, Settings};
    use memtide_units::Instant;
    use proptest::prelude::*;

    fn mib(mib: u64) -> ByteSize {
        ByteSize::from_mib(mib)
    }

    fn device() -> Balloon {
        Balloon::new(Settings::default(), Instant::default())
    }

    /// A device that has been told and has done something of everything.
    fn used() -> Balloon {
        let mut balloon = device();
        balloon.set_target(mib(64));
        balloon.set_min(mib(256));
        balloon.write_config(4, &1024_u32.to_le_bytes());
        balloon.write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
        for block in [8, 9, 12] {
            balloon.stolen.insert(GpaRange::new(Gpa(block << 27), mib(128)).unwrap());
        }
        balloon
    }

    #[test]
    fn a_state_goes_round() {
        let before = used();
        let bytes = before.save_state();
        assert_eq!(bytes.len(), size_of::<Head>() + 2 * size_of::<Span>());
        let mut after = device();
        after.load_state(&bytes).unwrap();
        assert_eq!((after.target(), after.actual(), after.min()), (mib(64), mib(4), mib(0)));
        assert_eq!((after.poison(), after.stolen()), (0xaaaa_aaaa, before.stolen()));
        assert_eq!(after.poison_is(), Poison::Told);
        let mut other = device();
        other.load_state(&device().save_state()).unwrap();
        assert_eq!(other.poison_is(), Poison::Unknown, "who did not know does not pretend to");
        assert_eq!(after.take_events(), [Event::Balloon { actual: mib(4) }]);
        assert!(after.take_look_again());
        assert_ne!(after.hello_epoch(), before.hello_epoch(), "the agent introduces itself");
        // The guest's generation moves on from where it stood.
        let generation = |balloon: &Balloon| balloon.config.extension.generation.get();
        assert_eq!(generation(&after), generation(&before) + 1);
    }

    #[test]
    fn the_word_of_this_host_counts_more() {
        let mut after = device();
        after.set_target(mib(1));
        after.set_min(mib(2));
        after.load_state(&used().save_state()).unwrap();
        assert_eq!((after.target(), after.min()), (mib(1), mib(2)));
    }

    #[test]
    fn a_device_that_runs_takes_none() {
        let mut after = device();
        after.set_rings(Rings::Standard);
        assert_eq!(after.load_state(&used().save_state()), Err(StateError::Running));
    }

    #[test]
    fn what_makes_no_sense_is_named_and_changes_nothing() {
        let good = used().save_state();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let end = size_of::<Head>();
        let mut too_high = good.clone();
        too_high[end..end + 16].fill(0xff);
        for (bytes, error) in [
            (vec![], StateError::NoState(0)),
            (good[..end - 1].to_vec(), StateError::NoState(end - 1)),
            (with(0, 0), StateError::NoState(good.len())),
            (with(4, 2), StateError::Version(2)),
            (with(6, 3), StateError::Version(1)),
            (good[..good.len() - 1].to_vec(), StateError::Size(good.len() - 1, good.len())),
            ([&good[..], &[0]].concat(), StateError::Size(good.len() + 1, good.len())),
            (with(30, 1), StateError::TooManyRanges(0x1_0002)),
            (too_high, StateError::BadRange(0)),
            (with(end + 11, 0), StateError::BadRange(0)),
            ([&good[..end + 16], &good[end..end + 16]].concat(), StateError::BadRange(1)),
        ] {
            let mut after = device();
            assert_eq!(after.load_state(&bytes), Err(error));
            assert_eq!(after.save_state(), device().save_state());
            assert!(!after.take_look_again());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), keep in 0_usize..80) {
            let good = used().save_state();
            let keep = keep.min(bytes.len()).min(good.len());
            bytes[..keep].copy_from_slice(&good[..keep]);
            let mut after = device();
            if after.load_state(&bytes).is_ok() {
                prop_assert!(after.save_state().len() <= STATE_MAX);
            }
        }
    }
}
