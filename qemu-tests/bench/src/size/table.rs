//! The result for a person, in a terminal.

use std::fmt::Write as _;

use super::cost::Cost;
use super::report::{FixedSize, Report, Steady, within_goal};

/// The report as text.
pub fn table(report: &Report) -> String {
    let mut text = report.setting.heading();
    if let Some(steady) = &report.steady {
        of_steady(&mut text, steady);
    }
    if let Some(cost) = &report.rest {
        let _ = writeln!(text, "\nat rest                  {}", of_cost(cost));
    }
    of_surges(&mut text, report);
    of_sizes(&mut text, report);
    text
}

fn of_steady(text: &mut String, steady: &Steady) {
    let slower: Vec<String> =
        steady.pairs.iter().map(|pair| format!("{:.1}", pair.slower_percent())).collect();
    let _ = write!(
        text,
        "\nslower with Memtide by   {:.1} % (median of {})\n\
         held by the host         {} MiB; {} without Memtide ({:.0} % of the guest saved), {} where free\n\
                                  pages are reported and nothing else is done\n\
         the guest's size         {} MiB of memory, found in {:.0} s\n\
         windows within the goal  {:.0} % of {} ({:.0} % without Memtide)\n\
         meanwhile                {}\n",
        steady.slower_percent,
        slower.join(", "),
        steady.held_mib,
        steady.held_without_mib,
        steady.saved_percent,
        steady.held_reporting_mib,
        steady.size_mib,
        steady.settled_after_s,
        within_goal(&steady.stalls) * 100.0,
        steady.stalls.len(),
        within_goal(&steady.stalls_without) * 100.0,
        of_cost(&steady.cost)
    );
}

fn of_cost(cost: &Cost) -> String {
    format!(
        "agent {:.2} %, DAMON {:.2} % of one processor; agent {:.1} MiB",
        cost.agent_percent, cost.damon_percent, cost.agent_mib
    )
}

fn of_surges(text: &mut String, report: &Report) {
    let Some(base) = report.surge.get("none") else { return };
    let _ = writeln!(
        text,
        "\n{:<26}{:>12}{:>10}{:>8}{:>12}{:>10}",
        "a quarter at once", "to be had", "took", "times", "OOM kills", "failures"
    );
    let names = [
        ("none", "a guest never shrunk"),
        ("memtide", "Memtide"),
        ("deflate_on_oom", "balloon, deflate on OOM"),
    ];
    for (name, title) in names {
        let Some(surge) = report.surge.get(name) else { continue };
        let took = surge.seconds().map_or("failed".into(), |seconds| format!("{seconds:.1} s"));
        let times = surge.seconds().zip(base.seconds()).map(|(seconds, base)| seconds / base);
        let times = times.map_or("?".into(), |times| format!("{times:.2}"));
        let _ = writeln!(
            text,
            "{title:<26}{:>8} MiB{took:>10}{times:>8}{:>12}{:>10}",
            surge.available_mib, surge.oom_kills, surge.failures
        );
    }
}

fn of_sizes(text: &mut String, report: &Report) {
    if report.sweep.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{:<12}{:>12}{:>16}{:>14}",
        "fixed size", "pages/s", "within goal", "worst stall"
    );
    for size in &report.sweep {
        let _ = writeln!(text, "{}", of_size(report, size));
    }
    let (Some(least), Some(steady)) = (report.smallest_unhurt_mib(), &report.steady) else {
        return;
    };
    let _ = writeln!(
        text,
        "the smallest that does not hurt has {least} MiB; Memtide found {} MiB, {:+.0} %, which {}",
        steady.size_mib,
        (steady.size_mib as f64 / least as f64 - 1.0) * 100.0,
        if report.memtide_hurts() == Some(true) { "hurts" } else { "does not hurt" }
    );
}

fn of_size(report: &Report, size: &FixedSize) -> String {
    let worst = size.stalls.iter().copied().fold(0.0, f64::max);
    let verdict = if report.hurts(size) { "   hurts" } else { "" };
    format!(
        "{:>8} MiB{:>12.0}{:>14.0} %{:>12.1} ‰{verdict}",
        size.size_mib,
        size.pages_per_second,
        within_goal(&size.stalls) * 100.0,
        worst
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn everything_is_set_beside_what_it_is_to_be_compared_with() {
        let text = table(&report());
        let has = |wanted: &str| assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        has("slower with Memtide by   1.0 % (median of 1.0, 1.0, 1.0, 1.0, 1.0)");
        has("1100 MiB; 1700 without Memtide (29 % of the guest saved), 1650 where free");
        has("windows within the goal  75 % of 4");
        has(
            "the smallest that does not hurt has 1400 MiB; Memtide found 1200 MiB, -14 %, which hurts",
        );
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("Memtide").contains("1.20"), "{text}");
        assert!(line("    1200 MiB").ends_with("hurts"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }

    #[test]
    fn a_surge_that_fails_is_not_the_quickest() {
        let mut report = report();
        let surge = report.surge.get_mut("deflate_on_oom").unwrap();
        (surge.failures, surge.seconds) = (2, vec![3.0]);
        let text = table(&report);
        let line = text.lines().find(|line| line.starts_with("balloon")).unwrap();
        assert!(line.contains("failed") && line.contains('?'), "{text}");
    }

    #[test]
    fn parts_that_were_not_measured_are_left_out() {
        assert_eq!(table(&Report::default()).lines().count(), 2);
    }
}
