//! A root directory with a small kernel behind it, for tests.
//!
//! [`FakeRoot`] makes the files; what is written through its [`Root`] is handled the way the kernel
//! would: blocks change state and `MemTotal`, DAMON's `nr_` files make directories, functions
//! change drivers. Everything happens within the write, so a test needs no waiting. It panics where
//! the test itself is wrong or the disk is full.

mod damon;
mod dax;
mod dimm;
mod hugetlb;
mod memory;
mod pci;
mod virtio;
mod zram;

pub use damon::FakeDamon;
pub use memory::FakeBlock;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memtide_units::{BlockId, BlockSize, PpMillion};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::meminfo::Meminfo;
use crate::psi::{Line, Psi};
use crate::{Root, Writer};

/// How long a write can take: a test that forgets it comes to an end.
pub const STALL_MAX: Duration = Duration::from_secs(20);

/// A root directory of a test's own, deleted when it is dropped.
pub struct FakeRoot {
    dir: TempDir,
    kernel: Arc<Kernel>,
}

impl Default for FakeRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRoot {
    /// An empty one: a kernel without any of the features.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a test needs a temporary directory");
        let files = Files(dir.path().to_path_buf());
        Self {
            dir,
            kernel: Arc::new(Kernel { files, state: Mutex::default(), allowed: Condvar::new() }),
        }
    }

    /// What the code under test is given.
    pub fn root(&self) -> Root {
        Root::with_writer(self.path(), self.kernel.clone())
    }

    /// Where the files lie.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a text file, such as `proc/meminfo`, and the directories above it.
    pub fn put(&self, path: &str, text: &str) {
        self.put_bytes(path, text.as_bytes());
    }

    /// The same with any bytes.
    pub fn put_bytes(&self, path: &str, bytes: &[u8]) {
        self.kernel.files.put(path, bytes).expect("the fake's files can be written");
    }

    /// A file's text.
    pub fn get(&self, path: &str) -> String {
        self.kernel.files.get(path).expect("the test asks for a file that is there")
    }

    /// Takes a file or directory away: a feature that the kernel lacks, a device that went.
    pub fn remove(&self, path: &str) {
        self.kernel.files.remove(path).expect("the fake's files can be removed");
    }

    /// Has every write to `path` fail, until [`FakeRoot::allow`].
    pub fn refuse(&self, path: &str, errno: Errno) {
        self.kernel.state().refusals.insert(path.into(), errno);
    }

    /// Has every write to `path` take its time, until [`FakeRoot::allow`]. One that takes more than
    /// [`STALL_MAX`] is interrupted.
    pub fn stall(&self, path: &str) {
        self.kernel.state().stalls.insert(path.into());
    }

    /// Takes a [`FakeRoot::refuse`] or a [`FakeRoot::stall`] back.
    pub fn allow(&self, path: &str) {
        let mut state = self.kernel.state();
        state.refusals.remove(path);
        state.stalls.remove(path);
        self.kernel.allowed.notify_all();
    }

    /// Every write so far, in order, failed ones and those under way too: file and text.
    pub fn writes(&self) -> Vec<(String, String)> {
        self.kernel.state().writes.clone()
    }

    /// States the pressure.
    pub fn set_psi(&self, psi: Psi) {
        let percent = |PpMillion(share)| format!("{}.{:02}", share / 10_000, share % 10_000 / 100);
        let line = |name: &str, line: Line| {
            let [ten, sixty, five] = [line.avg10, line.avg60, line.avg300].map(percent);
            let total = line.total_us;
            format!("{name} avg10={ten} avg60={sixty} avg300={five} total={total}\n")
        };
        self.put("proc/pressure/memory", &(line("some", psi.some) + &line("full", psi.full)));
    }

    /// States how much memory there is. From then on, blocks that go offline and online take from
    /// and add to its total, free and available memory.
    pub fn set_meminfo(&self, meminfo: Meminfo) {
        let mut state = self.kernel.state();
        state.meminfo = Some(meminfo);
        self.kernel.files.put_meminfo(meminfo).expect("the fake's files can be written");
    }

    /// States counters of `/proc/vmstat`, in place of all earlier ones.
    pub fn set_vmstat(&self, counters: &[(&str, u64)]) {
        let mut text = String::new();
        for (name, value) in counters {
            let _ = writeln!(text, "{name} {value}");
        }
        self.put("proc/vmstat", &text);
    }

    /// Adds memory blocks by number, and states their size.
    pub fn add_blocks(&self, size: BlockSize, blocks: impl IntoIterator<Item = (u64, FakeBlock)>) {
        self.kernel.state().block_size = Some(size);
        for (number, block) in blocks {
            memory::add(&self.kernel.files, size, BlockId(number), block)
                .expect("the fake's files can be written");
        }
    }

    /// Has `block` belong to a DIMM of ACPI's.
    pub fn put_into_dimm(&self, block: BlockId, dimm: &str) {
        let link = self.kernel.files.at(&format!("{}/{block}/firmware_node", memory::DIR));
        std::os::unix::fs::symlink(format!("../../../LNXSYSTM:00/LNXSYBUS:00/{dimm}"), link)
            .expect("the fake's files can be written");
    }

    /// Has every request to `block` fail so, until [`FakeRoot::allow_block`].
    pub fn refuse_block(&self, block: BlockId, errno: Errno) {
        self.refuse(&memory::state_file(block), errno);
    }

    /// Takes a [`FakeRoot::refuse_block`] back.
    pub fn allow_block(&self, block: BlockId) {
        self.allow(&memory::state_file(block));
    }

    /// States the bits of `/proc/kpageflags` from page frame `first` on, in place of earlier ones;
    /// frames before it read as 0.
    pub fn put_page_flags(&self, first: usize, flags: &[u64]) {
        let mut bytes = vec![0; first * 8];
        bytes.extend(flags.iter().flat_map(|bits| bits.to_ne_bytes()));
        self.put_bytes("proc/kpageflags", &bytes);
    }
}

