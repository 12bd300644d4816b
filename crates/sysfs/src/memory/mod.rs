//! Memory blocks: `/sys/devices/system/memory` (Documentation/admin-guide/mm/memory-hotplug.rst).

mod block;
mod origin;
mod settings;
mod write;

pub use block::{Block, State, Zone};
pub use origin::{Origin, Origins, dimm_of};
pub use settings::{
    AutoOnline, MemmapOnMemory, auto_online, may_hold_own_structs, memmap_on_memory,
    set_auto_online,
};
pub use write::{StateRequest, WriteError, write_state};

use memtide_units::{BlockId, BlockSize, ByteSize};

use crate::{Result, Root};

const DIR: &str = "sys/devices/system/memory";

/// The size of each block, from `block_size_bytes` (hexadecimal without a prefix).
///
/// # Errors
/// [`crate::Error::Missing`]: a kernel without memory hotplug. [`crate::Error::Garbage`].
pub fn block_size(root: &Root) -> Result<BlockSize> {
    let file = format!("{DIR}/block_size_bytes");
    root.parsed(file, "a power of two in hexadecimal, such as 8000000", |text| {
        let bytes = u64::from_str_radix(text, 16).ok()?;
        BlockSize::new(ByteSize::from_bytes(bytes)).ok()
    })
}

/// All blocks, by ascending number. A block that comes or goes while this reads is left out: its
/// directory is made before its files, and goes after them (drivers/base/core.c, `device_add`).
///
/// # Errors
/// [`crate::Error::Missing`]: a kernel without memory hotplug, or one that can take nothing offline
/// (see [`read`]), so that no block has the files. [`crate::Error::Garbage`].
pub fn list(root: &Root) -> Result<Vec<Block>> {
    let (mut blocks, mut incomplete) = (Vec::new(), None);
    for block in numbers(root)? {
        match read(root, block) {
            Ok(block) => blocks.push(block),
            Err(error) if error.is_missing() => incomplete = Some(error),
            Err(error) => return Err(error),
        }
    }
    incomplete.filter(|_| blocks.is_empty()).map_or(Ok(blocks), Err)
}

/// The numbers of all blocks, ascending.
///
/// # Errors
/// [`crate::Error::Missing`]: a kernel without memory hotplug.
pub fn numbers(root: &Root) -> Result<Vec<BlockId>> {
    Ok(root.numbers(DIR, "memory")?.into_iter().map(BlockId).collect())
}

/// One block.
///
/// # Errors
/// [`crate::Error::Missing`]: there is no such block (it was unplugged), or this kernel cannot take
/// memory offline at all (`CONFIG_MEMORY_HOTREMOVE`: no file `valid_zones`).
/// [`crate::Error::Garbage`].
pub fn read(root: &Root, id: BlockId) -> Result<Block> {
    let dir = directory(id);
    let state = state(root, id)?;
    let zones = root.parsed(
        format!("{dir}/valid_zones"),
        "none, or zones such as DMA32 Movable",
        block::zones,
    )?;
    let node = root.numbers(&dir, "node")?.first().and_then(|&node| u32::try_from(node).ok());
    Ok(Block { id, state, zones, node, inode: root.inode(dir)? })
}

/// The number of one block's directory: see [`Block::inode`].
///
/// # Errors
/// [`crate::Error::Missing`]: there is no such block.
pub fn inode(root: &Root, id: BlockId) -> Result<u64> {
    root.inode(directory(id))
}

/// The state of one block: a third of what [`read`] costs.
///
/// # Errors
/// [`crate::Error::Missing`]: there is no such block. [`crate::Error::Garbage`].
pub fn state(root: &Root, id: BlockId) -> Result<State> {
    let file = format!("{}/state", directory(id));
    root.parsed(file, "online, offline or going-offline", State::from_kernel)
}

fn directory(id: BlockId) -> String {
    format!("{DIR}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::fake::{FakeBlock, FakeRoot};

    #[test]
    fn the_size_is_hexadecimal() {
        let fake = FakeRoot::new();
        assert!(block_size(&fake.root()).unwrap_err().is_missing());
        fake.put("sys/devices/system/memory/block_size_bytes", "8000000\n");
        assert_eq!(block_size(&fake.root()).unwrap(), BlockSize::X86_SMALL);
        for strange in ["", "0", "8000001", "zz", "ffffffffffffffffff"] {
            fake.put("sys/devices/system/memory/block_size_bytes", strange);
            assert!(matches!(block_size(&fake.root()), Err(Error::Garbage { .. })), "{strange}");
        }
    }

    #[test]
    fn blocks_come_by_number_not_by_name() {
        let fake = FakeRoot::new();
        fake.add_blocks(
            BlockSize::X86_SMALL,
            [(10, FakeBlock::KERNEL), (2, FakeBlock::MOVABLE), (9, FakeBlock::HOLE)],
        );
        let blocks = list(&fake.root()).unwrap();
        let ids: Vec<u64> = blocks.iter().map(|block| block.id.0).collect();
        assert_eq!(ids, [2, 9, 10]);
        assert_eq!(blocks[0].current_zone(), Some(Zone::Movable));
        assert!(blocks[1].never_offline());
        assert_eq!(blocks[2].current_zone(), Some(Zone::Dma32));
        assert_eq!(blocks[2].node, Some(0));
    }

    #[test]
    fn a_block_that_is_made_anew_is_another_one() {
        let fake = FakeRoot::new();
        let add = || fake.add_blocks(BlockSize::X86_SMALL, [(3, FakeBlock::OFFLINE)]);
        add();
        let first = read(&fake.root(), BlockId(3)).unwrap();
        assert_eq!(inode(&fake.root(), BlockId(3)).unwrap(), first.inode);
        write_state(&fake.root(), BlockId(3), StateRequest::Online).unwrap();
        assert_eq!(read(&fake.root(), BlockId(3)).unwrap().inode, first.inode);
        fake.remove("sys/devices/system/memory/memory3");
        assert!(inode(&fake.root(), BlockId(3)).unwrap_err().is_missing());
        add();
        assert_ne!(read(&fake.root(), BlockId(3)).unwrap().inode, first.inode);
    }

    #[test]
    fn a_state_that_no_kernel_has_is_an_error() {
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(3, FakeBlock::KERNEL)]);
        fake.put("sys/devices/system/memory/memory3/state", "busy\n");
        assert!(matches!(list(&fake.root()), Err(Error::Garbage { read, .. }) if read == "busy\n"));
        assert!(read(&fake.root(), BlockId(4)).unwrap_err().is_missing());
    }

    #[test]
    fn a_block_that_is_just_being_made_is_left_out() {
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(0, FakeBlock::KERNEL), (1, FakeBlock::MOVABLE)]);
        for file in ["valid_zones", "state"] {
            fake.remove(&format!("sys/devices/system/memory/memory1/{file}"));
            let ids: Vec<u64> =
                list(&fake.root()).unwrap().iter().map(|block| block.id.0).collect();
            assert_eq!(ids, [0]);
        }
    }

    #[test]
    fn a_kernel_that_can_take_nothing_offline_does_not_look_like_one_without_blocks() {
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(0, FakeBlock::KERNEL), (1, FakeBlock::KERNEL)]);
        fake.remove("sys/devices/system/memory/memory1");
        assert_eq!(list(&fake.root()).unwrap().len(), 1);
        fake.remove("sys/devices/system/memory/memory0/valid_zones");
        assert!(list(&fake.root()).unwrap_err().to_string().contains("valid_zones"));
    }
}
