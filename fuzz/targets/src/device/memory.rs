//! Guest memory that is mapped once and cleaned after each input: mapping and faulting it anew would
//! take longer than an input does.

use std::num::NonZeroUsize;

use memtide_units::{ByteSize, Gpa, GpaRange};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

/// The guest's memory as the device sees it; it knows which of its pages were written.
pub(crate) type Memory = GuestMemoryMmap<AtomicBitmap>;

/// A memory block of the guest: the smallest that there is.
pub(crate) const BLOCK: ByteSize = ByteSize::from_mib(2);

/// Where memory lies, in MiB: below the hole, above it, and up to the last page that a balloon can
/// name.
const REGIONS_MIB: [(u64, u64); 3] = [(0, 16), (32, 16), ((16 << 20) - 2, 2)];

const PAGE: usize = 4096;

/// Guest memory as ranges.
pub(crate) fn ranges() -> [GpaRange; 3] {
    REGIONS_MIB.map(|(start, len)| {
        GpaRange::new(Gpa(start << 20), ByteSize::from_mib(len)).expect("a range that is not empty")
    })
}

/// The addresses of block `number`, in memory or not.
pub(crate) fn block(number: u64) -> GpaRange {
    GpaRange::new(Gpa(number * BLOCK.bytes()), BLOCK).expect("the number is small")
}

thread_local! {
    static MEMORY: Memory = map();
}

fn map() -> Memory {
    let page = NonZeroUsize::new(PAGE).expect("it is not zero");
    let region = |range: GpaRange| {
        let len = range.len().bytes() as usize;
        let bitmap = AtomicBitmap::new(len, page);
        let builder = vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(len, bitmap)
            .with_mmap_prot(3)
            .with_mmap_flags(PRIVATE_ANONYMOUS);
        let mapping = builder.build().expect("a test needs memory");
        GuestRegionMmap::new(mapping, GuestAddress(range.start().0)).expect("it does not wrap")
    };
    Memory::from_regions(ranges().map(region).into()).expect("the regions do not overlap")
}

/// `MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE`.
const PRIVATE_ANONYMOUS: i32 = 0x02 | 0x20 | 0x4000;

/// Runs `work` on memory that is all zero.
pub(crate) fn with(work: impl FnOnce(&Memory)) {
    MEMORY.with(|memory| {
        work(memory);
        clean(memory);
    });
}

fn clean(memory: &Memory) {
    let zeros = [0; PAGE];
    for (region, range) in memory.iter().zip(ranges()) {
        let mapping = region.get_mmap();
        for (n, word) in mapping.bitmap().get_and_reset().into_iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                let at = range.start().0 + ((64 * n + bit) * PAGE) as u64;
                memory.write_slice(&zeros, GuestAddress(at)).expect("a page that was written");
            }
        }
        mapping.bitmap().reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_input_wrote_the_next_does_not_see() {
        let at = GuestAddress((32 << 20) + 5000);
        with(|memory| memory.write_obj(7_u16, at).unwrap());
        with(|memory| assert_eq!(memory.read_obj::<u16>(at).unwrap(), 0));
    }
}
