//! Arrays of page frame numbers, as the inflate and deflate queues carry them.

use alloc::vec::Vec;

use memtide_units::{GpaRange, Pfn};

/// Bytes of one PFN on the wire: `le32` (virtio 1.3, 5.5.6).
pub const PFN_LEN: usize = 4;

/// PFNs of one request at most: a memory block of 128 MiB. Linux sends 256
/// (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`), FreeBSD as many, Windows 1024. Punching as many scattered pages
/// takes a quarter of a second.
pub const PFNS_MAX: usize = 32_768;

/// The frames in `bytes`; a tail of one to three bytes names no frame and is left out.
pub fn frames(bytes: &[u8]) -> impl Iterator<Item = Pfn> + '_ {
    bytes
        .chunks_exact(PFN_LEN)
        .map(|chunk| Pfn(u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]])))
}

/// Joins frames into as few ranges as they cover, in address order. A frame named twice counts once:
/// sorting first makes one punch of what Linux hands over in descending or mixed order.
pub fn coalesce(frames: impl IntoIterator<Item = Pfn>) -> Vec<GpaRange> {
    let mut sorted: Vec<Pfn> = frames.into_iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut ranges: Vec<GpaRange> = Vec::new();
    for pfn in sorted {
        let next = GpaRange::of_pfn(pfn);
        match ranges.last_mut().and_then(|last| last.joined_with(next).map(|both| (last, both))) {
            Some((last, both)) => *last = both,
            None => ranges.push(next),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_block_in_descending_order_becomes_one_range() {
        let ranges = coalesce((0..32_768_u32).rev().map(|n| Pfn(0x3_0000 + n)));
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0].start().0, 0x3000_0000);
        assert_eq!(ranges[0].len().mib(), 128);
    }

    #[test]
    fn a_ragged_tail_names_no_frame() {
        assert_eq!(frames(&[1, 0, 0, 0, 2, 0]).collect::<Vec<_>>(), [Pfn(1)]);
    }

    proptest! {
        #[test]
        fn ranges_cover_just_the_frames(pfns in prop::collection::vec(0_u32..500, 0..200)) {
            let ranges = coalesce(pfns.iter().map(|n| Pfn(*n)));
            let wanted: BTreeSet<u64> = pfns.iter().map(|n| u64::from(*n)).collect();
            let covered: Vec<u64> = ranges
                .iter()
                .flat_map(|r| r.start().0 / 4096..r.end().0 / 4096)
                .collect();
            prop_assert_eq!(covered, wanted.into_iter().collect::<Vec<_>>());
            prop_assert!(ranges.windows(2).all(|two| two[0].end() < two[1].start()));
        }
    }
}
