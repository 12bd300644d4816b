//! A history as JSON, and back: a file of the agent's, or an answer of memtided's.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::history::{Column, History, Limits};

/// The version of the text.
const VERSION: u32 = 1;
/// Longest text that is read, in bytes: the largest history is some 350 KiB.
pub const FILE_MAX: usize = 1 << 20;
/// Columns that are read, at most.
const COLUMNS_MAX: usize = Limits::AGENT.columns;

/// Why text is no history.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Too long.
    #[error("it has {0} bytes, more than the {FILE_MAX} that a history can have")]
    Long(usize),
    /// No JSON, or of another shape.
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// Of another version of this program.
    #[error("it is of version {0}, and this program reads version {VERSION}")]
    Version(u32),
    /// It contradicts itself.
    #[error("it is damaged: {0}")]
    Contradiction(&'static str),
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Document {
    version: u32,
    columns: Vec<Column>,
    last: Option<Digest>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    columns: &'a std::collections::VecDeque<Column>,
    last: Option<&'a Digest>,
}

impl History {
    /// As JSON, some 350 KiB at most.
    ///
    /// # Errors
    /// Of serialisation: none for these types.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// Reads what [`Self::to_json`] has written, to go on with `limits`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn from_json(text: &str, limits: Limits) -> Result<Self, FileError> {
        if text.len() > FILE_MAX {
            return Err(FileError::Long(text.len()));
        }
        // First of all, so that another version is called that and not damage.
        let Version { version } = serde_json::from_str(text)?;
        if version != VERSION {
            return Err(FileError::Version(version));
        }
        let mut history = Self::try_from(serde_json::from_str::<Document>(text)?)?;
        history.limits = Self::new(limits).limits;
        Ok(history)
    }
}

impl TryFrom<Document> for History {
    type Error = FileError;
    fn try_from(document: Document) -> Result<Self, FileError> {
        if document.version != VERSION {
            return Err(FileError::Version(document.version));
        }
        check(&document).map_err(FileError::Contradiction)?;
        let mut history = Self::new(Limits::AGENT);
        history.columns = document.columns.into();
        history.last = document.last;
        Ok(history)
    }
}

impl Serialize for History {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (columns, last) = (&self.columns, self.last.as_ref());
        Written { version: VERSION, columns, last }.serialize(to)
    }
}

/// As [`History::from_json`] does, with the agent's limits; how much is read is the caller's to bound.
impl<'de> Deserialize<'de> for History {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::try_from(Document::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

fn check(document: &Document) -> Result<(), &'static str> {
    let Document { columns, last, .. } = document;
    if columns.len() > COLUMNS_MAX {
        return Err("there are too many columns");
    }
    if columns.is_empty() != last.is_none() {
        return Err("a last snapshot and no columns, or the other way round");
    }
    if columns.iter().any(|column| column.from_ms > column.to_ms) {
        return Err("a column ends before it begins");
    }
    if columns.windows(2).any(|two| two[0].to_ms > two[1].from_ms) {
        return Err("columns overlap");
    }
    if let Some(last) = last {
        if columns.iter().any(|column| column.cells.len() != last.cells.len()) {
            return Err("a column has not one cell for each of the layout's");
        }
        if columns.last().is_some_and(|column| column.to_ms != last.at_ms) {
            return Err("the last column is not of the last snapshot");
        }
    }
    Ok(())
}

/// Cells as text: base64 of two bytes each.
pub(crate) mod text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::cell::Cell;
    use crate::layout::CELLS_MAX;

    pub(crate) fn serialize<S: Serializer>(cells: &[Cell], to: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_bytes()).collect();
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Cell>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let (pairs, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() > CELLS_MAX {
            return Err(D::Error::custom(format!("{} bytes are no cells", bytes.len())));
        }
        Ok(pairs.iter().map(|pair| Cell::from_bytes(*pair)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::digest;
    use proptest::prelude::*;

    fn history() -> History {
        let mut history = History::new(Limits::AGENT);
        for at in (2..2_000).step_by(2) {
            history.observe(digest(&history, at, (2048, 64)));
        }
        history
    }

    #[test]
    fn the_largest_history_is_read_back_as_it_was() {
        let history = history();
        let text = history.to_json().unwrap();
        assert!(text.len() < 400 << 10, "{} bytes", text.len());
        assert_eq!(History::from_json(&text, Limits::AGENT).unwrap(), history);
        let empty = History::new(Limits::HOST);
        let text = empty.to_json().unwrap();
        assert_eq!(History::from_json(&text, Limits::HOST).unwrap(), empty);
    }

    #[test]
    fn a_smaller_keeper_makes_it_fit_with_its_next_snapshot() {
        let text = history().to_json().unwrap();
        let mut history = History::from_json(&text, Limits::HOST).unwrap();
        history.observe(digest(&history, 3_000, (2048, 64)));
        assert!(history.columns().len() <= Limits::HOST.columns);
    }

    #[test]
    fn what_is_no_history_says_why() {
        let said = |text: &str| History::from_json(text, Limits::AGENT).unwrap_err().to_string();
        let text = history().to_json().unwrap();
        assert!(said(&text[..900]).contains("damaged"));
        assert!(said("").contains("damaged"));
        assert!(said(&" ".repeat(FILE_MAX + 1)).contains("more than"));
        assert!(said(&text.replace("\"version\":1", "\"version\":2")).contains("version 2"));
        assert!(said(r#"{"version":1,"columns":[],"last":5}"#).contains("damaged"));
        let column = r#"{"from_ms":9,"to_ms":5,"snapshots":1,"working_set":null,"cells":""}"#;
        let only = format!(r#"{{"version":1,"columns":[{column}],"last":null}}"#);
        assert!(said(&only).contains("no columns"));
        let last = &text[text.find("\"last\":").unwrap()..];
        let odd = format!(r#"{{"version":1,"columns":[{column}],{last}"#);
        assert!(said(&odd).contains("before it begins"));
        let short = odd.replace("\"to_ms\":5", "\"to_ms\":50");
        assert!(said(&short).contains("one cell for each"), "{}", said(&short));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(at in 0_usize..60_000, with in "[ -~]{0,12}") {
            static WHOLE: std::sync::LazyLock<String> =
                std::sync::LazyLock::new(|| history().to_json().unwrap());
            let mut text = WHOLE.clone();
            text.replace_range(at..at + with.len(), &with);
            if let Ok(mut read) = History::from_json(&text, Limits::AGENT) {
                read.observe(digest(&read, 3_000, (2048, 64)));
            }
        }
    }
}
