//! The result, as it is written to a file.

use std::collections::BTreeMap;

use memtide_units::ByteSize;
use serde::Serialize;

use super::cost::Cost;
use super::limits::{GOAL, UNHURT, WITHIN};
use super::promises;
use super::script;
use super::swap::PagedOut;
use crate::promise::{self, Judged};
use crate::setting::{Clock, Setting};

/// What was measured; parts that were not are absent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How it was measured.
    pub setting: Setting,
    /// A workload that stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steady: Option<Steady>,
    /// A quarter of the guest at once: `none`, `memtide`, `deflate_on_oom`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub surge: BTreeMap<String, Surge>,
    /// The agent in a guest in which nothing happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest: Option<Cost>,
    /// Fixed sizes, the largest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sweep: Vec<FixedSize>,
    /// What was promised, and what came of it.
    pub promises: Vec<Judged>,
}

/// What the same workload got done in the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pair {
    /// Pages checked in a second, with Memtide.
    pub with: f64,
    /// And without.
    pub without: f64,
    /// What the agent, DAMON and the kernel's threads cost Memtide's guest in its window and just before.
    pub cost: Cost,
}

impl Pair {
    /// By how much longer the same work takes with Memtide, in percent; below zero where it is faster. `None` where
    /// none was done without it: any work at all would be faster than that.
    pub fn slower_percent(&self) -> Option<f64> {
        let slower =
            if self.with > 0.0 { (self.without / self.with - 1.0) * 100.0 } else { f64::INFINITY };
        (self.without > 0.0).then_some(slower)
    }
}

/// The workload that stays as it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Steady {
    /// Each pair of windows.
    pub pairs: Vec<Pair>,
    /// The median of what they are slower by, in percent, of those that say so.
    pub slower_percent: f64,
    /// What the host holds less of with Memtide, in percent of the guest's memory.
    pub saved_percent: f64,
    /// What the host holds with Memtide, and without, in MiB.
    pub held_mib: u64,
    /// And without.
    pub held_without_mib: u64,
    /// And with free page reporting alone, as soon as all was hot that was to be.
    pub held_reporting_mib: u64,
    /// What was paged out in Memtide's guest by then, and where it went.
    pub paged_out: PagedOut,
    /// The guest's `MemTotal` once settled, in MiB.
    pub size_mib: u64,
    /// When it shrank for the last time, in seconds from when the workload had its memory.
    pub settled_after_s: f64,
    /// Of ten seconds each, the share in which some task stalled for memory, in ‰.
    pub stalls: Vec<f64>,
    /// The same in the guest without Memtide.
    pub stalls_without: Vec<f64>,
    /// What the agent, DAMON and the kernel's threads cost meanwhile.
    pub cost: Cost,
    /// The same in the guest without Memtide.
    pub cost_without: Cost,
    /// Tasks that the OOM killer ended in Memtide's guest.
    pub oom_kills: u64,
    /// Pages of the workload's that were not what they had to be.
    pub pages_bad: u64,
}

impl Steady {
    /// With instructions, where the clock counts these.
    #[must_use]
    pub(super) fn by(self, clock: Option<Clock>) -> Self {
        let (cost, cost_without) = (self.cost.by(clock), self.cost_without.by(clock));
        let pairs = self.pairs.into_iter().map(|pair| Pair { cost: pair.cost.by(clock), ..pair });
        Self { cost, cost_without, pairs: pairs.collect(), ..self }
    }
}

/// What a guest of a fixed size did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FixedSize {
    /// Its `MemTotal`, in MiB.
    pub size_mib: u64,
    /// Pages that the workload checked in a second.
    pub pages_per_second: f64,
    /// Of ten seconds each, the share in which some task stalled for memory, in ‰.
    pub stalls: Vec<f64>,
    /// Tasks that the guest's OOM killer ended.
    pub oom_kills: u64,
    /// Pages of the workload's that were not what they had to be.
    pub pages_bad: u64,
}

