//! The last changes of mind, for `memtide-agent explain`: what was decided, since when, and how often in a
//! row with other numbers.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::discriminant;
use std::path::Path;

use memtide_policy::guest::{Decision, WaitReason};
use serde::{Deserialize, Serialize};

use crate::runtime::{read_at_most, replace};

/// Changes of mind that are remembered.
const MAX: usize = 64;
/// Longest file that is read, in bytes: 64 sentences of a few hundred.
const FILE_MAX: usize = 64 << 10;
/// Between two writings of the file for other numbers alone: what is now is in the status.
const NUMBERS_APART_MS: u64 = 10_000;
/// The version of the file.
const VERSION: u32 = 1;

/// One decision and its reason, from when to when it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds of `CLOCK_MONOTONIC`.
    pub from_ms: u64,
    /// When it was made for the last time.
    pub to_ms: u64,
    /// How often it was made anew with other numbers.
    pub times: u64,
    /// A sentence, with the numbers of the last time.
    pub text: String,
}

/// What is remembered.
#[derive(Debug, Default)]
pub struct Decisions {
    entries: VecDeque<Entry>,
    /// What the last entry is of.
    last: Option<Decision>,
    news: News,
    numbers_due_ms: u64,
}

/// What is not in the file yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    #[default]
    Nothing,
    /// The same thought, with other numbers or at another time.
    Numbers,
    /// Another thought.
    Thought,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    decisions: VecDeque<Entry>,
}

impl Decisions {
    /// Those that an earlier agent has left, if they can be read; they are only for people.
    pub fn resume(path: &Path) -> Self {
        Self { entries: read(path).unwrap_or_default().into(), ..Self::default() }
    }

    /// A step was taken at `now_ms`, and this came of it.
    pub fn note(&mut self, now_ms: u64, decision: &Decision) {
        let before = self.last.replace(decision.clone());
        let goes_on = before.as_ref().is_some_and(|before| is_alike(before, decision));
        let is_same = before.as_ref() == Some(decision);
        match self.entries.back_mut() {
            Some(entry) if goes_on => {
                entry.to_ms = now_ms;
                self.news = self.news.max(News::Numbers);
                // That stealing goes on says less than what is stolen.
                if !is_same && *decision != Decision::Stealing {
                    entry.times = entry.times.saturating_add(1);
                    entry.text = decision.to_string();
                }
            }
            _ => self.push(now_ms, decision.to_string()),
        }
    }

    /// Something else was decided at `now_ms`, beside what was decided on blocks.
    pub fn remark(&mut self, now_ms: u64, text: String) {
        self.push(now_ms, text);
        // The same decision on blocks gets a new line: the old one is not the last any more.
        self.last = None;
    }

    fn push(&mut self, now_ms: u64, text: String) {
        self.news = News::Thought;
        if self.entries.len() == MAX {
            self.entries.pop_front();
        }
        let (from_ms, to_ms) = (now_ms, now_ms);
        self.entries.push_back(Entry { from_ms, to_ms, times: 1, text });
    }

    /// Replaces the file where there is another thought, and now and then for other numbers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&mut self, now_ms: u64, path: &Path) -> io::Result<()> {
        let is_due = match self.news {
            News::Nothing => false,
            News::Numbers => now_ms >= self.numbers_due_ms,
            News::Thought => true,
        };
        if !is_due {
            return Ok(());
        }
        self.news = News::Nothing;
        self.numbers_due_ms = now_ms.saturating_add(NUMBERS_APART_MS);
        let file = File { version: VERSION, decisions: self.entries.clone() };
        replace(path, &serde_json::to_string(&file)?)
    }
}

/// The same thought, perhaps with other numbers.
fn is_alike(before: &Decision, now: &Decision) -> bool {
    match (before, now) {
        (Decision::Rest(before), Decision::Rest(now))
        | (Decision::Abort(before), Decision::Abort(now)) => is_same_reason(before, now),
        (Decision::Steal { .. } | Decision::Stealing, Decision::Stealing) => true,
        _ => discriminant(before) == discriminant(now),
    }
}

fn is_same_reason(before: &WaitReason, now: &WaitReason) -> bool {
    discriminant(before) == discriminant(now)
}

