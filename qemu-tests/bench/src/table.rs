//! The result for a person, in a terminal.

use std::fmt::Write as _;

use crate::figures::{Figures, Spread};
use crate::report::Report;

/// The report as text.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let setting = &report.setting;
    let _ = writeln!(
        text,
        "{} MiB of {} MiB moved {} times by each, {} by memtide and raw, Linux {} on QEMU {} ({}), {} processors, {} s\n",
        setting.moved_mib,
        setting.guest_memory_mib,
        setting.rounds,
        setting.close_turns,
        setting.kernel,
        setting.qemu,
        setting.accelerator,
        setting.processors,
        setting.seconds
    );
    let _ = writeln!(text, "{:<24}{:^22}{:^22}{:^17}", "", "GiB/s", "GiB/s", "CPU s/GiB reclaimed");
    let _ = writeln!(
        text,
        "{:<24}{:^22}{:^22}{:>9}{:>8}",
        "", "reclaimed", "returned", "host", "guest"
    );
    for (name, figures) in rows(report) {
        row(&mut text, name, figures);
    }
    let raw = &report.raw;
    let _ = writeln!(
        text,
        "  raw, block offline     {}",
        spread(raw.offline_gib_s, raw.offline_spread)
    );
    let _ =
        writeln!(text, "  raw, punch hole        {}", spread(raw.punch_gib_s, raw.punch_spread));
    for (name, rate) in
        [("device alone", &report.device_alone), ("its raw punch", &report.raw_punch)]
    {
        let _ = writeln!(text, "{name:<24}{}", spread(rate.reclaim_gib_s, rate.spread));
    }
    text.push('\n');
    for ratio in &report.ratios {
        let verdict = match ratio.wanted {
            None => String::new(),
            Some(wanted) if ratio.is_kept() => format!("  (at least {wanted} was promised)"),
            Some(wanted) => format!("  NOT KEPT: at least {wanted} was promised"),
        };
        let _ = writeln!(text, "{:>7.2} x {:<16} {}{verdict}", ratio.value, ratio.to, ratio.of);
    }
    text
}

/// Every means by name, Memtide first.
pub(crate) fn rows(report: &Report) -> Vec<(&'static str, &Figures)> {
    let mut rows = vec![("memtide", &report.memtide)];
    rows.extend(report.memtide_hugetlb.iter().map(|huge| ("memtide, huge pages", huge)));
    rows.extend([
        ("QEMU virtio-balloon", &report.qemu_virtio_balloon),
        ("QEMU virtio-mem", &report.qemu_virtio_mem),
        ("raw (slower of both)", &report.raw.figures),
    ]);
    rows
}

fn row(text: &mut String, name: &str, figures: &Figures) {
    let _ = writeln!(
        text,
        "{name:<24}{}{}{:>9.3}{:>8.3}",
        spread(figures.reclaim_gib_s, figures.reclaim_spread),
        spread(figures.return_gib_s, figures.return_spread),
        figures.host_cpu_s_per_gib,
        figures.guest_cpu_s_per_gib
    );
}

fn spread(median: f64, spread: Spread) -> String {
    let ends = format!("({:.2} .. {:.2})", spread.min, spread.max);
    format!("{median:>6.2} {ends:<15}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn every_means_has_its_line_and_a_broken_promise_is_loud() {
        let text = table(&report());
        for name in [
            "memtide ",
            "huge pages",
            "virtio-balloon",
            "virtio-mem",
            "raw, punch hole",
            "device alone",
        ] {
            assert!(text.contains(name), "{name} is missing:\n{text}");
        }
        assert!(
            text.contains("  16.00 x virtio-balloon   memtide reclaim  (at least 12 was promised)"),
            "{text}"
        );
        assert!(text.contains("NOT KEPT: at least 0.85"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    }
}
