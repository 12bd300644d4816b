//! The small file with what cannot be asked again: changes by the API, and which part of a balloon
//! is a squeeze that is to be let go, and which DIMMs guests have ejected.
//!
//! What VMs hold is not in it: devices and guests tell that anew after every start. The file is
//! replaced as a whole by a rename, so a reader sees the old or the new one. Without a directory to
//! write to memtided runs all the same and forgets these things when it stops.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use memtide_api::http::Budget;
use memtide_units::ByteSize;
use serde::{Deserialize, Serialize};

use crate::vmm::Dimm;

/// Version of the file's form. Another one is set aside, not guessed at.
const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// What outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// A budget given by the API.
    pub budget: Option<Change<Budget>>,
    /// By name.
    pub vms: BTreeMap<String, VmMemory>,
}

/// What outlives a restart of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmMemory {
    /// Limits given by the API.
    pub limits: Option<Change<MinMax>>,
    /// What an operator wants the VM to keep.
    pub keep: Option<ByteSize>,
    /// The part of its balloon that memtided asked for by itself.
    pub squeezed: ByteSize,
    /// DIMMs that its guest has ejected or is about to: they must be plugged in again some day.
    #[serde(default)]
    pub out: Vec<Dimm>,
    /// DIMMs that are stolen whole, and plugged in: its guest may eject them at any time, and memtided end in that
    /// very moment.
    #[serde(default)]
    pub stolen: Vec<Dimm>,
}

/// A configured value and what replaced it. The replacement holds only while the configuration
/// still says what it said then: whoever edits the file later means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change<T> {
    /// As configured.
    pub configured: T,
    /// As changed.
    pub changed: T,
}

impl<T: Copy + PartialEq> Change<T> {
    /// The change, unless it changes nothing.
    pub fn between(configured: T, changed: T) -> Option<Self> {
        (configured != changed).then_some(Self { configured, changed })
    }

    /// What holds now that the configuration says `configured`.
    pub fn after(self, configured: T) -> T {
        if self.configured == configured { self.changed } else { configured }
    }
}

/// Limits as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinMax {
    /// Guaranteed.
    pub min: ByteSize,
    /// The limit.
    pub max: ByteSize,
}

#[derive(Serialize, Deserialize)]
struct Form {
    version: u32,
    #[serde(flatten)]
    memory: Memory,
}

/// Where the file lies.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store in `dir`, or a word about why nothing can be kept there.
    pub(crate) fn open(dir: &Path) -> Result<Self, String> {
        let store = Self { dir: dir.into() };
        let writable = fs::create_dir_all(dir).and_then(|()| File::create(store.temporary()));
        match writable.and_then(|_| fs::remove_file(store.temporary())) {
            Ok(()) => Ok(store),
            Err(error) => Err(format!(
                "changes by the API will be lost when memtided stops: {} cannot be written to \
                 ({error}); make it writable or give another --state-dir",
                dir.display()
            )),
        }
    }

    /// What was kept; nothing where there is no file, or none that is understood.
    pub(crate) fn load(&self) -> Memory {
        let path = self.dir.join(FILE);
        let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Form>(&bytes)?));
        match read {
            Ok(form) if form.version == VERSION => form.memory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Memory::default(),
            Ok(form) => self.set_aside(&path, &format!("it has version {}", form.version)),
            Err(error) => self.set_aside(&path, &error.to_string()),
        }
    }

    fn set_aside(&self, path: &Path, why: &str) -> Memory {
        let aside = self.dir.join("state.json.not-understood");
        let moved = fs::rename(path, &aside).is_ok();
        tracing::warn!(
            "what was kept in {} is not understood ({why}): starting from the configuration{}",
            path.display(),
            if moved { "; the file was set aside" } else { "" }
        );
        Memory::default()
    }

    /// Replaces the file.
    pub(crate) fn save(&self, memory: &Memory) -> io::Result<()> {
        let form = Form { version: VERSION, memory: memory.clone() };
        let mut text = serde_json::to_vec_pretty(&form)?;
        text.push(b'\n');
        let temporary = self.temporary();
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, self.dir.join(FILE))
    }

    fn temporary(&self) -> PathBuf {
        self.dir.join("state.json.new")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::{Gpa, GpaRange};

    fn memory() -> Memory {
        let limits = MinMax { min: ByteSize::from_mib(1), max: ByteSize::MAX };
        let changed = MinMax { min: ByteSize::from_mib(2), ..limits };
        let vm = VmMemory {
            limits: Change::between(limits, changed),
            keep: Some(ByteSize::from_gib(1)),
            squeezed: ByteSize::from_mib(7),
            out: vec![Dimm {
                id: None,
                memdev: "mem1".into(),
                range: GpaRange::new(Gpa(1 << 32), ByteSize::from_mib(512)).unwrap(),
                slot: 0,
                node: 1,
            }],
            stolen: vec![],
        };
        let budget = Change::between(Budget::Host, Budget::Bytes(ByteSize::from_gib(4)));
        Memory { budget, vms: BTreeMap::from([("web1".into(), vm)]) }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.load(), Memory::default());
        store.save(&memory()).unwrap();
        assert_eq!(store.load(), memory());
        let names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [FILE], "no temporary file stays behind");
    }

    #[test]
    fn a_file_from_before_there_were_dimms_is_understood() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let text =
            r#"{"version":1,"budget":null,"vms":{"a":{"limits":null,"keep":1,"squeezed":2}}}"#;
        fs::write(folder.path().join(FILE), text).unwrap();
        let vm = &store.load().vms["a"];
        assert_eq!(
            (vm.keep, vm.squeezed),
            (Some(ByteSize::from_bytes(1)), ByteSize::from_bytes(2))
        );
        assert_eq!((&vm.out, &vm.stolen), (&vec![], &vec![]));
    }

    #[test]
    fn a_file_that_is_not_understood_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for text in ["", "{", r#"{"version":2,"vms":{},"budget":null}"#] {
            fs::write(folder.path().join(FILE), text).unwrap();
            assert_eq!(store.load(), Memory::default());
            assert!(folder.path().join("state.json.not-understood").exists());
        }
    }

    #[test]
    fn an_edited_configuration_wins_over_an_older_change() {
        let change = Change::between(1, 2).unwrap();
        assert_eq!((change.after(1), change.after(3)), (2, 3));
        assert_eq!(Change::between(1, 1), None);
    }
}
