//! The picture, before anybody asks in which format: rectangles, lines and letters.
//!
//! Above, the heat map: addresses upwards, time to the right. Below, on the same time axis, the working
//! set. At the right, what the colours mean.

use crate::cell::Shade;
use crate::grid::{Grid, Size};
use crate::history::History;

use super::words::{round_step_ms, time};

/// A colour without transparency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rgb(pub(super) u8, pub(super) u8, pub(super) u8);

pub(super) const INK: Rgb = Rgb(0x1f, 0x29, 0x33);
const FAINT: Rgb = Rgb(0x7b, 0x87, 0x94);
const LINE: Rgb = Rgb(0xe4, 0xe7, 0xeb);
pub(super) const PAPER: Rgb = Rgb(0xff, 0xff, 0xff);
const FREE: Rgb = Rgb(0xee, 0xf1, 0xf4);
const KERNEL: Rgb = Rgb(0xa9, 0xb4, 0xbf);
const BAND: Rgb = Rgb(0xf6, 0xc9, 0xa5);
const MEAN: Rgb = Rgb(0xd9, 0x74, 0x2b);
/// The lines of what is stolen, and what is between them.
pub(super) const HATCH: Rgb = Rgb(0x2f, 0x7f, 0xb8);
pub(super) const HATCH_PAPER: Rgb = Rgb(0xda, 0xe9, 0xf4);

/// Levels 0 to 9: the longer idle the darker blue, the hotter the darker red.
const LEVELS: [Rgb; 10] = [
    Rgb(0x0b, 0x1f, 0x4d),
    Rgb(0x14, 0x37, 0x7d),
    Rgb(0x1f, 0x5a, 0xa6),
    Rgb(0x3c, 0x83, 0xc4),
    Rgb(0x8c, 0xb9, 0xdf),
    Rgb(0xfb, 0xe8, 0xbf),
    Rgb(0xf8, 0xc1, 0x5f),
    Rgb(0xf0, 0x8a, 0x33),
    Rgb(0xd6, 0x45, 0x29),
    Rgb(0x96, 0x0d, 0x1c),
];

/// How an area is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    Plain(Rgb),
    /// As stolen memory is drawn.
    Hatched,
}

/// Which end of a text is where it is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// One thing to draw; in pixels, from the upper left corner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Area {
        x: u32,
        y: u32,
        width: u32,
        height: u32,
        fill: Fill,
    },
    /// At the base line. Letters of this program's own, never a guest's.
    Text {
        x: u32,
        y: u32,
        anchor: Anchor,
        colour: Rgb,
        text: String,
    },
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scene {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) shapes: Vec<Shape>,
}

const WIDTH: u32 = 1200;
const LEFT: u32 = 120;
const TOP: u32 = 76;
/// Of the map and the curve.
const PLOT_WIDTH: u32 = 800;
const MAP_HEIGHT: u32 = 512;
/// Between the parts of memory, where there is none.
const HOLE: u32 = 6;
const CURVE_GAP: u32 = 34;
const CURVE_HEIGHT: u32 = 110;
const FOOT: u32 = 44;
const KEY: u32 = LEFT + PLOT_WIDTH + 28;
const KEY_PITCH: u32 = 22;
/// Addresses at the left, at most.
const LABELS: usize = 16;
const TICKS: u64 = 6;

impl Scene {
    /// The picture of all that is kept or of the last `window_ms`; nothing where there is nothing. `title`
    /// is the program's own words: whose memory it is.
    pub(super) fn of(history: &History, title: &str, window_ms: Option<u64>) -> Option<Self> {
        let size = Size { rows: MAP_HEIGHT as usize / 2, columns: PLOT_WIDTH as usize / 2 };
        let grid = Grid::of(history, size, window_ms)?;
        let mut shapes = Vec::new();
        text(&mut shapes, (20, 30), (Anchor::Start, INK), title);
        let subtitle = format!(
            "{} of memory over {}, addresses upwards; below, the working set",
            grid.present,
            time(grid.span_ms)
        );
        text(&mut shapes, (20, 52), (Anchor::Start, FAINT), &subtitle);
        let bottom = map(&mut shapes, &grid);
        let curve_top = bottom + CURVE_GAP;
        curve(&mut shapes, &grid, curve_top);
        let end = curve_top + CURVE_HEIGHT;
        time_axis(&mut shapes, &grid, end);
        legend(&mut shapes);
        Some(Self { width: WIDTH, height: end + FOOT, shapes })
    }
}

