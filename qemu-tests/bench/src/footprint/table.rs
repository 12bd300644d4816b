//! The result for a person, in a terminal.

use std::fmt::Write as _;

use super::report::Report;
use crate::promise;

/// The report as text.
pub fn table(report: &Report) -> String {
    let mut text = report.setting.heading();
    text.push('\n');
    let _ = writeln!(
        text,
        "{:<28}{:>10}{:>10}{:>12}{:>12}{:>12}",
        "what gives memory back", "GiB·min", "to none", "after rest", "work", "slower by"
    );
    let rows = report.rows();
    let none = report.runs.get("none");
    let again = report.again.iter().map(|again| (format!("again: {}", again.of), &again.run));
    for (title, run) in rows.into_iter().map(|(title, run)| (title.to_owned(), run)).chain(again) {
        let saved = change(run.gib_minutes, none.map(|none| none.gib_minutes));
        let slower = change(run.work_seconds, none.map(|none| none.work_seconds));
        let _ = writeln!(
            text,
            "{title:<28}{:>10.2}{saved:>10}{:>8.2} GiB{:>10.1} s{slower:>12}",
            run.gib_minutes, run.gib_after_idle, run.work_seconds
        );
    }
    text.push_str(&promise::rows(&report.promises));
    text
}

/// By how much a figure differs from that of the guest with nothing, where that was measured.
fn change(value: f64, base: Option<f64>) -> String {
    match base {
        Some(base) if base > 0.0 => format!("{:.1} %", (value / base - 1.0) * 100.0),
        _ => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::footprint::report::tests::report;
    use crate::footprint::report::{Again, Run};

    #[test]
    fn each_means_is_set_beside_nothing() {
        let text = table(&report());
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("nothing").contains("0.0 %"));
        assert!(line("Memtide").contains("-62.5 %") && line("Memtide").ends_with("1.0 %"));
        assert!(line("DAMON_RECLAIM").ends_with("10.0 %"), "{text}");
        let run = Run { work_seconds: 42.0, gib_minutes: 2.4, ..Run::default() };
        let twice = Report { again: Some(Again { of: "none".into(), run }), ..report() };
        let twice = table(&twice.judged());
        assert!(twice.lines().any(|line| line.starts_with("again: none ")), "{twice}");
        assert!(twice.lines().any(|line| line.starts_with("held less") && line.ends_with("kept")));
        assert!(twice.lines().all(|line| line.chars().count() <= 110), "{twice}");
        let mut alone = report();
        alone.runs.remove("none");
        assert!(
            table(&alone).lines().any(|line| line.starts_with("Memtide") && line.ends_with("?"))
        );
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}
