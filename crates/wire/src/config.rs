//! The device's configuration space: 16 standard bytes, then Memtide's extension.
//!
//! ```text
//!  0 num_pages u32   4 actual u32   8 free_page_hint_cmd_id u32   12 poison_val u32
//! 16 magic u32      20 version u16 22 block_queue u16
//! 24 request_max u32               28 generation u32
//! 32 hello_epoch u32               36 reclaim_unit u32
//! 40 piece u32                     44 plugging u32
//! 48.. zero
//! ```
//! All little-endian. A stock driver reads the first 16 bytes only.

use memtide_units::ByteSize;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::PIECE;

/// Bytes of configuration space that the device offers; QEMU is started with `config_size=64`.
pub const CONFIG_LEN: usize = 64;
/// Where the extension starts.
pub const EXTENSION_OFFSET: usize = 16;
/// "MTDE" in the order of the bytes.
pub const MAGIC: u32 = u32::from_le_bytes(*b"MTDE");
/// Version of the extension and of the block queue. A driver that knows another must not use them.
pub const VERSION: u16 = 1;

/// `struct virtio_balloon_config` (virtio 1.3, 5.5.4).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct BalloonConfig {
    /// 4 KiB pages that the host wants in the balloon. Written by the device alone.
    pub num_pages: U32,
    /// 4 KiB pages that the driver says are in it. Written by the driver.
    pub actual: U32,
    /// Command id of free page hinting; 0 means stop.
    pub free_page_hint_cmd_id: U32,
    /// What free pages are filled with, where `PAGE_POISON` was acked. Written by the driver.
    pub poison_val: U32,
}

/// Memtide's extension, from byte 16 on.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Extension {
    /// [`MAGIC`], or there is no extension.
    pub magic: U32,
    /// [`VERSION`].
    pub version: U16,
    /// Index of the block queue.
    pub block_queue: U16,
    /// Largest request on the block queue, in bytes, header included.
    pub request_max: U32,
    /// Changes whenever the driver should look again: a new `num_pages`, a decision on a return.
    pub generation: U32,
    /// The hello that the device wants carries this epoch; a change asks for a new hello.
    pub hello_epoch: U32,
    /// What the host is sure to reclaim, in bytes: the largest page size of its that is under this
    /// guest.
    pub reclaim_unit: U32,
    /// The least that a request names by itself, in bytes: [`PIECE`]. 0 where that is
    /// whole memory blocks: the host's pages are larger than a piece, or the device is older than this
    /// field.
    pub piece: U32,
    /// Whether what the guest ejects is plugged in again when it asks: [`Plugging`].
    pub plugging: U32,
}

/// What comes of memory that the guest ejects (ACPI's `_EJ0`): it cannot plug it in again by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plugging {
    /// It is gone. Also where the device is older than the field.
    #[default]
    Nobody,
    /// The device knows what was ejected, and takes it for stolen in a hello; just now nobody is there
    /// who could plug it in, or would answer for it.
    Known,
    /// And somebody is there: memory may be ejected.
    Ready,
}

impl Plugging {
    /// The number in the configuration.
    pub const fn code(self) -> u32 {
        match self {
            Self::Nobody => 0,
            Self::Known => 1,
            Self::Ready => 2,
        }
    }

    /// What a number says. One of a newer device promises nothing.
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Known,
            2 => Self::Ready,
            _ => Self::Nobody,
        }
    }
}

impl Extension {
    /// The extension of a device whose block queue has index `block_queue`.
    pub fn new(block_queue: u16, reclaim_unit: ByteSize) -> Self {
        let mut new = Self {
            magic: U32::new(MAGIC),
            version: U16::new(VERSION),
            block_queue: U16::new(block_queue),
            request_max: U32::new(crate::block::REQUEST_MAX as u32),
            generation: U32::new(1),
            hello_epoch: U32::new(1),
            reclaim_unit: U32::new(0),
            piece: U32::new(0),
            plugging: U32::new(Plugging::Nobody.code()),
        };
        new.set_reclaim_unit(reclaim_unit);
        new
    }

    /// What the host is sure to reclaim; and whether a piece is as much as that.
    pub fn set_reclaim_unit(&mut self, unit: ByteSize) {
        let piece = if unit <= PIECE { PIECE } else { ByteSize::ZERO };
        self.reclaim_unit = U32::new(u32::try_from(unit.bytes()).unwrap_or(u32::MAX));
        self.piece = U32::new(piece.bytes() as u32);
    }

    /// The extension in these configuration bytes, whatever they are.
    ///
    /// # Errors
    /// [`NoExtension`] tells what is there instead.
    pub fn find(config: &[u8]) -> Result<Self, NoExtension> {
        let bytes = config.get(EXTENSION_OFFSET..).ok_or(NoExtension::TooShort(config.len()))?;
        let (found, _) =
            Self::read_from_prefix(bytes).map_err(|_| NoExtension::TooShort(config.len()))?;
        match (found.magic.get(), found.version.get()) {
            (MAGIC, VERSION) => Ok(found),
            (MAGIC, version) => Err(NoExtension::Version(version)),
            (magic, _) => Err(NoExtension::Magic(magic)),
        }
    }
}

