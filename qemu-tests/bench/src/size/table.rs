//! The result for a person, in a terminal.

use std::fmt::Write as _;

use super::cost::Cost;
use super::report::{FixedSize, Pair, Report, Steady, within_goal};
use super::swap::PagedOut;
use crate::promise;

/// The report as text.
pub fn table(report: &Report) -> String {
    let mut text = report.setting.heading();
    if let Some(steady) = &report.steady {
        of_steady(&mut text, steady, report.setting.guest_processors);
    }
    if let Some(cost) = &report.rest {
        let _ = writeln!(text, "\nat rest                  {}", of_cost(cost, ""));
    }
    of_surges(&mut text, report);
    of_sizes(&mut text, report);
    text.push_str(&promise::rows(&report.promises));
    text
}

fn of_steady(text: &mut String, steady: &Steady, processors: u32) {
    let at_most = if processors > 1 { "at most " } else { "" };
    let slower = steady.pairs.iter().map(Pair::slower_percent);
    let slower =
        slower.map(|percent| percent.map_or("?".into(), |percent| format!("{percent:.1}")));
    let slower: Vec<String> = slower.collect();
    let _ = write!(
        text,
        "\nslower with Memtide by   {:.1} % (median of {})\n\
         held by the host         {} MiB; {} without Memtide ({:.0} % of the guest saved)\n\
         with reporting alone     {} MiB, where free pages are reported and nothing else is done\n\
         paged out                {}\n\
         the guest's size         {} MiB of memory, found in {:.0} s\n\
         windows within the goal  {:.0} % of {} ({:.0} % without Memtide)\n\
         meanwhile                {}\n\
         without Memtide          the kernel's threads {:.2} %\n",
        steady.slower_percent,
        slower.join(", "),
        steady.held_mib,
        steady.held_without_mib,
        steady.saved_percent,
        steady.held_reporting_mib,
        of_paged_out(steady.paged_out),
        steady.size_mib,
        steady.settled_after_s,
        within_goal(&steady.stalls) * 100.0,
        steady.stalls.len(),
        within_goal(&steady.stalls_without) * 100.0,
        of_cost(&steady.cost, at_most),
        steady.cost_without.kernel_percent
    );
}

fn of_paged_out(paged_out: PagedOut) -> String {
    let PagedOut { disk_mib, zram_mib, zram_takes_mib } = paged_out;
    let to_disk = (disk_mib > 0).then(|| format!("{disk_mib} MiB to the disk"));
    let to_zram = (zram_mib > 0).then(|| {
        format!(
            "{zram_mib} MiB to zram, which holds them in {zram_takes_mib} MiB of the guest's memory"
        )
    });
    let places: Vec<String> = to_disk.into_iter().chain(to_zram).collect();
    if places.is_empty() { "nothing".into() } else { places.join("; ") }
}

