//! What one memory block says of itself.

use memtide_units::BlockId;

/// A zone of the kernel's page allocator (include/linux/mmzone.h, `enum zone_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zone {
    /// The first 16 MiB.
    Dma,
    /// Below 4 GiB.
    Dma32,
    /// Everything else that kernel and processes share.
    Normal,
    /// Pages that can be moved away: what the kernel itself needs does not come here.
    Movable,
    /// A device's own memory.
    Device,
    /// A zone that this crate does not know.
    Other,
}

/// What the kernel does with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// In use.
    Online,
    /// Out of use: the kernel touches none of it, except its own `struct page`s in the block's
    /// first pages where it was added with `memmap_on_memory`.
    Offline,
    /// Someone's request to take it offline is under way.
    GoingOffline,
}

impl State {
    pub(crate) fn from_kernel(text: &str) -> Option<Self> {
        match text {
            "online" => Some(Self::Online),
            "offline" => Some(Self::Offline),
            "going-offline" => Some(Self::GoingOffline),
            _ => None,
        }
    }
}

/// One memory block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub id: BlockId,
    /// Its state.
    pub state: State,
    /// Online: the one zone that it lies in, or none where it spans zones or a hole. Offline: the
    /// zones that it can be put online to, the default first (drivers/base/memory.c,
    /// `valid_zones_show`).
    pub zones: Vec<Zone>,
    /// The NUMA node, the lowest where it spans several.
    pub node: Option<u32>,
    /// The number of its directory. A block that was removed and made anew has another one: the kernel
    /// counts on, and gives none twice before it has given them all (fs/kernfs/dir.c,
    /// `__kernfs_new_node`).
    pub inode: u64,
}

impl Block {
    /// The zone that an online block lies in.
    pub fn current_zone(&self) -> Option<Zone> {
        if self.state == State::Offline { None } else { self.zones.first().copied() }
    }

    /// True where it is in `ZONE_MOVABLE`, or can be put online to it.
    pub fn can_be_movable(&self) -> bool {
        self.zones.contains(&Zone::Movable)
    }

    /// True where it can never be taken offline (EINVAL): online, and spanning zones or a hole. The
    /// block with the first megabyte and the last one below the PCI hole always are.
    pub fn never_offline(&self) -> bool {
        self.state == State::Online && self.zones.is_empty()
    }
}

/// The zones of a `valid_zones` file: `none`, or names.
pub(crate) fn zones(text: &str) -> Option<Vec<Zone>> {
    if text.is_empty() {
        return None;
    }
    if text == "none" {
        return Some(Vec::new());
    }
    let zone = |name: &str| match name {
        "DMA" => Zone::Dma,
        "DMA32" => Zone::Dma32,
        "Normal" => Zone::Normal,
        "Movable" => Zone::Movable,
        "Device" => Zone::Device,
        _ => Zone::Other,
    };
    Some(text.split_ascii_whitespace().map(zone).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(state: State, valid_zones: &str) -> Block {
        Block { id: BlockId(5), state, zones: zones(valid_zones).unwrap(), node: Some(0), inode: 1 }
    }

    #[test]
    fn an_offline_boot_block_can_come_back_movable() {
        let offline = block(State::Offline, "DMA32 Movable");
        assert_eq!(offline.zones, [Zone::Dma32, Zone::Movable]);
        assert!(offline.can_be_movable());
        assert_eq!(offline.current_zone(), None);
    }

    #[test]
    fn only_an_online_block_without_a_zone_is_stuck() {
        assert!(block(State::Online, "none").never_offline());
        assert!(!block(State::Online, "Normal").never_offline());
        assert!(!block(State::Offline, "none").never_offline());
    }

    #[test]
    fn a_zone_of_a_later_kernel_is_no_reason_to_fail() {
        assert_eq!(block(State::Online, "Cold").zones, [Zone::Other]);
        assert_eq!(zones(""), None);
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,40}") {
            let _ = (zones(&text), State::from_kernel(&text));
        }
    }
}
