//! Linux memory blocks: the unit in which memory goes offline and online.

use core::fmt;

use crate::{ByteSize, Gpa, GpaRange};

/// A memory block's number: `N` of `/sys/devices/system/memory/memoryN`, which is its physical
/// address divided by the block size (Documentation/admin-guide/mm/memory-hotplug.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct BlockId(pub u64);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory{}", self.0)
    }
}

/// A number that cannot be a block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes is no memory block size: a power of two from 2 MiB to 1 TiB was expected")]
pub struct BlockSizeError(pub u64);

/// The size of every memory block of one guest: a power of two, 128 MiB on small x86-64 guests,
/// up to 2 GiB on those with 64 GiB or more (arch/x86/mm/init_64.c, `probe_memory_block_size`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "ByteSize", into = "ByteSize"))]
pub struct BlockSize(ByteSize);

impl BlockSize {
    /// The size on x86-64 guests under 64 GiB: `MIN_MEMORY_BLOCK_SIZE`, one sparsemem section.
    pub const X86_SMALL: Self = Self(ByteSize::from_mib(128));

    /// Checks a size that a kernel or a guest stated.
    ///
    /// # Errors
    /// [`BlockSizeError`] unless it is a power of two from 2 MiB (a pageblock) to 1 TiB.
    pub const fn new(size: ByteSize) -> Result<Self, BlockSizeError> {
        let bytes = size.bytes();
        if bytes.is_power_of_two() && bytes >= 2 << 20 && bytes <= 1 << 40 {
            Ok(Self(size))
        } else {
            Err(BlockSizeError(bytes))
        }
    }

    /// In bytes.
    pub const fn size(self) -> ByteSize {
        self.0
    }

    /// The addresses of `block`, or `None` for a number past the address space.
    pub fn range(self, block: BlockId) -> Option<GpaRange> {
        let start = block.0.checked_mul(self.0.bytes())?;
        GpaRange::new(Gpa(start), self.0).ok()
    }

    /// The block that holds `gpa`.
    pub const fn block_of(self, gpa: Gpa) -> BlockId {
        BlockId(gpa.0 / self.0.bytes())
    }

    /// How many whole blocks `size` holds.
    pub const fn count_in(self, size: ByteSize) -> u64 {
        size.bytes() / self.0.bytes()
    }
}

impl TryFrom<ByteSize> for BlockSize {
    type Error = BlockSizeError;
    fn try_from(size: ByteSize) -> Result<Self, BlockSizeError> {
        Self::new(size)
    }
}

impl From<BlockSize> for ByteSize {
    fn from(size: BlockSize) -> Self {
        size.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_and_its_addresses_name_each_other() {
        let size = BlockSize::X86_SMALL;
        let range = size.range(BlockId(6)).unwrap();
        assert_eq!(range.start(), Gpa(6 * (128 << 20)));
        assert_eq!(size.block_of(Gpa(range.end().0 - 1)), BlockId(6));
        assert_eq!(size.block_of(range.end()), BlockId(7));
        assert_eq!(size.range(BlockId(u64::MAX)), None);
    }

    #[test]
    fn refuses_sizes_no_kernel_has() {
        for bytes in [0, 1, 4096, (128 << 20) + 1, 1 << 41] {
            assert_eq!(BlockSize::new(ByteSize::from_bytes(bytes)), Err(BlockSizeError(bytes)));
        }
    }
}
