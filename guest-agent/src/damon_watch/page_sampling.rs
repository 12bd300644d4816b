//! How much was touched lately, by the sample of pages that the monitor's second kdamond looks at.

use memtide_access::WORKING_SET_AGE;
use memtide_policy::guest::{Counted, PageSample};
use memtide_sysfs::damon::{Monitor, PageCount};
use memtide_units::{ByteSize, GpaRange, Instant};

/// The sample, or none where the kernel would not have one.
#[derive(Debug, Default)]
pub(super) struct PageSampling {
    memory: Vec<GpaRange>,
    sample: Option<PageSample>,
}

impl PageSampling {
    /// Draws a sample of all this memory, of what is offline too: blocks come and go, and the share of what is
    /// touched is one of all. Nothing where there is one already. Where that does not work the working
    /// set is told by regions.
    pub(super) fn draw(&mut self, now: Instant, monitor: &mut Monitor, memory: &[GpaRange]) {
        if self.memory == memory {
            return;
        }
        self.memory = memory.to_vec();
        let drawn = monitor.sample_pages(memory, WORKING_SET_AGE);
        if let Err(error) = &drawn {
            tracing::info!("the working set is told by regions, not by single pages: {error}");
        }
        self.sample = drawn.is_ok().then(|| PageSample::new(now, WORKING_SET_AGE));
    }

    /// How much of that memory was touched in the time after which it is no working set any more. Waits for up
    /// to two seconds.
    pub(super) fn touched(
        &mut self,
        clock: impl Fn() -> Instant,
        monitor: &Monitor,
    ) -> Option<ByteSize> {
        let sample = self.sample.as_mut()?;
        match monitor.page_count() {
            Ok(Some(PageCount { looked_at, touched })) => {
                sample.observe(clock(), Counted { looked_at, touched });
            }
            Ok(None) => {}
            // The counts grow, and the next look has them.
            Err(error) => tracing::debug!("what was touched lately is not known: {error}"),
        }
        sample.touched(clock(), self.memory.iter().map(|range| range.len()).sum())
    }
}
