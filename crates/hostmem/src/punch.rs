//! Punching holes: how backing goes back to the host.

use std::io;

use memtide_units::{ByteSize, GpaRange};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::region::{OutsideMemory, Piece, Regions};

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
    loop {
        match rustix::fs::fallocate(piece.backing.file(), mode, offset.bytes(), len.bytes()) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::RegionSpec;
    use crate::testing::{contents, filled_memfd, huge_memfd, kib, range, spec};
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
    fn huge_pages_go_whole_or_not_at_all() {
        let Some((file, unit)) = huge_memfd(2) else {
            eprintln!("skipped: this host has no huge pages to spare");
            return;
        };
        let all = GpaRange::new(memtide_units::Gpa(0), unit.times(2)).unwrap();
        let fd = file.try_clone().unwrap();
        let regions =
            Regions::new([RegionSpec { range: all, fd, file_offset: ByteSize::ZERO }]).unwrap();
        assert_eq!(regions.reclaim_unit(), unit);
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
