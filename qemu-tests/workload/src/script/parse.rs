//! From tokens to steps.

use std::iter::Peekable;
use std::time::Duration;
use std::vec::IntoIter;

use memtide_units::ByteSize;

use super::error::Problem;
use super::token::{Kind, Token, tokens};
use super::{Command, Pages, Position, STEPS_MAX, ScriptError, Step, Word};
use crate::pattern::PAGE_BYTES;

/// Depth of nested `repeat`. Deeper ones are typing errors, and the parser's stack stays bounded.
const DEPTH_MAX: usize = 8;

/// The largest size: its page count still fits a stamp's 32 bits, sums of [`STEPS_MAX`] of them
/// fit 64 bits, and a typing error is caught before `mmap` refuses it.
const SIZE_MAX: ByteSize = ByteSize::from_gib(1024);

/// Characters of a region's name: short enough for a chart's legend.
const NAME_MAX: usize = 32;

/// The longest phase. Beyond it, sums of phases could leave what the kernel's clock can wait for.
const TIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The steps of a script, `repeat` unrolled.
pub(super) fn steps(text: &str) -> Result<Vec<Step>, ScriptError> {
    let mut parser = Parser { tokens: tokens(text).into_iter().peekable() };
    let steps = parser.block(None, 0)?;
    if steps.is_empty() {
        let start = Word { text: String::new(), at: Position { line: 1, column: 1 } };
        return Err(ScriptError::new(&start, Problem::Empty));
    }
    Ok(steps)
}

struct Parser<'a> {
    tokens: Peekable<IntoIter<Token<'a>>>,
}

impl Parser<'_> {
    /// Steps up to the brace that closes `open`, or up to the end where nothing is open.
    fn block(&mut self, open: Option<&Word>, depth: usize) -> Result<Vec<Step>, ScriptError> {
        let mut steps = Vec::new();
        while let Some(token) = self.tokens.next() {
            let word = token.to_word();
            match token.kind {
                Kind::End => {}
                Kind::Open => return Err(ScriptError::new(&word, Problem::StrayOpen)),
                Kind::Close if open.is_some() => return Ok(steps),
                Kind::Close => return Err(ScriptError::new(&word, Problem::StrayClose)),
                Kind::Word if token.text == "repeat" => steps.extend(self.repeat(&word, depth)?),
                Kind::Word => steps.push(Line::new(word, self.rest_of_line()).step()?),
            }
            if steps.len() > STEPS_MAX {
                return Err(ScriptError::new(&token.to_word(), Problem::TooManySteps));
            }
        }
        open.map_or(Ok(steps), |brace| Err(ScriptError::new(brace, Problem::Unclosed)))
    }

    /// The steps of `repeat N { ... }`, after its first word.
    fn repeat(&mut self, command: &Word, depth: usize) -> Result<Vec<Step>, ScriptError> {
        if depth == DEPTH_MAX {
            return Err(ScriptError::new(command, Problem::TooDeep(DEPTH_MAX)));
        }
        let mut line = Line::new(command.clone(), self.rest_of_line());
        line.usage = "repeat N { ... }";
        let number = line.next("the number of repetitions")?;
        let count = number.text.parse::<usize>();
        let count = count.map_err(|_| ScriptError::new(&number, Problem::BadCount))?;
        if let Some(word) = line.words.next() {
            return Err(ScriptError::new(&word, line.lacks("the opening brace")));
        }
        let open = self.tokens.next_if(|token| token.kind == Kind::Open).map(Token::to_word);
        let open = open.ok_or_else(|| line.missing("the opening brace"))?;
        let body = self.block(Some(&open), depth + 1)?;
        if body.len().saturating_mul(count) > STEPS_MAX {
            return Err(ScriptError::new(&number, Problem::TooManySteps));
        }
        // Cycled by length: an empty body repeated 2^60 times must not be walked.
        let length = body.len() * count;
        Ok(body.into_iter().cycle().take(length).collect())
    }

    /// The words up to the end of the command; what ends it stays.
    fn rest_of_line(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(token) = self.tokens.next_if(|token| token.kind == Kind::Word) {
            words.push(token.to_word());
        }
        words
    }
}

/// One command's words, taken off one by one.
struct Line {
    command: Word,
    words: IntoIter<Word>,
    name: String,
    usage: &'static str,
}

impl Line {
    fn new(command: Word, words: Vec<Word>) -> Self {
        let texts = words.iter().map(|word| word.text.as_str());
        let name = [command.text.as_str()].into_iter().chain(texts).collect::<Vec<_>>().join(" ");
        Self { command, words: words.into_iter(), name, usage: "" }
    }

