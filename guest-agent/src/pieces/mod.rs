//! Memory in pieces: what stands for a block that cannot be emptied.
//!
//! Where kernel memory lies in a block it never goes offline, though most of it may be free. As much
//! memory as one block can then be taken from wherever huge pages of 2 MiB are free: into the
//! kernel's hugetlb pool, where seven of eight of their `struct page`s are freed as well
//! (`vm.hugetlb_optimize_vmemmap`). The block counts as stolen, and what the host drops are the
//! pieces.
//!
//! * Nobody else can get at them: they are the pages of a file of the agent's own, one for each
//!   block, all or none. It outlives the agent, as an offline block does.
//! * They stay where they are: an io_uring registration pins them ([`crate::dma::Pin`]), since the
//!   host would drop what has taken the place of one that moved.
//! * They are surplus pages: the administrator's own pool neither grows nor shrinks, and the kernel has
//!   them back when the file goes, whatever has become of the agent.
//!
//! What was measured, and which kernels cannot do it: docs/adr/0021.

mod grip;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memtide_sysfs::hugetlb::{self, PAGE, Structs};
use memtide_sysfs::{Error, Root};
use memtide_units::{BlockId, BlockSize, ByteSize, GpaRange};

use crate::link::Coarseness;
use crate::private;

pub use self::grip::{Grip, Held, PinnedPages};
pub use self::start::{enter, resume};

/// The directory on the file system of huge pages.
const DIRECTORY: &str = "memtide-agent";
/// The file there whose pages are being taken: no block has it while it has not all of them.
const UNFINISHED: &str = "unfinished";
/// Runs of neighbouring pages in all pieces together, at most: half of what a hello can name.
const RUNS_MAX: usize = memtide_wire::block::RANGES_MAX / 2;

/// Why a guest's memory cannot be had in pieces.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The kernel has no pages of 2 MiB, or does not say.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// Nobody has switched it on.
    #[error(
        "vm.hugetlb_optimize_vmemmap is 0: set it to 1 where this kernel is known to take it back \
         well (docs/adr/0021 says how to try), and memory of blocks that cannot be emptied goes in \
         pieces of 2 MiB"
    )]
    KeepsStructs,
    /// It cannot be switched on.
    #[error("this kernel frees no struct pages of huge pages")]
    NotOffered,
    /// The device is no Memtide device.
    #[error("a plain balloon takes whole blocks only")]
    Plain,
    /// The device is older than pieces are.
    #[error(
        "this device takes whole blocks only, since it is older than the agent: upgrade \
         vhost-user-balloon on the host"
    )]
    Device,
    /// The host could not drop them.
    #[error("the host has pages of {0} under this guest, and can drop nothing smaller")]
    HostPages(ByteSize),
    /// There is nowhere to keep them.
    #[error("no file system of 2 MiB pages is mounted: mount hugetlbfs at /dev/hugepages")]
    NoMount,
}

impl From<Coarseness> for Unfit {
    fn from(why: Coarseness) -> Self {
        match why {
            Coarseness::Older => Self::Device,
            Coarseness::HostPages(size) => Self::HostPages(size),
            Coarseness::Plain => Self::Plain,
        }
    }
}

/// Why no pieces were taken, or not given back.
#[derive(Debug, thiserror::Error)]
pub enum PiecesError {
    /// A kernel file.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The next mapping would get what somebody else has set apart.
    #[error("{0} huge pages are set apart in this guest and not used yet: they are left alone")]
    Idle(u64),
    /// Surplus pages of the agent's would count against somebody else's limit.
    #[error("programs of this guest may have {0} surplus huge pages: these are left to them")]
    Overcommit(u64),
    /// An administrator waits for some already.
    #[error("nr_hugepages was raised, and {0} of the agent's huge pages count as that pool's")]
    Adopted(u64),
    /// The kernel's own zones would be left with too little.
    #[error(
        "{free} are free where the kernel allocates from: with {size} less, {keep} would not be left"
    )]
    NoRoom {
        /// Free in these zones.
        free: ByteSize,
        /// What was to be taken.
        size: ByteSize,
        /// What has to be left over.
        keep: ByteSize,
    },
    /// Somebody has thought better of it.
    #[error("not wanted any more")]
    Unwanted,
    /// Memory is in too small pieces.
    #[error("free memory is scattered over more than {RUNS_MAX} places")]
    Scattered,
    /// The pages could not be had or held.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file whose pages they are.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The pieces that are held. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pieces {
    root: Root,
    /// On a file system of huge pages.
    dir: PathBuf,
    /// There while the pool may have surplus pages, and says how many it might before.
    mark: PathBuf,
    grip: Arc<dyn Grip>,
    held: Arc<Mutex<BTreeMap<BlockId, Held>>>,
}

