//! DAMON's files: directories that appear as numbers are written, and a kdamond that never looks at
//! any memory but shows the regions that a test arranged.

use std::collections::BTreeMap;
use std::io;

use memtide_units::{ByteSize, Gpa, GpaRange};
use rustix::io::Errno;

use super::{FakeRoot, Files};
use crate::damon::{Intervals, Region};

pub(super) const ADMIN: &str = "sys/kernel/mm/damon/admin";
pub(super) const STAT: &str = "sys/module/damon_stat/parameters/enabled";
const CONTEXT: &str = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0";
/// The most that is ever set up here.
const KDAMONDS_MAX: usize = 2;
const SECOND: &str = "sys/kernel/mm/damon/admin/kdamonds/1/";

/// Which DAMON the kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FakeDamon {
    has_paddr: bool,
    is_recent: bool,
    goals: Goals,
}

/// What a scheme's quota can be tuned by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Goals {
    /// Nothing: before 6.8.
    #[default]
    None,
    /// A number that is written: 6.8.
    Written,
    /// Also by what the kernel measures itself: 6.9.
    Measured,
}

impl FakeDamon {
    /// As on Debian's 6.12.
    pub const V6_12: Self = Self { has_paddr: true, is_recent: false, goals: Goals::Measured };
    /// As in 6.8: goals for quotas are new, and know no metric.
    pub const V6_8: Self = Self { goals: Goals::Written, ..Self::V6_12 };
    /// As before that, such as 6.6: no goals.
    pub const V6_6: Self = Self { goals: Goals::None, ..Self::V6_12 };
    /// The same, built without physical addresses.
    pub const V6_12_WITHOUT_PADDR: Self = Self { has_paddr: false, ..Self::V6_12 };
    /// As on Debian's 7.3: intervals goals, pausing, and `damon_stat` running.
    pub const V7_3: Self = Self { is_recent: true, ..Self::V6_12 };
}

#[derive(Default)]
pub(super) struct Damon {
    kind: FakeDamon,
    seen: Vec<Region>,
    tuned: Option<Intervals>,
    watched: Vec<GpaRange>,
    /// Edges of the second kdamond's regions, by their files, which are not there: they are thousands.
    edges: BTreeMap<String, String>,
}

impl FakeRoot {
    /// Gives the kernel a DAMON.
    pub fn add_damon(&self, kind: FakeDamon) {
        self.kernel.state().damon.kind = kind;
        self.put(&format!("{ADMIN}/kdamonds/nr_kdamonds"), "0\n");
        if kind.is_recent {
            self.put(STAT, "Y\n");
        }
    }

    /// What the next snapshot shows, cut down to the memory that is watched.
    pub fn set_damon_regions(&self, regions: &[Region]) {
        self.kernel.state().damon.seen = regions.to_vec();
    }

    /// What the kernel tunes the intervals to.
    pub fn set_tuned_intervals(&self, intervals: Intervals) {
        self.kernel.state().damon.tuned = Some(intervals);
    }
}

pub(super) fn write(files: &Files, damon: &mut Damon, path: &str, text: &str) -> io::Result<()> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "nr_kdamonds" | "enabled" if is_any_on(files) => return Err(Errno::BUSY.into()),
        "state" => return command(files, damon, dir, text),
        "start" | "end" if is_in_memory(path) => {
            damon.edges.insert(path.to_owned(), text.to_owned());
            return Ok(());
        }
        "nr_regions" if is_in_memory(path) => damon.edges.clear(),
        "operations" if text == "paddr" && !damon.kind.has_paddr => {
            return Err(Errno::INVAL.into());
        }
        "action" if !matches!(text, "stat" | "pageout") => return Err(Errno::INVAL.into()),
        name if name.starts_with("nr_") => repopulate(files, damon.kind, dir, text)?,
        _ => {}
    }
    files.put_line(path, text)
}

/// The second kdamond's regions.
pub(super) fn is_in_memory(path: &str) -> bool {
    path.starts_with(SECOND) && path.contains("/regions/")
}

fn is_any_on(files: &Files) -> bool {
    (0..KDAMONDS_MAX).any(|n| is_on(files, &format!("{ADMIN}/kdamonds/{n}")))
}

fn is_on(files: &Files, kdamond: &str) -> bool {
    files.get(&format!("{kdamond}/state")).is_ok_and(|state| state.trim() == "on")
}

