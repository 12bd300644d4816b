//! What was ejected: the kernel does not know it any more, and the agent must.
//!
//! One small file in the runtime directory, replaced as a whole: which blocks each DIMM was. It is read
//! anew each time, since two threads and whoever comes after a killed agent go by it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use memtide_units::BlockId;

use super::Unit;
use crate::runtime;

/// DIMMs by name, with their blocks.
pub(super) type Dimms = BTreeMap<String, Vec<BlockId>>;

/// The file.
#[derive(Clone, Debug)]
pub(super) struct Ejected {
    path: PathBuf,
}

impl Ejected {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What is in it. A file that makes no sense says nothing: the host plugs in what no agent says it
    /// holds.
    pub(super) fn read(&self) -> Dimms {
        let read = std::fs::read_to_string(&self.path);
        let parsed = read.and_then(|text| serde_json::from_str(&text).map_err(io::Error::other));
        parsed.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!("{} is ignored: {error}", self.path.display());
            }
            Dimms::new()
        })
    }

    /// Writes down what is about to be ejected.
    pub(super) fn add(&self, unit: &Unit) -> io::Result<()> {
        let mut dimms = self.read();
        dimms.insert(unit.name.clone(), unit.blocks.clone());
        self.write(&dimms)
    }

    /// It is there again, or was not ejected.
    pub(super) fn forget(&self, name: &str) -> io::Result<()> {
        let mut dimms = self.read();
        match dimms.remove(name) {
            Some(_) => self.write(&dimms),
            None => Ok(()),
        }
    }

    fn write(&self, dimms: &Dimms) -> io::Result<()> {
        if dimms.is_empty() {
            return std::fs::remove_file(&self.path);
        }
        runtime::replace(&self.path, &serde_json::to_string(dimms).map_err(io::Error::other)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remove::{Plug, PluggedBy};

    fn unit(name: &str) -> Unit {
        let blocks = vec![BlockId(32), BlockId(33)];
        Unit { name: name.into(), blocks, plug: Plug::In, by: PluggedBy::Host }
    }

    #[test]
    fn what_goes_is_remembered_until_it_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let ejected = Ejected::new(dir.path().join("ejected"));
        assert_eq!(ejected.read(), Dimms::new());
        ejected.forget("PNP0C80:00").unwrap();
        for name in ["PNP0C80:00", "PNP0C80:01"] {
            ejected.add(&unit(name)).unwrap();
        }
        ejected.forget("PNP0C80:00").unwrap();
        let left = [("PNP0C80:01".to_owned(), unit("").blocks)].into();
        assert_eq!(Ejected::new(dir.path().join("ejected")).read(), left);
        ejected.forget("PNP0C80:01").unwrap();
        assert!(!dir.path().join("ejected").exists());
    }

    #[test]
    fn a_damaged_file_says_nothing_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let ejected = Ejected::new(dir.path().join("ejected"));
        std::fs::write(dir.path().join("ejected"), "{\"PNP0C80:00\":").unwrap();
        assert_eq!(ejected.read(), Dimms::new());
        ejected.add(&unit("PNP0C80:02")).unwrap();
        assert_eq!(ejected.read().len(), 1);
    }
}
