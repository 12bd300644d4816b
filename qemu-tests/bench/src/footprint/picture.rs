//! The result as a picture: what each guest held over time.

use std::fmt::Write as _;

use super::report::{Report, Run};

const WIDTH: f64 = 1040.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 250.0;
const TOP: f64 = 80.0;
const BOTTOM: f64 = 50.0;

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
/// One for each run, Memtide's the last.
const COLOURS: [&str; 4] = ["#9aa5b1", "#d9742b", "#8a6bbf", "#2f7fb8"];

/// The report as SVG.
pub fn picture(report: &Report) -> String {
    let rows = report.rows();
    let setting = &report.setting;
    let mut svg = String::with_capacity(64 << 10);
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12" fill="{INK}">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<text x="20" y="30" font-size="18" font-weight="bold">What a guest of {} MiB holds while it works and rests</text>
<text x="20" y="49" fill="{FAINT}">resident on the host, GiB; Linux {}, QEMU {} ({})</text>
"##,
        setting.guest_memory_mib, setting.kernel, setting.qemu, setting.accelerator
    );
    let scale = Scale::of(report, &rows);
    axes(&mut svg, &scale);
    for (n, ((title, run), colour)) in rows.iter().zip(COLOURS).enumerate() {
        line(&mut svg, &scale, run, colour);
        legend(&mut svg, (n, title), run, colour);
    }
    svg.push_str("</svg>\n");
    svg
}

/// From seconds and GiB to places.
struct Scale {
    seconds: f64,
    gib: f64,
}

impl Scale {
    fn of(report: &Report, rows: &[(&str, &Run)]) -> Self {
        let last = |(_, run): &(&str, &Run)| run.trace.last().map_or(0.0, |point| point.seconds);
        let seconds = rows.iter().map(last).fold(1.0, f64::max);
        Self { seconds, gib: (report.setting.guest_memory_mib as f64 / 1024.0).max(0.25) }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, gib: f64) -> f64 {
        HEIGHT - BOTTOM - (gib / self.gib).clamp(0.0, 1.05) * (HEIGHT - TOP - BOTTOM)
    }
}

fn axes(svg: &mut String, scale: &Scale) {
    for quarter in 0..=4 {
        let gib = scale.gib * f64::from(quarter) / 4.0;
        let (y, end) = (scale.y(gib), WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" x2="{end}" y1="{y:.1}" y2="{y:.1}" stroke="#e4e7eb"/><text x="{:.1}" y="{:.1}" text-anchor="end" fill="{FAINT}">{gib:.2}</text>"##,
            LEFT - 8.0,
            y + 4.0
        );
    }
    let step = if scale.seconds > 240.0 { 60 } else { 20 };
    for seconds in (0..=scale.seconds as u32).step_by(step) {
        let x = scale.x(f64::from(seconds));
        let _ = writeln!(
            svg,
            r##"<text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="{FAINT}">{seconds} s</text>"##,
            HEIGHT - BOTTOM + 20.0
        );
    }
}

fn line(svg: &mut String, scale: &Scale, run: &Run, colour: &str) {
    let _ = write!(svg, r##"<polyline fill="none" stroke="{colour}" stroke-width="2" points=""##);
    for point in &run.trace {
        let _ = write!(svg, "{:.1},{:.1} ", scale.x(point.seconds), scale.y(point.gib));
    }
    svg.push_str("\"/>\n");
}

fn legend(svg: &mut String, (n, title): (usize, &str), run: &Run, colour: &str) {
    let (x, y) = (WIDTH - RIGHT + 24.0, TOP + 12.0 + 44.0 * n as f64);
    let _ = writeln!(
        svg,
        r##"<line x1="{x:.1}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="4"/><text x="{:.1}" y="{:.1}" font-weight="bold">{title}</text><text x="{:.1}" y="{:.1}" fill="{FAINT}">{:.2} GiB·min, {:.2} GiB after rest</text>"##,
        x + 18.0,
        x + 26.0,
        y + 4.0,
        x + 26.0,
        y + 20.0,
        run.gib_minutes,
        run.gib_after_idle
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::footprint::report::tests::report;

    #[test]
    fn every_run_is_a_line_with_its_area_beside_it() {
        let svg = picture(&report());
        assert_eq!(svg.matches("<polyline").count(), 4);
        for text in ["Memtide", "free page reporting", "1.20 GiB·min, 0.30 GiB after rest"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "a coordinate left the picture");
        assert!(picture(&Report::default()).ends_with("</svg>\n"));
    }
}
