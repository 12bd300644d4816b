//! `memtide-agent wss`, `heat` and `explain`: what the running agent has written down, for people and for
//! programs.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use memtide_access::render::{self, Paint};
use memtide_access::{FILE_MAX, Heat, History, Limits, WorkingSet};

use crate::access::monotonic_ms;
use crate::decisions::{self, Explained};
use crate::runtime::{access_path, decisions_path, read_at_most};
use crate::status::Status;

/// The picture's title.
const TITLE: &str = "Access to this guest's memory";

/// How much of the past is shown.
#[derive(Debug, Args)]
pub(crate) struct Window {
    /// Show only so much of the past, such as 10min [default: all that is kept, up to a day].
    #[arg(long, value_name = "TIME", value_parser = crate::config::time)]
    last: Option<Duration>,
}

impl Window {
    fn ms(&self) -> Option<u64> {
        self.last.map(|last| u64::try_from(last.as_millis()).unwrap_or(u64::MAX))
    }
}

/// What `heat` is to make.
#[derive(Debug, Args)]
pub(crate) struct HeatArgs {
    /// Print JSON, for programs: every cell and column that is kept.
    #[arg(long, conflicts_with_all = ["svg", "png", "width"])]
    json: bool,
    /// Write the map as an SVG picture.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write the map as a PNG picture.
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Draw the map for so many columns, 40 to 400.
    #[arg(long, value_name = "N", default_value_t = 80, value_parser = clap::value_parser!(u16).range(40..=400))]
    width: u16,
    #[command(flatten)]
    window: Window,
}

/// What the user sees, or why not.
type Said = Result<String, String>;

/// The working set.
pub(crate) fn wss(status: &Status, dir: &Path, json: bool, window: &Window) -> Said {
    let history = history(status, dir)?;
    let set = WorkingSet::of(&history, window.ms()).ok_or_else(|| nothing_yet(status))?;
    if json { as_json(&set) } else { Ok(render::working_set(&set, paint())) }
}

/// The heat map.
pub(crate) fn heat(status: &Status, dir: &Path, args: &HeatArgs) -> Said {
    let history = history(status, dir)?;
    let nothing = || nothing_yet(status);
    let window = args.window.ms();
    if args.json {
        return as_json(&Heat::of(&history).ok_or_else(nothing)?);
    }
    let mut said = String::new();
    if let Some(path) = &args.svg {
        let svg = render::svg(&history, TITLE, window).ok_or_else(nothing)?;
        said += &put(path, svg.as_bytes())?;
    }
    if let Some(path) = &args.png {
        let png = render::png(&history, TITLE, window).map_err(|error| error.to_string())?;
        said += &put(path, &png.ok_or_else(nothing)?)?;
    }
    if args.svg.is_none() && args.png.is_none() {
        let form = (usize::from(args.width), paint());
        said = render::heat_map(&history, form, window).ok_or_else(nothing)?;
    }
    Ok(said)
}

/// The last decisions, newest first.
pub(crate) fn explain(dir: &Path, json: bool, count: usize) -> Said {
    let path = decisions_path(dir);
    let entries = match decisions::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err("the agent has decided nothing yet: try again in a few seconds".into());
        }
        other => other.map_err(|error| unreadable(&path, &error.to_string()))?,
    };
    let last = &entries[entries.len().saturating_sub(count)..];
    if json {
        return as_json(&last);
    }
    Ok(Explained { entries: last, now_ms: monotonic_ms() }.to_string())
}

fn history(status: &Status, dir: &Path) -> Result<History, String> {
    let path = access_path(dir);
    let text = match read_at_most(&path, FILE_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(nothing_yet(status)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(format!(
                "{} is for root alone, as is all that tells which memory is in use: try again with sudo",
                path.display()
            ));
        }
        other => other.map_err(|error| unreadable(&path, &error.to_string()))?,
    };
    History::from_json(&text, Limits::AGENT).map_err(|error| unreadable(&path, &error.to_string()))
}

/// Why there is no history.
fn nothing_yet(status: &Status) -> String {
    match status.unwatched() {
        Some(why) => format!(
            "nobody watches what is touched in this guest: {why}; a kernel with DAMON (Debian: 6.12 and \
             later) and damon = \"take-over\" in /etc/memtide/agent.toml would have it watched"
        ),
        None => "the agent has no snapshot of DAMON's yet: the first one comes some ten seconds after its \
                 start, try again then"
            .into(),
    }
}

