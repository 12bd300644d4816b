//! What the agent is told: a TOML file, and the command line over it.
//!
//! Everything has a default; most guests need no file at all. A value that cannot be used stops
//! the agent before it has touched anything, with an error that names the key and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memtide_policy::guest::{
    COLD_AFTER, Limits, LimitsError, LimitsWish, PSI_GOAL_MAX, PSI_GOAL_MIN, ScaleBy,
};
use memtide_sysfs::damon::Module;
use memtide_sysfs::pci::Address;
use memtide_units::{ByteSize, PpMillion};
use serde::{Deserialize, Deserializer, de};

use crate::overcommit::OvercommitUse;
use crate::swap_space::SwapUse;

/// The file that is read where none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/memtide/agent.toml";
/// Where the agent keeps what must outlive it; systemd makes it.
pub const RUNTIME_DIR: &str = "/run/memtide-agent";
/// How long the gate may be silent before blocks are taken back unasked.
const GATE_DEADLINE: Duration = Duration::from_secs(10);
/// Shortest deadline: shorter than the host needs to restart its service is a trap.
const GATE_DEADLINE_LEAST: Duration = Duration::from_secs(1);

/// What to do about DAMON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DamonUse {
    /// Use it, and switch `damon_stat` off for as long as the agent runs.
    #[default]
    TakeOver,
    /// The same with `damon_reclaim` and `damon_lru_sort`: whoever had them page out or sort has the agent page out.
    TakeOverAll,
    /// Use it if nobody else does.
    Polite,
    /// Do without.
    Off,
}

impl DamonUse {
    /// Whether a module that uses DAMON is switched off for the agent.
    pub fn takes_over(self, module: Module) -> bool {
        match self {
            Self::TakeOver => module == Module::Stat,
            Self::TakeOverAll => true,
            Self::Polite | Self::Off => false,
        }
    }
}

/// Whether boot memory is made movable at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conversion {
    /// Yes, up to three movable blocks for each that stays the kernel's.
    #[default]
    Convert,
    /// No: blocks of kernel zones are stolen as they are, where they can be.
    Leave,
}

/// What the guest's size follows, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleWish {
    /// What is used, and the host's target besides.
    Use,
    /// The host's target alone, down and up, as a stock balloon driver does.
    Target,
}

impl From<ScaleWish> for ScaleBy {
    fn from(wish: ScaleWish) -> Self {
        match wish {
            ScaleWish::Use => Self::Use,
            ScaleWish::Target => Self::Target,
        }
    }
}

/// What to do about a balloon that is no Memtide device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PlainUse {
    /// Drive it: the host is told what is stolen and what is used again, and is not asked.
    #[default]
    Drive,
    /// Leave it to the stock driver, and do nothing.
    Leave,
}

/// How the agent notices what the device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum InterruptUse {
    /// By its interrupt, or by looking where it has none that user space can have.
    #[default]
    Auto,
    /// By looking.
    Poll,
}

/// Settings as they are written: in the file, or (some of them) on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wishes {
    /// Never steal below this, such as `"512MiB"`.
    #[serde(deserialize_with = "quoted")]
    pub min: Option<String>,
    /// Never take back beyond this.
    #[serde(deserialize_with = "quoted")]
    pub max: Option<String>,
    /// Acceptable pressure, such as `"0.1%"`.
    #[serde(deserialize_with = "quoted")]
    pub psi_goal: Option<String>,
    /// What the guest's size follows.
    pub scale_by: Option<ScaleWish>,
    /// Which function is the balloon, such as `"0000:00:03.0"`.
    #[serde(deserialize_with = "quoted")]
    pub pci: Option<String>,
    /// After how long without a decision blocks are taken back unasked: `"10s"`, or `"never"`.
    #[serde(deserialize_with = "quoted")]
    pub gate_deadline: Option<String>,
    /// What to do about DAMON.
    pub damon: Option<DamonUse>,
    /// Whether boot memory is made movable at start.
    pub convert: Option<bool>,
    /// What to do about large mappings while blocks are stolen.
    pub overcommit: Option<OvercommitUse>,
    /// Where cold memory is paged out to.
    pub swap: Option<SwapUse>,
    /// What to do about a balloon that is no Memtide device.
    pub plain_balloon: Option<PlainUse>,
    /// How the agent notices what the device has done.
    pub interrupt: Option<InterruptUse>,
    /// Where the agent keeps its state; on a tmpfs.
    pub runtime_dir: Option<PathBuf>,
    /// Nothing for users.
    #[serde(rename = "for-tests")]
    pub for_tests: ForTests,
}

