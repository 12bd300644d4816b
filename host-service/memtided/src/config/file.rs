//! The configuration file: TOML, unknown keys refused.

use std::fmt;
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
    vm: RawVms,
}

/// What is needed is optional here, so that its absence is told with a remedy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVm {
    name: Option<Spanned<String>>,
    min: Option<Size>,
    max: Option<Size>,
    device: Option<RawDevice>,
    vhost_socket: Option<PathBuf>,
    control: Option<PathBuf>,
    qmp: Option<PathBuf>,
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
        let parse = |text: &str| text.parse().map_err(|error| format!("{error}"));
        let expected = "a size with its unit in quotes, such as \"512MiB\"";
        deserializer.deserialize_str(Quoted { expected, parse }).map(Self)
    }
}

struct RawBudget(Budget);

impl<'de> Deserialize<'de> for RawBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a size with its unit in quotes, such as \"4GiB\", or \"host\"";
        deserializer.deserialize_str(Quoted { expected, parse: parse_budget }).map(Self)
    }
}

/// Reads a text, and tells whoever wrote something else what to write.
struct Quoted<P> {
    expected: &'static str,
    parse: P,
}

impl<T, P: FnOnce(&str) -> Result<T, String>> de::Visitor<'_> for Quoted<P> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

/// All `[[vm]]`.
#[derive(Default)]
struct RawVms(Vec<Spanned<RawVm>>);

impl<'de> Deserialize<'de> for RawVms {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(VmTables).map(Self)
    }
}

struct VmTables;

impl<'de> de::Visitor<'de> for VmTables {
    type Value = Vec<Spanned<RawVm>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list: write [[vm]], with two brackets, above each VM")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut tables: A) -> Result<Self::Value, A::Error> {
        let mut vms = Vec::new();
        while let Some(vm) = tables.next_element()? {
            vms.push(vm);
        }
        Ok(vms)
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
        let start = vm.get_ref().name.as_ref().map_or(vm.span(), Spanned::span).start;
        let line = line_of(text, start);
        draft(vm.into_inner(), format!("{}, line {line}", path.display()))
    };
    Ok(FileConfig {
        socket: raw.socket,
        budget: raw.budget.map(|budget| budget.0),
        vms: raw.vm.0.into_iter().map(draft).collect::<Result<_, _>>()?,
    })
}

fn draft(vm: RawVm, place: String) -> Result<Draft, ConfigError> {
    let missing =
        |message: &str| ConfigError::Value { place: place.clone(), message: message.into() };
    let name = vm.name.ok_or_else(|| missing("name: a VM needs one: add name = \"web1\""))?;
    let min = vm.min.ok_or_else(|| {
        missing("min: what the VM is guaranteed is not said: add min = \"512MiB\" or more")
    })?;
    let device = vm.device.ok_or_else(|| {
        missing(
            "device: who starts the device process is not said: add device = \"start\" if \
             memtided shall, device = \"adopt\" if somebody else does",
        )
    })?;
    Ok(Draft {
        name: name.into_inner(),
        min: Some(min.0),
        max: vm.max.map(|max| max.0),
        start: device == RawDevice::Start,
        vhost_socket: vm.vhost_socket,
        control: vm.control,
        qmp: vm.qmp,
        place,
    })
}

/// The line that holds the byte, from one.
fn line_of(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|b| *b == b'\n').count()
}
