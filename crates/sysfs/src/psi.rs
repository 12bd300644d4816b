//! Pressure stall information: how long tasks wait for memory (Documentation/accounting/psi.rst).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memtide_units::PpMillion;
use rustix::fs::{Mode, OFlags};

use crate::{Error, Result, Root};

const FILE: &str = "proc/pressure/memory";
const IO_FILE: &str = "proc/pressure/io";
const LINE: &str =
    "\"some\" and \"full\" lines such as some avg10=0.12 avg60=0.00 avg300=0.00 total=34";

/// One line of `/proc/pressure/memory` or `io`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Share of time stalled over the last 10 s.
    pub avg10: PpMillion,
    /// The same over the last minute.
    pub avg60: PpMillion,
    /// The same over the last five minutes.
    pub avg300: PpMillion,
    /// Microseconds stalled since boot.
    pub total_us: u64,
}

/// The pressure on memory, or on disks, of the whole system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Psi {
    /// At least one task waited for it.
    pub some: Line,
    /// All tasks that could run waited for it.
    pub full: Line,
}

impl Psi {
    /// Reads `/proc/pressure/memory`.
    ///
    /// # Errors
    /// [`Error::Missing`]: the kernel has no PSI (`CONFIG_PSI`), or `psi=0` on its command line
    /// (kernel/sched/psi.c makes no directory then). [`Error::Disabled`]: the file is there and PSI
    /// is off all the same. [`Error::Garbage`]. With any of these a policy must not take the
    /// absence of pressure for granted.
    pub fn read(root: &Root) -> Result<Self> {
        root.parsed(FILE, LINE, parse)
    }

    /// Reads `/proc/pressure/io`: how long tasks wait for input and output.
    ///
    /// # Errors
    /// As [`Psi::read`].
    pub fn read_io(root: &Root) -> Result<Self> {
        root.parsed(IO_FILE, LINE, parse)
    }
}

fn parse(text: &str) -> Option<Psi> {
    let line = |name| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let field = |key: &str| {
            rest.split_ascii_whitespace().find_map(|f| f.strip_prefix(key)?.strip_prefix('='))
        };
        Some(Line {
            avg10: percent(field("avg10")?)?,
            avg60: percent(field("avg60")?)?,
            avg300: percent(field("avg300")?)?,
            total_us: field("total")?.parse().ok()?,
        })
    };
    Some(Psi { some: line("some")?, full: line("full")? })
}

/// `12.34` percent as millionths; the kernel prints two digits and no more than 100.00.
fn percent(text: &str) -> Option<PpMillion> {
    let (whole, hundredths) = text.split_once('.')?;
    if hundredths.len() != 2 || !hundredths.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let share = whole.parse::<u32>().ok()?.checked_mul(10_000)?;
    let share = share.checked_add(hundredths.parse::<u32>().ok()?.checked_mul(100)?)?;
    (share <= 1_000_000).then_some(PpMillion(share))
}

/// Which tasks have to wait for a trigger to fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// At least one.
    Some,
    /// All that could run.
    Full,
}

/// A registered threshold: its descriptor polls `POLLPRI` (and `POLLERR` once PSI has gone) when
/// the stall within a window passes it, at most once per window.
#[derive(Debug)]
pub struct PsiTrigger(OwnedFd);

impl PsiTrigger {
    /// Registers `stall_us` microseconds of stall within any `window_us`. The kernel takes windows
    /// from 500 ms to 10 s (`WINDOW_MIN_US`, `WINDOW_MAX_US`), from processes without
    /// CAP_SYS_RESOURCE only multiples of 2 s, and a stall from 1 us up to the window.
    ///
    /// # Errors
    /// As [`Psi::read`]; [`Error::Refused`] with EINVAL for times that it does not take.
    pub fn open(root: &Root, stall: Stall, stall_us: u64, window_us: u64) -> Result<Self> {
        let kind = if stall == Stall::Some { "some" } else { "full" };
        let request = format!("{kind} {stall_us} {window_us}");
        let path = root.path(FILE);
        let access = if root.is_fake() { OFlags::RDONLY } else { OFlags::RDWR };
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|error| Error::reading(&path, error.into()))?;
        if root.is_fake() {
            root.write(FILE, &request)?;
        } else {
            // The kernel drops the last byte it is given for a terminating zero.
            rustix::io::write(&fd, format!("{request}\0").as_bytes())
                .map_err(|error| Error::writing(&path, &request, error.into()))?;
        }
        Ok(Self(fd))
    }
}

impl AsFd for PsiTrigger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRoot;
    use proptest::prelude::*;

    /// From a 6.12 guest while an offline request ran out of free memory.
    const PRESSED: &str = "some avg10=14.89 avg60=3.56 avg300=0.79 total=2514410\n\
                           full avg10=0.12 avg60=0.05 avg300=0.00 total=31220\n";

    #[test]
    fn percentages_become_millionths() {
        let fake = FakeRoot::new();
        fake.put(FILE, PRESSED);
        let psi = Psi::read(&fake.root()).unwrap();
        assert_eq!(psi.some.avg10, PpMillion(148_900));
        assert_eq!(psi.some.total_us, 2_514_410);
        assert_eq!(psi.full.avg10, PpMillion(1_200));
        assert_eq!(psi.full.avg300, PpMillion(0));
        assert!(Psi::read_io(&fake.root()).unwrap_err().is_missing());
        fake.put(IO_FILE, PRESSED);
        assert_eq!(Psi::read_io(&fake.root()).unwrap(), psi);
    }

    #[test]
    fn a_kernel_without_psi_is_not_one_without_pressure() {
        let error = Psi::read(&FakeRoot::new().root()).unwrap_err();
        assert!(error.is_missing());
        assert!(error.to_string().contains("proc/pressure/memory"), "{error}");
    }

    #[test]
    fn half_a_file_is_refused() {
        let fake = FakeRoot::new();
        let some = PRESSED.lines().next().unwrap();
        for text in
            ["", some, "some avg10=1,5 avg60=0.00\nfull", &PRESSED.replace("0.12", "100.01")]
        {
            fake.put(FILE, text);
            let error = Psi::read(&fake.root()).unwrap_err();
            assert!(matches!(error, Error::Garbage { .. }), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_trigger_states_stall_and_window() {
        let fake = FakeRoot::new();
        fake.put(FILE, PRESSED);
        PsiTrigger::open(&fake.root(), Stall::Full, 50_000, 1_000_000).unwrap();
        assert_eq!(fake.writes(), [(FILE.into(), "full 50000 1000000".into())]);
        fake.refuse(FILE, rustix::io::Errno::INVAL);
        let error = PsiTrigger::open(&fake.root(), Stall::Some, 0, 0).unwrap_err();
        assert_eq!(error.errno(), Some(rustix::io::Errno::INVAL));
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "(some |full |avg(10|60|300)=|total=|[0-9.]{0,12}|.|\n){0,24}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_the_kernel_prints_is_read(whole in 0_u32..100, hundredths in 0_u32..100) {
            let printed = format!("{whole}.{hundredths:02}");
            prop_assert_eq!(percent(&printed), Some(PpMillion(whole * 10_000 + hundredths * 100)));
        }
    }
}
