//! Where text goes, and whether it may be coloured.

use std::io::{self, IsTerminal, Write};

/// What a piece of text is, for those who can see colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// What there is to read.
    Plain,
    /// What stands over it.
    Heading,
    /// What somebody may want to do something about.
    Attention,
    /// What somebody has to do something about.
    Alarm,
}

/// Whether tones become colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Into files and pipes, and for those who do not want them.
    Never,
    /// As terminals have them since ECMA-48.
    Ansi,
}

impl Colour {
    /// On a terminal, unless the user wishes otherwise (no-color.org).
    pub fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if io::stdout().is_terminal() && !unwanted { Self::Ansi } else { Self::Never }
    }

    /// The text in its tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match (self, tone) {
            (Self::Never, _) | (_, Tone::Plain) => return text.into(),
            (Self::Ansi, Tone::Heading) => "1",
            (Self::Ansi, Tone::Attention) => "33",
            (Self::Ansi, Tone::Alarm) => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Prints, and says when nobody reads.
///
/// # Errors
/// Of the write: `BrokenPipe` where whoever reads has seen enough.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Empties a terminal's screen before the next picture; a line between pictures elsewhere.
pub fn next_picture(colour: Colour) -> &'static str {
    match colour {
        Colour::Ansi => "\x1b[H\x1b[2J",
        Colour::Never => "\n",
    }
}
