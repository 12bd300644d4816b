//! What the workload in a guest prints, as far as somebody here wants to know.

use memtide_lab::guest::Event;
use memtide_lab::guest::protocol::Stream;
use serde::Deserialize;

/// One of its lines.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Line {
    /// A phase begins.
    Phase { name: String },
    /// It has come so far, `at_ms` of its own time after it started.
    Progress { pages_checked: u64, at_ms: u64 },
    /// A phase is over.
    PhaseDone { name: String, duration_ms: u64 },
    /// A page is not what it has to be.
    BadPage { kind: String },
    /// The script cannot go on.
    Error { message: String },
    /// It ends.
    Summary { pages_bad: u64 },
    /// What nobody here wants to know.
    #[serde(other)]
    Other,
}

/// What its process did.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It printed a line.
    Line(Line),
    /// It printed what is none: a panic, as a rule.
    Noise(String),
    /// It is over, and how.
    Ended(String),
}

impl Heard {
    pub(crate) fn of(event: Event) -> Self {
        match event {
            Event::Line(Stream::Stdout, text) => Self::of_line(&text),
            Event::Line(Stream::Stderr, text) => Self::Noise(text),
            Event::Exited(ending) => Self::Ended(format!("it ended: {ending}")),
        }
    }

    pub(crate) fn of_line(text: &str) -> Self {
        serde_json::from_str(text).map_or_else(|_| Self::Noise(text.to_owned()), Self::Line)
    }
}

/// What is known of a workload so far.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) phase: String,
    /// Bad pages, once the summary has come.
    pub(crate) summary: Option<u64>,
    /// Why there is nothing more to be heard.
    pub(crate) error: Option<String>,
}

impl Told {
    /// Takes in what was heard; answers with a line that says something else.
    pub(crate) fn hear(&mut self, heard: Heard) -> Option<Line> {
        match heard {
            Heard::Line(Line::Phase { name }) => self.phase = name,
            Heard::Line(Line::Error { message }) => self.error = Some(message),
            Heard::Line(Line::Summary { pages_bad }) => self.summary = Some(pages_bad),
            Heard::Line(line) => return Some(line),
            Heard::Noise(text) => self.error = Some(text),
            Heard::Ended(how) if self.summary.is_none() => self.error = Some(how),
            Heard::Ended(_) => {}
        }
        None
    }
}
