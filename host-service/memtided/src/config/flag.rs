//! `--vm` and `--budget`: a configuration without a file.

use std::collections::BTreeSet;

use memtide_api::http::Budget;
use memtide_units::ByteSize;

use super::{ConfigError, Draft, parse_budget};

const FORM: &str = "name=NAME,control=PATH[,min=SIZE][,max=SIZE][,qmp=PATH]";

/// The budget of `--budget`.
pub(super) fn budget(text: &str) -> Result<Budget, ConfigError> {
    parse_budget(text).map_err(|message| ConfigError::Value { place: "--budget".into(), message })
}

/// The VM of one `--vm`.
pub(super) fn vm(text: &str) -> Result<Draft, ConfigError> {
    let place = format!("--vm {text}");
    let wrong = |message: String| ConfigError::Value { place: place.clone(), message };
    let mut draft = Draft {
        place: place.clone(),
        name: String::new(),
        min: None,
        max: None,
        start: false,
        vhost_socket: None,
        control: None,
        qmp: None,
    };
    let size = |key: &str, value: &str| {
        value.parse::<ByteSize>().map_err(|e| wrong(format!("{key}: {e}")))
    };
    let mut seen = BTreeSet::new();
    for part in text.split(',') {
        let key = part.split('=').next().unwrap_or_default();
        if !seen.insert(key) {
            return Err(wrong(format!("{key}: it is given twice: keep one, and write {FORM}")));
        }
        match part.split_once('=') {
            Some(("name", value)) => draft.name = value.into(),
            Some(("control", value)) => draft.control = Some(value.into()),
            Some(("min", value)) => draft.min = Some(size("min", value)?),
            Some(("max", value)) => draft.max = Some(size("max", value)?),
            Some(("qmp", value)) => draft.qmp = Some(value.into()),
            _ => return Err(wrong(format!("{part:?} is not understood: write {FORM}"))),
        }
    }
    if draft.name.is_empty() || draft.control.is_none() {
        return Err(wrong(format!("name and control are needed: write {FORM}")));
    }
    Ok(draft)
}
