//! `cargo xtask torture`: long runs that do harsh things over and over.

use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use memtide_lab::Kernel;
use memtide_scenarios::checks::Checks;
use memtide_scenarios::torture::{self, Torture};

use crate::demo::fresh_dir;
use crate::lab::{self, Result};
use crate::programs;

/// Arguments of `cargo xtask torture`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What to do over and over.
    #[arg(value_enum, value_name = "WHAT")]
    what: What,
    /// How often [default: 100; 20000 wrong steps of the hostile guest].
    #[arg(long, value_name = "N")]
    count: Option<u32>,
    /// The guest's kernel: 6.1, 6.12 or 7.3.
    #[arg(long, value_name = "VERSION", default_value = "7.3")]
    kernel: Kernel,
    /// What chance draws from, to have a run again [default: the time].
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

/// A run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Bind and unbind drivers while the target changes a hundred times a second.
    Rebinds,
    /// `kill -9` of the agent while it steals and returns.
    Kills,
    /// A bare-metal guest that drives its balloon wrongly on purpose.
    Hostile,
    /// Stop, reset and end the machine, and kill the device, with requests in flight.
    Stops,
}

impl What {
    /// Its name, also of its logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rebinds => "rebinds",
            Self::Kills => "kills",
            Self::Hostile => "hostile",
            Self::Stops => "stops",
        }
    }

    /// How often if nobody says.
    fn usual_count(self) -> u32 {
        match self {
            Self::Hostile => 20_000,
            Self::Rebinds | Self::Kills | Self::Stops => 100,
        }
    }

    /// Plays it.
    pub(crate) fn play(self, torture: &Torture<'_>) -> Checks {
        match self {
            Self::Rebinds => torture::rebinds(torture),
            Self::Kills => torture::kills(torture),
            Self::Hostile => torture::hostile(torture),
            Self::Stops => torture::stops(torture),
        }
    }
}

/// Runs one; fails if a promise was not kept.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let lab = lab::set_up(&[arguments.kernel])?;
    let programs = programs::build()?;
    memtide_scenarios::interrupt::listen();
    let name = arguments.what.name();
    let logs = PathBuf::from("artifacts").join(format!("torture-{name}-{}", arguments.kernel));
    fresh_dir(&logs)?;
    let seed = arguments.seed.unwrap_or_else(seed_of_the_time);
    let count = arguments.count.unwrap_or(arguments.what.usual_count());
    println!("{name}, {count} times on {}, seed {seed}", arguments.kernel);
    let start = Instant::now();
    let checks = arguments.what.play(&Torture {
        lab: &lab,
        programs: &programs,
        kernel: arguments.kernel,
        count,
        seed,
        logs: &logs,
    });
    println!("took {:.1} minutes", start.elapsed().as_secs_f64() / 60.0);
    println!("logs and summary.json: {}", logs.display());
    let failed = checks.failures().len();
    println!("{} passed, {failed} failed", checks.passed());
    match failed {
        0 => Ok(()),
        failed => Err(format!("{failed} promises were not kept, see above").into()),
    }
}

/// Another seed for each run; the run prints it.
fn seed_of_the_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs()
}
