//! Walks over pages: fills them, keeps them hot, verifies them, and judges what it finds.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::control::{Controls, Stopped};
use crate::event::Place;
use crate::extent::{Extent, Region};
use crate::journal::Journal;
use crate::pagefile::PageFile;
use crate::pagemap;
use crate::pattern::{Fault, PAGE_WORDS};

/// Pages of a hot region that are touched between two readings of the clock, which costs as much
/// as several touches where the guest's clock source is emulated. A stall is seen to within the
/// time of so many touches: some microseconds.
const GLANCES_PER_CLOCK: usize = 16;

/// Words to go on between two passes over a hot region. Odd, so that all words of a page get their
/// turn, and no divisor of a cache line.
const WORD_STEP: usize = 67;

/// What a bad page does to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeepGoing {
    /// It is counted, and the script goes on.
    Yes,
    /// It ends the script.
    No,
}

/// Why a phase ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Halt {
    /// SIGTERM or SIGINT.
    #[error("interrupted")]
    Interrupted,
    /// A bad page, where that is to end the script.
    #[error("a page was bad")]
    BadPage,
    /// Nobody reads the output any more, or it is full.
    #[error("cannot write events to standard output: {0}")]
    Output(#[from] io::Error),
    /// The kernel refused something.
    #[error("cannot {what}: {source}; {remedy}")]
    Refused {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Interrupted
    }
}

/// What the verification of a file's chunk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Every page is right.
    Intact,
    /// Some are not.
    Damaged,
}

/// What every walk needs: where to report, whom to obey, what to do about a bad page.
#[derive(Debug)]
pub(crate) struct Audit<W> {
    pub(crate) journal: Journal<W>,
    pub(crate) controls: Controls,
    pub(crate) keep_going: KeepGoing,
}

impl<W: Write> Audit<W> {
    /// Writes every page of a fresh extent for the first time.
    ///
    /// # Errors
    /// [`Halt::Interrupted`] and [`Halt::Output`].
    pub(crate) fn fill(&mut self, extent: &mut Extent) -> Result<(), Halt> {
        self.journal.start_touching();
        for index in 0..extent.pages() {
            extent.fill(index);
            self.journal.own(1);
            let now = self.touched()?;
            extent.touched(index..index + 1, now);
        }
        Ok(())
    }

    /// Verifies every page of a region.
    ///
    /// # Errors
    /// All but [`Halt::Refused`].
    pub(crate) fn verify(&mut self, name: &str, region: &mut Region) -> Result<(), Halt> {
        self.journal.start_touching();
        for extent in &mut region.extents {
            for index in 0..extent.pages() {
                self.judge(name, extent, index)?;
                let now = self.touched()?;
                extent.touched(index..index + 1, now);
            }
        }
        Ok(())
    }

    /// Keeps the first `pages` pages of a region hot for `time`.
    ///
    /// DAMON calls memory hot when it is touched again within milliseconds, and whole pages cannot
    /// be verified that fast. So passes that read one word of every page take turns with
    /// verifying and rewriting a few more pages, half of the time for each.
    ///
    /// # Errors
    /// All but [`Halt::Refused`].
    pub(crate) fn keep_hot(
        &mut self,
        name: &str,
        region: &mut Region,
        (pages, time): (usize, Duration),
    ) -> Result<(), Halt> {
        let deadline = Instant::now() + time;
        let mut cursor = Cursor::new(region, pages);
        let mut word = 0;
        let mut now = self.journal.start_touching();
        while now < deadline {
            let pass_started = now;
            now = self.glance(name, region, &cursor.spans, (word, deadline))?;
            word = (word + WORD_STEP) % PAGE_WORDS;
            let renew_until = deadline.min(now + (now - pass_started));
            while now < renew_until {
                let (extent, index) = cursor.advance();
                now = self.renew(name, &mut region.extents[extent], index)?;
            }
        }
        Ok(())
    }

