//! How much was touched lately, by the sample of pages that the monitor's second kdamond looks at.

use std::time::Duration;

use memtide_access::WORKING_SET_AGE;
use memtide_policy::guest::{Counted, PageSample};
use memtide_sysfs::damon::{Monitor, PageCount};
use memtide_units::{ByteSize, GpaRange, Instant};

/// Counts change once in ten seconds. Whoever asks waits for up to two, and nobody is obeyed meanwhile.
const ASKED_AFTER: Duration = Duration::from_secs(9);
/// Counts that cannot be read in a row, after which the kdamond counts as gone.
const FAILURES_MAX: u32 = 5;
/// Between two attempts to draw a sample: each is some thousands of writes to sysfs.
const DRAWN_APART: Duration = Duration::from_secs(120);

/// The sample, or none where the kernel would not have one.
#[derive(Debug, Default)]
pub(super) struct PageSampling {
    memory: Vec<GpaRange>,
    sample: Option<PageSample>,
    /// When one is drawn again, where there is none.
    draw_due: Instant,
    ask_due: Instant,
    failures: u32,
}

impl PageSampling {
    /// Of all this memory a sample is wanted, of what is offline too: blocks come and go, and the share of what
    /// is touched is one of all.
    pub(super) fn want(&mut self, memory: &[GpaRange]) {
        if self.memory != memory {
            self.memory = memory.to_vec();
            self.sample = None;
            self.draw_due = Instant::default();
        }
    }

    /// Draws a sample where there is none and it is time. Until that works the working set is told by
    /// regions.
    pub(super) fn draw_if_due(&mut self, clock: impl Fn() -> Instant, monitor: &mut Monitor) {
        if self.sample.is_some() || clock() < self.draw_due {
            return;
        }
        self.draw_due = clock() + DRAWN_APART;
        match monitor.sample_pages(&self.memory, WORKING_SET_AGE) {
            Ok(()) => {
                self.sample = Some(PageSample::new(clock(), WORKING_SET_AGE));
                (self.ask_due, self.failures) = (clock(), 0);
            }
            Err(error) => {
                tracing::info!(
                    "the working set is told by regions, not by single pages (it is tried again): {error}"
                );
            }
        }
    }

    /// How much of that memory was touched in the time after which it is no working set any more. May wait
    /// for two seconds.
    pub(super) fn touched(
        &mut self,
        clock: impl Fn() -> Instant,
        monitor: &Monitor,
    ) -> Option<ByteSize> {
        let sample = self.sample.as_mut()?;
        if clock() >= self.ask_due {
            match monitor.page_count() {
                Ok(count) => {
                    let PageCount { looked_at, touched } = count.unwrap_or_default();
                    let now = clock();
                    if sample.observe(now, Counted { looked_at, touched }) {
                        self.ask_due = now + ASKED_AFTER;
                    }
                    self.failures = 0;
                }
                // The counts grow, and the next look has them, unless somebody has stopped the kdamond.
                Err(error) => {
                    tracing::debug!("what was touched lately is not known: {error}");
                    self.failures += 1;
                }
            }
        }
        let memory = self.memory.iter().map(|range| range.len()).sum();
        let touched = sample.touched(clock(), memory);
        if self.failures >= FAILURES_MAX {
            self.sample = None;
        }
        touched
    }
}