impl Pieces {
    /// The pieces of this guest, where it may have any. `mark` is a file in the runtime directory.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn find(root: &Root, mark: PathBuf) -> Result<Self, Unfit> {
        Self::with_grip(root, mark, Arc::new(PinnedPages::new(root)))
    }

    /// As [`Self::find`], with another way of holding pages: for fakes.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn with_grip(root: &Root, mark: PathBuf, grip: Arc<dyn Grip>) -> Result<Self, Unfit> {
        hugetlb::read(root)?;
        match hugetlb::structs(root)? {
            Structs::Freed => {}
            Structs::Kept => return Err(Unfit::KeepsStructs),
            Structs::NotOffered => return Err(Unfit::NotOffered),
        }
        Self::at(root, mark, grip)
    }

    /// What an earlier agent has left, whatever the guest's settings are now.
    pub fn left_behind(root: &Root, mark: PathBuf) -> Option<Self> {
        Self::at(root, mark, Arc::new(PinnedPages::new(root))).ok()
    }

    fn at(root: &Root, mark: PathBuf, grip: Arc<dyn Grip>) -> Result<Self, Unfit> {
        let mount = hugetlb::mount_point(root)?.ok_or(Unfit::NoMount)?;
        let dir = root.path(mount).join(DIRECTORY);
        Ok(Self { root: root.clone(), dir, mark, grip, held: Arc::default() })
    }

    /// Takes `size` of memory in the name of `block`, all of it or none, if that leaves `keep` free
    /// where the kernel allocates from. Only free memory is taken: what is cached stays. It is taken in
    /// steps, and after each of them `is_wanted` is asked.
    ///
    /// # Errors
    /// [`PiecesError`]: nothing was taken.
    pub fn take(
        &self,
        block: BlockId,
        size: BlockSize,
        keep: ByteSize,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(), PiecesError> {
        let size = size.size();
        let path = self.dir.join(UNFINISHED);
        let fail = |source| PiecesError::File { path: path.clone(), source };
        self.remove_unfinished()?;
        let file = self.create(&path, size).map_err(fail)?;
        let taken = self.take_in_steps(&file, size, keep, is_wanted).and_then(|held| {
            fs::rename(&path, self.path(block)).map_err(fail)?;
            Ok(held)
        });
        match taken {
            Ok(held) => {
                self.held().insert(block, held);
                Ok(())
            }
            Err(error) => {
                // What was held is not any more, and goes with the file.
                self.remove_unfinished()?;
                Err(error)
            }
        }
    }

    /// Before each step the pool and what is free are looked at anew: somebody may need it by now.
    fn take_in_steps(
        &self,
        file: &File,
        size: ByteSize,
        keep: ByteSize,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Held, PiecesError> {
        let mut held = Held::default();
        for step in grip::steps(size) {
            let pool = self.look(size - PAGE.times(held.count()), keep)?;
            self.hold_surplus(file, step, pool, &mut held)?;
            let before: usize = self.held().values().map(|held| held.runs().len()).sum();
            if before + held.runs().len() > RUNS_MAX {
                return Err(PiecesError::Scattered);
            }
            if !is_wanted() {
                return Err(PiecesError::Unwanted);
            }
        }
        Ok(held)
    }

    /// Whether `size` can be taken.
    fn look(&self, size: ByteSize, keep: ByteSize) -> Result<hugetlb::Pool, PiecesError> {
        let pool = hugetlb::read(&self.root)?;
        if pool.idle() > 0 {
            return Err(PiecesError::Idle(pool.idle()));
        }
        if pool.overcommit > 0 {
            return Err(PiecesError::Overcommit(pool.overcommit));
        }
        let adopted = self.adopted_by(pool);
        if adopted > 0 {
            return Err(PiecesError::Adopted(adopted));
        }
        let free = hugetlb::free_for_kernel(&self.root)?;
        if free < size + keep {
            return Err(PiecesError::NoRoom { free, size, keep });
        }
        Ok(pool)
    }

    /// Holds pages of the file, which the kernel makes for that and sets apart from the pool.
    fn hold_surplus(
        &self,
        file: &File,
        step: Range<u64>,
        pool: hugetlb::Pool,
        held: &mut Held,
    ) -> Result<(), PiecesError> {
        let wanted = pool.surplus.saturating_add(step.end - step.start);
        let own = |source| PiecesError::File { path: self.mark.clone(), source };
        let raised = wanted.max(pool.overcommit);
        fs::write(&self.mark, format!("{} {raised}", pool.overcommit)).map_err(own)?;
        hugetlb::set_overcommit(&self.root, raised)?;
        let is_held = self.grip.hold(file, step, held);
        self.restore_limit()?;
        is_held.map_err(|source| PiecesError::File { path: self.dir.clone(), source })
    }

    /// Gives back what was not taken whole, and puts the pool's limit back, where it was the agent who
    /// raised it. Nobody may be taking anything.
    ///
    /// # Errors
    /// What the kernel says; the limit may be as before.
    pub fn restore(&self) -> Result<(), PiecesError> {
        self.remove_unfinished()?;
        self.restore_limit()
    }

    fn remove_unfinished(&self) -> Result<(), PiecesError> {
        let path = self.dir.join(UNFINISHED);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| PiecesError::File { path, source }),
        }
    }

    fn restore_limit(&self) -> Result<(), PiecesError> {
        let Ok(text) = fs::read_to_string(&self.mark) else { return Ok(()) };
        // A mark without numbers: killed before it was written, and before anything was changed. Another
        // limit than the agent's is somebody's who has set it since.
        let numbers = text.trim().split_once(' ');
        if let Some((before, raised)) = numbers
            && let (Ok(before), Ok(raised)) = (before.parse(), raised.parse::<u64>())
            && hugetlb::read(&self.root)?.overcommit == raised
        {
            hugetlb::set_overcommit(&self.root, before)?;
        }
        let own = |source| PiecesError::File { path: self.mark.clone(), source };
        fs::remove_file(&self.mark).map_err(own)
    }

    /// Takes hold again of what an earlier agent has left, and lets go of what cannot be held. The
    /// device must have been reset: nothing may be dropped any more meanwhile.
    pub fn resume(&self) {
        for block in self.left() {
            let path = self.path(block);
            let resumed = OpenOptions::new().read(true).write(true).open(&path).and_then(|file| {
                let size = ByteSize::from_bytes(file.metadata()?.len());
                let mut held = Held::default();
                grip::steps(size).try_for_each(|step| self.grip.hold(&file, step, &mut held))?;
                Ok(held)
            });
            match resumed {
                Ok(held) => _ = self.held().insert(block, held),
                Err(error) => {
                    tracing::warn!("the pieces that stand for {block} are given back: {error}");
                    self.give_up(block);
                }
            }
        }
    }

    /// Gives all of them back.
    pub fn release_all(&self) {
        self.left().into_iter().for_each(|block| self.give_up(block));
    }

    /// Gives them back as far as that can be done.
    pub fn give_up(&self, block: BlockId) {
        if let Err(error) = self.release(block) {
            tracing::error!("{error}");
        }
    }

    /// Gives the pieces of `block` back to the kernel.
    ///
    /// # Errors
    /// [`PiecesError::File`].
    pub fn release(&self, block: BlockId) -> Result<(), PiecesError> {
        // First, since what is pinned would outlive the file.
        self.held().remove(&block);
        let path = self.path(block);
        match fs::remove_file(&path) {
            // Somebody has removed it: with the pin the pages are the kernel's again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| PiecesError::File { path, source }),
        }
    }

    /// Whether pieces stand for `block`, held or left behind.
    pub fn stand_for(&self, block: BlockId) -> bool {
        self.held().contains_key(&block) || self.path(block).exists()
    }

    /// For how many blocks pieces are held.
    pub fn count(&self) -> usize {
        self.held().len()
    }

    /// How many of the pages count as an administrator's. Where `nr_hugepages` is raised the kernel takes
    /// surplus pages out of that state, in use or not, before it makes any (mm/hugetlb.c,
    /// `set_max_huge_pages`): programs find that many less than were wanted, until these are let go of.
    pub fn adopted(&self) -> u64 {
        match hugetlb::read(&self.root) {
            Ok(pool) => self.adopted_by(pool),
            Err(error) => {
                tracing::debug!("whose the huge pages are is not known: {error}");
                0
            }
        }
    }

    fn adopted_by(&self, pool: hugetlb::Pool) -> u64 {
        let held: u64 = self.held().values().map(Held::count).sum();
        held.saturating_sub(pool.surplus)
    }

    /// Where the pieces of `block` lie, if they are held.
    pub fn runs(&self, block: BlockId) -> Option<Vec<GpaRange>> {
        self.held().get(&block).map(|held| held.runs().to_vec())
    }

    /// Blocks that pieces stand for, held or left behind.
    pub fn left(&self) -> BTreeSet<BlockId> {
        let names = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let number = |entry: fs::DirEntry| {
            entry.file_name().to_str()?.strip_prefix("block")?.parse().ok().map(BlockId)
        };
        names.filter_map(number).collect()
    }

    fn path(&self, block: BlockId) -> PathBuf {
        self.dir.join(format!("block{}", block.0))
    }

    fn create(&self, path: &Path, size: ByteSize) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        private::check_directory(&self.dir)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(size.bytes())?;
        Ok(file)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<BlockId, Held>> {
        // Nobody panics with it locked; if so, the map is whole all the same.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests;
