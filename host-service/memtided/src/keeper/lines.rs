//! How much of the log one guest may have.

use std::time::Duration;

use memtide_units::Instant;

/// Lines about one guest's doings in one [`WINDOW`]: a guest that is squeezed and asks for its
/// memory back makes some ten a minute, one that means ill two hundred a second.
const LINES_MAX: u32 = 60;
const WINDOW: Duration = Duration::from_secs(60);

/// Lines about one guest in the present window.
#[derive(Debug, Default)]
pub(super) struct Lines {
    since: Instant,
    asked: u32,
}

impl Lines {
    /// May one more be written?
    pub(super) fn admit(&mut self, now: Instant, vm: &str) -> bool {
        if now.since(self.since) >= WINDOW {
            self.begin_window(now, vm);
        }
        self.asked = self.asked.saturating_add(1);
        self.asked <= LINES_MAX
    }

    fn begin_window(&mut self, now: Instant, vm: &str) {
        let left_out = self.asked.saturating_sub(LINES_MAX);
        if left_out > 0 {
            tracing::info!(vm, left_out, "its guest does so much that not all is written down");
        }
        *self = Self { since: now, asked: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_guest_gets_its_lines_each_minute_and_no_more() {
        let mut lines = Lines::default();
        let mut written = 0;
        for ms in 0..120_000 {
            written += u32::from(lines.admit(Instant::from_millis(ms), "web1"));
        }
        assert_eq!(written, 2 * LINES_MAX);
    }
}
