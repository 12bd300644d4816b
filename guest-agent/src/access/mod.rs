//! What was touched, kept for people: DAMON's snapshots become a history, and that a file in the runtime
//! directory which `memtide-agent wss` and `heat` read.
//!
//! Decisions take two things from it: which of two cold blocks is emptied with less effort, and how much
//! of what was touched last is used by somebody. A file
//! that cannot be written or read costs the pictures.

mod census;

use std::path::PathBuf;
use std::time::Duration;

use memtide_access::{Digest, FILE_MAX, History, Limits, Region, Snapshot};
use memtide_policy::guest::AccessRegion;
use memtide_sysfs::Root;
use memtide_units::{ByteSize, GpaRange, Instant};

use crate::pace::{Pace, timed};
use crate::runtime::{read_at_most, replace_in_private};
use census::Census;

/// Between two writings of the file.
const WRITE_APART: Duration = Duration::from_secs(10);
/// Between two looks where free memory lies. They have half of what other looks may take: it is for people, and
/// for the choice between blocks that are equally cold, and it was the largest part of what an agent at rest costs.
const LOOK: Pace = Pace { shortest: Duration::from_secs(1), longest: Duration::from_secs(10) };

/// The guest's memory, as far as the history needs it.
#[derive(Clone, Debug)]
pub struct Present {
    /// All memory that there is, ascending.
    pub memory: Vec<GpaRange>,
    /// What of it is offline, ascending.
    pub offline: Vec<GpaRange>,
    /// `MemFree`.
    pub free: ByteSize,
}

/// The history and what fills it.
#[derive(Debug)]
pub struct AccessHistory {
    history: History,
    census: Census,
    path: PathBuf,
    /// Where the caller's clock stands on `CLOCK_MONOTONIC`, in milliseconds.
    offset_ms: u64,
    /// Since when DAMON has been watching.
    since: Option<Instant>,
    look_due: Instant,
    write_due: Instant,
    is_new: bool,
}

impl AccessHistory {
    /// Goes on with the history in the file `path`, if it is of this guest's life. `offset_ms` is what
    /// `CLOCK_MONOTONIC` showed when the clock of all that follows showed zero, so that an agent which is
    /// started anew, and who reads the file, mean the same.
    pub fn resume(root: &Root, path: PathBuf, offset_ms: u64) -> Self {
        let history = read_at_most(&path, FILE_MAX).ok();
        let history = history.and_then(|text| History::from_json(&text, Limits::AGENT).ok());
        let is_past = |history: &History| history.last().is_none_or(|last| last.at_ms <= offset_ms);
        Self {
            history: history.filter(is_past).unwrap_or_else(|| History::new(Limits::AGENT)),
            census: Census::new(root),
            path,
            offset_ms,
            since: None,
            look_due: Instant::default(),
            write_due: Instant::default(),
            is_new: false,
        }
    }

    /// `now` on `CLOCK_MONOTONIC`.
    pub fn monotonic_ms(&self, now: Instant) -> u64 {
        self.offset_ms.saturating_add(now.as_millis())
    }

    /// Takes a snapshot of DAMON's, and how much was touched in the last half minute by a sample of pages, where
    /// there is one; answers with what it comes to, or `None` for memory that no layout fits.
    pub fn observe(
        &mut self,
        now: Instant,
        (regions, touched): (&[AccessRegion], Option<ByteSize>),
        present: &Present,
    ) -> Option<&Digest> {
        let layout = self.history.layout(&present.memory).ok()?;
        let since = *self.since.get_or_insert(now);
        let region = |seen: &AccessRegion| Region {
            range: seen.range,
            accessed: seen.accessed,
            age: seen.age,
        };
        let regions: Vec<Region> = regions.iter().map(region).collect();
        let mix = self.census.mix(&layout);
        let snapshot = Snapshot {
            at_ms: self.monotonic_ms(now),
            watched: now.since(since),
            regions: &regions,
            stolen: &present.offline,
            free: present.free,
            mix: mix.as_ref(),
            touched,
        };
        self.history.observe(Digest::of(layout, &snapshot));
        self.is_new = true;
        self.history.last()
    }

