//! What systemd is told: ready, how it goes, alive, stopping (sd_notify(3)).
//!
//! Without systemd all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The supervisor, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    said: String,
}

impl Supervisor {
    /// Half of `WatchdogSec`, where it is set: the usual interval of signs of life.
    pub(crate) fn watchdog_interval() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }

    /// The API listens.
    pub(crate) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The keeper is alive, and this is how it goes. The text is sent when it changes.
    pub(crate) fn alive(&mut self, summary: String) {
        tell(&[NotifyState::Watchdog]);
        if summary != self.said {
            tell(&[NotifyState::Status(&summary)]);
            self.said = summary;
        }
    }

    /// It ends.
    pub(crate) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told {state:?}: {error}");
    }
}
