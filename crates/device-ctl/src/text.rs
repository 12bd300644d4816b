//! Text for 80 columns, and words for numbers.

use memtide_units::may_be_shown;

/// Columns that every terminal has.
pub const WIDTH: usize = 80;

/// Width of the names that stand before values.
pub const LABEL: usize = 12;

/// `name  value`, below each other; a value that is too long goes on below itself.
pub fn line(label: &str, value: &str) -> String {
    let value = wrapped(value, 2 + LABEL);
    format!("  {label:LABEL$}{}", value.trim()).trim_end().to_owned() + "\n"
}

/// Text in lines of at most [`WIDTH`] columns, each indented; a longer word stands alone.
pub fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for word in text.split_whitespace().map(printable) {
        if !line.is_empty() && indent + length(&line) + 1 + length(&word) > WIDTH {
            out += &format!("{:indent$}{line}\n", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += &word;
    }
    out + &format!("{:indent$}{line}\n", "")
}

/// Text without what would move a terminal's cursor or hide something: parts of it come from guests.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if may_be_shown(c) { c } else { '\u{fffd}' }).collect()
}

/// Columns that the text takes.
pub fn length(text: &str) -> usize {
    text.chars().count()
}

/// Milliseconds as people say them.
pub fn time(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        _ => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// `1 region`, `2 regions`.
pub fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        let text = wrapped(&"word ".repeat(40), 2);
        assert!(text.lines().all(|line| line.len() <= WIDTH && line.starts_with("  word")));
        assert_eq!(text.split_whitespace().count(), 40);
        assert_eq!(wrapped("a\x1b[2Jb\nc", 0), "a\u{fffd}[2Jb c\n", "a guest's text");
    }

    #[test]
    fn numbers_have_words() {
        assert_eq!(
            (counted(1, "range"), counted(0, "range")),
            ("1 range".into(), "0 ranges".into())
        );
        assert_eq!(time(999), "999 ms");
        assert_eq!(time(12_340), "12.3 s");
        assert_eq!(time(3_600_000), "1 h 0 min");
    }
}