    fn step(mut self) -> Result<Step, ScriptError> {
        let usage = usage_of(&self.command.text);
        self.usage =
            usage.ok_or_else(|| ScriptError::new(&self.command, Problem::UnknownCommand))?;
        let command = self.arguments()?;
        self.end()?;
        Ok(Step { command, name: self.name, at: self.command.at })
    }

    fn arguments(&mut self) -> Result<Command, ScriptError> {
        Ok(match self.command.text.as_str() {
            "alloc" => Command::Alloc(self.region()?, self.pages()?),
            "grow" => Command::Grow(self.region()?, self.pages()?),
            "hot" => Command::Hot(self.region()?, self.pages()?, self.time()?),
            "idle" => Command::Idle(self.time()?),
            "files" => Command::Files(self.pages()?, self.time()?),
            "read" => Command::Read(self.region()?, self.pages()?),
            "free" => Command::Free(self.region()?, self.words.next().map(pages).transpose()?),
            "verify" => Command::Verify(self.words.next().map(region).transpose()?),
            "wait" => Command::Wait,
            _ => return Err(ScriptError::new(&self.command, Problem::UnknownCommand)),
        })
    }

    fn region(&mut self) -> Result<Word, ScriptError> {
        self.next("the region's name").and_then(region)
    }

    fn pages(&mut self) -> Result<Pages, ScriptError> {
        self.next("the size").and_then(pages)
    }

    fn time(&mut self) -> Result<Duration, ScriptError> {
        let word = self.next("the time")?;
        time(&word.text).map_err(|problem| ScriptError::new(&word, problem))
    }

    fn next(&mut self, what: &'static str) -> Result<Word, ScriptError> {
        self.words.next().ok_or_else(|| self.missing(what))
    }

    fn missing(&self, missing: &'static str) -> ScriptError {
        ScriptError::new(&self.command, self.lacks(missing))
    }

    fn lacks(&self, missing: &'static str) -> Problem {
        Problem::Missing { missing, usage: self.usage }
    }

    fn end(&mut self) -> Result<(), ScriptError> {
        let usage = self.usage;
        let too_many = |word: Word| Err(ScriptError::new(&word, Problem::TooMany { usage }));
        self.words.next().map_or(Ok(()), too_many)
    }
}

fn usage_of(command: &str) -> Option<&'static str> {
    Some(match command {
        "alloc" => "alloc NAME SIZE",
        "grow" => "grow NAME SIZE",
        "hot" => "hot NAME SIZE TIME",
        "idle" => "idle TIME",
        "free" => "free NAME, or free NAME SIZE",
        "files" => "files SIZE TIME",
        "read" => "read NAME SIZE",
        "verify" => "verify, or verify NAME",
        "wait" => "wait",
        _ => return None,
    })
}

fn region(word: Word) -> Result<Word, ScriptError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let starts_well = word.text.starts_with(|c: char| c.is_ascii_alphabetic());
    if starts_well && word.text.len() <= NAME_MAX && word.text.chars().all(inner) {
        Ok(word)
    } else {
        Err(ScriptError::new(&word, Problem::BadName))
    }
}

fn pages(word: Word) -> Result<Pages, ScriptError> {
    let wrong = |problem| ScriptError::new(&word, problem);
    let size: ByteSize = word.text.parse().map_err(|error| wrong(Problem::BadSize(error)))?;
    if size > SIZE_MAX {
        return Err(wrong(Problem::TooLarge));
    }
    let page = PAGE_BYTES as u64;
    match usize::try_from(size.bytes() / page) {
        Ok(count) if count > 0 && size.bytes().is_multiple_of(page) => Ok(Pages { count, word }),
        _ => Err(wrong(Problem::NotPages)),
    }
}

/// A number of at most nine digits (so that nothing overflows below) and its unit.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn time(text: &str) -> Result<Duration, Problem> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "min" => Duration::from_secs(60),
        _ => return Err(Problem::BadTime),
    };
    let (whole, thousandths) = decimal(number).ok_or(Problem::BadTime)?;
    let time = unit.saturating_mul(whole).saturating_add(unit * thousandths / 1000);
    if time > TIME_MAX { Err(Problem::TooLong) } else { Ok(time) }
}

/// `12` or `1.5` as whole and thousandths; further digits are refused rather than dropped.
fn decimal(number: &str) -> Option<(u32, u32)> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !digits(whole) || !digits(fraction) || fraction.len() > 3 {
        return None;
    }
    Some((whole.parse().ok()?, format!("{fraction:0<3}").parse().ok()?))
}
