//! Punching holes: how backing goes back to the host.
//!
//! What the kernel can answer (mm/shmem.c, fs/hugetlbfs/inode.c, and the file systems that a file as
//! backing may lie on): EPERM for a file that was sealed meanwhile, EINTR for a signal, ENOSPC and EIO
//! where a file system has to split or write what it stores, EOPNOTSUPP where it has no holes. EINVAL
//! does not come of a part of a huge page: hugetlbfs zeroes that instead, which drops nothing, so it
//! is never asked to.
//!
//! Whoever holds a page goes on with the old one. A page that VFIO or io_uring has pinned leaves the
//! file like any other, and the device writes to memory that the guest does not see any more: a VM
//! with a passed-through device must have no balloon (QEMU inhibits its own; nobody tells this one).
//! A range that is registered with userfaultfd is punched at once and without an event, since events
//! come of `madvise` alone; the next touch is a fault for the monitor, which must answer it with
//! zeros and not with what the page held.

use std::io;

use memtide_units::{ByteSize, GpaRange};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::region::{OutsideMemory, Piece, Regions};

/// How often a punch is tried that signals interrupt.
const TRIES_MAX: u32 = 100;

/// What a punch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PunchReport {
    /// Bytes that are holes now, whether or not they were before. Less than was asked for where the
    /// range does not start and end on the file's unit.
    pub bytes: ByteSize,
    /// System calls that it took.
    pub punches: u64,
}

/// Why a range was not punched, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum PunchError {
    /// It is not guest memory; nothing was done.
    #[error(transparent)]
    Outside(#[from] OutsideMemory),
    /// The kernel refused; parts of the range may be holes already.
    #[error("punching a hole for {range} failed: {source}")]
    Failed {
        /// What was to go.
        range: GpaRange,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Regions {
    /// Drops the backing of `range`, which reads as zeros afterwards. When this returns, it has
    /// happened: nothing is queued, and nothing is tried again later.
    ///
    /// A range that is not aligned to the unit of its file is narrowed to it: dropping the whole
    /// unit would take neighbours with it, and the kernel would only zero a part of one.
    ///
    /// # Errors
    /// [`PunchError`]
    pub fn punch(&self, range: GpaRange) -> Result<PunchReport, PunchError> {
        let mut report = PunchReport::default();
        for piece in self.backed(range)?.pieces {
            let Some((offset, len)) = whole_units(&piece) else { continue };
            punch_file(&piece, offset, len)
                .map_err(|e| PunchError::Failed { range, source: e.into() })?;
            report.bytes += len;
            report.punches += 1;
        }
        Ok(report)
    }
}

/// Offset and length of the units that lie wholly in `piece`.
fn whole_units(piece: &Piece<'_>) -> Option<(ByteSize, ByteSize)> {
    let unit = piece.backing.unit();
    let start = piece.offset.round_up_to(unit);
    let end = piece.end().round_down_to(unit);
    (start < end).then(|| (start, end - start))
}

fn punch_file(piece: &Piece<'_>, offset: ByteSize, len: ByteSize) -> Result<(), Errno> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    despite_signals(|| {
        rustix::fs::fallocate(piece.backing.file(), mode, offset.bytes(), len.bytes())
    })
}

