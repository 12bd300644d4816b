//! What kind of balloon it is.

use memtide_units::ByteSize;
use memtide_wire::block::PIECE;
use memtide_wire::config::{Extension, NoExtension};

/// Reports in flight name so many of the host's pages at most, or one range: dropping 256 MiB of 4 KiB
/// pages takes the host 30 to 60 ms, in which the device answers nobody else. Pages of 2 MiB are
/// dropped as quickly, each.
const PAGES_AT_ONCE: u64 = 1 << 16;

/// What a balloon can do, by its configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Memtide device: it has a block queue, and a gate behind it.
    Gated(Extension),
    /// Any other: it is told what it may drop and what is used again, and is not asked.
    Plain(Plainness),
}

/// Why it is plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plainness {
    /// It knows nothing of Memtide: it is the VMM's own.
    Foreign,
    /// It is a Memtide device of another version, and so a process of its own that may die.
    OtherVersion,
}

/// The least that a device lets a request name by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// A memory block.
    Block(Coarseness),
    /// A piece of 2 MiB.
    Piece,
}

/// Why a device takes nothing smaller than memory blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coarseness {
    /// It is older than pieces are.
    Older,
    /// The host has pages this large under this guest, and can drop nothing smaller.
    HostPages(ByteSize),
    /// It is a plain balloon, whose books are kept in whole blocks.
    Plain,
}

impl Grain {
    /// What the extension's fields say.
    pub(super) fn of(piece: u32, reclaim_unit: u32) -> Self {
        let size = |bytes: u32| ByteSize::from_bytes(bytes.into());
        let (piece, unit) = (size(piece), size(reclaim_unit));
        if !piece.is_zero() && piece <= PIECE {
            Self::Piece
        } else if unit > PIECE {
            Self::Block(Coarseness::HostPages(unit))
        } else {
            Self::Block(Coarseness::Older)
        }
    }
}

impl Kind {
    /// The kind of the balloon with this configuration.
    pub fn of(config: &[u8]) -> Self {
        match Extension::find(config) {
            Ok(extension) => Self::Gated(extension),
            Err(NoExtension::Version(_)) => Self::Plain(Plainness::OtherVersion),
            Err(NoExtension::TooShort(_) | NoExtension::Magic(_)) => {
                Self::Plain(Plainness::Foreign)
            }
        }
    }

    /// What reports of stolen ranges in flight name at most, or one range. A plain balloon is told of one
    /// block at a time, since it takes ten times as long, and a return may have to wait for it.
    pub(super) fn drops_at_once(self) -> ByteSize {
        match self {
            Self::Gated(extension) => {
                ByteSize::from_bytes(extension.reclaim_unit.get().into()).times(PAGES_AT_ONCE)
            }
            Self::Plain(_) => ByteSize::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_wire::config::{BalloonConfig, CONFIG_LEN, ConfigSpace};

    #[test]
    fn a_device_says_what_it_takes_and_its_pages_say_why_not() {
        let grain =
            |piece: ByteSize, unit: ByteSize| Grain::of(piece.bytes() as u32, unit.bytes() as u32);
        let (none, small) = (ByteSize::ZERO, ByteSize::from_kib(4));
        assert_eq!(grain(PIECE, small), Grain::Piece);
        assert_eq!(grain(none, PIECE), Grain::Block(Coarseness::Older));
        let gib = ByteSize::from_gib(1);
        assert_eq!(grain(none, gib), Grain::Block(Coarseness::HostPages(gib)));
        // What another version may say.
        assert_eq!(grain(ByteSize::from_mib(4), small), Grain::Block(Coarseness::Older));
    }

    #[test]
    fn whatever_is_not_ours_is_plain() {
        let extension = Extension::new(5, ByteSize::from_kib(4));
        let mut bytes = [0; CONFIG_LEN];
        ConfigSpace { balloon: BalloonConfig::default(), extension }.read(0, &mut bytes);
        assert_eq!(Kind::of(&bytes), Kind::Gated(extension));
        bytes[20] = 2;
        assert_eq!(Kind::of(&bytes), Kind::Plain(Plainness::OtherVersion));
        for config in [&[0xff; 64][..], &[0; 16], &[]] {
            assert_eq!(Kind::of(config), Kind::Plain(Plainness::Foreign));
        }
    }
}
