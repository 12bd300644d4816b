//! Targets that change all the time, from a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use memtide_units::ByteSize;

use super::chance::Chance;
use crate::error::ScenarioError;
use crate::solo::{Control, Device};

/// Sets targets until it is stopped.
pub(crate) struct Storm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    ended: AtomicBool,
    paused: AtomicBool,
    set: AtomicU64,
    refused: AtomicU64,
}

/// How a storm blows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Between two targets.
    pub(crate) every: Duration,
    /// The largest target; they are drawn from zero up to it.
    pub(crate) most: ByteSize,
    /// What they are drawn from.
    pub(crate) seed: u64,
}

impl Storm {
    /// Begins.
    ///
    /// # Errors
    /// Where the device's control socket does not answer.
    pub(crate) fn begin(device: &Device, weather: Weather) -> Result<Self, ScenarioError> {
        let control = device.control()?;
        let shared = Arc::new(Shared {
            ended: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            set: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || blow(control, weather, &theirs));
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Holds the target where it is, or lets it change again.
    pub(crate) fn pause(&self, calm: Calm) {
        self.shared.paused.store(calm == Calm::Yes, Ordering::SeqCst);
    }

    /// Ends it; says how many targets were set and how many calls failed.
    pub(crate) fn end(mut self) -> (u64, u64) {
        self.stop();
        (self.shared.set.load(Ordering::SeqCst), self.shared.refused.load(Ordering::SeqCst))
    }

    fn stop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It panics for nothing that it does.
            let _ = thread.join();
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether the target stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calm {
    Yes,
    No,
}

fn blow(mut control: Control, weather: Weather, shared: &Shared) {
    let mut chance = Chance::of(weather.seed);
    while !shared.ended.load(Ordering::SeqCst) {
        if !shared.paused.load(Ordering::SeqCst) {
            let mib = chance.between(0, weather.most.mib());
            match control.set_balloon(ByteSize::from_mib(mib)) {
                Ok(()) => shared.set.fetch_add(1, Ordering::SeqCst),
                Err(_) => shared.refused.fetch_add(1, Ordering::SeqCst),
            };
        }
        std::thread::sleep(weather.every);
    }
}
