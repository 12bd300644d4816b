//! Small things done to text: the end of a log, a command line as one could type it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a log is looked at for its last lines: more than any error message should show.
const TAIL_BYTES: u64 = 16 * 1024;

/// The last `lines` lines of a text.
pub fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The last `lines` lines of a file that lie at or after byte `from`; empty if it cannot be read.
///
/// For error messages only, where a second error would hide the first.
pub(crate) fn file_tail(path: &Path, from: u64, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES).max(from);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    last_lines(&printable(&read().unwrap_or_default()), lines)
}

/// A text without carriage returns and terminal control codes (firmware clears the screen).
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n' || *c == '\t').collect()
}

/// A command line as one could paste it into a shell.
pub fn shell_line<S: AsRef<OsStr>>(words: &[S]) -> String {
    let quoted: Vec<String> =
        words.iter().map(|word| shell_word(&word.as_ref().to_string_lossy())).collect();
    quoted.join(" ")
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+.,:/@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end_and_short_texts_are_whole() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
        assert_eq!(last_lines("", 5), "");
    }

    #[test]
    fn a_file_tail_starts_no_earlier_than_asked_and_drops_control_codes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old\n\x1b[2Jnew\r\n").unwrap();
        assert_eq!(file_tail(&path, 4, 10), "[2Jnew");
        assert_eq!(file_tail(&dir.path().join("missing"), 0, 10), "");
    }

    #[test]
    fn a_shell_line_survives_a_shell() {
        assert_eq!(shell_line(&["echo", "it's", "a=b", ""]), r"echo 'it'\''s' a=b ''");
    }
}
