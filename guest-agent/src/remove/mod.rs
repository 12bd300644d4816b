//! Removing what is stolen: a block that is only offline still has its `struct page`s, 2 MiB for
//! each 128 MiB, and they are memory that nobody can use.
//!
//! They go when the memory is unplugged, and that goes by what was plugged in: a whole device, many
//! blocks. A [`Remover`] is one way of doing it. Blocks that no remover has stay offline, and keep
//! their `struct page`s: boot memory, most of all.
//!
//! * [`Kmem`]: devices of the DAX bus.
//! * [`Acpi`]: DIMMs, which the host plugs in again.
//! * [`Policy`]: what comes with the block that was granted stays offline.
//! * [`Plugger`]: bringing back one block of what was removed.
//!
//! The kernel is asked anew each time: what is plugged in is its to know, and only that it was the
//! agent who removed something is in the runtime directory.

mod acpi;
mod auto_online;
mod ejected;
mod kmem;
mod plug;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;

use memtide_sysfs::memory::{self, State};
use memtide_sysfs::{Error, Root};
use memtide_units::BlockId;

pub use acpi::Acpi;
pub use auto_online::{Held, Policy, PolicyError};
pub use kmem::Kmem;
pub use plug::{PlugError, Plugger};

/// Bytes of a `struct page` (include/linux/mm_types.h; on 64-bit kernels without debugging).
pub const STRUCT_PAGE: u64 = 64;

/// Whether a unit's memory is the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    /// It is, online or not.
    In,
    /// It is not: there are no blocks, and no `struct page`s.
    Out,
}

/// Who can plug a unit in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluggedBy {
    /// The agent, by itself.
    Guest,
    /// The host, which must be asked.
    Host,
}

/// Blocks that come and go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// What the kernel calls it.
    pub name: String,
    /// Its blocks, ascending.
    pub blocks: Vec<BlockId>,
    /// Whether they are there.
    pub plug: Plug,
    /// Who brings them back.
    pub by: PluggedBy,
}

impl Unit {
    /// Whether it is small enough to be removed. One block of it comes back at the price of
    /// `struct page`s for all of it, in a moment when memory is short: a quarter of a block at most,
    /// which is 16 blocks of pages of 4 KiB.
    pub fn is_small(&self) -> bool {
        let blocks = u64::try_from(self.blocks.len()).unwrap_or(u64::MAX);
        let page = rustix::param::page_size() as u64;
        blocks.saturating_mul(STRUCT_PAGE).saturating_mul(4) <= page
    }
}

impl Unit {
    /// Looks at each of its blocks.
    ///
    /// # Errors
    /// [`RemoveError::InUse`] where one is not offline.
    fn must_be_offline(&self, root: &Root) -> Result<(), RemoveError> {
        for block in &self.blocks {
            if memory::state(root, *block)? != State::Offline {
                return Err(RemoveError::InUse { unit: self.name.clone(), block: *block });
            }
        }
        Ok(())
    }
}

/// A way of having `struct page`s go.
pub trait Remover: fmt::Debug + Sync {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// What it could remove here, or has.
    ///
    /// # Errors
    /// That the kernel cannot be asked.
    fn units(&self, root: &Root) -> Result<Vec<Unit>, Error>;

    /// Removes a unit whose blocks are all offline.
    ///
    /// # Errors
    /// [`RemoveError`].
    fn remove(&self, root: &Root, unit: &Unit) -> Result<(), RemoveError>;

    /// Plugs it in again. What becomes of its blocks then is what the kernel's policy says.
    ///
    /// # Errors
    /// [`PlugInError`].
    fn plug_in(&self, root: &Root, unit: &Unit) -> Result<(), PlugInError>;
}

/// Why something was not plugged in.
#[derive(Debug, thiserror::Error)]
pub enum PlugInError {
    /// The kernel does not take it.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// It was ejected, and is not there again.
    #[error(
        "it was ejected, and nobody on the host plugs it in: start memtided with the VM's QMP socket \
         (qmp = \"...\"), or plug in what device_add had plugged in"
    )]
    Nobody,
}

