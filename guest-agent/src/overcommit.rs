//! Large mappings while blocks are stolen.
//!
//! With `vm.overcommit_memory=0` the kernel refuses a single mapping that is larger than all the
//! memory that is online now plus swap (mm/util.c, `__vm_enough_memory`). Each stolen block lowers
//! that bound: a program that maps 1 GiB on a guest of 2 GiB of which 1.5 GiB are stolen would
//! fail, although every page that it touches could be had. So while blocks are stolen the agent
//! sets 1 ("always"), and puts back what it found when nothing is stolen any more.

use std::path::PathBuf;

use memtide_sysfs::{Error, Root};

const FILE: &str = "proc/sys/vm/overcommit_memory";

/// What to do about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OvercommitUse {
    /// Allow large mappings while blocks are stolen.
    #[default]
    Allow,
    /// Leave the setting alone.
    Leave,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is allowed, or can be.
    Allowed,
    /// The guest counts strictly (mode 2): the agent does not change that, and the limit falls with
    /// every stolen block.
    Strict,
}

/// What programs need of the setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Blocks are stolen, or are about to be: mappings larger than what is left must be allowed.
    LargeMappings,
    /// All memory is there: whatever somebody has set is right.
    Nothing,
}

/// The setting, and the mark that it was the agent who changed it.
#[derive(Debug)]
pub struct Overcommit {
    root: Root,
    /// There while the setting is the agent's: it outlives an agent that is killed.
    mark: PathBuf,
    /// What was seen to last.
    met: Option<Need>,
}

impl Overcommit {
    /// With the mark in the runtime directory.
    pub fn new(root: &Root, mark: PathBuf) -> Self {
        Self { root: root.clone(), mark, met: None }
    }

    /// Sees to what is needed now, once each time that it changes.
    pub fn meet(&mut self, need: Need) {
        if self.met.replace(need) == Some(need) {
            return;
        }
        let done = match need {
            Need::LargeMappings => self.allow().map(drop),
            Need::Nothing => self.restore(),
        };
        match (done, need) {
            (Ok(()), _) => {}
            (Err(error), Need::LargeMappings) => {
                tracing::warn!("large mappings may fail while blocks are stolen: {error}");
            }
            (Err(error), Need::Nothing) => {
                tracing::warn!("vm.overcommit_memory stays 1: {error}");
            }
        }
    }

    /// What [`Self::allow`] would find.
    ///
    /// # Errors
    /// [`Error`].
    pub fn look(&self) -> Result<Found, Error> {
        Ok(if self.root.read(FILE)?.trim() == "2" { Found::Strict } else { Found::Allowed })
    }

    /// Allows large mappings.
    ///
    /// # Errors
    /// [`Error`]; the setting is as before.
    pub fn allow(&self) -> Result<Found, Error> {
        match self.root.read(FILE)?.trim() {
            "0" => {
                // The mark first: better a needless "0" later than a "1" for ever.
                if let Err(error) = std::fs::write(&self.mark, "0") {
                    tracing::warn!("{} cannot be written: {error}", self.mark.display());
                }
                self.root.write(FILE, "1")?;
                Ok(Found::Allowed)
            }
            "2" => Ok(Found::Strict),
            _ => Ok(Found::Allowed),
        }
    }

    /// Puts back what was there, if it was the agent who changed it.
    ///
    /// # Errors
    /// [`Error`]; the setting is as before.
    pub fn restore(&self) -> Result<(), Error> {
        if !self.mark.exists() {
            return Ok(());
        }
        // Anything else was chosen by somebody since.
        if self.root.read(FILE)?.trim() == "1" {
            self.root.write(FILE, "0")?;
        }
        if let Err(error) = std::fs::remove_file(&self.mark) {
            tracing::warn!("{} cannot be removed: {error}", self.mark.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;

    fn guest(mode: &str) -> (FakeRoot, Overcommit, tempfile::TempDir) {
        let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
        fake.put(FILE, mode);
        let overcommit = Overcommit::new(&fake.root(), dir.path().join("overcommit"));
        (fake, overcommit, dir)
    }

    #[test]
    fn the_setting_comes_back_even_by_the_hand_of_a_later_agent() {
        let (fake, overcommit, dir) = guest("0\n");
        assert_eq!(overcommit.allow().unwrap(), Found::Allowed);
        assert_eq!(fake.get(FILE), "1\n");
        let later = Overcommit::new(&fake.root(), dir.path().join("overcommit"));
        assert_eq!(later.allow().unwrap(), Found::Allowed);
        later.restore().unwrap();
        assert_eq!(fake.get(FILE), "0\n");
        later.restore().unwrap();
    }

    #[test]
    fn what_somebody_chose_meanwhile_stays() {
        let (fake, overcommit, dir) = guest("0\n");
        overcommit.allow().unwrap();
        fake.put(FILE, "2\n");
        overcommit.restore().unwrap();
        assert_eq!(fake.get(FILE), "2\n");
        assert!(!dir.path().join("overcommit").exists());
    }

    #[test]
    fn what_somebody_else_chose_stays() {
        let (fake, overcommit, _dir) = guest("1\n");
        assert_eq!(overcommit.allow().unwrap(), Found::Allowed);
        overcommit.restore().unwrap();
        assert_eq!(fake.get(FILE), "1\n");
        let (fake, overcommit, _dir) = guest("2\n");
        assert_eq!(overcommit.allow().unwrap(), Found::Strict);
        assert_eq!((fake.get(FILE).as_str(), fake.writes()), ("2\n", vec![]));
    }
}
