//! What a guest must have so that stealing from it can be answered for.

use memtide_sysfs::psi::Psi;
use memtide_sysfs::{Error, Root};
use memtide_units::{ByteSize, Pfn};

use crate::handback;
use crate::run::RunError;
use crate::runtime::RuntimeDir;

/// Why a guest keeps its stock driver, whatever balloon it has.
#[derive(Debug, thiserror::Error)]
pub enum Unsuitable {
    /// Nobody would notice that it hurts.
    #[error(
        "this kernel does not tell of memory pressure, and nothing is stolen blindly: the stock driver keeps \
         the balloon, and follows the host as before ({0}); boot with psi=1, on a kernel with CONFIG_PSI"
    )]
    NoPressure(Error),
    /// Page frames would be taken for others.
    #[error(
        "this kernel has pages of {0}, and the agent reads page frames of {page} only (x86-64): the stock driver \
         keeps the balloon",
        page = Pfn::SIZE
    )]
    Pages(ByteSize),
}

/// Looks before the stock driver is disturbed.
///
/// An agent that finds something stolen, by one before it, runs without pressure too: somebody has to bring it
/// back when memory is short.
///
/// # Errors
/// [`RunError::Unsuitable`], and what [`RuntimeDir::seen`] says.
pub fn must_be_suitable(root: &Root, runtime: &RuntimeDir) -> Result<(), RunError> {
    pages(ByteSize::from_bytes(rustix::param::page_size() as u64))?;
    match pressure(root) {
        Err(_) if !handback::ours(root, runtime)?.is_empty() => Ok(()),
        felt => Ok(felt?),
    }
}

/// Whether pressure can be told.
///
/// # Errors
/// [`Unsuitable::NoPressure`].
pub fn pressure(root: &Root) -> Result<(), Unsuitable> {
    Psi::read(root).map(drop).map_err(Unsuitable::NoPressure)
}

/// Whether page frames are what the agent takes them for.
///
/// # Errors
/// [`Unsuitable::Pages`].
pub fn pages(size: ByteSize) -> Result<(), Unsuitable> {
    if size == Pfn::SIZE { Ok(()) } else { Err(Unsuitable::Pages(size)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::memory::{StateRequest, write_state};
    use memtide_units::{BlockId, BlockSize};

    /// Two blocks, and no PSI.
    fn guest() -> (FakeRoot, RuntimeDir, tempfile::TempDir) {
        let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
        fake.add_blocks(BlockSize::X86_SMALL, (0..2).map(|n| (n, FakeBlock::MOVABLE)));
        let runtime = RuntimeDir::open(dir.path()).unwrap();
        (fake, runtime, dir)
    }

    #[test]
    fn nothing_is_stolen_blindly_and_the_stock_driver_keeps_the_balloon() {
        let (fake, runtime, _dir) = guest();
        let error = must_be_suitable(&fake.root(), &runtime).unwrap_err();
        assert!(error.to_string().contains("psi=1"), "{error}");
        assert_eq!(error.exit_status(), 12);
        fake.set_psi(Psi::default());
        must_be_suitable(&fake.root(), &runtime).unwrap();
    }

    #[test]
    fn what_an_agent_before_has_stolen_is_brought_back_all_the_same() {
        let (fake, runtime, _dir) = guest();
        runtime.seen(&fake.root()).unwrap();
        write_state(&fake.root(), BlockId(1), StateRequest::Offline).unwrap();
        must_be_suitable(&fake.root(), &runtime).unwrap();
    }

    #[test]
    fn large_pages_are_refused_by_their_size() {
        pages(ByteSize::from_kib(4)).unwrap();
        for kib in [16, 64] {
            let error = RunError::from(pages(ByteSize::from_kib(kib)).unwrap_err());
            assert!(error.to_string().contains(&format!("{kib} KiB")), "{error}");
            assert_eq!(error.exit_status(), 3);
        }
    }
}
