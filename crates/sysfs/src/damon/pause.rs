//! Parts of the kernel that hold DAMON: `damon_stat` does from boot on Debian's 7.3.

use super::probe::{Module, enabled};
use crate::{Result, Root};

/// Holds a module off. [`ModulePause::restore`] switches it on again and says whether that worked; so
/// does dropping it, without saying. Stop the monitor first: while a kdamond runs the kernel answers
/// EBUSY. The module begins anew with the parameters that it had.
#[derive(Debug)]
pub struct ModulePause {
    root: Root,
    module: Module,
    is_restored: bool,
}

impl ModulePause {
    /// Which one.
    pub fn module(&self) -> Module {
        self.module
    }

    /// Switches it on again.
    ///
    /// # Errors
    /// [`crate::Error::Refused`]: EBUSY while a kdamond runs.
    pub fn restore(mut self) -> Result<()> {
        self.is_restored = true;
        self.root.write(self.module.switch(), "Y")
    }
}

impl Drop for ModulePause {
    fn drop(&mut self) {
        if !self.is_restored {
            // A statistic stays off that somebody may miss: not worth more than the attempt.
            let _ = self.root.write(self.module.switch(), "Y");
        }
    }
}

/// Switches a module off where it is on; `None` where the kernel has none, or it is off.
///
/// # Errors
/// [`crate::Error::Garbage`], [`crate::Error::Refused`].
pub fn pause_module(root: &Root, module: Module) -> Result<Option<ModulePause>> {
    if !enabled(root, module)? {
        return Ok(None);
    }
    root.write(module.switch(), "N")?;
    Ok(Some(adopt_pause(root, module)))
}

/// The pause of an earlier process of ours that did not live to end it. Only the caller knows that
/// there was one.
pub fn adopt_pause(root: &Root, module: Module) -> ModulePause {
    ModulePause { root: root.clone(), module, is_restored: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::fake::{FakeDamon, FakeRoot};

    #[test]
    fn a_module_is_switched_off_and_on_again() {
        for module in Module::ALL {
            let fake = FakeRoot::new();
            fake.put(&module.switch(), "Y\n");
            let state = || fake.get(&module.switch());
            let pause = pause_module(&fake.root(), module).unwrap().unwrap();
            assert_eq!((state(), pause.module()), ("N\n".into(), module));
            pause.restore().unwrap();
            assert_eq!(state(), "Y\n");
            drop(pause_module(&fake.root(), module).unwrap().unwrap());
            assert_eq!(state(), "Y\n");
        }
    }

    #[test]
    fn a_kernel_without_it_needs_nothing() {
        let fake = FakeRoot::new();
        fake.add_damon(FakeDamon::V6_12);
        assert!(pause_module(&fake.root(), Module::Stat).unwrap().is_none());
        fake.put(&Module::Stat.switch(), "?");
        let error = pause_module(&fake.root(), Module::Stat).unwrap_err();
        assert!(matches!(error, Error::Garbage { .. }));
    }

    #[test]
    fn a_module_is_found_by_its_name() {
        for module in Module::ALL {
            assert_eq!(Module::from_name(module.name()), Some(module));
        }
        assert_eq!(Module::from_name("damon"), None);
    }
}
