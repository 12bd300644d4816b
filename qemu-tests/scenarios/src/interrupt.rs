//! Ctrl-C: a scenario ends in order, so that nothing of it runs on.
//!
//! QEMU dies with the lab, but a device process is made to outlive whoever started it: only the
//! scenario's own end stops it.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::ScenarioError;

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT and SIGTERM end the scenario at its next look; a second one ends the process.
pub fn listen() {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        // The first registration acts only once the second has run: that is, on a second signal.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(asked));
        let _ = signal_hook::flag::register(signal, Arc::clone(asked));
    }
}

/// Whether the scenario shall go on.
///
/// # Errors
/// [`ScenarioError::Interrupted`] once somebody has asked for its end.
pub fn check() -> Result<(), ScenarioError> {
    match ASKED.get() {
        Some(asked) if asked.load(Ordering::Relaxed) => Err(ScenarioError::Interrupted),
        _ => Ok(()),
    }
}