/// What is in a file of decisions, oldest first.
///
/// # Errors
/// What the kernel says; InvalidData for one that is damaged or of another version.
pub fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let file: File = serde_json::from_str(&read_at_most(path, FILE_MAX)?)?;
    if file.version != VERSION {
        let what = format!("it is of version {}", file.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(file.decisions.into())
}

/// The last ones as text, newest first, seen at `now_ms`.
pub struct Explained<'a> {
    /// Oldest first.
    pub entries: &'a [Entry],
    /// The reader's `CLOCK_MONOTONIC`.
    pub now_ms: u64,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = memtide_access::render::time;
        let mut is_first = true;
        for Entry { from_ms, to_ms, times, text } in self.entries.iter().rev() {
            let ago = time(self.now_ms.saturating_sub(*from_ms));
            let when = if is_first { format!("for {ago}") } else { format!("{ago} ago") };
            let lasted = to_ms.saturating_sub(*from_ms);
            write!(f, "{when:>16}  {text}")?;
            match (is_first, *times, lasted >= 1000) {
                (true, 1, _) | (false, 1, false) => writeln!(f)?,
                (true, times, _) => writeln!(f, " ({times} times)")?,
                (false, 1, true) => writeln!(f, " (for {})", time(lasted))?,
                (false, times, _) => writeln!(f, " ({times} times in {})", time(lasted))?,
            }
            is_first = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtide_policy::guest::{Choice, Urgency};
    use memtide_units::{BlockId, ByteSize};

    fn mib(n: u64) -> ByteSize {
        ByteSize::from_mib(n)
    }

    fn steady(available: u64) -> Decision {
        let (needed, for_swapped) = (mib(700), ByteSize::ZERO);
        Decision::Rest(WaitReason::Steady { available: mib(available), needed, for_swapped })
    }

    fn steal(block: u64) -> Decision {
        let blocks = vec![BlockId(block)];
        let (choice, available) = (Choice::default(), mib(900));
        Decision::Steal { blocks, choice, available, keep: mib(700), ceiling: None }
    }

    fn told(steps: &[(u64, Decision)]) -> Decisions {
        let mut decisions = Decisions::default();
        for (at_s, decision) in steps {
            decisions.note(at_s * 1000, decision);
        }
        decisions
    }

    #[test]
    fn repeated_thoughts_are_one_line_with_the_last_numbers() {
        let mut decisions = told(&[
            (10, Decision::Rest(WaitReason::Measuring)),
            (11, steal(9)),
            (12, Decision::Stealing),
            (14, Decision::Stealing),
            (15, steady(600)),
            (16, steady(600)),
            (17, steady(610)),
            (18, steady(620)),
            (20, Decision::Waiting { ticket: 7, urgency: Urgency::Pressure }),
        ]);
        let text = Explained { entries: decisions.entries.make_contiguous(), now_ms: 95_000 };
        let expected = "        \
        for 1 min 15 s  wait for the gate (ticket 7, pressure)
  1 min 20 s ago  rest: 620 MiB available, one more block needs 700 MiB (3 times in 3 s)
  1 min 24 s ago  steal memory9: 900 MiB available, 700 MiB are kept (for 3 s)
  1 min 25 s ago  rest: pressure is being measured
";
        assert_eq!(text.to_string().trim_start(), expected.trim_start());
    }

    #[test]
    fn another_thought_is_written_at_once_and_other_numbers_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.json");
        let mut decisions = Decisions::default();
        let mut after = |ms, decision: Decision| {
            decisions.note(ms, &decision);
            decisions.write(ms, &path).unwrap();
            read(&path).unwrap().pop().unwrap().text
        };
        let (first, second) = (steady(600).to_string(), steady(601).to_string());
        assert_eq!(after(0, steady(600)), first);
        assert_eq!(after(9_999, steady(601)), first);
        assert_eq!(after(10_000, steady(601)), second);
        assert_eq!(after(10_100, steal(9)), steal(9).to_string());
    }

    #[test]
    fn the_file_is_bounded_read_back_and_never_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decisions.json");
        let mut decisions = Decisions::default();
        for n in 0..200 {
            decisions.note(n * 1000, &steal(n));
            decisions.note(n * 1000 + 500, &steady(n));
        }
        decisions.write(200_000, &path).unwrap();
        let entries = read(&path).unwrap();
        assert_eq!(entries.len(), MAX);
        assert!(entries[MAX - 1].text.contains("199 MiB available"));
        // Nothing new, nothing written.
        std::fs::remove_file(&path).unwrap();
        decisions.write(300_000, &path).unwrap();
        assert!(!path.exists());
        for bad in ["", "{}", r#"{"version":2,"decisions":[]}"#, &"x".repeat(FILE_MAX + 1)] {
            std::fs::write(&path, bad).unwrap();
            assert!(read(&path).is_err(), "{bad:.20}");
            assert!(Decisions::resume(&path).entries.is_empty());
        }
    }
}