/// Why something was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// One of its blocks is in use: nothing was tried.
    #[error("{unit} is not removed: {block} of it is not offline any more")]
    InUse {
        /// What was to be removed.
        unit: String,
        /// A block of it.
        block: BlockId,
    },
    /// Somebody was faster than the kernel: it has let go of the unit and kept the memory.
    #[error(
        "{unit} is only half removed: somebody put {block} online meanwhile. Its memory stays, and \
         works, but cannot be removed before the next boot"
    )]
    Stuck {
        /// What was to be removed.
        unit: String,
        /// A block of it that is still there.
        block: BlockId,
    },
    /// What is ejected must be known to whoever comes next.
    #[error("{unit} is not ejected, since that cannot be written down: {source}")]
    NotOnFile {
        /// What was to be removed.
        unit: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel does not say why.
    #[error("{unit} was not ejected: its blocks are still there; the kernel's log says why")]
    NotEjected {
        /// What was to be removed.
        unit: String,
    },
    /// Something else.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// All ways that there are, on one kernel.
#[derive(Clone, Debug)]
pub struct Removers {
    root: Root,
    acpi: Acpi,
}

/// Blocks that are not there and could be plugged in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unplugged {
    /// All of them.
    pub blocks: BTreeSet<BlockId>,
    /// Those that only the host plugs in.
    pub by_host: BTreeSet<BlockId>,
}

impl Removers {
    /// With the file that says what was ejected ([`crate::runtime::RuntimeDir::ejected`]).
    pub fn new(root: &Root, ejected: PathBuf) -> Self {
        Self { root: root.clone(), acpi: Acpi::new(ejected) }
    }

    /// Each of them.
    pub fn all(&self) -> [&dyn Remover; 2] {
        [&Kmem, &self.acpi]
    }

    /// All units of all ways.
    ///
    /// # Errors
    /// That the kernel cannot be asked.
    pub fn units(&self) -> Result<Vec<Unit>, Error> {
        let mut all = Vec::new();
        for remover in self.all() {
            all.extend(remover.units(&self.root)?);
        }
        Ok(all)
    }

    /// The unit that a block belongs to, and how it is removed; `None` where it can only be offline.
    ///
    /// # Errors
    /// That the kernel cannot be asked.
    pub fn find(&self, block: BlockId) -> Result<Option<(&dyn Remover, Unit)>, Error> {
        for remover in self.all() {
            let units = remover.units(&self.root)?;
            if let Some(unit) = units.into_iter().find(|unit| unit.blocks.contains(&block)) {
                return Ok(Some((remover, unit)));
            }
        }
        Ok(None)
    }

    /// Blocks that are not there and could be plugged in.
    ///
    /// # Errors
    /// That the kernel cannot be asked.
    pub fn unplugged(&self) -> Result<Unplugged, Error> {
        let mut unplugged = Unplugged::default();
        for unit in self.units()?.into_iter().filter(|unit| unit.plug == Plug::Out) {
            unplugged.blocks.extend(&unit.blocks);
            if unit.by == PluggedBy::Host {
                unplugged.by_host.extend(&unit.blocks);
            }
        }
        Ok(unplugged)
    }

    /// Removes the unit that `block` is of.
    ///
    /// # Errors
    /// [`RemoveError`]; a block without a unit is left alone.
    pub fn remove(&self, block: BlockId) -> Result<(), RemoveError> {
        match self.find(block)? {
            Some((remover, unit)) if unit.plug == Plug::In => remover.remove(&self.root, &unit),
            _ => Ok(()),
        }
    }

    /// Whether the host has plugged a unit in, and the kernel is done with it.
    pub fn is_plugged_in(&self, unit: &Unit) -> bool {
        acpi::is_there(&self.root, unit)
    }

    /// A unit that was ejected is there again.
    pub fn is_back(&self, unit: &Unit) {
        self.acpi.forget(&unit.name);
    }

    /// Somebody may have plugged in what was ejected without having been asked.
    pub fn forget_what_is_back(&self) {
        self.acpi.forget_what_is_back(&self.root);
    }

    /// The host knows nothing of what was ejected: it is not this guest's any more.
    pub fn forget_ejected(&self) {
        self.acpi.forget_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_costs_at_most_a_quarter_of_a_block() {
        let most = rustix::param::page_size() as u64 / 256;
        let unit = |blocks: u64| Unit {
            name: "dax0.0".into(),
            blocks: (0..blocks).map(BlockId).collect(),
            plug: Plug::In,
            by: PluggedBy::Guest,
        };
        assert!(unit(most).is_small() && !unit(most + 1).is_small());
    }
}
