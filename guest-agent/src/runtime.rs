//! The runtime directory: what must outlive the agent, on a tmpfs, until the guest reboots.
//!
//! ```text
//! lock           held by the one agent that drives the device
//! blocks.json    which blocks there are, which are somebody else's, which were removed, and which came to a
//!                kernel zone later
//! dma            the device's memory
//! converted      there once boot memory has been made movable
//! overcommit     there while vm.overcommit_memory is changed
//! auto_online    there while plugged memory does not go online by itself
//! ejected        DIMMs that were ejected, with their blocks: the kernel has no word of them
//! huge_pages     there while the pool of huge pages may have more of them than an administrator wants
//! zram           which zram device is the agent's own, and how large
//! damon_stat     there while damon_stat is switched off
//! silent         there while the device does not answer: nobody may read its configuration
//! status.json    what the running agent says of itself
//! access.json    what was touched where and when, for people
//! decisions.json what was decided last, for people
//! ```
//! It must not be removed while blocks are stolen: without the list of foreign blocks the next
//! agent would take every stolen block for somebody else's. Hence `RuntimeDirectoryPreserve=yes`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use memtide_sysfs::Root;
use memtide_sysfs::memory::{Block, State, Zone};
use memtide_units::BlockId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::private;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Another agent runs.
    #[error("another memtide-agent runs (it holds {}): stop it first", .0.display())]
    Locked(PathBuf),
    /// The device did not answer when it was last driven.
    #[error(
        "the balloon device had stopped answering an agent that drove it, and is left alone: if its \
         process on the host has died, the next look at its configuration ends this VM; restart the VM, \
         or, if you know that the device runs, remove {} and start the agent again; `memtide-agent \
         hand-back --return-blocks` brings stolen blocks back without it",
        .0.display()
    )]
    Silent(PathBuf),
    /// Somebody else could reach into it, and by the device's memory into all of the guest's.
    #[error("the runtime directory is not safe: {0}; or set runtime_dir to a directory below /run")]
    NotPrivate(io::Error),
    /// A file cannot be read or written.
    #[error("{} cannot be used: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The list of blocks is damaged.
    #[error("{} is damaged ({reason}): remove it, and every offline block will be taken for the agent's own", .path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The kernel has no memory blocks.
    #[error("this kernel cannot take memory offline: {0}")]
    NoBlocks(#[from] memtide_sysfs::Error),
}

/// The directory, and the lock on it for as long as this lives.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    _lock: File,
}

