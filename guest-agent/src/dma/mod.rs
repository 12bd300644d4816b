//! The memory that the device reads and writes on the agent's behalf.
//!
//! When the agent is killed, its anonymous pages are free *before* the device is stopped, and a late
//! write of the device was seen to corrupt another process. So the ring and the buffers lie in a
//! file on a tmpfs, which outlives the agent: a late write lands in the file and harms nobody. The
//! file keeps its size for ever, is never unlinked, and is looked at or written by a new agent only
//! after the device has been reset and reads back status 0.
//!
//! Pages are pinned (`pin`) before their physical addresses are read, and the blocks that hold
//! them are never stolen. Without a pin the kernel may move a page between two accesses of the
//! device, and nothing in user space can prevent that: the agent then refuses to drive the device.
//!
//! ```text
//! page 0       the block queue's ring
//! pages 1..=9  a request, in up to nine descriptors (the pages need not be contiguous)
//! page 10      its response; a short request, and the response to that
//! ```

mod pages;
mod pin;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use memtide_sysfs::pagemap::Pagemap;
use memtide_units::{BlockId, BlockSize, Gpa};
use memtide_wire::block::REQUEST_MAX;

use rustix::fs::OFlags;

use crate::private;

pub use pages::{PAGE, Pages};
pub use pin::Pin;

/// Pages of one request.
pub const REQUEST_PAGES: usize = REQUEST_MAX.div_ceil(PAGE);
/// All pages: the ring, a request, a response.
pub const PAGES: usize = 1 + REQUEST_PAGES + 1;

/// `f_type` of a tmpfs (include/uapi/linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Why there is no memory for the device.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// The file cannot be made or mapped.
    #[error("the device's memory {} cannot be prepared: {source}", .path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory is not on a tmpfs.
    #[error(
        "{} is not on a tmpfs, and memory for a device must stay memory: set runtime_dir to a directory below /run",
        .0.display()
    )]
    NotTmpfs(PathBuf),
    /// The pages cannot be pinned.
    #[error(
        "the device's memory cannot be pinned: io_uring said {0}; see `sysctl kernel.io_uring_disabled` (0 or 1 is needed)"
    )]
    Pin(io::Error),
    /// Their addresses cannot be learned.
    #[error("the physical addresses of the device's memory cannot be learned: {0}")]
    Locate(#[from] memtide_sysfs::Error),
    /// A page has no address, or another one than a moment ago. The device has not been started.
    #[error(
        "page {0} of the device's memory did not stay where it was although it is pinned: the device is \
         not started; should trying again not help, this kernel's pins do not hold"
    )]
    Moved(usize),
}

/// The file, mapped, pinned and located.
#[derive(Debug)]
pub struct Area {
    pages: Pages,
    places: Vec<Gpa>,
    /// Dropped last of all that touches the pages: fields drop in this order.
    _pin: Option<Pin>,
}

impl Area {
    /// Prepares `path`. The device must have been reset: an earlier agent's memory is reused.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn prepare(path: &Path, pagemap: &Pagemap) -> Result<Self, DmaError> {
        let fail = |source| DmaError::File { path: path.into(), source };
        let file = open(path).map_err(fail)?;
        Self::must_be_tmpfs(path)?;
        let pages = Pages::of_file(&file, PAGES).map_err(fail)?;
        // A write makes each page real; a hole of the file would be mapped to no page of its own.
        pages.clear();
        let pin = Pin::new(&pages).map_err(DmaError::Pin)?;
        // Pinning may have moved them: only now do their addresses mean something.
        let places = locate(&pages, pagemap)?;
        let area = Self { pages, places, _pin: Some(pin) };
        area.verify(pagemap)?;
        Ok(area)
    }

    /// Checks that a file or directory lies on a tmpfs.
    ///
    /// # Errors
    /// [`DmaError::NotTmpfs`], [`DmaError::File`].
    pub fn must_be_tmpfs(path: &Path) -> Result<(), DmaError> {
        let fail =
            |error: rustix::io::Errno| DmaError::File { path: path.into(), source: error.into() };
        match rustix::fs::statfs(path).map_err(fail)?.f_type {
            TMPFS_MAGIC => Ok(()),
            _ => Err(DmaError::NotTmpfs(path.into())),
        }
    }

    /// An area whose pages lie where somebody says: for fakes.
    pub fn located(pages: Pages, places: Vec<Gpa>) -> Self {
        assert_eq!(pages.len(), places.len() * PAGE, "one place for each page");
        Self { pages, places, _pin: None }
    }

    /// Checks that every page still lies where it did: a pin that does not hold would mostly show
    /// at once, since pages have just been moved to places where they may stay.
    ///
    /// # Errors
    /// [`DmaError::Moved`].
    fn verify(&self, pagemap: &Pagemap) -> Result<(), DmaError> {
        let now = locate(&self.pages, pagemap)?;
        match self.places.iter().zip(&now).position(|(then, now)| then != now) {
            Some(page) => Err(DmaError::Moved(page)),
            None => Ok(()),
        }
    }

    /// The pages.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The physical address of page `n`.
    pub fn place(&self, n: usize) -> Gpa {
        self.places[n]
    }

    /// The blocks that hold a page of it, each once, in ascending order.
    pub fn blocks(&self, size: BlockSize) -> Vec<BlockId> {
        let mut blocks: Vec<_> = self.places.iter().map(|place| size.block_of(*place)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }
}

/// Opens or makes the file, of exactly the right size: an earlier version's is resized, which is
/// safe here because the device has been reset.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)?;
    private::check_file(path, &file)?;
    let len = (PAGES * PAGE) as u64;
    if file.metadata()?.len() != len {
        file.set_len(len)?;
    }
    Ok(file)
}

fn locate(pages: &Pages, pagemap: &Pagemap) -> Result<Vec<Gpa>, DmaError> {
    let place = |page| pagemap.locate(pages.address(page * PAGE))?.ok_or(DmaError::Moved(page));
    (0..PAGES).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_units::ByteSize;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_blocks_that_hold_it_are_named_once() {
        let pages = Pages::anonymous(3).unwrap();
        let size = BlockSize::X86_SMALL;
        let at = |mib: u64| Gpa(ByteSize::from_mib(mib).bytes());
        let area = Area::located(pages, vec![at(300), at(20), at(301)]);
        assert_eq!(area.blocks(size), [BlockId(0), BlockId(2)]);
    }

    #[test]
    fn memory_is_pinned_located_and_reused_where_the_kernel_allows_it() {
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
        let path = dir.path().join("dma");
        let pagemap = Pagemap::open(&memtide_sysfs::Root::default()).unwrap();
        std::fs::write(&path, [1; 100]).unwrap();
        let prepared = Area::prepare(&path, &pagemap).unwrap_err();
        assert!(prepared.to_string().contains("this user's alone"), "{prepared}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        match Area::prepare(&path, &pagemap) {
            Ok(area) => {
                area.verify(&pagemap).unwrap();
                assert_eq!(std::fs::metadata(&path).unwrap().len(), (PAGES * PAGE) as u64);
            }
            // In a container without privileges it must be one of these, and say so.
            Err(DmaError::Pin(_) | DmaError::Locate(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
}
