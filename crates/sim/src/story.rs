//! What is kept of a run: a sample a second, and a line for each thing that happened.

use std::fmt;

use memtide_policy::guest::{NoReclaim, Reclaim};
use memtide_units::{ByteSize, Instant, PpMillion};
use serde::Serialize;

use crate::kernel::{Kernel, Kind};

/// The guest at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// In blocks that are online, in MiB.
    pub online_mib: u64,
    /// Of programs and the kernel.
    pub used_mib: u64,
    /// Of this, what programs touch all the time.
    pub hot_mib: u64,
    /// Page cache.
    pub cache_mib: u64,
    /// In swap.
    pub swapped_mib: u64,
    /// Free.
    pub free_mib: u64,
    /// `MemAvailable`.
    pub available_mib: u64,
    /// Share of the time since the last sample in which some task stalled, in millionths.
    pub stalled_ppm: u32,
}

/// What kind of thing a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum About {
    /// What the policy has decided.
    Decision,
    /// What befell the guest.
    Fault,
    /// Somebody was killed for memory.
    Killed,
    /// A promise was broken.
    Broken,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// Online at that moment, in MiB.
    pub online_mib: u64,
    /// What it is about.
    pub about: About,
    /// What.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, tenth) = (self.at_ms / 1000, self.at_ms % 1000 / 100);
        let mark = match self.about {
            About::Decision => "",
            About::Fault => "~ ",
            About::Killed => "† ",
            About::Broken => "BROKEN ",
        };
        write!(f, "{s:>5}.{tenth} {:>6} MiB  {mark}{}", self.online_mib, self.text)
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// One a second.
    pub samples: Vec<Sample>,
    /// In order.
    pub lines: Vec<Line>,
    last_kind: String,
    last_reclaim: String,
    stalled_us: u64,
    sampled: Option<Instant>,
}

impl Story {
    /// The numbers of a decision change all the time; the story is in what is done.
    pub fn decided(&mut self, now: Instant, kernel: &Kernel, report: &str) {
        let kind = kind_of(report);
        if kind != self.last_kind || kind.starts_with("steal memory") {
            kind.clone_into(&mut self.last_kind);
            self.tell(now, kernel, About::Decision, report.to_owned());
        }
    }

    /// The same of paging out, where there is somewhere to page out to.
    pub fn reclaims(&mut self, now: Instant, kernel: &Kernel, reclaim: Reclaim) {
        if reclaim == Reclaim::Off(NoReclaim::NoPlace) {
            return;
        }
        let report = reclaim.to_string();
        let kind = kind_of(&report);
        if kind != self.last_reclaim {
            kind.clone_into(&mut self.last_reclaim);
            self.tell(now, kernel, About::Decision, report);
        }
    }

    /// Anything else.
    pub fn tell(&mut self, now: Instant, kernel: &Kernel, about: About, text: String) {
        let (at_ms, online_mib) = (now.as_millis(), kernel.online().mib());
        self.lines.push(Line { at_ms, online_mib, about, text });
    }

    /// Takes a sample, once a second.
    pub fn sample(&mut self, now: Instant, kernel: &Kernel) {
        if self.sampled.is_some_and(|last| now.since(last).as_millis() < 1000) {
            return;
        }
        let elapsed = self.sampled.map_or(0, |last| now.since(last).as_micros());
        let stalled =
            kernel.psi().some_us - std::mem::replace(&mut self.stalled_us, kernel.psi().some_us);
        let of = |kinds: &[Kind]| kinds.iter().map(|kind| kernel.bytes_of(*kind)).sum::<ByteSize>();
        let memory = kernel.memory();
        self.samples.push(Sample {
            at_ms: now.as_millis(),
            online_mib: kernel.online().mib(),
            used_mib: of(&[Kind::Kernel, Kind::Hot, Kind::Cold, Kind::Stored]).mib(),
            hot_mib: of(&[Kind::Hot]).mib(),
            cache_mib: of(&[Kind::Cache, Kind::Stale]).mib(),
            swapped_mib: kernel.swapped_out().mib(),
            free_mib: memory.free.mib(),
            available_mib: memory.available.mib(),
            stalled_ppm: PpMillion::of_time(stalled, u64::try_from(elapsed).unwrap_or(u64::MAX)).0,
        });
        self.sampled = Some(now);
    }

    /// The lines as one text.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// A report up to its first number.
fn kind_of(report: &str) -> &str {
    report.split_once(|c: char| c.is_ascii_digit()).map_or(report, |(kind, _)| kind)
}