impl RuntimeDir {
    /// Makes the directory if need be, and locks it.
    ///
    /// # Errors
    /// [`RuntimeError::Locked`], [`RuntimeError::File`].
    pub fn open(path: &Path) -> Result<Self, RuntimeError> {
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| RuntimeError::File { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(fail(path))?;
        private::check_directory(path).map_err(RuntimeError::NotPrivate)?;
        let lock_path = path.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(fail(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.into(), _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(RuntimeError::Locked(lock_path)),
            Err(error) => Err(fail(&lock_path)(error.into())),
        }
    }

    /// The file for the device's memory.
    pub fn dma(&self) -> PathBuf {
        self.path.join("dma")
    }

    /// Whether boot memory has been made movable, or tried to be, since the guest booted. What could
    /// not be then will hardly be now, and a restarted agent is awaited by stolen blocks.
    pub fn is_converted(&self) -> bool {
        self.path.join("converted").exists()
    }

    /// Remembers that it has.
    ///
    /// # Errors
    /// [`RuntimeError::File`].
    pub fn set_converted(&self) -> Result<(), RuntimeError> {
        let path = self.path.join("converted");
        File::create(&path).map(drop).map_err(|source| RuntimeError::File { path, source })
    }

    /// The mark that the agent has changed vm.overcommit_memory.
    pub fn overcommit(&self) -> PathBuf {
        self.path.join("overcommit")
    }

    /// The names of modules that the agent has switched off to have DAMON.
    pub fn damon_modules(&self) -> PathBuf {
        self.path.join("damon_modules")
    }

    /// The mark that a zram device is the agent's own.
    pub fn zram(&self) -> PathBuf {
        self.path.join("zram")
    }

    /// The history of access.
    pub fn access(&self) -> PathBuf {
        access_path(&self.path)
    }

    /// The last decisions.
    pub fn decisions(&self) -> PathBuf {
        decisions_path(&self.path)
    }

    /// The mark that the agent has changed what happens to memory that is plugged in.
    pub fn auto_online(&self) -> PathBuf {
        self.path.join("auto_online")
    }

    /// What was ejected.
    pub fn ejected(&self) -> PathBuf {
        ejected_path(&self.path)
    }

    /// The mark that the agent has raised the limit of the pool of huge pages.
    pub fn huge_pages(&self) -> PathBuf {
        self.path.join("huge_pages")
    }

    /// The status file.
    pub fn status(&self) -> PathBuf {
        status_path(&self.path)
    }

    /// Whether an agent has ever looked at the blocks since the guest booted. If none has, none of
    /// those offline is its own.
    pub fn knows_blocks(&self) -> bool {
        self.blocks_path().exists()
    }

    /// Whether the device did not answer when an agent last drove it.
    pub fn is_silent(&self) -> bool {
        must_not_be_silent(&self.path).is_err()
    }

    /// Remembers that the device does not answer, for whoever comes next: this agent may be killed in
    /// any moment. The mark goes with the next boot, as the whole directory does.
    pub fn mark_silent(&self) {
        let path = self.silent();
        if let Err(error) = File::create(&path) {
            tracing::warn!("{} cannot be written: {error}", path.display());
        }
    }

    /// The device has answered after all.
    pub fn clear_silent(&self) {
        let path = self.silent();
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} cannot be removed: {error}", path.display());
            }
            _ => {}
        }
    }

    fn silent(&self) -> PathBuf {
        self.path.join(SILENT)
    }

    fn blocks_path(&self) -> PathBuf {
        self.path.join("blocks.json")
    }

    /// What earlier agents have seen, or what is seen now for the first time. A block that has come
    /// since, and is offline, is somebody else's: no agent has had it.
    ///
    /// # Errors
    /// [`RuntimeError`].
    pub fn seen(&self, root: &Root) -> Result<Seen, RuntimeError> {
        let path = self.blocks_path();
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map_err(|error| RuntimeError::Damaged { path, reason: error.to_string() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Seen::default(),
            Err(source) => return Err(RuntimeError::File { path, source }),
        };
        let now = before.updated(&memtide_sysfs::memory::list(root)?);
        if now != before {
            self.set_seen(&now)?;
        }
        Ok(now)
    }

    /// Remembers it.
    ///
    /// # Errors
    /// [`RuntimeError::File`].
    pub fn set_seen(&self, seen: &Seen) -> Result<(), RuntimeError> {
        let path = self.blocks_path();
        let text = serde_json::to_string(seen).map_err(io::Error::other);
        let written = text.and_then(|text| replace(&path, &text));
        written.map_err(|source| RuntimeError::File { path, source })
    }
}

const SILENT: &str = "silent";

/// What agents have seen of the memory blocks since the guest booted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// All that were there.
    pub known: BTreeSet<BlockId>,
    /// Those that are offline by somebody else's hand.
    pub foreign: BTreeSet<BlockId>,
    /// Those that the agent has removed, or is about to: where the kernel has no such block, it is
    /// stolen.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<BlockId>,
    /// Which making of each it was ([`Block::inode`]), where that is known: older agents did not look.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inodes: BTreeMap<BlockId, u64>,
    /// Those that came after the first agent, and are in a kernel zone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub late: BTreeSet<BlockId>,
}

impl Seen {
    fn updated(&self, blocks: &[Block]) -> Self {
        let is_new = |block: &&Block| !self.known.contains(&block.id) || self.is_made_anew(block);
        let news = blocks.iter().filter(is_new).filter(|block| block.state == State::Offline);
        let mut foreign = self.foreign.clone();
        foreign.extend(news.map(|block| block.id));
        let late = self.late(blocks);
        let mut known: BTreeSet<BlockId> = blocks.iter().map(|block| block.id).collect();
        let removed: BTreeSet<BlockId> = self.removed.difference(&known).copied().collect();
        known.extend(&removed);
        let inodes = blocks.iter().map(|block| (block.id, block.inode)).collect();
        Self { known, foreign, removed, inodes, late }
    }

