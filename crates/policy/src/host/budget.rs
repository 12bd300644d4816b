//! What all VMs together may have.

use memtide_units::{ByteSize, Permille};

/// The smallest reserve that the host keeps for itself: below about this much available memory a
/// Linux host with a handful of services starts to reclaim its own working set.
const RESERVE_MIN: ByteSize = ByteSize::from_mib(512);
/// The share of a large host's memory that it keeps: kernel structures grow with the machine.
const RESERVE_SHARE: Permille = Permille(50);

/// The host's own memory, from `/proc/meminfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// `MemTotal`.
    pub total: ByteSize,
    /// `MemAvailable`: what can be had without swapping.
    pub available: ByteSize,
}

impl HostMemory {
    /// What the host keeps for itself: 5 % of its memory, at least 512 MiB.
    pub fn reserve(self) -> ByteSize {
        RESERVE_SHARE.of(self.total).max(RESERVE_MIN)
    }

    /// What is available above the reserve.
    pub fn spare(self) -> ByteSize {
        self.available.saturating_sub(self.reserve())
    }

    /// What the reserve lacks; zero on a host that is not short.
    pub fn shortage(self) -> ByteSize {
        self.reserve().saturating_sub(self.available)
    }
}

/// What the operator lets the VMs have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Exactly so much.
    Given(ByteSize),
    /// What the host has: what is available now and what the VMs hold already, less the reserve.
    Host,
}

impl Budget {
    /// In bytes, on a host with this memory whose VMs have `resident` bytes of it now.
    pub fn bytes(self, memory: HostMemory, resident: ByteSize) -> ByteSize {
        match self {
            Self::Given(bytes) => bytes,
            Self::Host => {
                let within_reach = (memory.available + resident).min(memory.total);
                within_reach.saturating_sub(memory.reserve())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: fn(u64) -> ByteSize = ByteSize::from_gib;

    #[test]
    fn a_small_host_keeps_512_mib_and_a_large_one_a_twentieth() {
        let small = HostMemory { total: GIB(4), available: GIB(3) };
        assert_eq!(small.reserve(), ByteSize::from_mib(512));
        let large = HostMemory { total: GIB(100), available: GIB(3) };
        assert_eq!(large.reserve(), GIB(5));
        assert_eq!((large.spare(), large.shortage()), (ByteSize::ZERO, GIB(2)));
    }

    #[test]
    fn memory_that_vms_hold_already_is_part_of_the_host_budget() {
        let memory = HostMemory { total: GIB(8), available: GIB(4) };
        assert_eq!(Budget::Host.bytes(memory, GIB(2)), ByteSize::from_mib(5632));
        assert_eq!(Budget::Given(GIB(3)).bytes(memory, GIB(2)), GIB(3));
        assert!(Budget::Host.bytes(memory, GIB(99)) < GIB(8), "never more than the host has");
    }
}
