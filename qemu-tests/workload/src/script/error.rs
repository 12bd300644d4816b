//! Why a script cannot be played: what is wrong, where, and what to write instead.

use memtide_units::ParseSizeError;

use super::{Position, STEPS_MAX, Word};

/// A script's first fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}, \"{token}\": {problem}")]
pub(crate) struct ScriptError {
    /// Where.
    pub(crate) at: Position,
    /// The word that is wrong.
    pub(crate) token: String,
    /// What is wrong with it, and the remedy.
    pub(crate) problem: Problem,
}

impl ScriptError {
    /// `problem` with `word`.
    pub(super) fn new(word: &Word, problem: Problem) -> Self {
        Self { at: word.at, token: word.text.clone(), problem }
    }
}

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// Not a command.
    #[error(
        "no such command; there are alloc, hot, idle, grow, free, files, read, verify, wait and repeat"
    )]
    UnknownCommand,
    /// A command without one of its words.
    #[error("{missing} is missing; write {usage}")]
    Missing {
        /// The word that should follow.
        missing: &'static str,
        /// The whole command.
        usage: &'static str,
    },
    /// A word behind a complete command.
    #[error("one word too many; write {usage}, and a semicolon or a new line before what follows")]
    TooMany {
        /// The whole command.
        usage: &'static str,
    },
    /// No name where one belongs.
    #[error(
        "not a region's name; start with a letter, then up to 31 letters, digits, \"-\" or \"_\""
    )]
    BadName,
    /// Not a size.
    #[error(transparent)]
    BadSize(#[from] ParseSizeError),
    /// Nothing, or parts of pages.
    #[error("not a whole number of pages; use a multiple of 4KiB, at least 4KiB")]
    NotPages,
    /// More than any guest has.
    #[error("more than 1TiB; no lab guest has that much")]
    TooLarge,
    /// Not a time.
    #[error("not a time; write a number with its unit, such as 500ms, 10s, 1.5s or 2min")]
    BadTime,
    /// A time of more than a week.
    #[error("more than a week; use repeat with shorter phases")]
    TooLong,
    /// Not a number of repetitions.
    #[error("not a number of repetitions; write repeat 3 {{ ... }} with a whole number")]
    BadCount,
    /// Too many steps.
    #[error("unrolls to more than {STEPS_MAX} steps; repeat less often")]
    TooManySteps,
    /// Too many braces.
    #[error("nested more than {0} deep; write the inner repeat out")]
    TooDeep(usize),
    /// A brace that nothing opened.
    #[error("closes nothing; remove it, or write repeat N {{ before")]
    StrayClose,
    /// A brace without repeat.
    #[error("opens nothing; write repeat N {{ ... }}")]
    StrayOpen,
    /// A brace that nothing closes.
    #[error("never closed; add }} after the last repeated command")]
    Unclosed,
    /// A script without commands.
    #[error("nothing to play; write for example: alloc heap 64MiB; verify")]
    Empty,
    /// A name that is not there at that point of the script.
    #[error("no region of this name is owned here (owned: {owned}); alloc it before")]
    UnknownRegion {
        /// The names that are, joined by commas.
        owned: String,
    },
    /// A name that is taken.
    #[error("already allocated here; use grow, or another name")]
    Taken,
    /// More freed or kept hot than is there.
    #[error("{region} owns only {owned} here; ask for at most that")]
    MoreThanOwned {
        /// The region.
        region: String,
        /// What it owns, with a unit.
        owned: memtide_units::ByteSize,
    },
    /// A file that was made with another size.
    #[error("the file {file} has {made}; read all of it, or give the other file another name")]
    OtherSize {
        /// The file.
        file: String,
        /// What it was made with, with a unit.
        made: memtide_units::ByteSize,
    },
}
