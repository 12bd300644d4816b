//! The last lines of a failed scenario's logs: of a run on another machine, what it printed may be all
//! that is left.

use std::path::Path;

/// Lines of each log that are shown.
const LINES: usize = 25;

/// Of these files, those lines that say one of the words. The journal is mostly systemd's.
const LOGS: [(&str, &[&str]); 5] = [
    ("memtided.log", &[]),
    ("device.log", &[]),
    ("qemu.log", &[]),
    ("journal.log", &["memtide-agent", "Oops", "BUG:", "Call Trace", "Out of memory"]),
    ("serial.log", &[]),
];

/// What the logs in `directory` end with, each under its name. A log that is not there or has nothing to
/// say is left out.
pub(super) fn read(directory: &Path) -> String {
    let section = |(name, words): &(&str, &[&str])| {
        let text = std::fs::read(directory.join(name)).ok()?;
        let lines = last(&String::from_utf8_lossy(&text), words);
        (!lines.is_empty()).then(|| format!("{}:\n{lines}", directory.join(name).display()))
    };
    LOGS.iter().filter_map(section).collect()
}

fn last(text: &str, words: &[&str]) -> String {
    let is_wanted = |line: &&str| words.is_empty() || words.iter().any(|word| line.contains(word));
    let lines: Vec<&str> = text.lines().filter(is_wanted).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_logs_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let device: String = (0..30).map(|n| format!("line {n}\n")).collect();
        std::fs::write(dir.path().join("device.log"), device).unwrap();
        let journal = "systemd[1]: Started.\nmemtide-agent[7]: it ends\n";
        std::fs::write(dir.path().join("journal.log"), journal).unwrap();
        std::fs::write(dir.path().join("qemu.log"), "").unwrap();
        let text = read(dir.path());
        assert!(text.contains("  line 5\n") && !text.contains("  line 4\n"), "{text}");
        assert!(text.contains("it ends") && !text.contains("Started"), "{text}");
        assert!(!text.contains("qemu.log"), "{text}");
    }
}
