//! The picture of a run: guest's view and host's view of memory over time, as SVG.
//!
//! Drawn by hand rather than by a plotting library, since what matters here (phases as bands, names
//! at the lines' ends, held returns as marks) is just what such libraries make hard.

use std::fmt::Write as _;

use memtide_units::ByteSize;

use crate::sample::{Sample, Timeline};

const WIDTH: f64 = 1040.0;
const HEIGHT: f64 = 470.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = 54.0;

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const RESIDENT: &str = "#2f7fb8";
const TOTAL: &str = "#1f2933";
const USED: &str = "#d9742b";
const HELD: &str = "#c0392b";

/// What the picture is called and measured against.
#[derive(Clone, Debug)]
pub struct Caption {
    /// First line.
    pub title: String,
    /// Second line, smaller.
    pub subtitle: String,
    /// The guest's memory: the top of the scale.
    pub memory: ByteSize,
}

/// The run as a picture.
pub fn draw(timeline: &Timeline, caption: &Caption) -> String {
    let scale = Scale::new(timeline, caption.memory);
    let mut svg = String::with_capacity(64 << 10);
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="12" fill="{INK}">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<text x="{LEFT}" y="28" font-size="18" font-weight="bold">{}</text>
<text x="{LEFT}" y="47" fill="{FAINT}">{}</text>
"##,
        escape(&caption.title),
        escape(&caption.subtitle)
    );
    phases(&mut svg, timeline, &scale);
    grid(&mut svg, &scale);
    held(&mut svg, timeline, &scale);
    area(&mut svg, &timeline.samples, &scale);
    let told = told(&timeline.samples);
    line(&mut svg, told, &scale, (|s| s.guest_total, TOTAL));
    line(&mut svg, told, &scale, (|s| s.guest_used, USED));
    names(&mut svg, &timeline.samples, &scale);
    svg.push_str("</svg>\n");
    svg
}

/// The samples from the first on in which the guest told of itself.
fn told(samples: &[Sample]) -> &[Sample] {
    let first = samples.iter().position(|s| !s.guest_total.is_zero()).unwrap_or(samples.len());
    &samples[first..]
}

struct Scale {
    end_ms: f64,
    top_bytes: f64,
}

impl Scale {
    fn new(timeline: &Timeline, memory: ByteSize) -> Self {
        Self {
            end_ms: timeline.end_ms().max(1) as f64,
            top_bytes: memory.bytes().max(1) as f64 * 1.04,
        }
    }

    fn x(&self, at_ms: u64) -> f64 {
        LEFT + at_ms as f64 / self.end_ms * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, size: ByteSize) -> f64 {
        HEIGHT - BOTTOM - size.bytes() as f64 / self.top_bytes * (HEIGHT - TOP - BOTTOM)
    }
}

fn phases(svg: &mut String, timeline: &Timeline, scale: &Scale) {
    for (number, (phase, until)) in timeline.spans().enumerate() {
        let (from, to) = (scale.x(phase.from_ms), scale.x(until));
        let fill = if number % 2 == 0 { "#f3f5f7" } else { "#e9edf1" };
        let height = HEIGHT - TOP - BOTTOM;
        let _ = writeln!(
            svg,
            r##"<rect x="{from:.1}" y="{TOP}" width="{:.1}" height="{height}" fill="{fill}"/>"##,
            to - from
        );
        // Two rows of names, so that neighbours with short spans do not write over each other.
        let y = if number % 2 == 0 { TOP - 22.0 } else { TOP - 7.0 };
        let _ = writeln!(
            svg,
            r##"<text x="{:.1}" y="{y}" font-size="11" fill="{FAINT}">{}</text>"##,
            from + 2.0,
            escape(&phase.name)
        );
    }
}

fn grid(svg: &mut String, scale: &Scale) {
    let step = step_for(scale.top_bytes);
    let mut at = ByteSize::ZERO;
    while at.bytes() as f64 <= scale.top_bytes {
        let y = scale.y(at);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}" stroke="#ffffff"/><text x="{:.1}" y="{:.1}" text-anchor="end" fill="{FAINT}">{at}</text>"##,
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0
        );
        at += step;
    }
    let seconds = scale.end_ms / 1000.0;
    let step = [5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0]
        .into_iter()
        .find(|step| seconds / step <= 12.0)
        .unwrap_or(600.0);
    let mut at = 0.0;
    while at <= seconds {
        let x = scale.x((at * 1000.0) as u64);
        let y = HEIGHT - BOTTOM + 18.0;
        let _ = writeln!(
            svg,
            r##"<text x="{x:.1}" y="{y}" text-anchor="middle" fill="{FAINT}">{at} s</text>"##
        );
        at += step;
    }
}

