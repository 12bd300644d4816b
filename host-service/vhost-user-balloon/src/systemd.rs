//! What systemd is told. Without systemd nobody listens, and that is all right.

use std::time::Duration;

use memtide_balloon::Driver;
use memtide_units::Instant;
use sd_notify::NotifyState;

/// The status line changes so often at most: a guest can bind and unbind its driver as fast as it
/// likes.
const APART: Duration = Duration::from_secs(1);

/// Tells systemd how the device is.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    said: Option<(&'static str, Instant)>,
    /// What is to be said as soon as it may be.
    waits: Option<&'static str>,
}

impl Systemd {
    /// The sockets listen.
    pub(crate) fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// The device is about to end.
    pub(crate) fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }

    /// Passes on who drives the device where that is news; `None` without a VMM.
    pub(crate) fn tell(&mut self, driver: Option<Driver>, now: Instant) {
        let words = words(driver);
        let is_news = self.said.is_none_or(|(said, _)| said != words);
        self.waits = is_news.then_some(words);
        if self.due().is_some_and(|due| due <= now) {
            self.waits = None;
            self.said = Some((words, now));
            send(&[NotifyState::Status(words)]);
        }
    }

    /// When something may be said that waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waits?;
        Some(self.said.map_or(Instant::default(), |(_, when)| when + APART))
    }
}

fn words(driver: Option<Driver>) -> &'static str {
    match driver {
        None => "waits for a VMM",
        Some(Driver::None) => "serves a VMM whose guest has no driver yet",
        Some(Driver::Stock) => "serves a guest's stock driver",
        Some(Driver::Agent) => "serves a guest's memtide-agent",
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd does not listen: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_make_it_talk_all_the_time() {
        let mut systemd = Systemd::default();
        let at = Instant::from_millis;
        systemd.tell(None, at(5));
        assert_eq!(systemd.due(), None);
        for ms in 6..1000 {
            systemd.tell(Some(Driver::Stock), at(ms));
            assert_eq!(systemd.due(), Some(at(1005)));
        }
        systemd.tell(None, at(1001));
        assert_eq!(systemd.due(), None, "it is as it was told to be");
        systemd.tell(Some(Driver::Agent), at(1006));
        assert_eq!(
            (systemd.due(), systemd.said),
            (None, Some((words(Some(Driver::Agent)), at(1006))))
        );
    }
}
