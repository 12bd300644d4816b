//! `memtide wss` and `memtide heat`: the same views as `memtide-agent` has of its own guest.

use std::io;
use std::path::{Path, PathBuf};

use memtide_access::render::{self, Paint, PngError};
use memtide_access::{Heat, WorkingSet};
use memtide_api::http::VmAccess;
use memtide_device_ctl::Form;
use memtide_device_ctl::output::Colour;
use memtide_device_ctl::text::{printable, wrapped};

use crate::args::{Drawing, Window};

/// What the agent told longer ago than this is shown with its age, in milliseconds.
const STALE_MS: u64 = 30_000;

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    #[error("memtided has no look at that VM yet: try again in a few seconds")]
    Nothing,
    #[error("{}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Png(#[from] PngError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

type Text = Result<String, AccessError>;

/// The working set.
pub(crate) fn wss(told: &VmAccess, form: Form, window: &Window) -> Text {
    let set = WorkingSet::of(&told.history, window.ms()).ok_or(AccessError::Nothing)?;
    match form {
        Form::Json => as_json(&set),
        Form::Human => Ok(age(told) + &render::working_set(&set, paint())),
    }
}

/// The heat map.
pub(crate) fn heat(
    (name, told): &(&str, VmAccess),
    form: Form,
    drawing: &Drawing,
    window: &Window,
) -> Text {
    let history = &told.history;
    let title = format!("Access to the memory of {}", printable(name));
    let mut said = String::new();
    if let Some(path) = &drawing.svg {
        let svg = render::svg(history, &title, window.ms()).ok_or(AccessError::Nothing)?;
        said += &put(path, svg.as_bytes())?;
    }
    if let Some(path) = &drawing.png {
        let png = render::png(history, &title, window.ms())?.ok_or(AccessError::Nothing)?;
        said += &put(path, &png)?;
    }
    if !said.is_empty() {
        return Ok(said);
    }
    match form {
        Form::Json => as_json(&Heat::of(history).ok_or(AccessError::Nothing)?),
        Form::Human => {
            let drawn = render::heat_map(history, (drawing.width.into(), paint()), window.ms());
            Ok(age(told) + &drawn.ok_or(AccessError::Nothing)?)
        }
    }
}

fn age(told: &VmAccess) -> String {
    if told.age_ms < STALE_MS {
        return String::new();
    }
    let ago = render::time(told.age_ms);
    wrapped(&format!("Its agent told this {ago} ago, and nothing since."), 0) + "\n"
}

fn put(path: &Path, bytes: &[u8]) -> Text {
    match std::fs::write(path, bytes) {
        Ok(()) => Ok(format!("written: {}\n", path.display())),
        Err(source) => Err(AccessError::File { path: path.into(), source }),
    }
}

fn as_json(value: &impl serde::Serialize) -> Text {
    Ok(serde_json::to_string(value)? + "\n")
}

fn paint() -> Paint {
    match Colour::for_stdout() {
        Colour::Ansi => Paint::Ansi,
        Colour::Never => Paint::Plain,
    }
}