/// What the fake kernel keeps besides its files.
#[derive(Default)]
struct State {
    writes: Vec<(String, String)>,
    refusals: BTreeMap<String, Errno>,
    stalls: BTreeSet<String>,
    meminfo: Option<Meminfo>,
    block_size: Option<BlockSize>,
    damon: damon::Damon,
    dax: dax::Dax,
    dimms: dimm::Dimms,
    pci: pci::Pci,
}

struct Kernel {
    files: Files,
    state: Mutex<State>,
    /// A write that takes its time may go on.
    allowed: Condvar,
}

impl Kernel {
    fn state(&self) -> MutexGuard<'_, State> {
        // A failed assertion of a test poisons the lock: the test has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer for Kernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let path = path.to_str().ok_or(Errno::INVAL)?;
        let mut state = self.state();
        state.writes.push((path.into(), text.into()));
        let is_stalled = |state: &mut State| state.stalls.contains(path);
        let waited = self.allowed.wait_timeout_while(state, STALL_MAX, is_stalled);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(Errno::INTR.into());
        }
        if let Some(errno) = state.refusals.get(path) {
            return Err((*errno).into());
        }
        if !self.files.exists(path) && !damon::is_in_memory(path) {
            return Err(Errno::NOENT.into());
        }
        let text = text.trim_end_matches('\n');
        if path.starts_with(memory::DIR) {
            memory::write(&self.files, &mut state, path, text)
        } else if path.starts_with(damon::ADMIN) || path == damon::STAT {
            damon::write(&self.files, &mut state.damon, path, text)
        } else if path.starts_with(dax::BUS) {
            dax::write(&self.files, &mut state, path, text)
        } else if path.starts_with(dimm::DEVICES) {
            dimm::write(&self.files, &mut state, path)
        } else if path.starts_with(pci::BUS) {
            pci::write(&self.files, &mut state.pci, path, text)
        } else if path == format!("{}/hot_remove", zram::CONTROL) {
            zram::remove(&self.files, text)
        } else if path == "proc/pressure/memory" {
            // A trigger: the file goes on saying what it said.
            Ok(())
        } else {
            self.files.put_line(path, text)
        }
    }
}

