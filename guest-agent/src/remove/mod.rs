//! Removing what is stolen: a block that is only offline still has its `struct page`s, 2 MiB for
//! each 128 MiB, and they are memory that nobody can use.
//!
//! They go when the memory is unplugged, and that goes by what was plugged in: a whole device, many
//! blocks. A [`Remover`] is one way of doing it. Blocks that no remover has stay offline, and keep
//! their `struct page`s: boot memory, most of all.
//!
//! * [`Kmem`]: devices of the DAX bus.
//! * [`Plugger`]: bringing back one block of what was removed.
//!
//! The kernel is asked anew each time: what is plugged in is its to know, and only that it was the
//! agent who removed something is in the runtime directory.

mod kmem;
mod plug;

use std::collections::BTreeSet;
use std::fmt;

use memtide_sysfs::{Error, Root};
use memtide_units::BlockId;

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

/// Blocks that come and go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// What the kernel calls it.
    pub name: String,
    /// Its blocks, ascending.
    pub blocks: Vec<BlockId>,
    /// Whether they are there.
    pub plug: Plug,
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
    /// What the kernel says.
    fn plug_in(&self, root: &Root, unit: &Unit) -> Result<(), Error>;
}

/// All that there are.
pub const REMOVERS: &[&dyn Remover] = &[&Kmem];

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
    /// Something else.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// The unit that a block belongs to, and how it is removed; `None` where it can only be offline.
///
/// # Errors
/// That the kernel cannot be asked.
pub fn find(root: &Root, block: BlockId) -> Result<Option<(&'static dyn Remover, Unit)>, Error> {
    for remover in REMOVERS {
        let units = remover.units(root)?;
        if let Some(unit) = units.into_iter().find(|unit| unit.blocks.contains(&block)) {
            return Ok(Some((*remover, unit)));
        }
    }
    Ok(None)
}

/// All units of all ways.
///
/// # Errors
/// That the kernel cannot be asked.
pub fn units(root: &Root) -> Result<Vec<Unit>, Error> {
    let mut all = Vec::new();
    for remover in REMOVERS {
        all.extend(remover.units(root)?);
    }
    Ok(all)
}

/// Blocks that are not there and could be plugged in.
///
/// # Errors
/// That the kernel cannot be asked.
pub fn unplugged(root: &Root) -> Result<BTreeSet<BlockId>, Error> {
    let out = units(root)?.into_iter().filter(|unit| unit.plug == Plug::Out);
    Ok(out.flat_map(|unit| unit.blocks).collect())
}

/// Removes the unit that `block` is of.
///
/// # Errors
/// [`RemoveError`]; a block without a unit is left alone.
pub fn remove(root: &Root, block: BlockId) -> Result<(), RemoveError> {
    match find(root, block)? {
        Some((remover, unit)) if unit.plug == Plug::In => remover.remove(root, &unit),
        _ => Ok(()),
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
        };
        assert!(unit(most).is_small() && !unit(most + 1).is_small());
    }
}