fn area(shapes: &mut Vec<Shape>, (x, y): (u32, u32), (width, height): (u32, u32), fill: Fill) {
    if width > 0 && height > 0 {
        shapes.push(Shape::Area { x, y, width, height, fill });
    }
}

fn text(shapes: &mut Vec<Shape>, (x, y): (u32, u32), (anchor, colour): (Anchor, Rgb), text: &str) {
    shapes.push(Shape::Text { x, y, anchor, colour, text: text.into() });
}

fn fill(shade: Shade) -> Fill {
    match shade {
        Shade::Level(level) => Fill::Plain(LEVELS[usize::from(level.min(9))]),
        Shade::Free => Fill::Plain(FREE),
        Shade::Kernel => Fill::Plain(KERNEL),
        Shade::Stolen => Fill::Hatched,
        Shade::Unwatched => Fill::Plain(PAPER),
    }
}

/// Where column `n` of the grid begins.
fn column_x(grid: &Grid, n: usize) -> u32 {
    let offset = u64::from(PLOT_WIDTH) * n as u64 / grid.columns() as u64;
    LEFT + u32::try_from(offset).unwrap_or(PLOT_WIDTH)
}

/// The map from [`TOP`] on; answers with where it ends.
fn map(shapes: &mut Vec<Shape>, grid: &Grid) -> u32 {
    let count = grid.rows.len() as u64;
    let holes = grid.rows.iter().filter(|row| row.is_behind_hole).count() as u32;
    let bottom = TOP + MAP_HEIGHT + holes * HOLE;
    let offset = |n: u64| u32::try_from(u64::from(MAP_HEIGHT) * n / count).unwrap_or(MAP_HEIGHT);
    // A label is for a row that begins a round part of all.
    let every = grid.rows.len().div_ceil(LABELS).next_power_of_two();
    let mut holes_below = 0;
    let mut label_above = u32::MAX;
    for (n, row) in grid.rows.iter().enumerate() {
        holes_below += u32::from(row.is_behind_hole);
        let (low, high) = (offset(n as u64), offset(n as u64 + 1));
        let y = bottom - high - holes_below * HOLE;
        let shades: Vec<Shade> = grid.shades(n).collect();
        let mut start = 0;
        for run in shades.chunk_by(|a, b| a == b) {
            let (x, end) = (column_x(grid, start), column_x(grid, start + run.len()));
            area(shapes, (x, y), (end - x, high - low), fill(run[0]));
            start += run.len();
        }
        let base = bottom - low - holes_below * HOLE;
        if (n % every == 0 || row.is_behind_hole) && base + 18 <= label_above {
            label_above = base;
            area(shapes, (LEFT - 6, base - 1), (6, 1), Fill::Plain(FAINT));
            let address = format!("{:#x}", row.range.start().0);
            text(shapes, (LEFT - 10, base), (Anchor::End, FAINT), &address);
        }
    }
    bottom
}