    /// Those in a kernel zone that no agent has seen there, but for what the first one finds.
    fn late(&self, blocks: &[Block]) -> BTreeSet<BlockId> {
        let is_late = |block: &&Block| {
            let is_kernels = block.current_zone().is_some_and(|zone| zone != Zone::Movable);
            let has_come = !self.known.contains(&block.id)
                || self.is_made_anew(block)
                || self.foreign.contains(&block.id)
                || self.removed.contains(&block.id)
                || self.late.contains(&block.id);
            is_kernels && has_come
        };
        if self.known.is_empty() {
            return BTreeSet::new();
        }
        blocks.iter().filter(is_late).map(|block| block.id).collect()
    }

    /// Whether there is other memory now where an agent knew a block. What an agent has removed comes
    /// back as another one, and is the agent's.
    fn is_made_anew(&self, block: &Block) -> bool {
        let is_other = self.inodes.get(&block.id).is_some_and(|known| *known != block.inode);
        is_other && !self.removed.contains(&block.id)
    }
}

/// Fails where the device did not answer when an agent with this directory last drove it. Then its
/// process may have died, and whoever reads the device's configuration ends the VM (docs/adr/0008).
///
/// # Errors
/// [`RuntimeError::Silent`].
pub fn must_not_be_silent(runtime_dir: &Path) -> Result<(), RuntimeError> {
    let mark = runtime_dir.join(SILENT);
    if mark.exists() { Err(RuntimeError::Silent(mark)) } else { Ok(()) }
}

/// Where the agent that uses `runtime_dir` says how it is.
pub fn status_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("status.json")
}

/// Where it keeps what was ejected.
pub fn ejected_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("ejected")
}

/// Where it keeps what was touched.
pub fn access_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("access.json")
}

/// Where it keeps what was decided.
pub fn decisions_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("decisions.json")
}

