//! Putting one block online, and plugging it in first where it was removed.
//!
//! What comes with it must stay offline: the host has granted one block, and has dropped the others.

use memtide_sysfs::memory::{self, StateRequest, WriteError};
use memtide_sysfs::{Error, Root};
use memtide_units::BlockId;

use super::{PlugInError, Policy, PolicyError, Removers};
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
        source: PlugInError,
    },
    /// What stands for it cannot be given back.
    #[error(transparent)]
    Pieces(#[from] PiecesError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// What comes with it would go online by itself.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Puts blocks online.
#[derive(Clone, Debug)]
pub struct Plugger {
    root: Root,
    removers: Removers,
    policy: Policy,
    pieces: Option<Pieces>,
}

impl Plugger {
    /// By these ways.
    pub fn new(root: &Root, removers: Removers, policy: Policy) -> Self {
        Self { root: root.clone(), removers, policy, pieces: None }
    }

    /// With files that are nowhere: nothing can be ejected, or changed.
    #[cfg(test)]
    pub fn for_tests(root: &Root) -> Self {
        let removers = Removers::new(root, "/nowhere".into());
        Self::new(root, removers, Policy::new(root, "/nowhere".into()))
    }

    /// The ways by which what is not there is plugged in.
    pub fn removers(&self) -> &Removers {
        &self.removers
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
        let Some((remover, unit)) = self.removers.find(block)? else {
            return Err(PlugError::Gone(block));
        };
        let _held = self.policy.hold()?;
        let plugged = remover.plug_in(&self.root, &unit);
        plugged.map_err(|source| PlugError::Unit { block, unit: unit.name, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remove::RemoveError;
    use memtide_sysfs::fake::FakeRoot;
    use memtide_sysfs::memory::{State, write_state};
    use memtide_units::{BlockSize, ByteSize, Gpa, GpaRange};
    use rustix::io::Errno;
    use std::path::PathBuf;

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
            guest.removers().remove(BlockId(33)).unwrap();
            guest
        }

        fn mark(&self) -> PathBuf {
            self.dir.path().join("auto_online")
        }

        fn removers(&self) -> Removers {
            Removers::new(&self.fake.root(), self.dir.path().join("ejected"))
        }

        fn plugger(&self) -> Plugger {
            let root = self.fake.root();
            Plugger::new(&root, self.removers(), Policy::new(&root, self.mark()))
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
        let error = guest.removers().remove(BlockId(32)).unwrap_err();
        assert!(matches!(error, RemoveError::InUse { block: BlockId(33), .. }), "{error}");
        assert!(!guest.fake.writes().iter().any(|(file, _)| file.ends_with("unbind")));
        assert_eq!(guest.removers().unplugged().unwrap().blocks, [].into());
    }

    #[test]
    fn one_block_comes_back_and_the_others_stay_out_of_use() {
        let guest = Guest::removed();
        assert_eq!(guest.states(), [None; 3]);
        assert_eq!(guest.removers().unplugged().unwrap().blocks.len(), 3);
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
