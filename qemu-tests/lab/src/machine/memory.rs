//! What of a guest's memory the host really holds: the truth is the memfd's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};

/// `st_blocks` counts these, whatever the file system's block size is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// How QEMU calls the file that it makes in the directory of a memory-backend-file, and removes at
/// once (`file_ram_open` in its system/physmem.c).
const NAMELESS_FILE: &str = "/qemu_back_mem.";

/// A guest's memory as a file, opened through QEMU's descriptor.
#[derive(Debug)]
pub struct GuestMemory {
    file: File,
    size: u64,
}

impl GuestMemory {
    /// Finds the memfd of this size (in bytes), or QEMU's nameless file of it, among the files that a
    /// process has open.
    ///
    /// # Errors
    /// If the process has none, or belongs to somebody else.
    pub fn of_process(pid: u32, size: u64) -> Result<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}/fd"));
        for entry in fs::read_dir(&directory).on("list the open files in", &directory)? {
            let path = entry.on("list the open files in", &directory)?.path();
            if let Some(memory) = Self::at(&path, size) {
                return Ok(memory);
            }
        }
        Err(Error::Unusable {
            what: format!("process {pid} has no memfd of {size} bytes"),
            advice: "guest memory must come from memory-backend-memfd or -file",
        })
    }

    /// Descriptors come and go while we look: one that cannot be read is not the one.
    fn at(link: &Path, size: u64) -> Option<Self> {
        let target = fs::read_link(link).ok()?;
        let name = target.as_os_str().to_string_lossy();
        if !name.starts_with("/memfd:") && !name.contains(NAMELESS_FILE) {
            return None;
        }
        // Opening it anew gives a read position of our own.
        let file = File::open(link).ok()?;
        (file.metadata().ok()?.len() == size).then_some(Self { file, size })
    }

    /// The memory's size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file itself, for reading and writing: what a device back end has. Punching a hole into
    /// what the guest uses loses its content.
    ///
    /// # Errors
    /// If the kernel does not allow it.
    pub fn reopen(&self) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        File::options().read(true).write(true).open(path)
    }

    /// How many bytes of it the host holds.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * STAT_BLOCK_BYTES)
    }

    /// How many bytes the host holds of this part of the file.
    ///
    /// Exact for ordinary memfds; hugetlb ones do not show their holes to `SEEK_DATA`. Guest memory
    /// above 3 GiB (q35: 2 GiB) lies at another guest address than file offset.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn resident_in(&self, offset: u64, length: u64) -> io::Result<u64> {
        let end = offset.saturating_add(length).min(self.size);
        let mut resident = 0;
        let mut at = offset;
        while at < end {
            let Some(data) = self.next(SeekFrom::Data(at))? else { break };
            if data >= end {
                break;
            }
            let hole = self.next(SeekFrom::Hole(data))?.unwrap_or(end);
            resident += hole.min(end) - data;
            at = hole;
        }
        Ok(resident)
    }

    /// ENXIO: there is no such thing after this place.
    fn next(&self, what: SeekFrom) -> io::Result<Option<u64>> {
        match seek(self.file.as_fd(), what) {
            Ok(position) => Ok(Some(position)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Memory of a process that is in RAM, in KiB: `VmRSS` of proc(5), shared memory included.
///
/// # Errors
/// If the process has ended.
pub fn rss_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).on("read", &path)?;
    vm_rss(&status).ok_or_else(|| Error::Unusable {
        what: format!("{path} has no VmRSS"),
        advice: "the process is ending",
    })
}

fn vm_rss(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;
    /// A size that no other memfd of this process has.
    const SIZE: u64 = 61 * MIB;

    #[test]
    fn residency_follows_writes_and_holes() {
        let file = File::from(memfd_create("memory-backend-memfd", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(SIZE).unwrap();
        let memory = GuestMemory::of_process(std::process::id(), SIZE).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 0);
        assert_eq!(memory.resident_in(0, u64::MAX).unwrap(), 0);

        let data = vec![1; 4 * MIB as usize];
        file.write_all_at(&data, 8 * MIB).unwrap();
        file.write_all_at(&data, SIZE - 4 * MIB).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 8 * MIB);
        assert_eq!(memory.resident_in(0, 16 * MIB).unwrap(), 4 * MIB);
        assert_eq!(memory.resident_in(10 * MIB, MIB).unwrap(), MIB);
        assert_eq!(memory.resident_in(0, SIZE).unwrap(), 8 * MIB, "up to the very end");

        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, 9 * MIB, MIB).unwrap();
        assert_eq!(memory.resident_in(8 * MIB, 4 * MIB).unwrap(), 3 * MIB);
        assert_eq!(memory.resident_bytes().unwrap(), 7 * MIB);
    }

    #[test]
    fn a_process_without_such_a_memfd_is_told_so() {
        let error = GuestMemory::of_process(std::process::id(), 12_345).unwrap_err().to_string();
        assert!(error.contains("no memfd of 12345 bytes"), "{error}");
    }

    #[test]
    fn rss_is_read_from_status() {
        assert_eq!(vm_rss("VmPeak:\t 9 kB\nVmRSS:\t    1234 kB\n"), Some(1234));
        assert!(rss_kib(std::process::id()).unwrap() > 100);
    }
}
