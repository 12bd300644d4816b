//! Feature bits of the balloon, and which virtqueue has which role.
//!
//! Linux leaves out the queues of features that were not negotiated (`virtio_balloon.c`,
//! `init_vqs`), so a queue's index follows from the *acked* features; only the block queue has a
//! fixed place, the last of the device, and the configuration extension names it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The driver tells the host before it uses a page again.
pub const MUST_TELL_HOST: u64 = 1 << 0;
/// The statistics queue exists.
pub const STATS_VQ: u64 = 1 << 1;
/// The driver takes pages back by itself when the guest runs out of memory.
pub const DEFLATE_ON_OOM: u64 = 1 << 2;
/// The free page hinting queue exists.
pub const FREE_PAGE_HINT: u64 = 1 << 3;
/// The driver states what free pages are filled with.
pub const PAGE_POISON: u64 = 1 << 4;
/// The free page reporting queue exists.
pub const REPORTING: u64 = 1 << 5;
/// Indirect descriptors (`VIRTIO_F_INDIRECT_DESC`).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// Notification suppression by index (`VIRTIO_F_EVENT_IDX`).
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// vhost-user protocol features may be negotiated (vhost-user.rst); never seen by the guest.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// A device of virtio 1.0 or later.
pub const VERSION_1: u64 = 1 << 32;
/// Ring addresses are translated by an IOMMU.
pub const ACCESS_PLATFORM: u64 = 1 << 33;

/// Packed virtqueues; never offered.
pub const RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;
/// A driver may reset one virtqueue alone; never offered.
pub const RING_RESET: u64 = 1 << 40;

/// What a virtqueue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueRole {
    /// Arrays of PFNs that the host may drop.
    Inflate,
    /// Arrays of PFNs that the guest wants back.
    Deflate,
    /// Statistics buffers.
    Stats,
    /// Free page hints.
    Hinting,
    /// Buffers that *are* free memory.
    Reporting,
    /// Memtide's block queue.
    Block,
}

impl QueueRole {
    /// The role of queue `index` once `acked` features were negotiated, or `None` where no driver
    /// has business. `block_queue` is the index that the configuration extension names.
    pub fn of(index: usize, acked: u64, block_queue: usize) -> Option<Self> {
        if index == block_queue {
            return Some(Self::Block);
        }
        let optional = [
            (STATS_VQ, Self::Stats),
            (FREE_PAGE_HINT, Self::Hinting),
            (REPORTING, Self::Reporting),
        ];
        let present =
            optional.into_iter().filter(|(bit, _)| acked & bit != 0).map(|(_, role)| role);
        [Self::Inflate, Self::Deflate].into_iter().chain(present).nth(index)
    }
}

/// Names of bits, as virtio 1.3 has them (5.5.3, and section 6 for those of every device), less
/// what all of them begin with; bit 30 as vhost-user.rst has it.
const NAMES: [(u32, &str); 20] = [
    (0, "must-tell-host"),
    (1, "stats-vq"),
    (2, "deflate-on-oom"),
    (3, "free-page-hint"),
    (4, "page-poison"),
    (5, "page-reporting"),
    (24, "notify-on-empty"),
    (27, "any-layout"),
    (28, "indirect-desc"),
    (29, "event-idx"),
    (30, "protocol-features"),
    (32, "version-1"),
    (33, "access-platform"),
    (34, "ring-packed"),
    (35, "in-order"),
    (36, "order-platform"),
    (37, "sr-iov"),
    (38, "notification-data"),
    (39, "notif-config-data"),
    (40, "ring-reset"),
];

/// The bits by name, in order; `bit-N` where this program knows none.
pub fn names(bits: u64) -> Vec<String> {
    let name = |bit: u32| {
        let known = NAMES.iter().find(|(number, _)| *number == bit);
        known.map_or_else(|| format!("bit-{bit}"), |(_, name)| (*name).into())
    };
    (0..u64::BITS).filter(|bit| bits & (1 << bit) != 0).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_names_of_their_constants() {
        let bits = MUST_TELL_HOST | PAGE_POISON | RING_EVENT_IDX | VERSION_1 | 1 << 50;
        let expected = ["must-tell-host", "page-poison", "event-idx", "version-1", "bit-50"];
        assert_eq!(names(bits), expected);
        assert_eq!(names(REPORTING | ACCESS_PLATFORM), ["page-reporting", "access-platform"]);
    }

    #[test]
    fn reporting_moves_down_when_other_queues_are_missing() {
        let role = |index, acked| QueueRole::of(index, acked, 5);
        assert_eq!(role(4, STATS_VQ | FREE_PAGE_HINT | REPORTING), Some(QueueRole::Reporting));
        assert_eq!(role(3, STATS_VQ | REPORTING), Some(QueueRole::Reporting));
        assert_eq!(role(2, REPORTING), Some(QueueRole::Reporting));
        assert_eq!(role(2, STATS_VQ), Some(QueueRole::Stats));
        assert_eq!(role(2, 0), None);
        assert_eq!(role(5, 0), Some(QueueRole::Block));
    }
}