/// Tries again after a signal, but not for ever: whoever is answered by this waits.
fn despite_signals(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut result = Err(Errno::INTR);
    for _ in 0..TRIES_MAX {
        result = call();
        if result != Err(Errno::INTR) {
            break;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::RegionSpec;
    use crate::testing::{HugeMemfd, contents, filled_memfd, kib, range, spec};
    use proptest::prelude::*;

    /// Bytes of the file that read as zero, as KiB numbers.
    fn zeroed(bytes: &[u8]) -> Vec<u64> {
        (0..bytes.len() as u64 / 1024)
            .filter(|kib| bytes[(*kib as usize) * 1024..][..1024].iter().all(|byte| *byte == 0))
            .collect()
    }

    #[test]
    fn exactly_the_range_is_gone_across_regions() {
        let file = filled_memfd(kib(256));
        let regions =
            Regions::new([spec(range(0, 64), &file, kib(128)), spec(range(64, 64), &file, kib(0))])
                .unwrap();
        let report = regions.punch(range(48, 32)).unwrap();
        assert_eq!(report, PunchReport { bytes: kib(32), punches: 2 });
        let expected: Vec<u64> = (0..16).chain(176..192).collect();
        assert_eq!(zeroed(&contents(&file)), expected);
        assert_eq!(regions.residency().unwrap(), kib(256 - 32));
    }

    #[test]
    fn a_range_that_leaves_memory_changes_nothing() {
        let file = filled_memfd(kib(64));
        let regions = Regions::new([spec(range(0, 64), &file, kib(0))]).unwrap();
        let error = regions.punch(range(60, 8)).unwrap_err();
        assert!(matches!(error, PunchError::Outside(_)), "{error}");
        assert_eq!(zeroed(&contents(&file)), Vec::<u64>::new());
    }

    #[test]
    fn a_seal_that_comes_later_is_an_error_that_names_the_range() {
        let file = filled_memfd(kib(64));
        let regions = Regions::new([spec(range(0, 64), &file, kib(0))]).unwrap();
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::WRITE).unwrap();
        let text = regions.punch(range(0, 4)).unwrap_err().to_string();
        assert!(text.contains("0x0+4 KiB") && text.contains("not permitted"), "{text}");
    }

    #[test]
    fn signals_are_outlived_and_a_storm_of_them_is_an_error() {
        let mut left = 3;
        let mut calls = 0;
        let result = despite_signals(|| {
            calls += 1;
            left -= 1;
            if left == 0 { Ok(()) } else { Err(Errno::INTR) }
        });
        assert_eq!((result, calls), (Ok(()), 3));
        assert_eq!(despite_signals(|| Err(Errno::INTR)), Err(Errno::INTR));
        assert_eq!(despite_signals(|| Err(Errno::NOSPC)), Err(Errno::NOSPC));
    }

    #[test]
    fn whoever_holds_a_page_keeps_the_old_one() {
        let file = filled_memfd(kib(4));
        let regions = Regions::new([spec(range(0, 4), &file, kib(0))]).unwrap();
        // A pipe that holds the page, as a device that pinned it would.
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut from = 0;
        let flags = rustix::pipe::SpliceFlags::empty();
        let held = rustix::pipe::splice(&file, Some(&mut from), &writer, None, 4096, flags);
        assert_eq!(held.unwrap(), 4096);
        assert_eq!(regions.punch(range(0, 4)).unwrap().bytes, kib(4));
        assert_eq!(regions.residency().unwrap(), ByteSize::ZERO, "the file has let go of it");
        rustix::io::pwrite(&file, &[1], 0).unwrap();
        let mut old = [0; 1];
        rustix::io::read(&reader, &mut old).unwrap();
        assert_eq!(old, [0xa5]);
    }

    #[test]
    fn huge_pages_go_whole_or_not_at_all() {
        let Some(huge) = HugeMemfd::of(2) else {
            eprintln!("skipped: this host has no huge pages to spare");
            return;
        };
        let (file, unit) = (&huge.fd, huge.unit);
        let all = GpaRange::new(memtide_units::Gpa(0), unit.times(2)).unwrap();
        let fd = file.try_clone().unwrap();
        let regions =
            Regions::new([RegionSpec { range: all, fd, file_offset: ByteSize::ZERO }]).unwrap();
        assert!(regions.iter().all(|region| region.backing().unit() == unit));
        assert_eq!(regions.punch(range(4, 4)).unwrap(), PunchReport::default());
        assert_eq!(regions.residency().unwrap(), unit.times(2));
        let first = GpaRange::new(memtide_units::Gpa(0), unit + kib(4)).unwrap();
        assert_eq!(regions.punch(first).unwrap().bytes, unit);
        assert_eq!(regions.residency().unwrap(), unit);
    }

    proptest! {
        #[test]
        fn other_bytes_stay(start in 0_u64..62, len in 1_u64..64) {
            let file = filled_memfd(kib(256));
            let regions = Regions::new([spec(range(0, 256), &file, kib(0))]).unwrap();
            let report = regions.punch(range(start, len)).unwrap();
            let gone: Vec<u64> = (start.next_multiple_of(4)..(start + len) / 4 * 4).collect();
            prop_assert_eq!(report.bytes, kib(gone.len() as u64));
            prop_assert_eq!(zeroed(&contents(&file)), gone);
        }
    }
}