/// A line for the processor, and where instructions are counted one for these.
fn of_cost(cost: &Cost, at_most: &str) -> String {
    let shares = format!(
        "agent {:.2} % ({:.1} MiB), DAMON {:.2} %, the kernel's threads {:.2} % of one processor",
        cost.agent_percent, cost.agent_mib, cost.damon_percent, cost.kernel_percent
    );
    let Some(counted) = cost.instructions else { return shares };
    format!(
        "{shares}\n                         {at_most}{:.1}, {:.1}, {:.1} million instructions a second\n\
         on this host's processor {at_most}about {:.2} % for agent and DAMON, by an estimate",
        counted.agent, counted.damon, counted.kernel, counted.agent_and_damon_host_percent
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
    of_each_surge(text, report);
}

/// What could be had before each of Memtide's, which says for how many something had to come back.
fn of_each_surge(text: &mut String, report: &Report) {
    let Some(surge) = report.surge.get("memtide") else { return };
    let wanted = report.surge_wants();
    let each: Vec<String> = surge.each.iter().map(|one| one.available_mib.to_string()).collect();
    let _ = writeln!(
        text,
        "before each of Memtide's  {} MiB to be had; {wanted} wanted, and in {} of {} some had to come back",
        each.join(", "),
        surge.short_of(wanted).len(),
        each.len()
    );
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
    use super::super::report::Surge;
    use super::super::report::tests::report;
    use super::*;
    use crate::setting::{Clock, Swap};

    #[test]
    fn everything_is_set_beside_what_it_is_to_be_compared_with() {
        let text = table(&report());
        let has = |wanted: &str| assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        has("slower with Memtide by   1.0 % (median of 1.0, 1.0, 1.0, 1.0, 1.0)");
        has("1100 MiB; 1700 without Memtide (29 % of the guest saved)\n");
        has("with reporting alone     1650 MiB,");
        has(
            "paged out                817 MiB to zram, which holds them in 203 MiB of the guest's memory",
        );
        has("\nswap on zram, in the guest's own memory; the agent sets it up\n");
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
    fn what_went_to_the_disk_is_said_to_be_there() {
        let mut report = report();
        let disk = Swap::Disk { size_mib: 2048, in_host_memory: false };
        report.setting.swap = Some(disk);
        let steady = report.steady.as_mut().unwrap();
        steady.paged_out = PagedOut { disk_mib: 851, ..PagedOut::default() };
        let text = table(&report);
        assert!(text.contains("\npaged out                851 MiB to the disk\n"), "{text}");
        assert!(text.contains("\nswap on a disk of 2048 MiB for each guest\n"), "{text}");
        assert_eq!(
            serde_json::to_value(disk).unwrap(),
            serde_json::json!({ "kind": "disk", "size_mib": 2048, "in_host_memory": false })
        );
        report.setting.swap = Some(Swap::Disk { size_mib: 2048, in_host_memory: true });
        report.steady.as_mut().unwrap().paged_out = PagedOut::default();
        let text = table(&report);
        assert!(text.contains("in the host's memory"), "{text}");
        assert!(text.contains("\npaged out                nothing\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }

    #[test]
    fn figures_by_a_counted_clock_are_told_from_others() {
        let mut report = report();
        let clock = Some(Clock::Counted { host_times_faster: 7.0 });
        (report.setting.clock, report.setting.guest_processors) = (clock, 2);
        report.rest = report.rest.map(|cost| cost.by(clock));
        report.steady = report.steady.map(|steady| steady.by(clock));
        let text = table(&report);
        let has = |wanted: &str| assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        has("\nthe guests' clock counts: a nanosecond an instruction; ");
        has(" is about 7.0 times as fast\n");
        has("at rest                  agent 0.40 % (4.7 MiB), DAMON 0.30 %, ");
        has("\n                         4.0, 3.0, 0.0 million instructions a second\n");
        has("\n                         at most 0.0, 0.0, 0.0 million");
        has("\non this host's processor about 0.10 % for agent and DAMON");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        report.setting.clock = Some(Clock::Host);
        assert!(table(&report).contains("\nthe guests' clock is the host's\n"));
        assert_eq!(
            serde_json::to_value(clock).unwrap(),
            serde_json::json!({ "kind": "counted", "host_times_faster": 7.0 })
        );
    }

    #[test]
    fn a_surge_that_fails_is_not_the_quickest() {
        let mut report = report();
        let mut surge = Surge::default();
        [Some(3.0), None, None].into_iter().for_each(|seconds| surge.note(400, seconds));
        report.surge.insert("deflate_on_oom".into(), surge);
        let text = table(&report);
        let line = text.lines().find(|line| line.starts_with("balloon")).unwrap();
        assert!(line.contains("failed") && line.contains('?'), "{text}");
    }

    #[test]
    fn surges_for_which_nothing_had_to_come_back_are_told_from_others() {
        let mut report = report();
        report.surge.get_mut("memtide").unwrap().each[1].available_mib = 786;
        let text = table(&report);
        let wanted = "\nbefore each of Memtide's  400, 786, 400 MiB to be had; 512 MiB wanted, and in 2 of 3 ";
        assert!(text.contains(wanted), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }

    #[test]
    fn each_promise_has_a_row_with_what_came_of_it() {
        let text = table(&report().judged());
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(
            line("windows that stall").ends_with("75 %   at least 95 %       NOT KEPT"),
            "{text}"
        );
        assert!(line("a surge's time").contains("1.2 times   at most 1.3 times "), "{text}");
        assert!(line("saved of the guest's").ends_with("not promised here,"), "{text}");
        assert!(line("slower with Memtide, median").ends_with("cannot be told here,"), "{text}");
        assert!(
            text.contains("\n    because what is paged out stays in the guest: 203 MiB"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }

    #[test]
    fn parts_that_were_not_measured_are_left_out() {
        assert_eq!(table(&Report::default()).lines().count(), 2);
    }
}
