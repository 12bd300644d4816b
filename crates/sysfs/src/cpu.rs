//! `/proc/stat`: how long the processors have worked and idled.

use crate::{Result, Root};

const FILE: &str = "proc/stat";

/// Time of all processors together since boot, in ticks (Documentation/filesystems/proc.rst, section 1.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Without work: idle, or waiting for a disk.
    pub idle: u64,
    /// In all, what a hypervisor stole included.
    pub total: u64,
}

impl CpuTimes {
    /// Reads them.
    ///
    /// # Errors
    /// [`Error::Missing`](crate::Error::Missing), [`Error::Garbage`](crate::Error::Garbage).
    pub fn read(root: &Root) -> Result<Self> {
        root.parsed(FILE, "a first line \"cpu\" with at least eight numbers", parse)
    }
}

/// user, nice, system, idle, iowait, irq, softirq, steal; guests' time, which follows, is in user's and
/// nice's already.
fn parse(text: &str) -> Option<CpuTimes> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let numbers: Option<Vec<u64>> =
        line.split_ascii_whitespace().take(8).map(|number| number.parse().ok()).collect();
    let numbers = numbers.filter(|numbers| numbers.len() == 8)?;
    let sum = |numbers: &[u64]| numbers.iter().copied().try_fold(0_u64, u64::checked_add);
    Some(CpuTimes { idle: sum(&numbers[3..5])?, total: sum(&numbers)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::fake::FakeRoot;

    #[test]
    fn idle_is_what_nobody_worked_in() {
        let fake = FakeRoot::new();
        fake.put(FILE, "cpu  10 1 5 700 30 0 2 4 9 0\ncpu0 10 1 5 700 30 0 2 4 9 0\nintr 5\n");
        let times = CpuTimes::read(&fake.root()).unwrap();
        assert_eq!(times, CpuTimes { idle: 730, total: 752 });
    }

    #[test]
    fn what_is_no_such_line_is_garbage() {
        let fake = FakeRoot::new();
        assert!(CpuTimes::read(&fake.root()).unwrap_err().is_missing());
        for text in ["", "cpu 1 2 3\n", "cpu0 1 1 1 1 1 1 1 1\n", "cpu 1 1 1 x 1 1 1 1\n"] {
            fake.put(FILE, text);
            let error = CpuTimes::read(&fake.root()).unwrap_err();
            assert!(matches!(error, Error::Garbage { .. }), "{text:?}: {error}");
        }
    }
}