/// What surges took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Surge {
    /// What could be had before the last one, in MiB.
    pub available_mib: u64,
    /// Each one, in turn.
    pub each: Vec<OneSurge>,
    /// Each one that succeeded.
    pub seconds: Vec<f64>,
    /// Those that did not: the process was ended.
    pub failures: u64,
    /// Tasks that the guest's OOM killer ended.
    pub oom_kills: u64,
}

/// One surge of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OneSurge {
    /// What could be had before it, in MiB: where that is less than was wanted, memory had to come back.
    pub available_mib: u64,
    /// What it took; absent where the process was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// The part of the windows that were within the goal for stalls, from 0 to 1; 1 of none.
pub(super) fn within_goal(stalls: &[f64]) -> f64 {
    let within = stalls.iter().filter(|stall| **stall <= GOAL).count();
    if stalls.is_empty() { 1.0 } else { within as f64 / stalls.len() as f64 }
}

impl Report {
    /// Whether a fixed size hurts the workload: it gets less done than in the whole guest, or stalls more
    /// than the goal allows.
    pub(super) fn hurts(&self, size: &FixedSize) -> bool {
        let whole = self.sweep.first().map_or(0.0, |whole| whole.pages_per_second);
        size.pages_per_second < UNHURT * whole
            || within_goal(&size.stalls) * 100.0 < WITHIN
            || size.oom_kills > 0
    }

    /// Whether Memtide hurts the workload, by the same measure.
    pub(super) fn memtide_hurts(&self) -> Option<bool> {
        let steady = self.steady.as_ref()?;
        let done = 1.0 / (1.0 + steady.slower_percent / 100.0);
        Some(done < UNHURT || within_goal(&steady.stalls) * 100.0 < WITHIN || steady.oom_kills > 0)
    }

    /// What each surge wants.
    pub(super) fn surge_wants(&self) -> ByteSize {
        script::surge_size(ByteSize::from_mib(self.setting.guest_memory_mib))
    }

    /// The smallest fixed size that does not hurt, none larger of which does, in MiB.
    pub fn smallest_unhurt_mib(&self) -> Option<u64> {
        let unhurt = self.sweep.iter().take_while(|size| !self.hurts(size));
        unhurt.last().map(|size| size.size_mib)
    }

    /// With what came of each promise, once all else is there.
    #[must_use]
    pub(super) fn judged(self) -> Self {
        Self { promises: promises::judged(&self), ..self }
    }

