//! Counts pages, times touches, and prints events as they happen.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::event::{self, BadPage, Counts, Event, FaultCounts, Outcome, Place, Summary, millis};
use crate::pattern::{Fault, PAGE_BYTES};

/// The least time between two progress lines: a serial console under emulation is slow.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Bad pages of each kind that are printed; the rest is only counted. A whole lost block is 32768
/// pages, and its first few say as much.
const PRINTED_PER_KIND: u64 = 8;

/// Everything that is counted and said about one run.
#[derive(Debug)]
pub(crate) struct Journal<W> {
    out: W,
    started: Instant,
    faults: FaultCounts,
    pages_checked: u64,
    pages_touched: u64,
    owned_pages: u64,
    max_stall: Duration,
    phase: Phase,
}

/// The phase that is being played.
#[derive(Debug)]
struct Phase {
    name: String,
    started: Instant,
    touched: Instant,
    progressed: Instant,
    slowest: Duration,
    stalls: Stalls,
}

/// Whether a phase's touches are of memory, so that slow ones count as stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stalls {
    /// They are.
    Count,
    /// They wait for a disk.
    Ignore,
}

impl<W: Write> Journal<W> {
    /// A journal that starts now and prints to `out`.
    pub(crate) fn new(out: W) -> Self {
        let now = Instant::now();
        let phase = Phase::new("", Stalls::Ignore, now);
        Self {
            out,
            started: now,
            faults: FaultCounts::default(),
            pages_checked: 0,
            pages_touched: 0,
            owned_pages: 0,
            max_stall: Duration::ZERO,
            phase,
        }
    }

    /// When it started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Prints an event, at once.
    ///
    /// # Errors
    /// Where the output is closed or full.
    pub(crate) fn say(&mut self, event: Event<'_>) -> io::Result<()> {
        event::print(&mut self.out, event, self.started)
    }

    /// Begins a phase.
    ///
    /// # Errors
    /// As [`Journal::say`].
    pub(crate) fn begin(&mut self, name: &str, stalls: Stalls) -> io::Result<()> {
        self.say(Event::Phase { name })?;
        self.phase = Phase::new(name, stalls, Instant::now());
        Ok(())
    }

    /// Ends the phase.
    ///
    /// # Errors
    /// As [`Journal::say`].
    pub(crate) fn end(&mut self) -> io::Result<()> {
        let idle = Phase::new("", Stalls::Ignore, Instant::now());
        let phase = std::mem::replace(&mut self.phase, idle);
        self.say(Event::PhaseDone {
            name: &phase.name,
            duration_ms: millis(phase.started.elapsed()),
            slowest_touch_us: micros(phase.slowest),
            counts: self.counts(),
        })
    }

    /// Pages were filled and are owned from now on.
    pub(crate) fn own(&mut self, pages: usize) {
        self.owned_pages += pages as u64;
    }

    /// Pages were given back.
    pub(crate) fn disown(&mut self, pages: usize) {
        self.owned_pages = self.owned_pages.saturating_sub(pages as u64);
    }

    /// Whole pages were verified.
    pub(crate) fn checked(&mut self, pages: u64) {
        self.pages_checked += pages;
    }

    /// Single words of pages were read.
    pub(crate) fn glanced(&mut self, pages: u64) {
        self.pages_touched += pages;
    }

    /// The next touch begins now: what passed since the last one was no touch.
    pub(crate) fn start_touching(&mut self) -> Instant {
        self.phase.touched = Instant::now();
        self.phase.touched
    }

    /// A touch, or a few quick ones in a row, ended; the next begins. Returns the time.
    ///
    /// # Errors
    /// As [`Journal::say`], where progress is due.
    pub(crate) fn touched(&mut self) -> io::Result<Instant> {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.phase.touched);
        self.phase.slowest = self.phase.slowest.max(took);
        if self.phase.stalls == Stalls::Count {
            self.max_stall = self.max_stall.max(took);
        }
        self.phase.touched = now;
        if now.saturating_duration_since(self.phase.progressed) < PROGRESS_EVERY {
            return Ok(now);
        }
        self.phase.progressed = now;
        self.progress()?;
        // The time that printing took is nobody's touch.
        Ok(self.start_touching())
    }

    /// Counts a bad page of generation `expected`, and prints the first few of each kind.
    ///
    /// # Errors
    /// As [`Journal::say`].
    pub(crate) fn bad(
        &mut self,
        region: &str,
        place: Place,
        (fault, expected): (Fault, u16),
    ) -> io::Result<()> {
        if self.faults.count(fault) > PRINTED_PER_KIND {
            return Ok(());
        }
        let detail = event::detail(fault, expected);
        self.say(Event::BadPage(BadPage { kind: event::kind(fault), region, place, detail }))
    }

    /// What has been counted.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            owned_bytes: self.owned_pages * PAGE_BYTES as u64,
            pages_checked: self.pages_checked,
            pages_bad: self.faults.total(),
        }
    }

    /// Prints the last line and returns what it says.
    ///
    /// # Errors
    /// As [`Journal::say`].
    pub(crate) fn summarize(&mut self, outcome: Outcome) -> io::Result<Summary> {
        let summary = Summary {
            outcome,
            pages_checked: self.pages_checked,
            pages_bad: self.faults.total(),
            faults: self.faults,
            pages_touched: self.pages_touched,
            seconds: millis(self.started.elapsed()) as f64 / 1000.0,
            max_stall_us: micros(self.max_stall),
        };
        self.say(Event::Summary(summary))?;
        Ok(summary)
    }

    /// What was printed, for tests.
    #[cfg(test)]
    pub(crate) fn out(&self) -> &W {
        &self.out
    }

    fn progress(&mut self) -> io::Result<()> {
        let name = std::mem::take(&mut self.phase.name);
        let said = self.say(Event::Progress { name: &name, counts: self.counts() });
        self.phase.name = name;
        said
    }
}

impl Phase {
    fn new(name: &str, stalls: Stalls, now: Instant) -> Self {
        let (name, slowest) = (name.to_owned(), Duration::ZERO);
        Self { name, started: now, touched: now, progressed: now, slowest, stalls }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floods_of_bad_pages_are_counted_but_not_printed() {
        let mut out = Vec::new();
        let mut journal = Journal::new(&mut out);
        for page in 0..100_u64 {
            let place = Place::File { file_offset: page * 4096 };
            journal.bad("heap", place, (Fault::Zeroed, 3)).unwrap();
        }
        journal
            .bad("heap", Place::File { file_offset: 0 }, (Fault::Stale { generation: 1 }, 3))
            .unwrap();
        let summary = journal.summarize(Outcome::Finished).unwrap();
        assert_eq!((summary.pages_bad, summary.faults.zeroed, summary.faults.stale), (101, 100, 1));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\"kind\":\"zeroed\"").count(), 8);
        assert_eq!(text.matches("\"kind\":\"stale\"").count(), 1);
    }

    #[test]
    fn an_interrupted_phase_still_counts_its_stall() {
        let mut journal = Journal::new(Vec::new());
        journal.begin("verify", Stalls::Count).unwrap();
        journal.start_touching();
        journal.phase.touched -= Duration::from_millis(30);
        journal.touched().unwrap();
        let summary = journal.summarize(Outcome::Interrupted).unwrap();
        assert!(summary.max_stall_us >= 30_000, "{summary:?}");
    }
}
