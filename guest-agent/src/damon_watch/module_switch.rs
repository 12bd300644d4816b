//! Modules that hold DAMON, and must be off while the agent watches.

use std::collections::BTreeSet;
use std::path::PathBuf;

use memtide_sysfs::damon::{self, Module, ModulePause};
use memtide_sysfs::{Error, Root};

use crate::config::DamonUse;

/// Longer than the names of all modules.
const MARK_MAX: usize = 256;

/// Switches them off, and on again when dropped. No kdamond of the agent's may run any more then.
#[derive(Debug)]
pub struct ModuleSwitch {
    root: Root,
    /// The names of those that are off for the agent's sake, a line each: it outlives an agent that is killed.
    mark: PathBuf,
    paused: Vec<ModulePause>,
    is_shut: bool,
}

impl ModuleSwitch {
    /// Nothing is done to them yet. The file `mark` remembers which have to be switched on again.
    pub fn new(root: &Root, mark: PathBuf) -> Self {
        Self { root: root.clone(), mark, paused: Vec::new(), is_shut: false }
    }

    /// Those that are off for the agent's sake.
    pub fn off(&self) -> Vec<Module> {
        self.paused.iter().map(ModulePause::module).collect()
    }

    /// Whether one may be switched off, by the setting and after all that came before.
    pub(super) fn may_switch(&self, how: DamonUse, module: Module) -> bool {
        !self.is_shut && how.takes_over(module)
    }

    /// From now on none is switched off any more: whoever switches one on means it.
    pub fn shut(&mut self) {
        self.is_shut = true;
    }

    /// Switches one off.
    pub(super) fn switch_off(&mut self, module: Module) -> Result<(), Error> {
        // The mark first: better a needless "Y" later than an "N" for ever.
        let before = marked(&self.mark);
        self.write_mark(&[&before[..], &[module]].concat());
        match damon::pause_module(&self.root, module)? {
            Some(pause) => self.paused.push(pause),
            None => self.write_mark(&before),
        }
        Ok(())
    }

    /// They are off already where an agent was killed that had switched them off.
    pub fn adopt(&mut self) {
        let off = self.off();
        let left = marked(&self.mark).into_iter().filter(|module| !off.contains(module));
        self.paused.extend(left.map(|module| damon::adopt_pause(&self.root, module)));
    }

    /// Switches those on again that were off for the agent's sake.
    ///
    /// # Errors
    /// Why the first of them stays off.
    pub fn restore(&mut self) -> Result<(), Error> {
        if self.paused.is_empty() {
            // What is marked is left for whoever adopts it.
            return Ok(());
        }
        let mut first = Ok(());
        // What an agent before has left off, and nobody adopted.
        let off = self.off();
        let mut left = marked(&self.mark);
        left.retain(|module| !off.contains(module));
        for pause in self.paused.drain(..) {
            let module = pause.module();
            if let Err(error) = pause.restore() {
                tracing::warn!("{} stays off: {error}", module.name());
                left.push(module);
                first = first.and(Err(error));
            }
        }
        self.write_mark(&left);
        first
    }

    fn write_mark(&self, modules: &[Module]) {
        let names: BTreeSet<&str> = modules.iter().map(|module| module.name()).collect();
        let names: String = names.iter().map(|name| format!("{name}\n")).collect();
        let written = if names.is_empty() {
            std::fs::remove_file(&self.mark)
        } else {
            std::fs::write(&self.mark, names)
        };
        if let Err(error) = written {
            tracing::warn!("{} cannot be written: {error}", self.mark.display());
        }
    }
}

impl Drop for ModuleSwitch {
    fn drop(&mut self) {
        let _ = self.restore();
    }
}

fn marked(mark: &std::path::Path) -> Vec<Module> {
    let text = crate::runtime::read_at_most(mark, MARK_MAX).unwrap_or_default();
    text.lines().filter_map(Module::from_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;
    use rustix::io::Errno;

    /// An agent was killed; the next one has other settings, and is not in its way.
    #[test]
    fn what_nobody_has_adopted_stays_marked() {
        let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
        let mark = dir.path().join("modules");
        let stat = "sys/module/damon_stat/parameters/enabled";
        fake.put(RECLAIM, "N\n");
        fake.put(stat, "Y\n");
        std::fs::write(&mark, "damon_reclaim\n").unwrap();
        let mut next = ModuleSwitch::new(&fake.root(), mark.clone());
        next.switch_off(Module::Stat).unwrap();
        drop(next);
        assert_eq!((fake.get(stat), fake.get(RECLAIM)), ("Y\n".into(), "N\n".into()));
        let mut last = ModuleSwitch::new(&fake.root(), mark.clone());
        last.adopt();
        drop(last);
        assert_eq!((fake.get(RECLAIM), mark.exists()), ("Y\n".into(), false));
    }

    const RECLAIM: &str = "sys/module/damon_reclaim/parameters/enabled";

    #[test]
    fn what_cannot_be_switched_on_again_stays_marked_for_the_next_one() {
        let (fake, dir) = (FakeRoot::new(), tempfile::tempdir().unwrap());
        let mark = dir.path().join("modules");
        fake.put(RECLAIM, "Y\n");
        let mut switch = ModuleSwitch::new(&fake.root(), mark.clone());
        switch.switch_off(Module::Reclaim).unwrap();
        assert_eq!((fake.get(RECLAIM), switch.off()), ("N\n".into(), vec![Module::Reclaim]));
        fake.refuse(RECLAIM, Errno::BUSY);
        switch.restore().unwrap_err();
        drop(switch);
        assert!(mark.exists());
        fake.allow(RECLAIM);
        let mut next = ModuleSwitch::new(&fake.root(), mark.clone());
        next.adopt();
        next.restore().unwrap();
        assert_eq!((fake.get(RECLAIM), mark.exists()), ("Y\n".into(), false));
    }
}
