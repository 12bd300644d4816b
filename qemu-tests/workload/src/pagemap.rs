//! The physical page behind an address, so that a bad page can be found on the host.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::pattern::PAGE_BYTES;

/// Bit 63 of an entry: the page is in memory (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;

/// Bits 0 to 54: its frame number. Zero for readers without `CAP_SYS_ADMIN`.
const FRAME: u64 = (1 << 55) - 1;

/// The frame number of the page at `address` of this process: `None` where it is not in memory,
/// or where the reader may not know (only root may).
pub(crate) fn frame_of(address: usize) -> Option<u64> {
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let mut entry = [0; size_of::<u64>()];
    let offset = address / PAGE_BYTES * entry.len();
    pagemap.read_exact_at(&mut entry, offset as u64).ok()?;
    frame(u64::from_ne_bytes(entry))
}

fn frame(entry: u64) -> Option<u64> {
    let frame = entry & FRAME;
    (entry & PRESENT != 0 && frame != 0).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_known_only_when_present_and_shown() {
        assert_eq!(frame(PRESENT | (1 << 61) | 0x1234), Some(0x1234));
        assert_eq!(frame(PRESENT), None);
        assert_eq!(frame(0x1234), None);
    }
}
