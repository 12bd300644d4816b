//! Words, ends of commands and braces, each with its place.

use super::{Position, Word};

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) at: Position,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A command, a name, a number.
    Word,
    /// A semicolon or the end of a line.
    End,
    /// `{`
    Open,
    /// `}`
    Close,
}

impl Token<'_> {
    /// The token as a word that outlives the script's text.
    pub(super) fn to_word(self) -> Word {
        Word { text: self.text.to_owned(), at: self.at }
    }
}

/// All tokens of `text`; every line ends with [`Kind::End`].
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let code = line.split('#').next().unwrap_or_default();
        line_tokens(code, number, &mut tokens);
    }
    tokens
}

fn line_tokens<'a>(code: &'a str, line: u32, tokens: &mut Vec<Token<'a>>) {
    let mut rest = code;
    let mut column = 1;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = match first {
            ';' => (Some(Kind::End), 1),
            '{' => (Some(Kind::Open), 1),
            '}' => (Some(Kind::Close), 1),
            _ if first.is_whitespace() => (None, first.len_utf8()),
            _ => (Some(Kind::Word), rest.find(ends_word).unwrap_or(rest.len())),
        };
        let (text, after) = rest.split_at(length);
        let at = Position { line, column };
        tokens.extend(kind.map(|kind| Token { kind, text, at }));
        column += text.chars().map(|_| 1).sum::<u32>();
        rest = after;
    }
    tokens.push(Token { kind: Kind::End, text: "", at: Position { line, column } });
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, ';' | '{' | '}')
}