    /// Promises that were not kept, a sentence each; before all others that nothing is worth a page or a
    /// process of the guest's.
    pub fn broken(&self) -> Vec<String> {
        let steady = self.steady.as_ref();
        let bad = steady.map_or(0, |steady| steady.pages_bad)
            + self.sweep.iter().map(|size| size.pages_bad).sum::<u64>();
        let killed = steady.map_or(0, |steady| steady.oom_kills);
        let mut broken = Vec::new();
        broken.extend((bad > 0).then(|| format!("{bad} pages were not what they had to be")));
        broken.extend((killed > 0).then(|| format!("{killed} OOM kills in a guest at work")));
        broken.extend(promise::broken(&self.promises));
        broken
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::setting::Swap;

    pub(crate) fn report() -> Report {
        let size = |size_mib, pages_per_second, stall| FixedSize {
            size_mib,
            pages_per_second,
            stalls: vec![0.1, stall],
            ..FixedSize::default()
        };
        let surge = |seconds: [f64; 3], oom_kills| {
            let mut surge = Surge { oom_kills, ..Surge::default() };
            seconds.into_iter().for_each(|seconds| surge.note(400, Some(seconds)));
            surge
        };
        Report {
            setting: Setting {
                guest_memory_mib: 2048,
                swap: Some(Swap::Zram),
                ..Setting::default()
            },
            steady: Some(Steady {
                pairs: vec![Pair { with: 99.0, without: 100.0, ..Pair::default() }; 5],
                slower_percent: 1.0,
                saved_percent: 29.3,
                held_mib: 1100,
                held_without_mib: 1700,
                held_reporting_mib: 1650,
                paged_out: PagedOut { zram_mib: 817, zram_takes_mib: 203, disk_mib: 0 },
                size_mib: 1200,
                settled_after_s: 150.0,
                stalls: vec![0.2, 0.4, 3.0, 0.0],
                ..Steady::default()
            }),
            surge: [
                ("none".into(), surge([1.0, 1.1, 0.9], 0)),
                ("memtide".into(), surge([1.2, 1.3, 1.1], 0)),
                ("deflate_on_oom".into(), surge([4.0, 4.4, 3.0], 2)),
            ]
            .into(),
            rest: Some(Cost {
                agent_percent: 0.4,
                damon_percent: 0.3,
                agent_mib: 4.7,
                ..Cost::default()
            }),
            sweep: vec![
                size(1960, 100.0, 0.2),
                size(1400, 99.0, 0.9),
                size(1200, 97.0, 0.1),
                size(1100, 99.5, 0.1),
            ],
            promises: Vec::new(),
        }
    }

    #[test]
    fn beside_a_guest_that_did_nothing_none_is_faster() {
        let slower = |with, without| Pair { with, without, ..Pair::default() }.slower_percent();
        assert_eq!(slower(80.0, 100.0), Some(25.0));
        assert_eq!(slower(0.0, 100.0), Some(f64::INFINITY));
        assert_eq!(slower(80.0, 0.0), None);
        assert_eq!(slower(0.0, 0.0), None);
    }

    #[test]
    fn a_size_that_gets_less_done_or_stalls_hurts_and_none_below_it_counts() {
        let mut report = report();
        assert_eq!(report.smallest_unhurt_mib(), Some(1400));
        report.sweep[1].stalls = vec![0.0, 5.0];
        assert_eq!(report.smallest_unhurt_mib(), Some(1960));
        assert_eq!(Report::default().smallest_unhurt_mib(), None);
        assert_eq!(report.memtide_hurts(), Some(true), "a quarter of its windows");
        report.steady.as_mut().unwrap().stalls.clear();
        assert_eq!(report.memtide_hurts(), Some(false));
    }

    #[test]
    fn harm_to_a_guest_is_named() {
        let mut report = report();
        report.steady.as_mut().unwrap().stalls.clear();
        let harm = |report: &Report| report.clone().judged().broken();
        assert_eq!(harm(&report), Vec::<String>::new(), "a balloon's OOM kills are not ours");
        report.surge.get_mut("memtide").unwrap().failures = 1;
        report.sweep[2].pages_bad = 3;
        report.steady.as_mut().unwrap().oom_kills = 1;
        let expected = [
            "3 pages were not what they had to be",
            "1 OOM kills in a guest at work",
            "OOM kills and failures in surges: 1, promised was at most 0",
        ];
        assert_eq!(harm(&report), expected);
    }

    #[test]
    fn programs_find_each_promise_by_its_name() {
        let json = serde_json::to_value(report().judged()).unwrap();
        let promises = json["promises"].as_array().unwrap();
        let names: Vec<&str> =
            promises.iter().map(|promise| promise["name"].as_str().unwrap()).collect();
        let expected = [
            "slow_down",
            "saved",
            "stall",
            "settled_size",
            "surge_harm",
            "surge_time",
            "rest_processor",
            "agent_memory",
        ];
        assert_eq!(names, expected);
        assert!(promises.iter().all(|promise| promise["verdict"].is_string()));
        // What was there before promises were.
        for key in ["setting", "steady", "surge", "rest", "sweep"] {
            assert!(!json[key].is_null(), "{key} is missing");
        }
        for key in ["available_mib", "seconds", "failures", "oom_kills"] {
            assert!(!json["surge"]["memtide"][key].is_null(), "{key} is missing");
        }
    }

    #[test]
    fn each_surge_is_told_with_what_could_be_had_before_it() {
        let mut surge = Surge::default();
        surge.note(419, Some(3.7));
        surge.note(786, None);
        let json = serde_json::to_value(&surge).unwrap();
        let each =
            serde_json::json!([{ "available_mib": 419, "seconds": 3.7 }, { "available_mib": 786 }]);
        assert_eq!(json["each"], each);
        assert_eq!(json["seconds"], serde_json::json!([3.7]));
        assert_eq!((surge.available_mib, surge.failures), (786, 1));
    }
}
