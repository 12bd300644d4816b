//! Which promises a measurement kept.

use super::limits::{HELD_LESS, RUNS_DIFFER, SLOW_DOWN};
use super::report::{Report, Run};
use crate::promise::{Judged, Limit, Promise};

/// All of them, in the order in which they are shown.
pub(super) fn judged(report: &Report) -> Vec<Judged> {
    vec![held_less(report), slow_down(report)]
}

/// Memtide beside free page reporting alone. Of a run without figures nothing is told: it would have held less, and
/// been quicker, than any other.
fn both(report: &Report) -> Option<(&Run, &Run)> {
    let has_figures = |run: &&Run| run.gib_minutes > 0.0 && run.work_seconds > 0.0;
    let of = |name| report.runs.get(name).filter(has_figures);
    of("memtide").zip(of("free_page_reporting"))
}

fn not_measured(promise: Promise) -> Judged {
    promise.untold(None, "one of both was not measured (see --only), or has no figures")
}

fn held_less(report: &Report) -> Judged {
    let Some((memtide, base)) = both(report) else { return not_measured(HELD_LESS) };
    HELD_LESS.judge((1.0 - memtide.gib_minutes / base.gib_minutes) * 100.0)
}

fn slow_down(report: &Report) -> Judged {
    let Some((memtide, base)) = both(report) else { return not_measured(SLOW_DOWN) };
    let value = (memtide.work_seconds / base.work_seconds - 1.0) * 100.0;
    // Also where Memtide's run was the quicker one: if runs differ by as much, that says nothing.
    match difference(report) {
        Some(most) if most <= RUNS_DIFFER => {
            Promise { limit: Some(Limit::AtMost(most)), ..SLOW_DOWN }.judge(value)
        }
        Some(most) => SLOW_DOWN.untold(
            Some(value),
            format!("two runs of one differ by {most:.1} %, more than {RUNS_DIFFER} %: try on an idle machine"),
        ),
        None => SLOW_DOWN.untold(
            Some(value),
            "nothing ran twice, which would say by how much runs differ (see --again)",
        ),
    }
}

/// By how much two runs of the same means differ, in percent of the quicker one's fixed work.
fn difference(report: &Report) -> Option<f64> {
    let again = report.again.as_ref()?;
    let (first, second) = (report.runs.get(&again.of)?.work_seconds, again.run.work_seconds);
    let quicker = first.min(second);
    (quicker > 0.0).then(|| (first.max(second) / quicker - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::super::report::Again;
    use super::super::report::tests::report;
    use super::*;
    use crate::promise::tests::verdict;

    fn of(report: &Report, name: &str) -> &'static str {
        verdict(&judged(report), name)
    }

    #[test]
    fn memtide_is_to_hold_less_than_the_best_that_was_published() {
        let held = |gib_minutes| {
            let mut report = report();
            report.runs.get_mut("free_page_reporting").unwrap().gib_minutes = 2.0;
            report.runs.get_mut("memtide").unwrap().gib_minutes = gib_minutes;
            of(&report, "held_less")
        };
        assert_eq!(held(1.63), "kept");
        assert_eq!(held(1.65), "not kept");
        assert_eq!(held(2.4), "not kept");
    }

    #[test]
    fn slower_is_what_two_runs_of_one_do_not_explain() {
        // 40.8 s with reporting.
        let slower = |work_seconds, again_seconds| {
            let mut report = report();
            report.runs.get_mut("memtide").unwrap().work_seconds = work_seconds;
            let run = Run { work_seconds: again_seconds, ..Run::default() };
            report.again = Some(Again { of: "free_page_reporting".into(), run });
            of(&report, "slow_down")
        };
        assert_eq!(slower(41.6, 42.0), "kept");
        assert_eq!(slower(41.6, 39.6), "kept", "it was slower the first time");
        assert_eq!(slower(42.5, 42.0), "not kept");
        assert_eq!(slower(40.0, 40.8), "kept", "nothing is slower");
        assert_eq!(slower(41.6, 0.0), "cannot be told");
    }

    #[test]
    fn runs_that_differ_by_much_tell_nothing() {
        let verdict = |work_seconds, again_seconds| {
            let mut report = report();
            report.runs.get_mut("free_page_reporting").unwrap().work_seconds = 20.0;
            report.runs.get_mut("memtide").unwrap().work_seconds = work_seconds;
            let run = Run { work_seconds: again_seconds, ..Run::default() };
            report.again = Some(Again { of: "free_page_reporting".into(), run });
            of(&report, "slow_down")
        };
        assert_eq!(verdict(20.9, 20.9), "kept");
        assert_eq!(verdict(20.9, 21.1), "cannot be told");
        assert_eq!(verdict(28.0, 29.0), "cannot be told");
        assert_eq!(verdict(18.0, 29.0), "cannot be told", "quicker by less than runs differ");
    }

    #[test]
    fn a_run_without_figures_is_neither_quicker_nor_smaller() {
        for name in ["memtide", "free_page_reporting"] {
            let without = |forget: fn(&mut Run)| {
                let mut report = report();
                let run = Run { work_seconds: 41.0, ..Run::default() };
                report.again = Some(Again { of: "none".into(), run });
                forget(report.runs.get_mut(name).unwrap());
                (of(&report, "held_less"), of(&report, "slow_down"))
            };
            assert_eq!(without(|_| ()), ("kept", "kept"));
            let untold = ("cannot be told", "cannot be told");
            assert_eq!(without(|run| run.work_seconds = 0.0), untold, "{name}");
            assert_eq!(without(|run| run.gib_minutes = 0.0), untold, "{name}");
        }
    }

    #[test]
    fn without_a_second_run_or_the_other_guest_nothing_is_told() {
        let mut report = report();
        assert_eq!(of(&report, "slow_down"), "cannot be told", "though it was the quicker one");
        report.runs.get_mut("memtide").unwrap().work_seconds = 40.9;
        assert_eq!(of(&report, "slow_down"), "cannot be told");
        let run = Run { work_seconds: 41.0, ..Run::default() };
        report.again = Some(Again { of: "a means that was not measured".into(), run });
        assert_eq!(of(&report, "slow_down"), "cannot be told");
        report.runs.remove("free_page_reporting");
        assert_eq!(of(&report, "held_less"), "cannot be told");
        assert!(judged(&report).iter().all(|judged| judged.value.is_none()));
        assert_eq!(of(&Report::default(), "held_less"), "cannot be told");
    }
}
