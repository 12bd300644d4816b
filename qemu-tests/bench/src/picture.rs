//! The result as a picture: two rows of bars, on a logarithmic scale since they lie a hundredfold
//! apart.

use std::fmt::Write as _;

use crate::figures::{Figures, Spread};
use crate::report::Report;
use crate::table::rows;

const WIDTH: f64 = 1040.0;
const LEFT: f64 = 170.0;
const GAP: f64 = 70.0;
const TOP: f64 = 96.0;
const BAR: f64 = 26.0;
const PITCH: f64 = 42.0;
const FOOT: f64 = 46.0;
/// Width of one row's scale.
const SCALE: f64 = (WIDTH - LEFT - GAP - 60.0) / 2.0;

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const OURS: &str = "#2f7fb8";
const THEIRS: &str = "#b8c2cc";
const LIMIT: &str = "#d9742b";

/// The report as SVG.
pub fn picture(report: &Report) -> String {
    let rows = rows(report);
    let height = TOP + PITCH * rows.len() as f64 + FOOT;
    let setting = &report.setting;
    let mut svg = String::with_capacity(16 << 10);
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12" fill="{INK}">
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="20" y="30" font-size="18" font-weight="bold">How fast a guest's memory goes and comes back</text>
<text x="20" y="49" fill="{FAINT}">{} MiB of {} MiB, touched and free; Linux {}, QEMU {} ({}); median and spread of {} turns, of memtide and raw {}</text>
"##,
        setting.moved_mib,
        setting.guest_memory_mib,
        setting.kernel,
        setting.qemu,
        setting.accelerator,
        setting.rounds,
        setting.close_turns
    );
    let values: Vec<f64> =
        rows.iter().flat_map(|(_, f)| [f.reclaim_gib_s, f.return_gib_s]).collect();
    let scale = Scale::of(&values);
    let right = LEFT + SCALE + GAP;
    column(&mut svg, "reclaimed, GiB/s", &scale, (LEFT, height));
    column(&mut svg, "returned, GiB/s", &scale, (right, height));
    for (n, (name, figures)) in rows.iter().enumerate() {
        let y = TOP + PITCH * n as f64;
        let _ = writeln!(
            svg,
            r##"<text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"##,
            LEFT - 10.0,
            y + BAR / 2.0 + 4.0
        );
        bars(&mut svg, (name, figures), &scale, y);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Powers of ten that hold all values.
struct Scale {
    from: i32,
    to: i32,
}

impl Scale {
    fn of(values: &[f64]) -> Self {
        let logs = || values.iter().filter(|value| **value > 0.0).map(|value| value.log10());
        let (least, most) = (logs().fold(0.0, f64::min), logs().fold(0.5, f64::max));
        Self { from: least.floor() as i32, to: most.ceil() as i32 }
    }

    /// How far from the left end; what is not positive lies there.
    fn x(&self, value: f64) -> f64 {
        let log = if value > 0.0 { value.log10() } else { f64::from(self.from) };
        let share = (log - f64::from(self.from)) / f64::from(self.to - self.from);
        share.clamp(0.0, 1.0) * SCALE
    }
}

fn column(svg: &mut String, title: &str, scale: &Scale, (left, height): (f64, f64)) {
    let _ = writeln!(
        svg,
        r##"<text x="{left}" y="{:.1}" font-weight="bold">{title}</text>"##,
        TOP - 18.0
    );
    for power in scale.from..=scale.to {
        let value = 10_f64.powi(power);
        let x = left + scale.x(value);
        let bottom = height - FOOT + 4.0;
        let _ = writeln!(
            svg,
            r##"<line x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{bottom:.1}" stroke="#e4e7eb"/><text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="{FAINT}">{value}</text>"##,
            TOP - 8.0,
            bottom + 16.0
        );
    }
}

fn bars(svg: &mut String, (name, figures): (&str, &Figures), scale: &Scale, y: f64) {
    let fill = match name {
        name if name.starts_with("memtide") => OURS,
        name if name.starts_with("raw") => LIMIT,
        _ => THEIRS,
    };
    let right = LEFT + SCALE + GAP;
    for (left, value, spread) in [
        (LEFT, figures.reclaim_gib_s, figures.reclaim_spread),
        (right, figures.return_gib_s, figures.return_spread),
    ] {
        bar(svg, (left, y), scale, (value, spread, fill));
    }
}

fn bar(
    svg: &mut String,
    (left, y): (f64, f64),
    scale: &Scale,
    (value, spread, fill): (f64, Spread, &str),
) {
    let end = left + scale.x(value);
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        svg,
        r##"<rect x="{left:.1}" y="{y:.1}" width="{:.1}" height="{BAR}" fill="{fill}"/><line x1="{:.1}" x2="{:.1}" y1="{middle:.1}" y2="{middle:.1}" stroke="{INK}"/><text x="{:.1}" y="{:.1}">{value:.2}</text>"##,
        end - left,
        left + scale.x(spread.min),
        left + scale.x(spread.max),
        end.max(left + scale.x(spread.max)) + 6.0,
        middle + 4.0
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn every_means_is_drawn_inside_the_picture() {
        let svg = picture(&report());
        for text in ["memtide, huge pages", "QEMU virtio-mem", "raw", ">4.00<", ">0.25<"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("NaN") && !svg.contains("\"-"), "a coordinate left the picture");
    }

    #[test]
    fn a_longer_bar_is_a_faster_one_and_nothing_has_no_length() {
        let scale = Scale::of(&[0.2, 30.0]);
        assert_eq!((scale.from, scale.to), (-1, 2));
        assert!(scale.x(0.2) < scale.x(30.0) && scale.x(30.0) < SCALE);
        assert_eq!(scale.x(0.0), 0.0);
        assert!(picture(&Report::default()).ends_with("</svg>\n"));
    }
}
