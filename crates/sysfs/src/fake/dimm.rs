//! DIMMs that the guest ejects and the test plugs in again.

use std::collections::BTreeMap;
use std::io;

use memtide_units::{BlockId, BlockSize, GpaRange};
use rustix::io::Errno;

use super::memory::{self, FakeBlock};
use super::{FakeRoot, Files, dax};

pub(super) const DEVICES: &str = "sys/bus/acpi/devices";

/// The blocks that each DIMM is made of.
pub(super) type Dimms = BTreeMap<String, (BlockSize, Vec<BlockId>)>;

impl FakeRoot {
    /// Adds a DIMM; its blocks are online and movable.
    pub fn add_dimm(&self, name: &str, size: BlockSize, memory: GpaRange) {
        let bytes = size.size().bytes();
        let numbers = memory.start().0 / bytes..memory.end().0 / bytes;
        let blocks: Vec<BlockId> = numbers.map(BlockId).collect();
        self.put(&format!("{DEVICES}/{name}/eject"), "");
        self.add_blocks(size, blocks.iter().map(|block| (block.0, FakeBlock::MOVABLE)));
        blocks.iter().for_each(|block| self.put_into_dimm(*block, name));
        self.kernel.state().dimms.insert(name.into(), (size, blocks));
    }

    /// The host plugs a DIMM in again that was ejected: its blocks are there, as the policy for plugged
    /// memory has it.
    pub fn plug_in_dimm(&self, name: &str) {
        self.plug_in_dimm_unlinked(name);
        self.link_dimm(name);
    }

    /// The blocks of a DIMM, plugged in or not.
    pub fn dimm_of(&self, name: &str) -> Vec<BlockId> {
        self.kernel.state().dimms[name].1.clone()
    }

    /// The blocks are there, and the kernel is not done with them.
    pub fn plug_in_dimm_unlinked(&self, name: &str) {
        let mut state = self.kernel.state();
        let (size, blocks) = state.dimms.get(name).cloned().expect("the test has added it");
        for block in &blocks {
            dax::plug_in(&self.kernel.files, &mut state, size, *block)
                .expect("the fake's files can be written");
        }
    }

    /// The kernel is done with a DIMM's blocks.
    pub fn link_dimm(&self, name: &str) {
        self.dimm_of(name).iter().for_each(|block| self.put_into_dimm(*block, name));
    }
}

/// All of it or nothing, and the writer does not learn which.
pub(super) fn write(files: &Files, state: &mut super::State, path: &str) -> io::Result<()> {
    let name = path.strip_suffix("/eject").and_then(|device| device.rsplit('/').next());
    let Some((_, blocks)) = name.and_then(|name| state.dimms.get(name)).cloned() else {
        return Err(Errno::NODEV.into());
    };
    if !blocks.iter().any(|block| files.exists(&memory::state_file(*block))) {
        return Err(Errno::NODEV.into());
    }
    let is_refused = |block: &BlockId| state.refusals.contains_key(&memory::state_file(*block));
    if blocks.iter().any(is_refused) {
        return Ok(());
    }
    dax::remove(files, &blocks)
}
