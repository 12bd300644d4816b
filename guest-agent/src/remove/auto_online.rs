//! What happens to plugged memory by itself (`auto_online_blocks`), while some of it must stay offline.
//!
//! Most kernels put plugged memory online at once, so that is switched off for the moment. What it was
//! is in the runtime directory meanwhile: an agent that is killed in that moment has its successor put
//! it back.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use memtide_sysfs::memory::{self, AutoOnline};
use memtide_sysfs::{Error, Root};

use super::Removers;

/// The kernel's policy, which several may hold at a time: the last one puts it back.
#[derive(Clone, Debug)]
pub struct Policy {
    root: Root,
    /// There while it is changed, and says what it was.
    mark: PathBuf,
    holders: Arc<Mutex<usize>>,
}

/// Why the policy cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The kernel could not be asked, or told.
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

/// Plugged memory stays offline for as long as this lives.
#[derive(Debug)]
pub struct Held(Policy);

impl Policy {
    /// With the mark in the runtime directory.
    pub fn new(root: &Root, mark: PathBuf) -> Self {
        Self { root: root.clone(), mark, holders: Arc::default() }
    }

    /// Has plugged memory stay offline.
    ///
    /// # Errors
    /// [`PolicyError`]; the policy is as it was.
    pub fn hold(&self) -> Result<Held, PolicyError> {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if *holders == 0 {
            self.switch_off()?;
        }
        *holders += 1;
        Ok(Held(self.clone()))
    }

    /// What an agent before this one has left: the policy is put back, unless that agent may have asked the
    /// host for memory that is still to come.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn resume(&self, removers: &Removers) -> Result<Option<Held>, Error> {
        if !self.mark.exists() || removers.unplugged()?.by_host.is_empty() {
            return self.restore().map(|()| None);
        }
        *self.holders.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(Some(Held(self.clone())))
    }

    fn switch_off(&self) -> Result<(), PolicyError> {
        let before = memory::auto_online(&self.root)?;
        if before != AutoOnline::Offline {
            std::fs::write(&self.mark, before.keyword())
                .map_err(|source| PolicyError::Mark { path: self.mark.clone(), source })?;
            memory::set_auto_online(&self.root, AutoOnline::Offline)?;
        }
        Ok(())
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
        if let Err(error) = std::fs::remove_file(&self.mark) {
            tracing::warn!("{} cannot be removed: {error}", self.mark.display());
        }
        Ok(())
    }
}

impl Held {
    /// Leaves it as it is, for whoever comes next ([`Policy::resume`]).
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut holders = self.0.holders.lock().unwrap_or_else(PoisonError::into_inner);
        *holders -= 1;
        if *holders == 0
            && let Err(error) = self.0.restore()
        {
            tracing::warn!("plugged memory stays offline from now on: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_units::BlockSize;

    const POLICY: &str = "sys/devices/system/memory/auto_online_blocks";

    struct Guest {
        fake: FakeRoot,
        dir: tempfile::TempDir,
    }

    impl Guest {
        fn new() -> Self {
            let fake = FakeRoot::new();
            fake.add_blocks(BlockSize::X86_SMALL, [(1, FakeBlock::KERNEL)]);
            Self { fake, dir: tempfile::tempdir().unwrap() }
        }

        fn mark(&self) -> PathBuf {
            self.dir.path().join("auto_online")
        }

        fn policy(&self) -> Policy {
            Policy::new(&self.fake.root(), self.mark())
        }

        fn now(&self) -> String {
            self.fake.get(POLICY).trim().into()
        }
    }

    #[test]
    fn the_last_one_puts_it_back() {
        let guest = Guest::new();
        let policy = guest.policy();
        let (first, second) = (policy.hold().unwrap(), policy.clone().hold().unwrap());
        assert_eq!((guest.now().as_str(), guest.mark().exists()), ("offline", true));
        drop(first);
        assert_eq!(guest.now(), "offline");
        drop(second);
        assert_eq!((guest.now().as_str(), guest.mark().exists()), ("online", false));
    }

    #[test]
    fn whoever_comes_after_a_killed_agent_puts_it_back() {
        let guest = Guest::new();
        std::fs::write(guest.mark(), "online_movable").unwrap();
        guest.fake.put(POLICY, "offline\n");
        guest.policy().restore().unwrap();
        assert_eq!(guest.now(), "online_movable");
        guest.fake.put(POLICY, "offline\n");
        guest.policy().restore().unwrap();
        assert_eq!(guest.now(), "offline", "this time it was somebody else");
        std::fs::write(guest.mark(), "online").unwrap();
        guest.fake.put(POLICY, "online_kernel\n");
        guest.policy().restore().unwrap();
        assert_eq!(guest.now(), "online_kernel");
    }
}
