//! `damon_stat`, which holds DAMON from boot on Debian's 7.3.

use super::probe::{Module, enabled};
use crate::{Result, Root};

/// Holds `damon_stat` off. [`StatPause::restore`] switches it on again and says whether that
/// worked; so does dropping it, without saying. Stop the monitor first: while a kdamond runs the
/// kernel answers EBUSY.
#[derive(Debug)]
pub struct StatPause {
    root: Root,
    is_restored: bool,
}

impl StatPause {
    /// Switches `damon_stat` on again.
    ///
    /// # Errors
    /// [`crate::Error::Refused`]: EBUSY while a kdamond runs.
    pub fn restore(mut self) -> Result<()> {
        self.is_restored = true;
        self.root.write(Module::Stat.switch(), "Y")
    }
}

impl Drop for StatPause {
    fn drop(&mut self) {
        if !self.is_restored {
            // A statistic stays off that somebody may miss: not worth more than the attempt.
            let _ = self.root.write(Module::Stat.switch(), "Y");
        }
    }
}

/// Switches `damon_stat` off where it is on; `None` where the kernel has none, or it is off.
///
/// # Errors
/// [`crate::Error::Garbage`], [`crate::Error::Refused`].
pub fn pause_damon_stat(root: &Root) -> Result<Option<StatPause>> {
    if !enabled(root, Module::Stat)? {
        return Ok(None);
    }
    root.write(Module::Stat.switch(), "N")?;
    Ok(Some(StatPause { root: root.clone(), is_restored: false }))
}

/// The pause of an earlier process of ours that did not live to end it. Only the caller knows that
/// there was one.
pub fn adopt_stat_pause(root: &Root) -> StatPause {
    StatPause { root: root.clone(), is_restored: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::fake::{FakeDamon, FakeRoot};

    fn stat(fake: &FakeRoot) -> String {
        fake.get(&Module::Stat.switch())
    }

    #[test]
    fn it_is_switched_off_and_on_again() {
        let fake = FakeRoot::new();
        fake.add_damon(FakeDamon::V7_3);
        let pause = pause_damon_stat(&fake.root()).unwrap().unwrap();
        assert_eq!(stat(&fake), "N\n");
        pause.restore().unwrap();
        assert_eq!(stat(&fake), "Y\n");
        drop(pause_damon_stat(&fake.root()).unwrap().unwrap());
        assert_eq!(stat(&fake), "Y\n");
    }

    #[test]
    fn a_kernel_without_it_needs_nothing() {
        let fake = FakeRoot::new();
        fake.add_damon(FakeDamon::V6_12);
        assert!(pause_damon_stat(&fake.root()).unwrap().is_none());
        fake.put(&Module::Stat.switch(), "?");
        assert!(matches!(pause_damon_stat(&fake.root()), Err(Error::Garbage { .. })));
    }
}