fn unreadable(path: &Path, why: &str) -> String {
    format!(
        "{} cannot be used: {why}; the agent writes it anew within seconds, and if that does not help: \
         systemctl restart memtide-agent",
        path.display()
    )
}

fn put(path: &Path, bytes: &[u8]) -> Said {
    std::fs::write(path, bytes)
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    Ok(format!("written: {}\n", path.display()))
}

fn as_json(value: &impl serde::Serialize) -> Said {
    serde_json::to_string(value).map(|text| text + "\n").map_err(|error| error.to_string())
}

/// Colours on a terminal, unless the user wishes otherwise (no-color.org).
fn paint() -> Paint {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if io::stdout().is_terminal() && !unwanted { Paint::Ansi } else { Paint::Plain }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Lack;
    use crate::status::tests::status;
    use memtide_access::{Digest, Region, Snapshot};
    use memtide_units::{ByteSize, Gpa, GpaRange, Permille};

    fn args() -> HeatArgs {
        let window = Window { last: None };
        HeatArgs { json: false, svg: None, png: None, width: 80, window }
    }

    fn watched(dir: &Path) {
        let memory = GpaRange::new(Gpa(0), ByteSize::from_mib(256)).unwrap();
        let age = Duration::from_secs(50);
        let region = Region { range: memory, accessed: Permille(0), age };
        let mut history = History::new(Limits::AGENT);
        let seen = Snapshot {
            at_ms: 90_000,
            watched: age,
            regions: &[region],
            stolen: &[],
            free: ByteSize::ZERO,
            mix: None,
            touched: None,
        };
        history.observe(Digest::of(history.layout(&[memory]).unwrap(), &seen));
        std::fs::write(access_path(dir), history.to_json().unwrap()).unwrap();
    }

    #[test]
    fn what_is_missing_is_said_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let window = Window { last: None };
        let said = wss(&status(), dir.path(), false, &window).unwrap_err();
        assert!(said.contains("try again"), "{said}");
        let mut blind = status();
        blind.lacks.push(Lack::damon("this kernel has no DAMON"));
        let said = heat(&blind, dir.path(), &args()).unwrap_err();
        assert!(said.contains("this kernel has no DAMON; a kernel with DAMON"), "{said}");
        for bad in ["", "{\"version\":9}", "[]"] {
            std::fs::write(access_path(dir.path()), bad).unwrap();
            let said = heat(&status(), dir.path(), &args()).unwrap_err();
            assert!(said.contains("access.json cannot be used"), "{said}");
        }
        let said = explain(dir.path(), false, 9).unwrap_err();
        assert!(said.contains("nothing yet"), "{said}");
        std::fs::write(decisions_path(dir.path()), "[").unwrap();
        assert!(explain(dir.path(), true, 9).unwrap_err().contains("decisions.json"));
    }

    #[test]
    fn each_form_is_made() {
        let dir = tempfile::tempdir().unwrap();
        watched(dir.path());
        let text = heat(&status(), dir.path(), &args()).unwrap();
        assert!(text.contains("|444"), "{text}");
        let (svg, png) = (dir.path().join("heat.svg"), dir.path().join("heat.png"));
        let both = HeatArgs { svg: Some(svg.clone()), png: Some(png.clone()), ..args() };
        let said = heat(&status(), dir.path(), &both).unwrap();
        assert_eq!(said.lines().count(), 2);
        assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
        assert!(std::fs::read(png).unwrap().starts_with(b"\x89PNG"));
        let json = heat(&status(), dir.path(), &HeatArgs { json: true, ..args() }).unwrap();
        assert_eq!(serde_json::from_str::<Heat>(&json).unwrap().addresses.len(), 256);
        let set = wss(&status(), dir.path(), true, &Window { last: None }).unwrap();
        let set: WorkingSet = serde_json::from_str(&set).unwrap();
        assert_eq!(set.now.untouched[0].mib(), 256);
        let nowhere = HeatArgs { svg: Some("/nowhere/heat.svg".into()), ..args() };
        assert!(heat(&status(), dir.path(), &nowhere).unwrap_err().contains("/nowhere/heat.svg"));
    }
}