/// Removes the numbered directories and makes as many as asked for, fresh.
fn repopulate(files: &Files, kind: FakeDamon, dir: &str, count: &str) -> io::Result<()> {
    let count: u64 = count.parse().map_err(|_| Errno::INVAL)?;
    let parent = dir.rsplit('/').next().unwrap_or("");
    if parent == "contexts" && count > 1 {
        return Err(Errno::INVAL.into());
    }
    for entry in std::fs::read_dir(files.at(dir))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.parse::<u64>().is_ok() {
            files.remove(&format!("{dir}/{name}"))?;
        }
    }
    for index in 0..count {
        for (file, value) in children(parent, kind) {
            files.put_line(&format!("{dir}/{index}/{file}"), value)?;
        }
    }
    Ok(())
}

/// The files of a fresh directory below `parent`, with their defaults.
fn children(parent: &str, kind: FakeDamon) -> Vec<(&'static str, &'static str)> {
    let operations = if kind.has_paddr { "vaddr\nfvaddr\npaddr" } else { "vaddr\nfvaddr" };
    let (old, recent): (&[_], &[_]) = match parent {
        "kdamonds" => (
            &[("state", "off"), ("pid", "-1"), ("contexts/nr_contexts", "0")],
            &[("refresh_ms", "0")],
        ),
        "contexts" => (
            &[
                ("avail_operations", operations),
                ("operations", "vaddr"),
                ("monitoring_attrs/intervals/sample_us", "5000"),
                ("monitoring_attrs/intervals/aggr_us", "100000"),
                ("monitoring_attrs/intervals/update_us", "60000000"),
                ("monitoring_attrs/nr_regions/min", "10"),
                ("monitoring_attrs/nr_regions/max", "1000"),
                ("targets/nr_targets", "0"),
                ("schemes/nr_schemes", "0"),
            ],
            &[
                ("pause", "N"),
                ("monitoring_attrs/intervals/intervals_goal/access_bp", "0"),
                ("monitoring_attrs/intervals/intervals_goal/aggrs", "0"),
                ("monitoring_attrs/intervals/intervals_goal/min_sample_us", "0"),
                ("monitoring_attrs/intervals/intervals_goal/max_sample_us", "0"),
            ],
        ),
        "targets" => (&[("pid_target", "0"), ("regions/nr_regions", "0")], &[]),
        "regions" => (&[("start", "0"), ("end", "0")], &[]),
        "schemes" => (
            &[
                ("action", "stat"),
                ("apply_interval_us", "0"),
                ("access_pattern/sz/min", "0"),
                ("access_pattern/sz/max", "0"),
                ("access_pattern/nr_accesses/min", "0"),
                ("access_pattern/nr_accesses/max", "0"),
                ("access_pattern/age/min", "0"),
                ("access_pattern/age/max", "0"),
                ("quotas/ms", "0"),
                ("quotas/bytes", "0"),
                ("quotas/reset_interval_ms", "0"),
                ("quotas/weights/sz_permil", "0"),
                ("quotas/weights/nr_accesses_permil", "0"),
                ("quotas/weights/age_permil", "0"),
                ("stats/sz_tried", "0"),
                ("stats/sz_applied", "0"),
                ("stats/qt_exceeds", "0"),
                ("filters/nr_filters", "0"),
                ("watermarks/metric", "none"),
                ("watermarks/interval_us", "0"),
                ("tried_regions/total_bytes", "0"),
            ],
            &[
                ("quotas/fail_charge_num", "0"),
                ("quotas/fail_charge_denom", "0"),
                ("ops_filters/nr_filters", "0"),
                ("stats/sz_ops_filter_passed", "0"),
            ],
        ),
        "filters" | "ops_filters" => {
            (&[("type", "anon"), ("matching", "N"), ("memcg_path", "")], &[("allow", "N")])
        }
        "goals" => (&[("target_value", "0"), ("current_value", "0")], &[]),
        _ => (&[], &[]),
    };
    let recent = if kind.is_recent { recent } else { &[] };
    [old, recent, of_goals(parent, kind.goals)].concat()
}

fn of_goals(parent: &str, goals: Goals) -> &'static [(&'static str, &'static str)] {
    match (parent, goals) {
        ("schemes", Goals::Written) => &[("quotas/goals/nr_goals", "0")],
        ("schemes", Goals::Measured) => {
            &[("quotas/goals/nr_goals", "0"), ("quotas/effective_bytes", "0")]
        }
        ("goals", Goals::Measured) => &[("target_metric", "user_input")],
        _ => &[],
    }
}

