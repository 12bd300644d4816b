//! What systemd is told. Without systemd nobody listens, and that is all right.

use std::time::Duration;

use memtide_units::Instant;
use sd_notify::NotifyState;

/// The status line changes at most so often, and the watchdog is fed.
const PERIOD: Duration = Duration::from_secs(1);

/// Tells systemd how the agent is.
#[derive(Debug, Default)]
pub struct Notifier {
    has_said_ready: bool,
    said: String,
    due: Instant,
}

impl Notifier {
    /// Has said nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says "ready" once, and from time to time what the agent does.
    pub fn tell(&mut self, now: Instant, is_ready: bool, doing: &str) {
        if is_ready && !self.has_said_ready {
            self.has_said_ready = true;
            send(&[NotifyState::Ready]);
        }
        if now < self.due {
            return;
        }
        self.due = now + PERIOD;
        send(&[NotifyState::Watchdog]);
        if doing != self.said {
            self.said = doing.to_string();
            send(&[NotifyState::Status(doing)]);
        }
    }

    /// Says that the agent is about to end.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd does not listen: {error}");
    }
}