/// A power of two that cuts the scale into three to five parts.
fn step_for(top_bytes: f64) -> ByteSize {
    let mut step = ByteSize::from_mib(16);
    while top_bytes / step.bytes() as f64 > 5.5 {
        step = step.times(2);
    }
    step
}

fn held(svg: &mut String, timeline: &Timeline, scale: &Scale) {
    for (from, to) in timeline.held_spans() {
        let (x, end) = (scale.x(from), scale.x(to));
        let y = HEIGHT - BOTTOM;
        let _ = writeln!(
            svg,
            r##"<rect x="{x:.1}" y="{TOP}" width="{:.1}" height="{:.1}" fill="{HELD}" opacity="0.10"/><rect x="{x:.1}" y="{y}" width="{:.1}" height="5" fill="{HELD}"/><text x="{x:.1}" y="{:.1}" font-size="11" fill="{HELD}">return held</text>"##,
            (end - x).max(2.0),
            y - TOP,
            (end - x).max(2.0),
            HEIGHT - 20.0,
        );
    }
}

fn points(samples: &[Sample], scale: &Scale, value: fn(&Sample) -> ByteSize) -> String {
    samples.iter().fold(String::new(), |mut path, sample| {
        let _ = write!(path, "{:.1},{:.1} ", scale.x(sample.at_ms), scale.y(value(sample)));
        path
    })
}

fn area(svg: &mut String, samples: &[Sample], scale: &Scale) {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return };
    let base = scale.y(ByteSize::ZERO);
    let curve = points(samples, scale, |s| s.resident);
    let _ = writeln!(
        svg,
        r##"<polygon points="{:.1},{base:.1} {curve}{:.1},{base:.1}" fill="{RESIDENT}" opacity="0.28"/><polyline points="{curve}" fill="none" stroke="{RESIDENT}" stroke-width="2"/>"##,
        scale.x(first.at_ms),
        scale.x(last.at_ms)
    );
}

/// What a line shows, and in which colour.
type Series = (fn(&Sample) -> ByteSize, &'static str);

fn line(svg: &mut String, samples: &[Sample], scale: &Scale, (value, colour): Series) {
    let curve = points(samples, scale, value);
    let _ = writeln!(
        svg,
        r##"<polyline points="{curve}" fill="none" stroke="{colour}" stroke-width="2"/>"##
    );
}

fn names(svg: &mut String, samples: &[Sample], scale: &Scale) {
    let Some(last) = samples.last() else { return };
    let mut ends = [
        (scale.y(last.guest_total), "guest: online", TOTAL),
        (scale.y(last.resident), "host: resident", RESIDENT),
        (scale.y(last.guest_used), "guest: used", USED),
    ];
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::MIN;
    for (y, name, colour) in ends {
        let y = (y + 4.0).max(lowest + 15.0);
        lowest = y;
        let x = WIDTH - RIGHT + 8.0;
        let _ = writeln!(
            svg,
            r##"<text x="{x}" y="{y:.1}" font-weight="bold" fill="{colour}">{name}</text>"##
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Phase;

    fn caption() -> Caption {
        Caption { title: "a < b".into(), subtitle: String::new(), memory: ByteSize::from_gib(2) }
    }

    #[test]
    fn every_series_and_phase_is_drawn_inside_the_picture() {
        let samples = (0..50)
            .map(|n| Sample {
                at_ms: n * 500,
                guest_total: ByteSize::from_mib(2000 - n * 10),
                guest_used: ByteSize::from_mib(300),
                resident: ByteSize::from_mib(1000),
                held: n > 40,
                ..Sample::default()
            })
            .collect();
        let phases = vec![
            Phase { name: "boot".into(), from_ms: 0 },
            Phase { name: "grow".into(), from_ms: 9000 },
        ];
        let svg = draw(&Timeline { samples, phases }, &caption());
        for text in ["a &lt; b", "boot", "grow", "return held", "host: resident", "guest: used"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(!svg.contains("NaN") && !svg.contains("\"-"), "a coordinate left the picture");
    }

    #[test]
    fn an_empty_run_makes_an_empty_picture() {
        let svg = draw(&Timeline::default(), &caption());
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