/// What the project's end-to-end tests change, which cannot wait for as long as a guest in use may. No
/// guest needs it: neither the shipped file nor the help names it, and it may change or go with any
/// version (docs/testing.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForTests {
    /// What nobody has touched for so long is cold, at least a second.
    #[serde(deserialize_with = "age")]
    pub cold_after: Duration,
}

impl Default for ForTests {
    fn default() -> Self {
        Self { cold_after: COLD_AFTER }
    }
}

/// Settings that make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Limits as they were wished for; [`Config::limits`] checks them against the machine.
    pub wish: LimitsWish,
    /// What the guest's size follows.
    pub scale_by: ScaleBy,
    /// Which function is the balloon, where that is not plain.
    pub pci: Option<Address>,
    /// `None`: never take a block back unasked.
    pub gate_deadline: Option<Duration>,
    /// What to do about DAMON.
    pub damon: DamonUse,
    /// Whether boot memory is made movable at start.
    pub conversion: Conversion,
    /// What to do about large mappings while blocks are stolen.
    pub overcommit: OvercommitUse,
    /// Where cold memory is paged out to.
    pub swap: SwapUse,
    /// What to do about a balloon that is no Memtide device.
    pub plain_balloon: PlainUse,
    /// How the agent notices what the device has done.
    pub interrupt: InterruptUse,
    /// Where the agent keeps its state.
    pub runtime_dir: PathBuf,
    /// Nothing for users.
    pub for_tests: ForTests,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {source}; make it readable, or name another with --config", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown key or a value of another type.
    #[error("{}, {message}; correct or remove that line (memtide-agent run --help explains all settings)", .path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value cannot be used.
    #[error("{key}: {problem}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The limits contradict each other.
    #[error(transparent)]
    Limits(#[from] LimitsError),
}

impl Wishes {
    /// Reads a file; the default one may be missing.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], [`ConfigError::Syntax`].
    pub fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Unreadable { path: path.into(), source }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            // The library's text does not name the key, but the line does.
            let quote = text.lines().nth(line - 1).unwrap_or_default().trim();
            let message = format!("line {line}, `{quote}`: {}", error.message());
            ConfigError::Syntax { path: path.into(), message }
        })
    }

    /// These, and where they say nothing, `others`.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            min: self.min.or(others.min),
            max: self.max.or(others.max),
            psi_goal: self.psi_goal.or(others.psi_goal),
            scale_by: self.scale_by.or(others.scale_by),
            pci: self.pci.or(others.pci),
            gate_deadline: self.gate_deadline.or(others.gate_deadline),
            damon: self.damon.or(others.damon),
            convert: self.convert.or(others.convert),
            overcommit: self.overcommit.or(others.overcommit),
            swap: self.swap.or(others.swap),
            plain_balloon: self.plain_balloon.or(others.plain_balloon),
            interrupt: self.interrupt.or(others.interrupt),
            runtime_dir: self.runtime_dir.or(others.runtime_dir),
            // The command line has none.
            for_tests: others.for_tests,
        }
    }

    /// Checks all of them.
    ///
    /// # Errors
    /// [`ConfigError::Value`], [`ConfigError::Limits`].
    pub fn check(self) -> Result<Config, ConfigError> {
        let wish = LimitsWish {
            min: parsed("min", self.min.as_deref())?,
            max: parsed("max", self.max.as_deref())?,
            psi_goal: self.psi_goal.as_deref().map(percent).transpose()?,
        };
        // What can be judged without knowing the machine is judged now.
        Limits::new(ByteSize::MAX, wish)?;
        let gate_deadline = self.gate_deadline.as_deref().map(deadline).transpose()?;
        Ok(Config {
            wish,
            scale_by: self.scale_by.map(ScaleBy::from).unwrap_or_default(),
            pci: parsed("pci", self.pci.as_deref())?,
            gate_deadline: gate_deadline.unwrap_or(Some(GATE_DEADLINE)),
            damon: self.damon.unwrap_or_default(),
            conversion: match self.convert {
                Some(false) => Conversion::Leave,
                Some(true) | None => Conversion::Convert,
            },
            overcommit: self.overcommit.unwrap_or_default(),
            swap: self.swap.unwrap_or_default(),
            plain_balloon: self.plain_balloon.unwrap_or_default(),
            interrupt: self.interrupt.unwrap_or_default(),
            runtime_dir: self.runtime_dir.unwrap_or_else(|| RUNTIME_DIR.into()),
            for_tests: self.for_tests,
        })
    }
}

