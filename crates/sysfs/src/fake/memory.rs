//! Memory blocks that go offline and online.

use std::io;

use memtide_units::{BlockId, BlockSize};
use rustix::io::Errno;

use super::Files;

pub(super) const DIR: &str = "sys/devices/system/memory";
/// What happens to memory that is plugged in.
pub(super) const POLICY: &str = "sys/devices/system/memory/auto_online_blocks";

/// What `valid_zones` says of an offline block of boot memory.
const OFFLINE_ZONES: &str = "DMA32 Movable";

/// How a block starts out. Its node is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeBlock {
    state: &'static str,
    zones: &'static str,
}

impl FakeBlock {
    /// Online, and spanning a hole: never goes offline.
    pub const HOLE: Self = Self { state: "online", zones: "none" };
    /// Online in a zone that kernel and processes share, as boot memory is.
    pub const KERNEL: Self = Self { state: "online", zones: "DMA32" };
    /// Online in `ZONE_MOVABLE`.
    pub const MOVABLE: Self = Self { state: "online", zones: "Movable" };
    /// Offline.
    pub const OFFLINE: Self = Self { state: "offline", zones: OFFLINE_ZONES };
}

pub(super) fn state_file(block: BlockId) -> String {
    format!("{DIR}/{block}/state")
}

pub(super) fn add(files: &Files, size: BlockSize, id: BlockId, block: FakeBlock) -> io::Result<()> {
    files.put_line(&format!("{DIR}/block_size_bytes"), &format!("{:x}", size.size().bytes()))?;
    files.put_line(POLICY, "online")?;
    files.put_line(&state_file(id), block.state)?;
    files.put_line(&format!("{DIR}/{id}/valid_zones"), block.zones)?;
    std::fs::create_dir_all(files.at(&format!("{DIR}/{id}/node0")))
}

pub(super) fn write(
    files: &Files,
    state: &mut super::State,
    path: &str,
    text: &str,
) -> io::Result<()> {
    let Some(block) = path.strip_suffix("/state") else { return files.put_line(path, text) };
    let zones_file = format!("{block}/valid_zones");
    let zones = files.get(&zones_file)?;
    let (now, zones_now) = match (files.get(path)?.trim(), text) {
        ("online", "offline") if zones.trim() != "none" => ("offline", OFFLINE_ZONES),
        ("offline", "online" | "online_kernel") => ("online", "DMA32"),
        ("offline", "online_movable") => ("online", "Movable"),
        _ => return Err(Errno::INVAL.into()),
    };
    files.put_line(path, now)?;
    files.put_line(&zones_file, zones_now)?;
    account(files, state, now)
}

/// What is in a block is moved elsewhere, so free memory shrinks by as much as memory does.
fn account(files: &Files, state: &mut super::State, now: &str) -> io::Result<()> {
    let (Some(info), Some(size)) = (&mut state.meminfo, state.block_size) else { return Ok(()) };
    for level in [&mut info.total, &mut info.free, &mut info.available] {
        if now == "online" { *level += size.size() } else { *level -= size.size() }
    }
    files.put_meminfo(*info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use crate::meminfo::Meminfo;
    use crate::memory::{StateRequest, write_state};
    use memtide_units::ByteSize;

    #[test]
    fn memory_is_less_while_a_block_is_offline() {
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(4, FakeBlock::MOVABLE)]);
        let [total, free] = [1024, 300].map(ByteSize::from_mib);
        let before = Meminfo { total, free, available: free, ..Meminfo::default() };
        fake.set_meminfo(before);
        write_state(&fake.root(), BlockId(4), StateRequest::Offline).unwrap();
        let during = Meminfo::read(&fake.root()).unwrap();
        assert_eq!(during.total, ByteSize::from_mib(896));
        assert_eq!(during.available, ByteSize::from_mib(172));
        write_state(&fake.root(), BlockId(4), StateRequest::Online).unwrap();
        assert_eq!(Meminfo::read(&fake.root()).unwrap(), before);
    }
}
