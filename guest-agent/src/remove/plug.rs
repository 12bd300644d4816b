//! Putting one block online, and plugging it in first where it was removed.
//!
//! What comes with it must stay offline: the host has granted one block, and has dropped the others.
//! Most kernels put plugged memory online at once (`auto_online_blocks`), so that is switched off
//! for the moment. What it was is in the runtime directory meanwhile: an agent that is killed in
//! that moment has its successor put it back.

use std::io;
use std::path::{Path, PathBuf};

use memtide_sysfs::memory::{self, AutoOnline, StateRequest, WriteError};
use memtide_sysfs::{Error, Root};
use memtide_units::BlockId;

use super::find;
use crate::pieces::{Pieces, PiecesError};

/// Why a block did not come online.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// It is there, and stays offline.
    #[error(transparent)]
    Block(#[from] WriteError),
    /// It is not there, and was not removed: the device that it was of has gone.
    #[error("{0} is not there any more: what it belonged to has been taken away")]
    Gone(BlockId),
    /// What it belongs to does not come back.
    #[error("{unit}, which {block} belongs to, cannot be plugged in: {source}")]
    Unit {
        /// The block.
        block: BlockId,
        /// What it belongs to.
        unit: String,
        /// What the kernel said.
        source: Error,
    },
    /// What stands for it cannot be given back.
    #[error(transparent)]
    Pieces(#[from] PiecesError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// What would have to be put back cannot be written down.
    #[error("{} cannot be written: {source}", .path.display())]
    Mark {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Puts blocks online.
#[derive(Clone, Debug)]
pub struct Plugger {
    root: Root,
    /// There while the policy for plugged memory is changed, and says what it was.
    mark: PathBuf,
    pieces: Option<Pieces>,
}

impl Plugger {
    /// With the mark in the runtime directory.
    pub fn new(root: &Root, mark: PathBuf) -> Self {
        Self { root: root.clone(), mark, pieces: None }
    }

    /// The same, for blocks that pieces stand for as well.
    #[must_use]
    pub fn with_pieces(self, pieces: Option<Pieces>) -> Self {
        Self { pieces, ..self }
    }

    /// The pieces that it knows of.
    pub fn pieces(&self) -> Option<&Pieces> {
        self.pieces.as_ref()
    }

    /// Puts `block` online, after plugging in what it belongs to where that was removed. Where pieces
    /// stand for it, it is online, and they are given back.
    ///
    /// # Errors
    /// [`PlugError`]; the block is offline, or not there.
    pub fn put_online(&self, block: BlockId, how: StateRequest) -> Result<(), PlugError> {
        if let Some(pieces) = self.pieces().filter(|pieces| pieces.stand_for(block)) {
            return Ok(pieces.release(block)?);
        }
        if memory::state(&self.root, block).is_err_and(|error| error.is_missing()) {
            self.plug_in(block)?;
        }
        Ok(memory::write_state(&self.root, block, how)?)
    }

    fn plug_in(&self, block: BlockId) -> Result<(), PlugError> {
        let Some((remover, unit)) = find(&self.root, block)? else {
            return Err(PlugError::Gone(block));
        };
        let before = memory::auto_online(&self.root)?;
        if before != AutoOnline::Offline {
            let path = self.mark.clone();
            std::fs::write(&self.mark, before.keyword())
                .map_err(|source| PlugError::Mark { path, source })?;
            memory::set_auto_online(&self.root, AutoOnline::Offline)?;
        }
        let plugged = remover.plug_in(&self.root, &unit);
        if let Err(error) = self.restore() {
            tracing::warn!("plugged memory stays offline from now on: {error}");
        }
        plugged.map_err(|source| PlugError::Unit { block, unit: unit.name, source })
    }

    /// Puts the policy for plugged memory back, where it was the agent who changed it.
    ///
    /// # Errors
    /// What the kernel says; the policy is as before.
    pub fn restore(&self) -> Result<(), Error> {
        let Ok(text) = std::fs::read_to_string(&self.mark) else { return Ok(()) };
        // A mark without a word: killed before it was written, and so before anything was changed.
        let before = AutoOnline::from_keyword(text.trim());
        // Anything else was chosen by somebody since.
        if let Some(before) = before
            && memory::auto_online(&self.root)? == AutoOnline::Offline
        {
            memory::set_auto_online(&self.root, before)?;
        }
        remove_mark(&self.mark);
        Ok(())
    }
}

fn remove_mark(mark: &Path) {
    if let Err(error) = std::fs::remove_file(mark) {
        tracing::warn!("{} cannot be removed: {error}", mark.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remove::{RemoveError, remove, unplugged};
    use memtide_sysfs::fake::FakeRoot;
    use memtide_sysfs::memory::{State, write_state};
    use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
    use rustix::io::Errno;

    const POLICY: &str = "sys/devices/system/memory/auto_online_blocks";
    const BIND: &str = "sys/bus/dax/drivers/kmem/bind";

    struct Guest {
        fake: FakeRoot,
        dir: tempfile::TempDir,
    }

    impl Guest {
        /// Blocks 32 to 34 are of a device.
        fn new() -> Self {
            let fake = FakeRoot::new();
            let memory = GpaRange::new(Gpa(32 << 27), ByteSize::from_mib(384)).unwrap();
            fake.add_dax("dax0.0", BlockSize::X86_SMALL, memory);
            Self { fake, dir: tempfile::tempdir().unwrap() }
        }

        fn removed() -> Self {
            let guest = Self::new();
            for block in 32..35 {
                let root = guest.fake.root();
                write_state(&root, BlockId(block), StateRequest::Offline).unwrap();
            }
            remove(&guest.fake.root(), BlockId(33)).unwrap();
            guest
        }

        fn mark(&self) -> PathBuf {
            self.dir.path().join("auto_online")
        }

        fn plugger(&self) -> Plugger {
            Plugger::new(&self.fake.root(), self.mark())
        }

        fn states(&self) -> Vec<Option<State>> {
            let root = self.fake.root();
            (32..35).map(|block| memory::state(&root, BlockId(block)).ok()).collect()
        }
    }

    #[test]
    fn nothing_is_removed_while_a_block_of_it_is_in_use() {
        let guest = Guest::new();
        let root = guest.fake.root();
        write_state(&root, BlockId(32), StateRequest::Offline).unwrap();
        let error = remove(&root, BlockId(32)).unwrap_err();
        assert!(matches!(error, RemoveError::InUse { block: BlockId(33), .. }), "{error}");
        assert!(!guest.fake.writes().iter().any(|(file, _)| file.ends_with("unbind")));
        assert_eq!(unplugged(&root).unwrap(), [].into());
    }

    #[test]
    fn one_block_comes_back_and_the_others_stay_out_of_use() {
        let guest = Guest::removed();
        assert_eq!(guest.states(), [None; 3]);
        assert_eq!(unplugged(&guest.fake.root()).unwrap().len(), 3);
        guest.plugger().put_online(BlockId(33), StateRequest::OnlineMovable).unwrap();
        let (on, off) = (Some(State::Online), Some(State::Offline));
        assert_eq!(guest.states(), [off, on, off], "the policy says online");
        assert_eq!(guest.fake.get(POLICY), "online\n", "and does so again");
        assert!(!guest.mark().exists());
        guest.plugger().put_online(BlockId(32), StateRequest::OnlineMovable).unwrap();
        assert_eq!(guest.states(), [on, on, off]);
    }

    #[test]
    fn a_device_that_does_not_come_back_leaves_the_policy_as_it_was() {
        let guest = Guest::removed();
        guest.fake.refuse(BIND, Errno::NOMEM);
        let error = guest.plugger().put_online(BlockId(33), StateRequest::Online).unwrap_err();
        assert!(error.to_string().contains("dax0.0"), "{error}");
        assert_eq!((guest.states(), guest.fake.get(POLICY)), (vec![None; 3], "online\n".into()));
    }

    #[test]
    fn whoever_comes_after_a_killed_agent_puts_the_policy_back() {
        let guest = Guest::removed();
        std::fs::write(guest.mark(), "online_movable").unwrap();
        guest.fake.put(POLICY, "offline\n");
        guest.plugger().restore().unwrap();
        assert_eq!(guest.fake.get(POLICY), "online_movable\n");
        guest.fake.put(POLICY, "offline\n");
        guest.plugger().restore().unwrap();
        assert_eq!(guest.fake.get(POLICY), "offline\n", "this time it was somebody else");
        std::fs::write(guest.mark(), "online").unwrap();
        guest.fake.put(POLICY, "online_kernel\n");
        guest.plugger().restore().unwrap();
        assert_eq!(guest.fake.get(POLICY), "online_kernel\n");
    }

    #[test]
    fn a_device_that_would_hold_its_own_struct_pages_comes_back_without() {
        let guest = Guest::removed();
        let file = "sys/bus/dax/devices/dax0.0/memmap_on_memory";
        guest.fake.put(file, "1\n");
        guest.plugger().put_online(BlockId(33), StateRequest::OnlineMovable).unwrap();
        assert_eq!(guest.fake.get(file), "0\n");
    }

    #[test]
    fn a_block_whose_device_has_gone_does_not_come_back() {
        let guest = Guest::removed();
        guest.fake.remove("sys/bus/dax/devices/dax0.0");
        let error = guest.plugger().put_online(BlockId(33), StateRequest::Online).unwrap_err();
        assert!(matches!(error, PlugError::Gone(BlockId(33))), "{error}");
    }
}
