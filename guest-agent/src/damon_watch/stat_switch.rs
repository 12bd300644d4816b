//! `damon_stat`, which must be off while the agent watches.

use std::path::PathBuf;

use memtide_sysfs::damon::{self, StatPause};
use memtide_sysfs::{Error, Root};

/// Switches it off, and on again when dropped. No kdamond of the agent's may run any more then.
#[derive(Debug)]
pub struct StatSwitch {
    root: Root,
    /// There while it is off for the agent's sake: it outlives an agent that is killed.
    mark: PathBuf,
    pause: Option<StatPause>,
}

impl StatSwitch {
    /// Nothing is done to it yet. The file `mark` remembers that it has to be switched on again.
    pub fn new(root: &Root, mark: PathBuf) -> Self {
        Self { root: root.clone(), mark, pause: None }
    }

    /// Whether it is off for the agent's sake.
    pub fn is_off(&self) -> bool {
        self.pause.is_some()
    }

    /// Switches it off.
    pub(super) fn switch_off(&mut self) -> Result<(), Error> {
        // The mark first: better a needless "Y" later than an "N" for ever.
        if let Err(error) = std::fs::write(&self.mark, "Y") {
            tracing::warn!("{} cannot be written: {error}", self.mark.display());
        }
        self.pause = damon::pause_damon_stat(&self.root)?;
        Ok(())
    }

    /// It is off already where an agent was killed that had switched it off.
    pub(super) fn adopt(&mut self) {
        if self.pause.is_none() && self.mark.exists() {
            self.pause = Some(damon::adopt_stat_pause(&self.root));
        }
    }

    /// Switches it on again, if it was off for the agent's sake.
    pub fn restore(&mut self) {
        let Some(pause) = self.pause.take() else { return };
        if let Err(error) = pause.restore() {
            tracing::warn!("damon_stat stays off: {error}");
        } else if let Err(error) = std::fs::remove_file(&self.mark) {
            tracing::warn!("{} cannot be removed: {error}", self.mark.display());
        }
    }
}

impl Drop for StatSwitch {
    fn drop(&mut self) {
        self.restore();
    }
}
