//! Plays a script: maps, fills, touches, verifies and frees, phase by phase.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use memtide_units::ByteSize;

use crate::audit::{Audit, Chunk, Halt};
use crate::census::Register;
use crate::event::{Event, Outcome, Summary};
use crate::extent::{Extent, Region};
use crate::journal::Stalls;
use crate::mapping::Thp;
use crate::pagefile::PageFile;
use crate::pattern::{PAGE_BYTES, Salt};
use crate::script::{Command, Script};

/// What phases need to know beside their commands.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where `files` makes its files.
    pub(crate) dir: PathBuf,
    /// Huge pages or not.
    pub(crate) thp: Thp,
    /// What makes this run's pages its own.
    pub(crate) salt: Salt,
    /// Where mappings are entered.
    pub(crate) register: Register,
}

/// The regions, and the means to play with them.
#[derive(Debug)]
pub(crate) struct Player<W> {
    settings: Settings,
    audit: Audit<W>,
    regions: BTreeMap<String, Region>,
    /// Files that stay, by name.
    files: BTreeMap<String, PageFile>,
    next_extent: u16,
}

impl<W: Write> Player<W> {
    /// A player that owns nothing yet.
    pub(crate) fn new(settings: Settings, audit: Audit<W>) -> Self {
        Self { settings, audit, regions: BTreeMap::new(), files: BTreeMap::new(), next_extent: 0 }
    }

    /// Plays the whole script, or as much as can be, and prints the summary.
    ///
    /// # Errors
    /// Only where the output is closed: everything else is in the summary.
    pub(crate) fn play(&mut self, script: &Script) -> io::Result<Summary> {
        let outcome = match self.steps(script) {
            Ok(()) => Outcome::Finished,
            Err(Halt::Interrupted) => Outcome::Interrupted,
            Err(Halt::BadPage) => Outcome::StoppedAtBadPage,
            Err(Halt::Output(error)) => return Err(error),
            Err(refused @ Halt::Refused { .. }) => {
                self.audit.journal.say(Event::Error { message: &refused.to_string() })?;
                Outcome::Failed
            }
        };
        self.settings.register.close();
        self.audit.journal.summarize(outcome)
    }

    fn steps(&mut self, script: &Script) -> Result<(), Halt> {
        for step in &script.steps {
            self.audit.journal.begin(&step.name, stalls_of(&step.command))?;
            self.phase(&step.command)?;
            self.audit.journal.end()?;
        }
        Ok(())
    }

    fn phase(&mut self, command: &Command) -> Result<(), Halt> {
        match command {
            Command::Alloc(region, pages) | Command::Grow(region, pages) => {
                self.map(&region.text, pages.count)
            }
            Command::Hot(region, pages, time) => {
                let name = region.text.as_str();
                let region = owned(&mut self.regions, name);
                self.audit.keep_hot(name, region, (pages.count, *time))
            }
            Command::Idle(time) => Ok(self.audit.controls.idle_until(Instant::now() + *time)?),
            Command::Free(region, pages) => {
                self.free(&region.text, pages.as_ref().map_or(usize::MAX, |pages| pages.count))
            }
            Command::Files(pages, time) => self.files(pages.count, *time),
            Command::Read(file, pages) => self.read(&file.text, pages.count),
            Command::Verify(region) => self.verify(region.as_ref().map(|word| word.text.as_str())),
            Command::Wait => self.wait(),
        }
    }

    fn map(&mut self, name: &str, pages: usize) -> Result<(), Halt> {
        let id = self.new_id();
        let Settings { salt, thp, .. } = self.settings;
        let extent = Extent::new(id, pages, salt, thp).map_err(|source| Halt::Refused {
            what: format!("map {} for {name}", size(pages)),
            source,
            remedy: "ask for less, look at vm.overcommit_memory, or use --thp default",
        })?;
        self.settings.register.add(extent.touches());
        let extents = &mut self.regions.entry(name.to_owned()).or_default().extents;
        extents.push(extent);
        extents.last_mut().map_or(Ok(()), |extent| self.audit.fill(extent))
    }

