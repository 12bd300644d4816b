//! Devices of the DAX bus whose memory comes and goes with the driver `kmem`.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::symlink;

use memtide_units::{BlockId, BlockSize, GpaRange};
use rustix::io::Errno;

use super::memory::{self, FakeBlock};
use super::{FakeRoot, Files};
use crate::dax::{Device, KMEM, Structs};

pub(super) const BUS: &str = "sys/bus/dax";

/// The blocks that each device is made of.
pub(super) type Dax = BTreeMap<String, (BlockSize, Vec<BlockId>)>;

impl FakeRoot {
    /// Adds a device and binds `kmem` to it; its blocks are online and movable.
    pub fn add_dax(&self, name: &str, size: BlockSize, memory: GpaRange) {
        let (driver, structs) = (None, Structs::Elsewhere);
        let device = Device { name: name.into(), ranges: vec![memory], driver, structs };
        let blocks = device.blocks(size);
        self.put(&file(name, "resource"), &format!("{:#x}\n", memory.start().0));
        self.put(&file(name, "size"), &format!("{}\n", memory.len().bytes()));
        self.put(&file(name, "memmap_on_memory"), "0\n");
        self.put(&format!("{BUS}/drivers/{KMEM}/bind"), "");
        self.put(&format!("{BUS}/drivers/{KMEM}/unbind"), "");
        self.add_blocks(size, blocks.iter().map(|block| (block.0, FakeBlock::MOVABLE)));
        self.kernel.state().dax.insert(name.into(), (size, blocks));
        link(&self.kernel.files, name).expect("the fake's files can be written");
    }
}

fn file(name: &str, file: &str) -> String {
    format!("{BUS}/devices/{name}/{file}")
}

fn link(files: &Files, name: &str) -> io::Result<()> {
    symlink(format!("../../drivers/{KMEM}"), files.at(&file(name, "driver")))
}

pub(super) fn write(
    files: &Files,
    state: &mut super::State,
    path: &str,
    text: &str,
) -> io::Result<()> {
    let is_bound = |name: &str| files.at(&file(name, "driver")).is_symlink();
    if let Some(device) = path.strip_suffix("/memmap_on_memory") {
        if device.rsplit('/').next().is_some_and(is_bound) {
            return Err(Errno::BUSY.into());
        }
        return files.put_line(path, text);
    }
    let Some((size, blocks)) = state.dax.get(text).cloned() else {
        return Err(Errno::NODEV.into());
    };
    match path.rsplit('/').next() {
        Some("unbind") if is_bound(text) => {
            files.remove(&file(text, "driver"))?;
            remove(files, &blocks)
        }
        Some("bind") if !is_bound(text) => {
            if blocks.iter().any(|block| files.exists(&memory::state_file(*block))) {
                return Err(Errno::BUSY.into());
            }
            link(files, text)?;
            blocks.iter().try_for_each(|block| plug_in(files, state, size, *block))
        }
        _ => Err(Errno::NODEV.into()),
    }
}

/// All of it or nothing.
pub(super) fn remove(files: &Files, blocks: &[BlockId]) -> io::Result<()> {
    let state = |block: &BlockId| files.get(&memory::state_file(*block));
    if blocks.iter().all(|block| state(block).is_ok_and(|state| state.trim() == "offline")) {
        blocks.iter().try_for_each(|block| files.remove(&format!("{}/{block}", memory::DIR)))?;
    }
    Ok(())
}

/// What the policy for plugged memory says happens to it.
pub(super) fn plug_in(
    files: &Files,
    state: &mut super::State,
    size: BlockSize,
    block: BlockId,
) -> io::Result<()> {
    let policy = files.get(memory::POLICY)?;
    memory::add(files, size, block, FakeBlock::OFFLINE)?;
    files.put_line(memory::POLICY, policy.trim())?;
    match policy.trim() {
        "offline" => Ok(()),
        online => memory::write(files, state, &memory::state_file(block), online),
    }
}