/// Reads a file of text that is no longer than `max` bytes.
///
/// # Errors
/// What the kernel says; InvalidData for one that is longer or no text.
pub fn read_at_most(path: &Path, max: usize) -> io::Result<String> {
    let mut text = String::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_string(&mut text)?;
    if text.len() > max {
        let what = format!("it has more than {max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(text)
}

/// Replaces a file whole: a reader sees the old text or the new one.
///
/// # Errors
/// What the kernel says.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    replace_for(0o644, path, text)
}

/// The same, for nobody's eyes but this user's.
///
/// # Errors
/// What the kernel says.
pub fn replace_in_private(path: &Path, text: &str) -> io::Result<()> {
    // One that an interrupted agent has left has the mode that it was made with.
    let _ = std::fs::remove_file(fresh(path));
    replace_for(0o600, path, text)
}

fn fresh(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn replace_for(mode: u32, path: &Path, text: &str) -> io::Result<()> {
    let fresh = fresh(path);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::{FakeBlock, FakeRoot};
    use memtide_sysfs::memory::{StateRequest, write_state};
    use memtide_units::BlockSize;

    #[test]
    fn only_the_first_agent_decides_what_is_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(1, FakeBlock::MOVABLE), (2, FakeBlock::MOVABLE)]);
        let root = fake.root();
        write_state(&root, BlockId(1), StateRequest::Offline).unwrap();
        let first = RuntimeDir::open(&dir.path().join("agent")).unwrap();
        assert_eq!(first.seen(&root).unwrap().foreign, BTreeSet::from([BlockId(1)]));
        write_state(&root, BlockId(2), StateRequest::Offline).unwrap();
        drop(first);
        let second = RuntimeDir::open(&dir.path().join("agent")).unwrap();
        assert_eq!(second.seen(&root).unwrap().foreign, BTreeSet::from([BlockId(1)]));
    }

    /// Linux 6.1 leaves memory offline that is plugged in.
    #[test]
    fn what_was_plugged_in_while_no_agent_ran_is_no_agents() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(1, FakeBlock::MOVABLE)]);
        let root = fake.root();
        let runtime = RuntimeDir::open(dir.path()).unwrap();
        assert_eq!(runtime.seen(&root).unwrap().foreign, BTreeSet::new());
        write_state(&root, BlockId(1), StateRequest::Offline).unwrap();
        fake.add_blocks(BlockSize::X86_SMALL, [(8, FakeBlock::MOVABLE)]);
        write_state(&root, BlockId(8), StateRequest::Offline).unwrap();
        for _ in 0..2 {
            assert_eq!(runtime.seen(&root).unwrap().foreign, BTreeSet::from([BlockId(8)]));
        }
    }

    #[test]
    fn what_was_plugged_in_at_the_place_of_a_known_block_is_no_agents() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeRoot::new();
        let blocks = [(1, FakeBlock::OFFLINE), (8, FakeBlock::OFFLINE)];
        fake.add_blocks(BlockSize::X86_SMALL, [(7, FakeBlock::MOVABLE)].into_iter().chain(blocks));
        let root = fake.root();
        let runtime = RuntimeDir::open(dir.path()).unwrap();
        let ours = Seen { foreign: BTreeSet::new(), ..runtime.seen(&root).unwrap() };
        runtime.set_seen(&ours).unwrap();
        fake.remove("sys/devices/system/memory/memory8");
        fake.add_blocks(BlockSize::X86_SMALL, [(8, FakeBlock::OFFLINE)]);
        for _ in 0..2 {
            assert_eq!(runtime.seen(&root).unwrap().foreign, BTreeSet::from([BlockId(8)]));
        }
    }

    #[test]
    fn a_list_that_an_older_agent_has_left_is_read_and_says_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(1, FakeBlock::OFFLINE), (2, FakeBlock::OFFLINE)]);
        let runtime = RuntimeDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("blocks.json"), r#"{"known":[1,2],"foreign":[2]}"#).unwrap();
        let seen = runtime.seen(&fake.root()).unwrap();
        assert_eq!((seen.foreign, seen.inodes.len()), (BTreeSet::from([BlockId(2)]), 2));
        assert_eq!(runtime.seen(&fake.root()).unwrap().inodes, seen.inodes);
    }

    /// The one that comes back offline with its device must not be taken for a stranger's.
    #[test]
    fn what_was_removed_is_known_until_it_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let fake = FakeRoot::new();
        fake.add_blocks(BlockSize::X86_SMALL, [(1, FakeBlock::MOVABLE)]);
        let root = fake.root();
        let runtime = RuntimeDir::open(dir.path()).unwrap();
        let removed = BTreeSet::from([BlockId(8)]);
        let known = BTreeSet::from([BlockId(1), BlockId(8)]);
        let seen = Seen { known, removed, ..Seen::default() };
        runtime.set_seen(&seen).unwrap();
        let found = runtime.seen(&root).unwrap();
        assert_eq!(Seen { inodes: BTreeMap::new(), ..found }, seen);
        fake.add_blocks(BlockSize::X86_SMALL, [(8, FakeBlock::OFFLINE)]);
        // Its device was plugged in before, and so it is another one than the first agent knew.
        let inodes = BTreeMap::from([(BlockId(8), 1)]);
        runtime.set_seen(&Seen { inodes, ..seen }).unwrap();
        let now = runtime.seen(&root).unwrap();
        assert_eq!((now.foreign, now.removed), (BTreeSet::new(), BTreeSet::new()));
    }

    #[test]
    fn one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = RuntimeDir::open(dir.path()).unwrap();
        assert!(matches!(RuntimeDir::open(dir.path()), Err(RuntimeError::Locked(_))));
        drop(first);
        RuntimeDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_list_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = RuntimeDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("blocks.json"), "[1, 2").unwrap();
        let error = runtime.seen(&FakeRoot::new().root()).unwrap_err();
        assert!(matches!(error, RuntimeError::Damaged { .. }), "{error}");
    }
}
