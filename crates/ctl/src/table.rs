//! Aligned tables.

use memtide_device_ctl::output::{Colour, Tone};
use memtide_device_ctl::text::length;

/// To which side a column's cells lean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A cell and its tone.
pub(crate) type Cell = (String, Tone);

/// Rows under a heading.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Two spaces between columns, none at a line's end.
    pub(crate) fn render(&self, colour: Colour) -> String {
        let heading: Vec<Cell> =
            self.columns.iter().map(|(name, _)| ((*name).to_owned(), Tone::Heading)).collect();
        let lines = || std::iter::once(&heading).chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| lines().map(|line| length(&line[column].0)).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for line in lines() {
            let mut text = String::new();
            for (column, (cell, tone)) in line.iter().enumerate() {
                let padding = " ".repeat(widths[column].saturating_sub(length(cell)));
                let painted = colour.paint(*tone, cell);
                match self.columns[column].1 {
                    Align::Left => text += &(painted + &padding),
                    Align::Right => text += &(padding + &painted),
                }
                text += "  ";
            }
            out += text.trim_end();
            out.push('\n');
        }
        out
    }
}

/// A name that leaves room for the other columns.
pub(crate) fn shortened(name: &str, max: usize) -> String {
    if length(name) <= max {
        return name.into();
    }
    name.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_where_text_does() {
        let mut table = Table::new(&[("VM", Align::Left), ("SIZE", Align::Right)]);
        table.row(vec![("web".into(), Tone::Plain), ("1 GiB".into(), Tone::Plain)]);
        table.row(vec![("a".into(), Tone::Plain), ("12 MiB".into(), Tone::Alarm)]);
        let plain = "VM     SIZE\nweb   1 GiB\na    12 MiB\n";
        assert_eq!(table.render(Colour::Never), plain);
        let painted = table.render(Colour::Ansi);
        assert_eq!(
            painted.replace("\x1b[1m", "").replace("\x1b[31m", "").replace("\x1b[0m", ""),
            plain
        );
    }

    #[test]
    fn a_long_name_is_shortened() {
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("abcd", 4), "abcd");
    }
}