/// Why a balloon has no usable extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoExtension {
    /// The configuration space ends before the extension does.
    #[error("the configuration space has {0} bytes and no room for Memtide's extension")]
    TooShort(usize),
    /// Other bytes stand where the magic should.
    #[error(
        "no Memtide device: {0:#010x} stands where its magic should, so this is a plain balloon"
    )]
    Magic(u32),
    /// A Memtide device of another version.
    #[error("the device speaks version {0} of Memtide's extension, this program version {VERSION}")]
    Version(u16),
}

/// The whole configuration space as the device keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// The standard part.
    pub balloon: BalloonConfig,
    /// Memtide's part.
    pub extension: Extension,
}

/// The driver's fields in a write to the configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigWrite {
    /// The driver's `actual`, in 4 KiB pages.
    pub actual: Option<u32>,
    /// The driver's poison value.
    pub poison_val: Option<u32>,
}

impl ConfigSpace {
    fn bytes(&self) -> [u8; CONFIG_LEN] {
        let mut all = [0; CONFIG_LEN];
        let (standard, rest) = all.split_at_mut(EXTENSION_OFFSET);
        standard.copy_from_slice(self.balloon.as_bytes());
        let extension = self.extension.as_bytes();
        rest[..extension.len()].copy_from_slice(extension);
        all
    }

    /// Fills `out` with the bytes from `offset` on: always the whole of it, zeros past the end,
    /// since a short answer stops a Cloud Hypervisor VM.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        out.fill(0);
        let all = self.bytes();
        if let Some(rest) = all.get(offset..) {
            let len = rest.len().min(out.len());
            out[..len].copy_from_slice(&rest[..len]);
        }
    }

    /// Takes the driver's fields out of a write and leaves all others as they are: QEMU writes the
    /// whole space back for one changed field, with whatever it last read in the others. Says what
    /// the write named, whether that is new or not.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> ConfigWrite {
        let field = |at: usize| -> Option<u32> {
            let from = at.checked_sub(offset)?;
            let bytes = data.get(from..from.checked_add(4)?)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let write = ConfigWrite { actual: field(4), poison_val: field(12) };
        if let Some(actual) = write.actual {
            self.balloon.actual = U32::new(actual);
        }
        if let Some(poison) = write.poison_val {
            self.balloon.poison_val = U32::new(poison);
        }
        write
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        ConfigSpace {
            balloon: BalloonConfig { num_pages: U32::new(512), ..BalloonConfig::default() },
            extension: Extension::new(5, ByteSize::from_kib(4)),
        }
    }

    #[test]
    fn a_driver_finds_the_extension_and_says_why_not() {
        let mut bytes = [0; CONFIG_LEN];
        space().read(0, &mut bytes);
        let found = Extension::find(&bytes).unwrap();
        assert_eq!((found.block_queue.get(), found.reclaim_unit.get()), (5, 4096));
        assert_eq!((&bytes[40..44], &bytes[44..]), (&[0, 0, 32, 0][..], &[0; 20][..]), "2 MiB");
        let promises = [0, 1, 2, 3].map(|code| Plugging::from_code(code).code());
        assert_eq!((found.plugging.get(), promises), (0, [0, 1, 2, 0]));
        assert_eq!(Extension::find(&bytes[..16]), Err(NoExtension::TooShort(16)));
        assert_eq!(Extension::find(&[0; 64]), Err(NoExtension::Magic(0)));
        bytes[20] = 9;
        assert_eq!(Extension::find(&bytes), Err(NoExtension::Version(9)));
    }

    #[test]
    fn pieces_are_offered_where_the_host_can_drop_one() {
        let piece = |unit: ByteSize| Extension::new(5, unit).piece.get();
        assert_eq!((piece(ByteSize::from_kib(64)), piece(PIECE)), (2 << 20, 2 << 20));
        assert_eq!((piece(ByteSize::from_mib(32)), piece(ByteSize::from_gib(1))), (0, 0));
    }

    #[test]
    fn writing_the_whole_space_back_changes_only_the_drivers_fields() {
        let mut config = space();
        let mut bytes = [0xff; CONFIG_LEN];
        bytes[4..8].copy_from_slice(&7_u32.to_le_bytes());
        let write = config.write(0, &bytes);
        assert_eq!(write, ConfigWrite { actual: Some(7), poison_val: Some(u32::MAX) });
        assert_eq!(config.balloon.num_pages.get(), 512);
        assert_eq!(config.extension, space().extension);
        let same = config.write(4, &7_u32.to_le_bytes());
        assert_eq!(same, ConfigWrite { actual: Some(7), poison_val: None });
        assert_eq!(config.write(5, &[0; 4]), ConfigWrite::default());
    }

    proptest! {
        #[test]
        fn any_offset_and_length_is_answered_in_full(offset in 0_usize..5000, len in 0_usize..300) {
            let mut out = vec![0xaa; len];
            space().read(offset, &mut out);
            if offset >= CONFIG_LEN { prop_assert!(out.iter().all(|byte| *byte == 0)); }
        }

        #[test]
        fn no_write_reaches_the_devices_fields(offset in 0_usize..5000, data in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut config = space();
            config.write(offset, &data);
            prop_assert_eq!(config.balloon.num_pages.get(), 512);
            prop_assert_eq!(config.extension, space().extension);
        }
    }
}