/// The working set on the map's time axis: a band from the least to the most, and the mean.
fn curve(shapes: &mut Vec<Shape>, grid: &Grid, top: u32) {
    let most = grid.working_sets.iter().flatten().map(|set| set.max.bytes()).max().unwrap_or(0);
    let scale = round_up(most.max(1));
    let height = |bytes: u64| {
        let share = u128::from(bytes) * u128::from(CURVE_HEIGHT) / u128::from(scale);
        u32::try_from(share).unwrap_or(CURVE_HEIGHT).min(CURVE_HEIGHT)
    };
    let bottom = top + CURVE_HEIGHT;
    for part in 0..=2 {
        let y = bottom - CURVE_HEIGHT * part / 2;
        area(shapes, (LEFT, y), (PLOT_WIDTH, 1), Fill::Plain(LINE));
        let size = memtide_units::ByteSize::from_bytes(scale / 2 * u64::from(part));
        text(shapes, (LEFT - 10, y + 5), (Anchor::End, FAINT), &size.to_string());
    }
    for (n, set) in grid.working_sets.iter().enumerate() {
        let Some(set) = set else { continue };
        let (x, end) = (column_x(grid, n), column_x(grid, n + 1));
        let (low, high) = (height(set.min.bytes()), height(set.max.bytes()));
        area(shapes, (x, bottom - high), (end - x, high - low), Fill::Plain(BAND));
        let mean = height(set.mean.bytes()).max(1);
        area(shapes, (x, bottom - mean), (end - x, 2), Fill::Plain(MEAN));
    }
}

/// The next of 1, 2, 4, 8 .. of the unit of a thousand and twenty-four, or itself where there is none.
fn round_up(bytes: u64) -> u64 {
    bytes.checked_next_power_of_two().unwrap_or(bytes)
}

fn time_axis(shapes: &mut Vec<Shape>, grid: &Grid, bottom: u32) {
    let step = round_step_ms(grid.span_ms, TICKS);
    for n in 0..=grid.span_ms / step {
        let back = u128::from(PLOT_WIDTH) * u128::from(n * step) / u128::from(grid.span_ms.max(1));
        let x = LEFT + PLOT_WIDTH - u32::try_from(back).unwrap_or(0).min(PLOT_WIDTH);
        area(shapes, (x - 1, bottom), (1, 6), Fill::Plain(FAINT));
        let name = if n == 0 { "now".to_owned() } else { format!("-{}", time(n * step)) };
        text(shapes, (x, bottom + 22), (Anchor::Middle, FAINT), &name);
    }
}

fn legend(shapes: &mut Vec<Shape>) {
    let entries = [
        (Some(Shade::Level(9)), "touched in 50 % of samples"),
        (Some(Shade::Level(8)), "20 %"),
        (Some(Shade::Level(7)), "5 %"),
        (Some(Shade::Level(6)), "1 %"),
        (Some(Shade::Level(5)), "less, or within 30 s"),
        (Some(Shade::Level(4)), "idle for 30 s"),
        (Some(Shade::Level(3)), "1 min"),
        (Some(Shade::Level(2)), "2 min"),
        (Some(Shade::Level(1)), "5 min"),
        (Some(Shade::Level(0)), "10 min or longer"),
        (None, ""),
        (Some(Shade::Free), "free"),
        (Some(Shade::Kernel), "the kernel's own"),
        (Some(Shade::Stolen), "stolen"),
        (Some(Shade::Unwatched), "not watched"),
    ];
    let mut y = TOP;
    for (shade, words) in entries {
        if let Some(shade) = shade {
            area(shapes, (KEY, y), (22, KEY_PITCH - 4), Fill::Plain(LINE));
            area(shapes, (KEY + 1, y + 1), (20, KEY_PITCH - 6), fill(shade));
            text(shapes, (KEY + 32, y + 14), (Anchor::Start, INK), words);
        }
        y += KEY_PITCH;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::example;
    use crate::history::Limits;

    #[test]
    fn nothing_leaves_the_picture() {
        let scene = Scene::of(&example(), "memory", None).unwrap();
        for shape in &scene.shapes {
            match shape {
                Shape::Area { x, y, width, height, .. } => {
                    assert!(x + width <= scene.width && y + height <= scene.height, "{shape:?}");
                }
                Shape::Text { x, y, .. } => {
                    assert!(*x <= scene.width && *y <= scene.height, "{shape:?}");
                }
            }
        }
        assert_eq!(Scene::of(&History::new(Limits::AGENT), "memory", None), None);
    }

    #[test]
    fn equal_neighbours_are_one_shape() {
        let scene = Scene::of(&example(), "memory", None).unwrap();
        assert!(scene.shapes.len() < 5_000, "{} shapes", scene.shapes.len());
    }
}
