//! A long-running program in a guest, and the lines that it prints.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::client::Guest;
use super::error::GuestError;
use super::protocol::{Ending, Stream};

/// Something that a spawned program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It printed a line.
    Line(Stream, String),
    /// It ended; nothing comes after this.
    Exited(Ending),
}

/// A program that was spawned in a guest. Dropping the handle does not end the program.
#[derive(Debug)]
pub struct Process {
    guest: Guest,
    name: String,
    events: Receiver<Event>,
}

impl Process {
    pub(super) fn new(guest: Guest, name: String, events: Receiver<Event>) -> Self {
        Self { guest, name, events }
    }

    /// The next thing that it does; `None` if that takes longer than `within`, or if nothing more
    /// can come (it ended before, or the guest is gone).
    pub fn next_event(&self, within: Duration) -> Option<Event> {
        self.events.recv_timeout(within).ok()
    }

    /// Everything that it did since it was last asked, without waiting.
    pub fn new_events(&self) -> Vec<Event> {
        self.events.try_iter().collect()
    }

    /// Waits for a line on standard output of which `wanted` makes something; other lines are
    /// passed over. `None` if none comes within the time or the program ends.
    pub fn wait_line<T>(
        &self,
        within: Duration,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + within;
        loop {
            match self.next_event(until.saturating_duration_since(Instant::now()))? {
                Event::Line(Stream::Stdout, line) => {
                    if let Some(found) = wanted(&line) {
                        return Some(found);
                    }
                }
                Event::Line(Stream::Stderr, _) => {}
                Event::Exited(_) => return None,
            }
        }
    }

    /// Waits for its end, passing over what it prints. `None` if it runs on.
    pub fn wait_exit(&self, within: Duration) -> Option<Ending> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Event::Exited(ending) = self.next_event(left)? {
                return Some(ending);
            }
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it has ended, or the guest does not answer.
    pub fn kill(&self, signal: i32) -> Result<(), GuestError> {
        self.guest.kill(&self.name, signal)
    }
}
