//! How much memory stays available for growth.

use memtide_units::{BlockSize, ByteSize, Permille};

/// Least of `low`: a process start and its libraries fit in.
const LOW_FLOOR: ByteSize = ByteSize::from_mib(64);
/// `low` as a share of what is online.
const LOW_SHARE: Permille = Permille(100);
/// Most that the share may come to. Growth is a matter of bandwidth, not of how much there is: a
/// return takes some 100 ms, in which even a fast guest touches no more than this.
const LOW_SHARE_CAP: ByteSize = ByteSize::from_gib(4);
/// `low` as a share of the working set: ACMA's low threshold, free memory at 50 % of it.
const LOW_OF_WORKING_SET: Permille = Permille(500);
/// Cap of what is learned, as a share of what is online: a monitor that has just started, or that
/// is wrong, may call everything hot, and must not stop all stealing; nor must one large burst.
const LEARNED_CAP: Permille = Permille(200);
/// Least of `emergency`: about what Linux keeps back for itself with transparent huge pages on.
const EMERGENCY_FLOOR: ByteSize = ByteSize::from_mib(48);
/// `emergency` as a share of what is online.
const EMERGENCY_SHARE: Permille = Permille(30);
/// Most that this share may come to, for the same reason.
const EMERGENCY_CAP: ByteSize = ByteSize::from_gib(1);

/// Thresholds on `MemAvailable`: `emergency < low < refill < steal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Below: the guest is about to run out of memory.
    pub emergency: ByteSize,
    /// Below: blocks are asked back.
    pub low: ByteSize,
    /// Blocks are asked back until this much is available.
    pub refill: ByteSize,
    /// This much must be left over after a steal.
    pub steal: ByteSize,
    /// How much of that is for what is in swap and may come back.
    pub for_swapped: ByteSize,
}

impl Headroom {
    /// The thresholds of a guest with `online` bytes in blocks of this size, whose largest burst of
    /// growth lately was `burst`: there is room for another.
    ///
    /// A steal leaves `low` and one and a half blocks, so growth by a block and a half is needed
    /// before the first return; a return ends at most one and a half blocks over `low`, a whole
    /// block short of the next steal. So stealing and returning never chase each other.
    pub fn of(
        online: ByteSize,
        block: BlockSize,
        working_set: Option<ByteSize>,
        burst: ByteSize,
    ) -> Self {
        let share = LOW_SHARE.of(online).min(LOW_SHARE_CAP);
        let watched = LOW_OF_WORKING_SET.of(working_set.unwrap_or_default());
        let learned = watched.max(LOW_FLOOR + burst).min(LEARNED_CAP.of(online));
        let low = LOW_FLOOR.max(share).max(learned);
        let half = ByteSize::from_bytes(block.size().bytes() / 2);
        Self {
            emergency: EMERGENCY_FLOOR.max(EMERGENCY_SHARE.of(online).min(EMERGENCY_CAP)),
            low,
            refill: low + half,
            steal: low + block.size() + half,
            for_swapped: ByteSize::ZERO,
        }
    }

    /// What is in swap may come back: a steal leaves room for it as well.
    pub fn leave_room_for_swapped(&mut self, swapped: ByteSize) {
        self.steal += swapped;
        self.for_swapped += swapped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    #[test]
    fn a_working_set_asks_for_half_of_itself_within_bounds() {
        let online = mib(2000);
        let low = |set: Option<u64>| {
            Headroom::of(online, BlockSize::X86_SMALL, set.map(mib), ByteSize::ZERO).low
        };
        assert_eq!(low(None), mib(200));
        assert_eq!(low(Some(100)), mib(200));
        assert_eq!(low(Some(600)), mib(300));
        assert_eq!(low(Some(1900)), mib(400));
    }

    #[test]
    fn a_burst_leaves_room_for_another_within_bounds() {
        let low = |burst| Headroom::of(mib(2000), BlockSize::X86_SMALL, None, mib(burst)).low;
        assert_eq!(
            [low(0), low(136), low(300), low(900)],
            [mib(200), mib(200), mib(364), mib(400)]
        );
    }

    proptest! {
        #[test]
        fn the_thresholds_are_ordered_and_apart(online in 0_u64..1 << 44, set: Option<u64>, burst: u64, shift in 21_u32..40) {
            let block = BlockSize::new(ByteSize::from_bytes(1 << shift)).unwrap();
            let (online, burst) = (ByteSize::from_bytes(online), ByteSize::from_bytes(burst));
            let of = Headroom::of(online, block, set.map(ByteSize::from_bytes), burst);
            prop_assert!(of.emergency < of.low && of.low < of.refill && of.refill < of.steal);
            prop_assert!(of.steal - of.low >= block.size());
            prop_assert!(of.steal - of.refill >= block.size());
        }
    }
}