    /// Reads one word of every page in `spans`, or of as many as the time allows.
    fn glance(
        &mut self,
        name: &str,
        region: &mut Region,
        spans: &[usize],
        (word, deadline): (usize, Instant),
    ) -> Result<Instant, Halt> {
        let mut now = self.journal.start_touching();
        for (extent, &pages) in region.extents.iter_mut().zip(spans) {
            for group in (0..pages).step_by(GLANCES_PER_CLOCK) {
                let group = group..pages.min(group + GLANCES_PER_CLOCK);
                self.journal.glanced(group.len() as u64);
                for index in group.clone() {
                    if !extent.glance(index, word) {
                        self.judge(name, extent, index)?;
                    }
                }
                now = self.touched()?;
                extent.touched(group, now);
                if now >= deadline {
                    return Ok(now);
                }
            }
        }
        Ok(now)
    }

    /// Verifies a page and writes its next generation.
    fn renew(&mut self, name: &str, extent: &mut Extent, index: usize) -> Result<Instant, Halt> {
        self.judge(name, extent, index)?;
        extent.rewrite(index);
        let now = self.touched()?;
        extent.touched(index..index + 1, now);
        Ok(now)
    }

    /// Verifies a page; a bad one is reported, and rewritten so that one loss counts once.
    fn judge(&mut self, name: &str, extent: &mut Extent, index: usize) -> Result<(), Halt> {
        self.journal.checked(1);
        let Some(fault) = extent.check(index) else { return Ok(()) };
        let address = extent.address(index);
        let place = Place::Memory { address, pfn: pagemap::frame_of(address) };
        let expected = extent.generation(index);
        extent.rewrite(index);
        self.bad(name, place, (fault, expected))
    }

    /// Verifies the `pages` pages of a file's chunk that was read last.
    ///
    /// # Errors
    /// [`Halt::BadPage`] and [`Halt::Output`].
    pub(crate) fn judge_chunk(
        &mut self,
        file: &PageFile,
        first: usize,
        pages: usize,
    ) -> Result<Chunk, Halt> {
        self.journal.checked(pages as u64);
        let faults = file.faults(first);
        for &(file_offset, fault) in &faults {
            self.bad("files", Place::File { file_offset }, (fault, 0))?;
        }
        Ok(if faults.is_empty() { Chunk::Intact } else { Chunk::Damaged })
    }

    /// Reports a bad page.
    fn bad(&mut self, name: &str, place: Place, fault: (Fault, u16)) -> Result<(), Halt> {
        self.journal.bad(name, place, fault)?;
        match self.keep_going {
            KeepGoing::Yes => Ok(()),
            KeepGoing::No => Err(Halt::BadPage),
        }
    }

    /// A touch ended; returns the time.
    ///
    /// # Errors
    /// [`Halt::Interrupted`] and [`Halt::Output`].
    pub(crate) fn touched(&mut self) -> Result<Instant, Halt> {
        let now = self.journal.touched()?;
        if self.controls.stopped() { Err(Halt::Interrupted) } else { Ok(now) }
    }
}

/// Goes round and round over the first pages of a region.
#[derive(Debug)]
struct Cursor {
    /// Pages to visit of each extent; none is zero.
    spans: Vec<usize>,
    extent: usize,
    page: usize,
}

impl Cursor {
    /// At the first of `pages` pages of a region that has as many.
    fn new(region: &Region, pages: usize) -> Self {
        let mut left = pages;
        let mut spans = Vec::new();
        for extent in &region.extents {
            let span = extent.pages().min(left);
            left -= span;
            spans.extend((span > 0).then_some(span));
        }
        Self { spans, extent: 0, page: 0 }
    }

    /// The extent and page that it stands on; goes on to the next.
    fn advance(&mut self) -> (usize, usize) {
        let here = (self.extent, self.page);
        self.page += 1;
        if self.page == self.spans[self.extent] {
            self.page = 0;
            self.extent = (self.extent + 1) % self.spans.len();
        }
        here
    }
}
