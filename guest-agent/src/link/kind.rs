//! What kind of balloon it is.

use memtide_units::ByteSize;
use memtide_wire::block::PIECE;
use memtide_wire::config::{Extension, NoExtension};

/// One report names so many of the host's pages at most, or one range: dropping 256 MiB of 4 KiB
/// pages takes the host 30 to 50 ms, in which the device answers nobody else. Pages of 2 MiB are
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
    /// A memory block: the device is older than what an agent can take.
    Block,
    /// A piece of 2 MiB.
    Piece,
}

impl Grain {
    /// What the extension's field says.
    pub(super) fn of(piece: u32) -> Self {
        let piece = ByteSize::from_bytes(piece.into());
        if piece.is_zero() || piece > PIECE { Self::Block } else { Self::Piece }
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

    /// What one report of stolen ranges names at most, or one range. A plain balloon is told of one
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