impl Config {
    /// The limits on a machine with so much memory.
    ///
    /// # Errors
    /// [`ConfigError::Limits`].
    pub fn limits(&self, present: ByteSize) -> Result<Limits, ConfigError> {
        Ok(Limits::new(present, self.wish)?)
    }
}

/// A text. `min = 512` is a number without its unit: the error says what to write.
fn quoted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct Quoted;
    impl de::Visitor<'_> for Quoted {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value in quotes, with its unit where it has one")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.into())
        }
    }
    deserializer.deserialize_str(Quoted).map(Some)
}

/// A time of a second or more.
fn age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let age = time(&String::deserialize(deserializer)?).map_err(de::Error::custom)?;
    if age < Duration::from_secs(1) {
        return Err(de::Error::custom("it is shorter than 1s"));
    }
    Ok(age)
}

fn value(key: &'static str, problem: impl ToString) -> ConfigError {
    ConfigError::Value { key, problem: problem.to_string() }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    key: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, ConfigError> {
    text.map(str::parse).transpose().map_err(|error| value(key, error))
}

/// `0.1%` or `0.1 %`: up to four digits behind the point.
fn percent(text: &str) -> Result<PpMillion, ConfigError> {
    let wrong = || {
        value("psi_goal", format!("{text:?} is no share from 0.01% to 10%: write for example 0.1%"))
    };
    let number = text.trim().strip_suffix('%').ok_or_else(wrong)?.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.len() > 3 || fraction.len() > 4 {
        return Err(wrong());
    }
    let parts: (u32, u32) =
        (whole.parse().map_err(|_| wrong())?, fraction.parse().map_err(|_| wrong())?);
    let scale = 10_u32.pow(4 - fraction.len() as u32);
    let share = PpMillion(parts.0 * 10_000 + parts.1 * scale);
    // Checked here already, where the text is known: a share below 0.01 % would print as 0.00 %.
    if (PSI_GOAL_MIN..=PSI_GOAL_MAX).contains(&share) { Ok(share) } else { Err(wrong()) }
}

/// `10s`, `2min`, `1500ms`, or `never`.
fn deadline(text: &str) -> Result<Option<Duration>, ConfigError> {
    if text.trim() == "never" {
        return Ok(None);
    }
    let time = time(text).map_err(|problem| value("gate_deadline", problem + ", or never"))?;
    if time < GATE_DEADLINE_LEAST {
        let problem =
            "it is shorter than 1s: the host could not even restart its service; use 1s or more";
        return Err(value("gate_deadline", problem));
    }
    Ok(Some(time))
}

/// `10s`, `2min` or `1500ms`.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write for example 1500ms, 10s or 2min");
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..split].parse().map_err(|_| wrong())?;
    let ms = match text[split..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(ms).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests;