    fn free(&mut self, name: &str, pages: usize) -> Result<(), Halt> {
        let region = owned(&mut self.regions, name);
        let freed = region.free(pages).map_err(|source| Halt::Refused {
            what: format!("unmap the end of {name}"),
            source,
            remedy: "raise vm.max_map_count",
        })?;
        self.audit.journal.disown(freed);
        if region.pages() == 0 {
            self.regions.remove(name);
        }
        Ok(())
    }

    fn verify(&mut self, only: Option<&str>) -> Result<(), Halt> {
        let wanted = |name: &str| only.is_none_or(|only| only == name);
        for (name, region) in self.regions.iter_mut().filter(|(name, _)| wanted(name)) {
            self.audit.verify(name, region)?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Halt> {
        self.audit.journal.say(Event::Waiting)?;
        let by = self.audit.controls.wait_for_go()?;
        Ok(self.audit.journal.say(Event::Go { by })?)
    }

    fn files(&mut self, pages: usize, time: Duration) -> Result<(), Halt> {
        let mut file = self.make_file(pages)?;
        let deadline = self.audit.journal.start_touching() + time;
        // At least once, however short the time: an unread file shows nothing.
        loop {
            self.read_all(&mut file)?;
            if Instant::now() >= deadline {
                return Ok(());
            }
        }
    }

    fn read(&mut self, name: &str, pages: usize) -> Result<(), Halt> {
        let mut file = match self.files.remove(name) {
            Some(file) => file,
            None => self.make_file(pages)?,
        };
        let read = self.read_all(&mut file);
        self.files.insert(name.to_owned(), file);
        read
    }

    /// A file of so many pages, on the disk.
    fn make_file(&mut self, pages: usize) -> Result<PageFile, Halt> {
        let id = self.new_id();
        let refused = |source| self.no_file(pages, source);
        let mut file =
            PageFile::create(&self.settings.dir, id, pages, self.settings.salt).map_err(refused)?;
        self.audit.journal.start_touching();
        for first in file.chunks() {
            file.write(first).map_err(|source| self.no_file(pages, source))?;
            self.audit.touched()?;
        }
        file.sync().map_err(|source| self.no_file(pages, source))?;
        Ok(file)
    }

    /// Reads and verifies all of it.
    fn read_all(&mut self, file: &mut PageFile) -> Result<(), Halt> {
        for first in file.chunks() {
            self.audit.journal.start_touching();
            let pages = file.pages();
            let read = file.read(first).map_err(|source| self.no_file(pages, source))?;
            self.audit.touched()?;
            if self.audit.judge_chunk(file, first, read)? == Chunk::Damaged {
                // As with memory: repaired, so that one loss counts once.
                file.write(first).map_err(|source| self.no_file(pages, source))?;
            }
        }
        Ok(())
    }

    fn no_file(&self, pages: usize, source: io::Error) -> Halt {
        Halt::Refused {
            what: format!(
                "make or read a file of {} in {}",
                size(pages),
                self.settings.dir.display()
            ),
            source,
            remedy: "free space there, or choose another place with --dir",
        }
    }

    fn new_id(&mut self) -> u16 {
        let id = self.next_extent;
        self.next_extent = id.wrapping_add(1);
        id
    }
}

/// The region called `name`.
fn owned<'a>(regions: &'a mut BTreeMap<String, Region>, name: &str) -> &'a mut Region {
    regions.get_mut(name).expect("scripts are checked: every name that a step uses is owned then")
}

/// Only touches of memory can stall for memory.
fn stalls_of(command: &Command) -> Stalls {
    match command {
        Command::Files(..) | Command::Read(..) => Stalls::Ignore,
        _ => Stalls::Count,
    }
}

fn size(pages: usize) -> ByteSize {
    ByteSize::from_bytes(pages as u64 * PAGE_BYTES as u64)
}

#[cfg(test)]
mod tests;