/// Where directories lie that were removed.
const REMOVED: &str = ".removed";

/// The directory, with the few operations that the fake kernel needs.
struct Files(PathBuf);

impl Files {
    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn exists(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    fn get(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.at(path))
    }

    /// The file's number, or 0 where it has none.
    fn number(&self, path: &str) -> u64 {
        self.get(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn put(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.at(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, bytes)
    }

    fn put_line(&self, path: &str, text: &str) -> io::Result<()> {
        self.put(path, format!("{text}\n").as_bytes())
    }

    /// Removes a file, a link or a whole directory; what is not there is removed already. A directory
    /// stays, out of the way: no other one shall have its number, as in the kernel's own.
    fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.at(path);
        match fs::symlink_metadata(&path) {
            Ok(what) if what.is_dir() => {
                let removed = self.at(REMOVED);
                fs::create_dir_all(&removed)?;
                fs::rename(path, removed.join(what.ino().to_string()))
            }
            Ok(_) => fs::remove_file(path),
            Err(_) => Ok(()),
        }
    }

    fn put_meminfo(&self, info: Meminfo) -> io::Result<()> {
        let mut text = String::new();
        for (name, size) in [
            ("MemTotal", info.total),
            ("MemFree", info.free),
            ("MemAvailable", info.available),
            ("Buffers", info.buffers),
            ("Cached", info.cached),
            ("AnonPages", info.anon_pages),
            ("SwapCached", info.swap_cached),
            ("Shmem", info.shmem),
            ("SReclaimable", info.slab_reclaimable),
            ("SwapTotal", info.swap_total),
            ("SwapFree", info.swap_free),
        ] {
            let _ = writeln!(text, "{:<15} {:>8} kB", format!("{name}:"), size.kib());
        }
        self.put("proc/meminfo", text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use memtide_units::ByteSize;

    #[test]
    fn what_is_stated_is_what_is_read() {
        let fake = FakeRoot::new();
        let info = Meminfo {
            total: ByteSize::from_mib(1024),
            free: ByteSize::from_mib(600),
            available: ByteSize::from_mib(700),
            swap_free: ByteSize::from_kib(4),
            ..Meminfo::default()
        };
        fake.set_meminfo(info);
        assert_eq!(Meminfo::read(&fake.root()).unwrap(), info);
        let some = Line { avg10: PpMillion(12_300), total_us: 77, ..Line::default() };
        let psi = Psi { some, full: Line::default() };
        fake.set_psi(psi);
        assert_eq!(Psi::read(&fake.root()).unwrap(), psi);
        fake.set_vmstat(&[("oom_kill", 1), ("pgfault", 9)]);
        let vmstat = crate::vmstat::Vmstat::read(&fake.root()).unwrap();
        assert_eq!((vmstat.oom_kills(), vmstat.page_faults()), (1, 9));
    }

    #[test]
    fn refusals_last_until_they_are_lifted() {
        let fake = FakeRoot::new();
        fake.put("sys/switch", "0\n");
        fake.refuse("sys/switch", Errno::BUSY);
        for _ in 0..2 {
            let error = fake.root().write("sys/switch", "1").unwrap_err();
            assert!(matches!(error, Error::Refused { .. }) && error.errno() == Some(Errno::BUSY));
        }
        fake.allow("sys/switch");
        fake.root().write("sys/switch", "1").unwrap();
        assert_eq!(fake.get("sys/switch"), "1\n");
        assert_eq!(fake.writes().len(), 3);
        fake.remove("sys/switch");
        assert!(fake.root().write("sys/switch", "1").unwrap_err().is_missing());
    }
}
