//! The picture as SVG: text of its own, no fonts but the reader's.

use std::fmt::Write as _;

use crate::history::History;

use super::scene::{Anchor, Fill, HATCH, HATCH_PAPER, INK, PAPER, Rgb, Scene, Shape};

/// The heat map as SVG, of all that is kept or of the last `window_ms`; nothing where there is no
/// snapshot. `title` says whose memory it is.
pub fn svg(history: &History, title: &str, window_ms: Option<u64>) -> Option<String> {
    let Scene { width, height, shapes } = Scene::of(history, title, window_ms)?;
    let mut svg = String::with_capacity(64 << 10);
    let (ink, paper) = (Hex(INK), Hex(PAPER));
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13" fill="{ink}" shape-rendering="crispEdges">
<defs><pattern id="stolen" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="{}"/><rect width="1.5" height="6" fill="{}"/></pattern></defs>
<rect width="{width}" height="{height}" fill="{paper}"/>
"##,
        Hex(HATCH_PAPER),
        Hex(HATCH)
    );
    for shape in &shapes {
        draw(&mut svg, shape);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn draw(svg: &mut String, shape: &Shape) {
    match shape {
        Shape::Area { x, y, width, height, fill } => {
            let _ =
                write!(svg, r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill=""#);
            let _ = match fill {
                Fill::Plain(colour) => write!(svg, "{}", Hex(*colour)),
                Fill::Hatched => write!(svg, "url(#stolen)"),
            };
            svg.push_str("\"/>\n");
        }
        Shape::Text { x, y, anchor, colour, text } => {
            let anchor = match anchor {
                Anchor::Start => "start",
                Anchor::Middle => "middle",
                Anchor::End => "end",
            };
            let _ = writeln!(
                svg,
                r#"<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{}">{}</text>"#,
                Hex(*colour),
                escaped(text)
            );
        }
    }
}

struct Hex(Rgb);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rgb(red, green, blue) = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

/// Text that is no markup, and nothing that XML does not allow.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if memtide_units::may_be_shown(c) => out.push(c),
            _ => out.push('\u{fffd}'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::example;

    #[test]
    fn it_has_axes_a_legend_and_what_is_stolen() {
        let svg = svg(&example(), "Memory of this guest", None).unwrap();
        for text in [
            "Memory of this guest",
            "4 GiB of memory over 20 min",
            ">0x100000000</text>",
            ">-5 min</text>",
            ">now</text>",
            ">idle for 30 s</text>",
            "url(#stolen)",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(svg.len() < 512 << 10, "{} bytes", svg.len());
        if let Some(path) = std::env::var_os("MEMTIDE_PICTURE_SVG") {
            std::fs::write(path, svg).unwrap();
        }
    }

    #[test]
    fn a_title_is_no_markup() {
        let svg = svg(&example(), "<b>&\"\u{1b}[2J", None).unwrap();
        assert!(svg.contains("&lt;b&gt;&amp;&quot;\u{fffd}[2J</text>"));
    }
}