    /// Looks a little further where the free memory lies, where that is due: a millisecond of work.
    pub fn look(&mut self, now: Instant, present: &Present) {
        if self.since.is_none() || now < self.look_due {
            return;
        }
        let Ok(layout) = self.history.layout(&present.memory) else { return };
        let ((), cost) = timed(|| self.census.look(&layout));
        // Nothing is known of any cell before all were looked at once.
        let pause = if self.census.is_whole() { LOOK.pause(cost * 2) } else { LOOK.shortest };
        self.look_due = now + pause;
    }

    /// How much of `range` is in use, by the samples of its pages, where all of it was looked at.
    pub fn used_in(&self, range: GpaRange) -> Option<ByteSize> {
        self.since.and_then(|_| self.census.used_in(range))
    }

    /// DAMON has ended.
    pub fn ended(&mut self) {
        self.since = None;
    }

    /// The last snapshot of this agent's own.
    pub fn last(&self) -> Option<&Digest> {
        self.since.and_then(|_| self.history.last())
    }

    /// Replaces the file if there is something new and the last time is long enough ago. The kernel tells nobody
    /// but root which memory is in use, and neither does this.
    pub fn write(&mut self, now: Instant) {
        if !self.is_new || now < self.write_due {
            return;
        }
        self.write_due = now + WRITE_APART;
        self.is_new = false;
        let written = self.history.to_json().map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|text| replace_in_private(&self.path, &text)) {
            tracing::warn!("{} cannot be written: {error}", self.path.display());
        }
    }
}

/// What `CLOCK_MONOTONIC` shows, in milliseconds: the same for all processes until the next boot.
pub fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_sysfs::fake::FakeRoot;
    use memtide_units::{Gpa, Permille};
    use std::os::unix::fs::PermissionsExt;

    fn range(mib: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(mib << 20), ByteSize::from_mib(len)).unwrap()
    }

    fn present() -> Present {
        let memory = vec![range(0, 256)];
        Present { memory, offline: vec![range(128, 128)], free: ByteSize::from_mib(20) }
    }

    fn watch(access: &mut AccessHistory, until_s: u64) {
        for at in (1..until_s).step_by(2) {
            let region = |range, accessed| AccessRegion {
                range,
                accessed: Permille(accessed),
                age: Duration::from_secs(at),
            };
            let now = Instant::from_millis(at * 1000);
            let seen = [region(range(0, 32), 500), region(range(32, 96), 0)];
            access.observe(now, (&seen, None), &present());
            access.look(now, &present());
            access.write(now);
        }
    }

    fn kept(path: &std::path::Path) -> History {
        let text = std::fs::read_to_string(path).unwrap();
        History::from_json(&text, Limits::AGENT).unwrap()
    }

    #[test]
    fn the_file_outlives_the_agent_and_not_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let (fake, path) = (FakeRoot::new(), dir.path().join("access.json"));
        let start = |offset| AccessHistory::resume(&fake.root(), path.clone(), offset);
        let mut first = start(500_000);
        watch(&mut first, 60);
        let last = kept(&path).last().unwrap().clone();
        let (touched, stolen) = (last.amounts.touched.unwrap(), last.amounts.stolen);
        assert_eq!((touched.mib(), stolen.mib(), last.amounts.free.mib()), (32, 128, 20));
        assert!(last.at_ms >= 550_000);
        let next = start(600_000);
        assert_eq!(next.history.columns().len(), kept(&path).columns().len());
        assert_eq!(next.last(), None, "what another has seen is for people alone");
        assert!(start(10_000).history.last().is_none(), "it is of an earlier boot");
        std::fs::write(&path, "{").unwrap();
        assert!(start(600_000).history.last().is_none());
    }

    #[test]
    fn the_file_is_written_now_and_then_and_only_with_news() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.json");
        let mut access = AccessHistory::resume(&FakeRoot::new().root(), path.clone(), 0);
        access.write(Instant::from_millis(0));
        assert!(!path.exists());
        watch(&mut access, 2);
        std::fs::remove_file(&path).unwrap();
        watch(&mut access, 10);
        assert!(!path.exists(), "less than ten seconds later");
        watch(&mut access, 14);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "for root's eyes only");
    }
}
