//! Guest statistics: `{ le16 tag, le64 val }`, ten bytes each (virtio 1.3, 5.5.6.4).

use alloc::vec::Vec;

/// Bytes of one statistic.
pub const STAT_LEN: usize = 10;

/// Statistics kept of one buffer at most. Linux has 16 tags; the rest leaves room for newer ones
/// without letting a guest fill the host's memory.
pub const STATS_MAX: usize = 64;

/// Names by tag, from include/uapi/linux/virtio_balloon.h (`VIRTIO_BALLOON_S_NAMES`).
const NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// One statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Which: an index into the kernel's list, or one that is newer than this program.
    pub tag: u16,
    /// Its value: bytes for memory, a count for events.
    pub value: u64,
}

impl Stat {
    /// The kernel's name for the tag, where it is known.
    pub fn name(self) -> Option<&'static str> {
        NAMES.get(usize::from(self.tag)).copied()
    }
}

/// The statistics in a buffer, unknown tags included, at most [`STATS_MAX`]; a ragged tail is left
/// out (virtio 1.3, 5.5.6.3.2: the device must ignore tags that it does not recognise; keeping them
/// by number lets newer readers use them).
pub fn decode(bytes: &[u8]) -> Vec<Stat> {
    let stat = |chunk: &[u8]| {
        let (tag, value) = chunk.split_at(2);
        Some(Stat {
            tag: u16::from_le_bytes(tag.try_into().ok()?),
            value: u64::from_le_bytes(value.try_into().ok()?),
        })
    };
    bytes.chunks_exact(STAT_LEN).take(STATS_MAX).filter_map(stat).collect()
}

/// The bytes of these statistics, as a driver sends them.
pub fn encode(stats: &[Stat]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(stats.len() * STAT_LEN);
    for stat in stats {
        bytes.extend(stat.tag.to_le_bytes());
        bytes.extend(stat.value.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_known_and_unknown_tags() {
        let mut bytes = Vec::new();
        for (tag, value) in [(5_u16, 1_u64 << 30), (4, 7), (99, 1)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.push(0);
        let stats = decode(&bytes);
        assert_eq!(stats[0], Stat { tag: 5, value: 1 << 30 });
        assert_eq!(stats[0].name(), Some("total_memory"));
        assert_eq!((stats[2].tag, stats[2].name()), (99, None));
        assert_eq!(stats.len(), 3);
    }

    #[test]
    fn knows_every_tag_of_current_kernels() {
        let name = |tag| Stat { tag, value: 0 }.name();
        // `VIRTIO_BALLOON_S_NR` is 16 since Linux 6.12; QEMU's names differ in form only.
        let known: Vec<_> = (0..=u16::MAX).filter_map(name).collect();
        assert_eq!(known.len(), 16);
        let ends = [name(0), name(9), name(10), name(15), name(16)];
        let expected = ["swap_in", "hugetlb_failures", "oom_kill", "direct_reclaim"];
        assert_eq!(ends[..4], expected.map(Some));
        assert_eq!(ends[4], None);
    }

    proptest! {
        #[test]
        fn what_a_driver_sends_is_what_a_device_reads(stats in prop::collection::vec(any::<(u16, u64)>(), 0..STATS_MAX)) {
            let stats: Vec<Stat> = stats.into_iter().map(|(tag, value)| Stat { tag, value }).collect();
            prop_assert_eq!(decode(&encode(&stats)), stats);
        }

        #[test]
        fn any_buffer_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(decode(&bytes).len() <= STATS_MAX);
        }
    }
}