/// What the first kdamond sees is shown; of others the settings are checked.
fn command(files: &Files, damon: &mut Damon, kdamond: &str, keyword: &str) -> io::Result<()> {
    let stat_is_on = files.get(STAT).is_ok_and(|stat| stat.trim() == "Y");
    let state = format!("{kdamond}/state");
    let is_first = kdamond.ends_with("/0");
    match (keyword, is_on(files, kdamond)) {
        ("on", true) => Err(Errno::BUSY.into()),
        ("on", false) if stat_is_on => Err(Errno::BUSY.into()),
        ("on", false) => {
            let watched = targets(files, damon, kdamond)?;
            if is_first {
                damon.watched = watched;
            }
            files.put_line(&state, "on")
        }
        ("off", true) => files.put_line(&state, "off"),
        ("update_schemes_stats", true) => Ok(()),
        (_, true) if !is_first => Err(Errno::INVAL.into()),
        ("commit", true) => {
            damon.watched = targets(files, damon, kdamond)?;
            Ok(())
        }
        ("update_schemes_tried_regions", true) => show(files, damon),
        ("commit_schemes_quota_goals", true) if damon.kind.goals != Goals::None => Ok(()),
        ("update_schemes_effective_quotas", true) if damon.kind.goals == Goals::Measured => Ok(()),
        ("update_tuned_intervals", true) if damon.kind.is_recent => match damon.tuned {
            None => Ok(()),
            Some(tuned) => {
                let dir = format!("{CONTEXT}/monitoring_attrs/intervals");
                files.put_line(&format!("{dir}/sample_us"), &tuned.sample_us.to_string())?;
                files.put_line(&format!("{dir}/aggr_us"), &tuned.aggr_us.to_string())
            }
        },
        _ => Err(Errno::INVAL.into()),
    }
}

/// The memory to watch, by the kernel's rules: paddr, ascending, not overlapping, not empty.
fn targets(files: &Files, damon: &Damon, kdamond: &str) -> io::Result<Vec<GpaRange>> {
    let context = format!("{kdamond}/contexts/0");
    let dir = format!("{context}/targets/0/regions");
    let mut ranges: Vec<GpaRange> = Vec::new();
    for index in 0..files.number(&format!("{dir}/nr_regions")) {
        let edge = |name: &str| {
            let file = format!("{dir}/{index}/{name}");
            let number = damon.edges.get(&file).and_then(|text| text.parse().ok());
            number.unwrap_or_else(|| files.number(&file))
        };
        let (start, end) = (edge("start"), edge("end"));
        let len = ByteSize::from_bytes(end.saturating_sub(start));
        let range = GpaRange::new(Gpa(start), len).map_err(|_| Errno::INVAL)?;
        if ranges.last().is_some_and(|last| range.start() < last.end()) {
            return Err(Errno::INVAL.into());
        }
        ranges.push(range);
    }
    let is_paddr = files.get(&format!("{context}/operations"))?.trim() == "paddr";
    if is_paddr && !ranges.is_empty() { Ok(ranges) } else { Err(Errno::INVAL.into()) }
}

/// Makes the directories of `tried_regions`, of what the scheme's pattern lets through.
fn show(files: &Files, damon: &Damon) -> io::Result<()> {
    let scheme = format!("{CONTEXT}/schemes/0");
    files.remove(&format!("{scheme}/tried_regions"))?;
    let most = |what: &str| files.number(&format!("{scheme}/access_pattern/{what}/max"));
    let shown = damon.watched.iter().flat_map(|watched| {
        let cut =
            |seen: &Region| Some(Region { range: seen.range.intersection(*watched)?, ..*seen });
        damon.seen.iter().filter_map(cut)
    });
    let matching = shown.filter(|region| {
        region.range.len().bytes() <= most("sz")
            && u64::from(region.nr_accesses) <= most("nr_accesses")
            && u64::from(region.age) <= most("age")
    });
    let mut total = 0;
    for (index, region) in matching.enumerate() {
        total += region.range.len().bytes();
        let dir = format!("{scheme}/tried_regions/{index}");
        files.put_line(&format!("{dir}/start"), &region.range.start().0.to_string())?;
        files.put_line(&format!("{dir}/end"), &region.range.end().0.to_string())?;
        files.put_line(&format!("{dir}/nr_accesses"), &region.nr_accesses.to_string())?;
        files.put_line(&format!("{dir}/age"), &region.age.to_string())?;
    }
    files.put_line(&format!("{scheme}/tried_regions/total_bytes"), &total.to_string())
}
