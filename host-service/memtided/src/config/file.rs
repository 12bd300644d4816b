//! The configuration file: TOML, unknown keys refused.

use std::io;
use std::path::{Path, PathBuf};

use memtide_api::http::Budget;
use memtide_units::ByteSize;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::{ConfigError, Draft, parse_budget};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct FileConfig {
    pub(super) socket: Option<PathBuf>,
    pub(super) budget: Option<Budget>,
    pub(super) vms: Vec<Draft>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    socket: Option<PathBuf>,
    budget: Option<RawBudget>,
    #[serde(default)]
    vm: Vec<Spanned<RawVm>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVm {
    name: Spanned<String>,
    min: Size,
    max: Option<Size>,
    device: RawDevice,
    vhost_socket: Option<PathBuf>,
    control: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawDevice {
    Start,
    Adopt,
}

/// A size with its unit, so that an error about it stands at its line.
struct Size(ByteSize);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

struct RawBudget(Budget);

impl<'de> Deserialize<'de> for RawBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_budget(&text).map(Self).map_err(de::Error::custom)
    }
}

/// Reads a file that must be there.
pub(super) fn read(path: &Path) -> Result<FileConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(path, &text)
}

/// Reads a file that need not be there.
pub(super) fn read_if_there(path: &Path) -> Result<FileConfig, ConfigError> {
    match read(path) {
        Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(FileConfig::default())
        }
        other => other,
    }
}

fn parse(path: &Path, text: &str) -> Result<FileConfig, ConfigError> {
    let raw: RawFile = toml::from_str(text)
        .map_err(|source| ConfigError::Syntax { path: path.into(), source: Box::new(source) })?;
    let draft = |vm: Spanned<RawVm>| {
        let line = line_of(text, vm.get_ref().name.span().start);
        draft(vm.into_inner(), format!("{}, line {line}", path.display()))
    };
    Ok(FileConfig {
        socket: raw.socket,
        budget: raw.budget.map(|budget| budget.0),
        vms: raw.vm.into_iter().map(draft).collect(),
    })
}

fn draft(vm: RawVm, place: String) -> Draft {
    Draft {
        place,
        name: vm.name.into_inner(),
        min: Some(vm.min.0),
        max: vm.max.map(|max| max.0),
        start: vm.device == RawDevice::Start,
        vhost_socket: vm.vhost_socket,
        control: vm.control,
    }
}

/// The line that holds the byte, from one.
fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|b| *b == b'\n').count()
}
