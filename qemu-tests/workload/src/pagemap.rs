//! The physical pages behind addresses: so that a bad page can be found on the host, and for counts of
//! what lies in each memory block.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memtide_sysfs::Root;

use crate::pattern::PAGE_BYTES;

/// Bit 63 of an entry: the page is in memory (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;

/// Bits 0 to 54: its frame number. Zero for readers without `CAP_SYS_ADMIN`.
const FRAME: u64 = (1 << 55) - 1;

/// Bytes of an entry.
const ENTRY: usize = size_of::<u64>();

/// Entries that are read at once: 64 KiB.
const AT_ONCE: usize = 8192;

/// The open file.
#[derive(Debug)]
pub(crate) struct Frames {
    file: File,
    path: PathBuf,
}

impl Frames {
    /// Opens this process's.
    ///
    /// # Errors
    /// What the kernel says, with the file's name.
    pub(crate) fn open(root: &Root) -> io::Result<Self> {
        let path = root.path("proc/self/pagemap");
        let file = File::open(&path).map_err(|error| named(&path, &error))?;
        Ok(Self { file, path })
    }

    /// Calls `found` with the index and the frame number of each of the `pages` pages from `address` on
    /// that is in memory. Touches none of them.
    ///
    /// # Errors
    /// What the kernel says; `PermissionDenied` where the reader may not know (only root may).
    pub(crate) fn each(
        &self,
        address: usize,
        pages: usize,
        mut found: impl FnMut(usize, u64),
    ) -> io::Result<()> {
        let mut buffer = vec![0; AT_ONCE.min(pages) * ENTRY];
        for first in (0..pages).step_by(AT_ONCE) {
            let count = AT_ONCE.min(pages - first);
            let buffer = &mut buffer[..count * ENTRY];
            let offset = (address / PAGE_BYTES + first) * ENTRY;
            let read = self.file.read_exact_at(buffer, offset as u64);
            read.map_err(|error| named(&self.path, &error))?;
            let (entries, _) = buffer.as_chunks::<ENTRY>();
            for (index, entry) in entries.iter().enumerate() {
                let entry = u64::from_ne_bytes(*entry);
                match entry & FRAME {
                    _ if entry & PRESENT == 0 => {}
                    0 => return Err(named(&self.path, &ErrorKind::PermissionDenied.into())),
                    frame => found(first + index, frame),
                }
            }
        }
        Ok(())
    }
}

/// The frame number of the page at `address` of this process: `None` where it is not in memory,
/// or where the reader may not know.
pub(crate) fn frame_of(address: usize) -> Option<u64> {
    let mut found = None;
    let read = Frames::open(&Root::default())
        .and_then(|frames| frames.each(address, 1, |_, frame| found = Some(frame)));
    read.ok().and(found)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;

    fn found(entries: &[u64], address: usize, pages: usize) -> io::Result<Vec<(usize, u64)>> {
        let fake = FakeRoot::new();
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_ne_bytes()).collect();
        fake.put_bytes("proc/self/pagemap", &bytes);
        let mut found = Vec::new();
        let frames = Frames::open(&fake.root())?;
        frames.each(address, pages, |index, frame| found.push((index, frame)))?;
        Ok(found)
    }

    #[test]
    fn a_frame_is_known_only_when_present_and_shown() {
        let entries = [7, PRESENT | (1 << 61) | 0x1234, 0x1234, PRESENT | 1, PRESENT];
        assert_eq!(found(&entries, PAGE_BYTES, 3).unwrap(), [(0, 0x1234), (2, 1)]);
        let hidden = found(&entries, PAGE_BYTES, 4).unwrap_err();
        assert_eq!(hidden.kind(), ErrorKind::PermissionDenied);
        assert!(hidden.to_string().contains("pagemap"), "{hidden}");
    }

    #[test]
    fn more_than_is_read_at_once_is_numbered_through() {
        let entries: Vec<u64> = (1..=AT_ONCE as u64 + 2).map(|frame| PRESENT | frame).collect();
        let found = found(&entries, 0, entries.len()).unwrap();
        assert_eq!(found.last(), Some(&(AT_ONCE + 1, AT_ONCE as u64 + 2)));
    }
}
