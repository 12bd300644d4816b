//! The heat map in a terminal: addresses from the top down, time to the right, a digit for each place.

use crate::cell::Shade;
use crate::grid::{Grid, Size};
use crate::history::History;

use super::tables::Paint;
use super::words::{round_step_ms, time};

/// Rows of the map, at most, but for holes.
const ROWS: usize = 32;
/// The narrowest and the widest map that is drawn, in columns of the terminal.
const WIDTHS: std::ops::RangeInclusive<usize> = 40..=400;
/// Columns that a tick on the time axis needs.
const TICK: u64 = 14;

const LEGEND: &str = "\
9 8 7 6    touched in 50, 20, 5, 1 % of DAMON's samples or more
5          touched less, or within the last 30 s
4 3 2 1 0  not touched for 30 s, 1, 2, 5, 10 min or longer
.  free    k  the kernel's own    /  stolen    (nothing)  not watched
";

/// Backgrounds of levels 0 to 9 in the 256 colours of xterm: the longer idle the darker blue, the hotter
/// the darker red; and whether light letters stand out on them.
const COLOURS: [(u8, bool); 10] = [
    (17, true),
    (18, true),
    (25, true),
    (32, true),
    (110, false),
    (223, false),
    (215, false),
    (208, false),
    (160, true),
    (88, true),
];

/// The heat map, `width` columns of a terminal wide (40 to 400), of all that is kept or of the last
/// `window_ms`.
pub fn heat_map(
    history: &History,
    (width, paint): (usize, Paint),
    window_ms: Option<u64>,
) -> Option<String> {
    let width = width.clamp(*WIDTHS.start(), *WIDTHS.end());
    let last = history.last()?;
    let label = last.layout.ranges().last().map_or(4, |range| address(range.start().0).len());
    let columns = width - label - 2;
    let grid = Grid::of(history, Size { rows: ROWS, columns }, window_ms)?;
    let row_size = grid.rows.iter().map(|row| row.range.len()).max().unwrap_or_default();
    let mut text = format!(
        "Access to {} of memory over {}, a row for {row_size}\n\n",
        grid.present,
        time(grid.span_ms)
    );
    for (n, row) in grid.rows.iter().enumerate().rev() {
        let start = address(row.range.start().0);
        let shades: Vec<Shade> = grid.shades(n).collect();
        text += &format!("{start:>label$} |");
        text += painted(&shades, paint).trim_end();
        text.push('\n');
        if row.is_behind_hole {
            text += &format!("{:>label$} |{}\n", "", "- ".repeat(columns / 2).trim_end());
        }
    }
    text += &axis(&grid, label);
    text.push('\n');
    text += &legend(paint);
    Some(text)
}

fn address(start: u64) -> String {
    format!("{start:#x}")
}

fn letter(shade: Shade) -> char {
    match shade {
        Shade::Level(level) => char::from(b'0' + level.min(9)),
        Shade::Free => '.',
        Shade::Kernel => 'k',
        Shade::Stolen => '/',
        Shade::Unwatched => ' ',
    }
}

/// A run of equal shades is painted at once.
fn painted(shades: &[Shade], paint: Paint) -> String {
    let mut text = String::new();
    for run in shades.chunk_by(|a, b| a == b) {
        let letters: String = run.iter().map(|shade| letter(*shade)).collect();
        match (paint, run[0]) {
            (Paint::Ansi, Shade::Level(level)) => {
                let (back, is_dark) = COLOURS[usize::from(level.min(9))];
                let ink = if is_dark { 255 } else { 16 };
                text += &format!("\x1b[48;5;{back};38;5;{ink}m{letters}\x1b[0m");
            }
            (Paint::Ansi, Shade::Free | Shade::Kernel) => {
                text += &format!("\x1b[38;5;245m{letters}\x1b[0m");
            }
            _ => text += &letters,
        }
    }
    text
}

/// The line below the map, and round times below that.
fn axis(grid: &Grid, label: usize) -> String {
    let columns = grid.columns();
    let step = round_step_ms(grid.span_ms, columns as u64 / TICK);
    let mut line: Vec<char> = vec!['-'; columns];
    let mut names: Vec<char> = vec![' '; columns];
    let mut free_from = columns;
    for n in 0..=grid.span_ms / step {
        let back = u128::from(n * step) * columns as u128 / u128::from(grid.span_ms.max(1));
        let at = (columns - 1).saturating_sub(usize::try_from(back).unwrap_or(columns));
        line[at] = '+';
        let name = if n == 0 { "now".to_owned() } else { format!("-{}", time(n * step)) };
        // Centred below its tick where there is room, and never over its neighbour.
        let start = at.saturating_sub(name.len() / 2).min(columns - name.len().min(columns));
        if start + name.len() < free_from || n == 0 {
            free_from = start;
            for (place, c) in names[start..].iter_mut().zip(name.chars()) {
                *place = c;
            }
        }
    }
    let (line, names): (String, String) = (line.iter().collect(), names.iter().collect());
    format!("{:>label$} +{line}\n{:>label$}  {}\n", "", "", names.trim_end())
}

fn legend(paint: Paint) -> String {
    let mut text = String::new();
    for line in LEGEND.lines() {
        let (keys, words) = line.split_at(11.min(line.len()));
        let is_levels = keys.starts_with(|c: char| c.is_ascii_digit());
        if !is_levels {
            text += line;
        } else {
            for c in keys.chars() {
                let level = c.to_digit(10).and_then(|digit| u8::try_from(digit).ok());
                match level {
                    Some(level) => text += &painted(&[Shade::Level(level)], paint),
                    None => text.push(c),
                }
            }
            text += words;
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::example;
    use crate::history::Limits;
    use crate::render::golden::check;

    fn plain(width: usize) -> String {
        heat_map(&example(), (width, Paint::Plain), None).unwrap()
    }

    #[test]
    fn people_see_what_was_reviewed() {
        check("heat.txt", &plain(80));
        let recent = heat_map(&example(), (60, Paint::Plain), Some(150_000)).unwrap();
        check("heat-recent.txt", &recent);
    }

    #[test]
    fn it_fits_any_width() {
        for width in [40, 41, 79, 80, 133, 400] {
            let text = plain(width);
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width.max(74), "{widest} columns for {width}");
        }
        assert_eq!(plain(0), plain(40));
        assert_eq!(heat_map(&History::new(Limits::AGENT), (80, Paint::Plain), None), None);
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let painted = heat_map(&example(), (80, Paint::Ansi), None).unwrap();
        let mut bare = String::new();
        for part in painted.split('\x1b') {
            bare += if bare.is_empty() { part } else { part.split_once('m').unwrap().1 };
        }
        let trimmed = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.trim_end().to_owned()).collect()
        };
        assert_eq!(trimmed(&bare), trimmed(&plain(80)));
        assert!(painted.contains("\x1b[48;5;88;38;5;255m999"));
    }
}
