//! The result, as it is written to a file.

use std::collections::BTreeMap;

use serde::Serialize;

use super::promises;
use crate::promise::{self, Judged};
use crate::setting::Setting;

/// What each means did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How it was measured.
    pub setting: Setting,
    /// By name: `none`, `free_page_reporting`, `damon_reclaim`, `memtide`.
    pub runs: BTreeMap<String, Run>,
    /// A second run of one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
    /// What was promised, and what came of it.
    pub promises: Vec<Judged>,
}

/// A second run, with another guest.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Again {
    /// The name of the first.
    pub of: String,
    /// What it did.
    pub run: Run,
}

/// One guest's run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// What it held of the host's memory, times how long, in GiB times minutes.
    pub gib_minutes: f64,
    /// How long the script took.
    pub seconds: f64,
    /// How long the phases of it took whose work is fixed: growing and checking.
    pub work_seconds: f64,
    /// What it held at the end of the last rest, in GiB.
    pub gib_after_idle: f64,
    /// Pages of the workload's that were not what they had to be.
    pub pages_bad: u64,
    /// Tasks that the guest's OOM killer ended.
    pub oom_kills: u64,
    /// What it held over time.
    pub trace: Vec<Point>,
}

/// What a guest held at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// Since the script began.
    pub seconds: f64,
    /// Resident in the memfd.
    pub gib: f64,
}

impl Report {
    /// Runs in the order in which they are shown, with what people call them.
    pub(super) fn rows(&self) -> Vec<(&'static str, &Run)> {
        [
            ("none", "nothing"),
            ("free_page_reporting", "free page reporting"),
            ("damon_reclaim", "DAMON_RECLAIM and reporting"),
            ("memtide", "Memtide"),
        ]
        .into_iter()
        .filter_map(|(name, title)| Some((title, self.runs.get(name)?)))
        .collect()
    }

    /// With what came of each promise, once all else is there.
    #[must_use]
    pub(super) fn judged(self) -> Self {
        Self { promises: promises::judged(&self), ..self }
    }

    /// Promises that were not kept, a sentence each; before all others that nothing is worth a page or a
    /// process of the guest's.
    pub fn broken(&self) -> Vec<String> {
        let harm = |(name, run): (&str, &Run)| {
            (run.pages_bad + run.oom_kills > 0).then(|| {
                format!("{name}: {} bad pages and {} OOM kills", run.pages_bad, run.oom_kills)
            })
        };
        let runs = self.runs.iter().map(|(name, run)| (name.as_str(), run));
        let again = self.again.iter().map(|again| ("again", &again.run));
        let harm = runs.chain(again).filter_map(harm);
        harm.chain(promise::broken(&self.promises)).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        let run = |gib_minutes, work_seconds| Run {
            gib_minutes,
            seconds: 120.0,
            work_seconds,
            gib_after_idle: gib_minutes / 4.0,
            trace: vec![
                Point { seconds: 0.0, gib: 0.2 },
                Point { seconds: 60.0, gib: gib_minutes / 2.0 },
                Point { seconds: 120.0, gib: gib_minutes / 4.0 },
            ],
            ..Run::default()
        };
        let runs = [
            ("none", run(3.2, 40.0)),
            ("free_page_reporting", run(2.4, 40.8)),
            ("damon_reclaim", run(2.2, 44.0)),
            ("memtide", run(1.2, 40.4)),
        ];
        let runs = runs.into_iter().map(|(name, run)| (name.to_owned(), run)).collect();
        let setting = Setting { guest_memory_mib: 2048, ..Setting::default() };
        Report { setting, runs, ..Report::default() }
    }

    #[test]
    fn harm_to_a_guest_is_named() {
        let mut report = report().judged();
        assert_eq!(report.broken(), Vec::<String>::new());
        report.runs.get_mut("memtide").unwrap().oom_kills = 1;
        let run = Run { pages_bad: 2, ..Run::default() };
        report.again = Some(Again { of: "memtide".into(), run });
        let expected =
            ["memtide: 0 bad pages and 1 OOM kills", "again: 2 bad pages and 0 OOM kills"];
        assert_eq!(report.broken(), expected);
    }

    #[test]
    fn a_promise_that_was_not_kept_is_broken() {
        let mut report = report();
        report.runs.get_mut("memtide").unwrap().gib_minutes = 2.0;
        let broken = report.judged().broken();
        assert_eq!(
            broken,
            ["held less than with reporting alone: 16.667 %, promised was more than 18 %"]
        );
    }

    #[test]
    fn the_file_has_the_keys_that_others_read() {
        let json = serde_json::to_value(report().judged()).unwrap();
        for who in ["none", "free_page_reporting", "damon_reclaim", "memtide"] {
            for key in ["gib_minutes", "seconds", "gib_after_idle"] {
                assert!(json["runs"][who][key].is_number(), "{who} {key}");
            }
        }
        assert!(json.get("again").is_none());
        assert_eq!(json["promises"][0]["name"], "held_less");
        assert_eq!(json["promises"][0]["verdict"], "kept");
        assert_eq!(json["promises"][1]["name"], "slow_down");
    }
}
