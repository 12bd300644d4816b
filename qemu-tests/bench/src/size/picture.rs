//! The result as a picture: what fixed sizes get done, and where Memtide stands among them.

use std::fmt::Write as _;

use super::report::{FixedSize, Report};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 90.0;
const BOTTOM: f64 = 60.0;

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const UNHURT: &str = "#5c8a4d";
const HURT: &str = "#d9742b";
const MEMTIDE: &str = "#2f7fb8";

/// The report as SVG; empty axes where no fixed sizes were measured.
pub fn picture(report: &Report) -> String {
    let mut svg = String::with_capacity(16 << 10);
    let setting = &report.setting;
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12" fill="{INK}">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<text x="20" y="30" font-size="18" font-weight="bold">How small may the guest be, and does Memtide find it?</text>
<text x="20" y="49" fill="{FAINT}">work done in percent of a guest of {} MiB, over the memory that a guest has; Linux {}, QEMU {} ({})</text>
<text x="20" y="68"><tspan fill="{UNHURT}">●</tspan> fixed size, does not hurt  <tspan fill="{HURT}">●</tspan> hurts  <tspan fill="{MEMTIDE}">◆</tspan> Memtide, settled</text>
"##,
        setting.guest_memory_mib, setting.kernel, setting.qemu, setting.accelerator
    );
    axes(&mut svg, report);
    for size in &report.sweep {
        fixed(&mut svg, report, size);
    }
    memtide(&mut svg, report);
    svg.push_str("</svg>\n");
    svg
}

fn x(report: &Report, mib: u64) -> f64 {
    let whole = report.setting.guest_memory_mib.max(1) as f64;
    // From two fifths of the guest on: none is smaller.
    let share = (mib as f64 / whole - 0.4) / 0.6;
    LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
}

fn y(percent: f64) -> f64 {
    HEIGHT - BOTTOM - percent.clamp(0.0, 110.0) / 110.0 * (HEIGHT - TOP - BOTTOM)
}

fn axes(svg: &mut String, report: &Report) {
    for percent in (0..=100).step_by(25) {
        let (at, end) = (y(f64::from(percent)), WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" x2="{end}" y1="{at:.1}" y2="{at:.1}" stroke="#e4e7eb"/><text x="{:.1}" y="{:.1}" text-anchor="end" fill="{FAINT}">{percent} %</text>"##,
            LEFT - 8.0,
            at + 4.0
        );
    }
    for tenth in (4..=10).step_by(2) {
        let mib = report.setting.guest_memory_mib * tenth / 10;
        let _ = writeln!(
            svg,
            r##"<text x="{:.1}" y="{:.1}" text-anchor="middle" fill="{FAINT}">{mib} MiB</text>"##,
            x(report, mib),
            HEIGHT - BOTTOM + 20.0
        );
    }
}

fn fixed(svg: &mut String, report: &Report, size: &FixedSize) {
    let whole = report.sweep.first().map_or(0.0, |whole| whole.pages_per_second).max(1.0);
    let percent = size.pages_per_second / whole * 100.0;
    let colour = if report.hurts(size) { HURT } else { UNHURT };
    let worst = size.stalls.iter().copied().fold(0.0, f64::max);
    let (x, y) = (x(report, size.size_mib), y(percent));
    let _ = writeln!(
        svg,
        r##"<circle cx="{x:.1}" cy="{y:.1}" r="6" fill="{colour}"/><text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="{FAINT}">{worst:.1} ‰ stall</text>"##,
        y + 22.0
    );
}

fn memtide(svg: &mut String, report: &Report) {
    let Some(steady) = &report.steady else { return };
    let percent = 100.0 / (1.0 + steady.slower_percent / 100.0);
    let (x, y) = (x(report, steady.size_mib), y(percent));
    let _ = writeln!(
        svg,
        r##"<path d="M {x:.1} {:.1} l 8 8 l -8 8 l -8 -8 z" fill="{MEMTIDE}"/><text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="{MEMTIDE}" font-weight="bold">{} MiB, {:.0} % saved</text>"##,
        y - 8.0,
        y - 16.0,
        steady.size_mib,
        steady.saved_percent
    );
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn every_size_is_a_point_and_memtide_stands_among_them() {
        let svg = picture(&report());
        assert_eq!(svg.matches("<circle").count(), 4);
        assert_eq!(svg.matches("<path").count(), 1);
        assert!(svg.contains("1200 MiB, 29 % saved"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "a coordinate left the picture");
        assert!(picture(&Report::default()).ends_with("</svg>\n"));
    }
}
