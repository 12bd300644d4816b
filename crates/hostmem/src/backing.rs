//! One file that backs guest memory: what must be true of it before a hole is punched into it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memtide_units::ByteSize;
use rustix::fs::{FileType, OFlags, SealFlags};

/// `HUGETLBFS_MAGIC` of include/uapi/linux/magic.h: what `fstatfs` says of a hugetlb memfd.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A file's identity on this host: two descriptors with the same one are the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number on it.
    pub inode: u64,
}

/// Why a descriptor cannot back guest memory that is to be reclaimed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackingError {
    #[error("it is a {0}, not a regular file or memfd")]
    NotAFile(&'static str),
    #[error("it is open for reading only")]
    NotWritable,
    #[error("it is sealed against writing (F_SEAL_WRITE), which forbids punching holes")]
    Sealed,
    #[error("the kernel does not tell about it: {0}")]
    Inspect(#[from] io::Error),
}

/// A file that holes can be punched into.
#[derive(Debug)]
pub struct Backing {
    file: File,
    id: FileId,
    unit: ByteSize,
    huge: bool,
}

impl Backing {
    /// Inspects `fd` and takes it over.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, BackingError> {
        let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            other => return Err(BackingError::NotAFile(name_of(other))),
        }
        let mode = rustix::fs::fcntl_getfl(&fd).map_err(io::Error::from)? & OFlags::RWMODE;
        if mode != OFlags::RDWR {
            return Err(BackingError::NotWritable);
        }
        if is_sealed(fd.as_fd())? {
            return Err(BackingError::Sealed);
        }
        let system = rustix::fs::fstatfs(&fd).map_err(io::Error::from)?;
        let huge = system.f_type as u64 == HUGETLBFS_MAGIC;
        let unit = if huge { stat.st_blksize as u64 } else { rustix::param::page_size() as u64 };
        Ok(Self {
            file: File::from(fd),
            id: FileId { device: stat.st_dev, inode: stat.st_ino },
            unit: ByteSize::from_bytes(unit),
            huge,
        })
    }

    /// The file, as the VMM opened it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which file it is.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The smallest piece that can be dropped: the huge page size of a hugetlb file, the host's
    /// page size of any other.
    pub fn unit(&self) -> ByteSize {
        self.unit
    }

    /// True for a hugetlb file.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// Its present length. Asked each time, since a VMM may grow its file.
    pub(crate) fn len(&self) -> io::Result<ByteSize> {
        let stat = rustix::fs::fstat(&self.file)?;
        Ok(ByteSize::from_bytes(u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Bytes of it that the host holds, swapped-out ones included: `st_blocks` counts 512 each.
    pub(crate) fn resident(&self) -> io::Result<ByteSize> {
        let stat = rustix::fs::fstat(&self.file)?;
        Ok(ByteSize::from_bytes(512).times(u64::try_from(stat.st_blocks).unwrap_or(0)))
    }
}

/// Both write seals make `fallocate(PUNCH_HOLE)` fail with EPERM (mm/shmem.c, `shmem_fallocate`).
/// A file system without seals answers EINVAL: then there are none.
fn is_sealed(fd: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) => Ok(seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)),
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "directory",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        _ => "file of an unknown kind",
    }
}
