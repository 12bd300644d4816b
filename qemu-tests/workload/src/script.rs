//! The little language of memory phases, read completely before anything is played.
//!
//! ```text
//! alloc heap 512MiB; hot heap 128MiB 10s; idle 20s     # a comment ends with its line
//! repeat 3 { grow heap 64MiB; verify; free heap 64MiB }
//! ```
//!
//! Commands end at a line's end, a semicolon or a brace. Sizes and times carry their units.
//! `repeat` is unrolled here, so that the books of [`check`] see every step that will be played.

mod check;
mod error;
mod parse;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::time::Duration;

pub(crate) use error::ScriptError;
pub(crate) use parse::time;

/// Steps that a script may unroll to. Days of phases fit; a `repeat` with a digit too many is
/// refused instead of filling the guest's memory with its own script.
pub(crate) const STEPS_MAX: usize = 10_000;

/// A script that can be played: known commands, known names, nothing freed that is not owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// What to do, in order; never more than [`STEPS_MAX`].
    pub(crate) steps: Vec<Step>,
}

impl Script {
    /// Reads and checks a script.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and what to write instead.
    pub(crate) fn parse(text: &str) -> Result<Self, ScriptError> {
        let steps = parse::steps(text)?;
        check::check(&steps)?;
        Ok(Self { steps })
    }

    /// True where some step waits for the host.
    pub(crate) fn waits(&self) -> bool {
        self.steps.iter().any(|step| step.command == Command::Wait)
    }
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// What to do.
    pub(crate) command: Command,
    /// The command as it was written, with single spaces: the phase's name.
    pub(crate) name: String,
    /// Where its first word stands.
    at: Position,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Map memory and fill it.
    Alloc(Word, Pages),
    /// Map more memory for the same name and fill that.
    Grow(Word, Pages),
    /// Touch, verify and rewrite the first pages of a region for so long.
    Hot(Word, Pages, Duration),
    /// Do nothing.
    Idle(Duration),
    /// Unmap from the end; all where no size is given.
    Free(Word, Option<Pages>),
    /// Make a file, then read and verify it for so long.
    Files(Pages, Duration),
    /// Read and verify a file once, which is made the first time and stays.
    Read(Word, Pages),
    /// Verify every page of one region, or of all.
    Verify(Option<Word>),
    /// Continue when the host says so.
    Wait,
}

/// A word of the script that names something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The word.
    pub(crate) text: String,
    at: Position,
}

/// A size, in pages of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    /// How many pages; never zero.
    pub(crate) count: usize,
    word: Word,
}

/// A place in the script, counted from one as editors do; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    line: u32,
    column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}
