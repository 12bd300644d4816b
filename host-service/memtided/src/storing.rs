//! Writes the state file when there is something new, one write at a time, off the event loop.

use tokio::task::JoinHandle;

use crate::config::Config;
use crate::store::{Memory, Store};

/// The store and what was last written to it.
pub(crate) struct Storing {
    store: Option<Store>,
    /// What the file says.
    pub(crate) kept: Memory,
    writing: Option<JoinHandle<()>>,
}

impl Storing {
    /// Reads what an earlier life kept. Where nothing can be kept a warning says so.
    pub(crate) fn open(config: &Config) -> Self {
        let store =
            Store::open(&config.state_dir).inspect_err(|problem| tracing::warn!("{problem}")).ok();
        let kept = store.as_ref().map(Store::load).unwrap_or_default();
        Self { store, kept, writing: None }
    }

    /// Starts to write `memory` where it is new. While a write goes on nothing is started: call
    /// again later with what is true then. False in that case.
    pub(crate) fn save_soon(&mut self, memory: Memory) -> bool {
        let Some(store) = &self.store else { return true };
        if memory == self.kept {
            return true;
        }
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return false;
        }
        self.kept = memory.clone();
        let store = store.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || save(&store, &memory)));
        true
    }

    /// Writes `memory` before it returns: the process ends.
    pub(crate) async fn save_last(mut self, memory: &Memory) {
        if let Some(writing) = self.writing.take() {
            // It has logged its own failure.
            let _ = writing.await;
        }
        if let Some(store) = self.store.as_ref().filter(|_| *memory != self.kept) {
            save(store, memory);
        }
    }
}

fn save(store: &Store, memory: &Memory) {
    if let Err(error) = store.save(memory) {
        tracing::warn!("changes may be lost when memtided stops: the state file: {error}");
    }
}
