//! End-to-end tests on real guests, with every log under artifacts/.
//!
//! Several at once: a guest under emulation keeps one processor busy while it boots and none while a
//! test waits for something to settle.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use memtide_lab::cargo::Built;
use memtide_lab::{Kernel, Lab};
use memtide_scenarios::checks::Checks;
use memtide_scenarios::torture::Torture;
use memtide_scenarios::{
    contents, device_death, dimms, ejection, end_to_end, huge_pages, lockdown, pieces,
    plain_balloon, reclaim, removal, screen, stock_driver, truth, two_balloons,
};

use super::{Tally, last_lines};
use crate::lab::{self, Result};
use crate::programs;
use crate::torture::What;

/// The kernel of what is not done on each.
const NEWEST: Kernel = Kernel::V7_3;

/// What `cargo xtask torture` does at length, as often as a test has time for: a reset among the
/// stops, each kind of cycle but the reboot among the rebinds.
const SHORT_TORTURES: [(What, u32); 4] =
    [(What::Hostile, 1000), (What::Rebinds, 10), (What::Kills, 4), (What::Stops, 20)];

/// A test does the same each time; long runs draw anew.
const SEED: u64 = 1;

/// One guest's story.
struct Scenario {
    name: String,
    kernel: Kernel,
    story: Story,
    length: Length,
}

/// Whether a scenario belongs to every run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Short,
    /// Only where it is named: its minutes are not worth every run's.
    Long,
}

#[derive(Clone, Copy)]
enum Story {
    Plain(fn(&Lab, &Built, Kernel, &Path) -> Checks),
    Torture(What, u32),
}

impl Scenario {
    fn play(&self, lab: &Lab, programs: &Built, logs: &Path) -> Checks {
        match self.story {
            Story::Plain(play) => play(lab, programs, self.kernel, logs),
            Story::Torture(what, count) => {
                let kernel = self.kernel;
                what.play(&Torture { lab, programs, kernel, count, seed: SEED, logs })
            }
        }
    }
}

/// All of them, the longest first: what is begun last should not be what is waited for.
fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut push = |name: &str, kernel: Kernel, story: Story, length: Length| {
        all.push(Scenario { name: format!("{name}-{kernel}"), kernel, story, length });
    };
    for kernel in [NEWEST, Kernel::V6_12] {
        push("truth", kernel, Story::Plain(truth::play), Length::Long);
    }
    push("plain-balloon", Kernel::V6_12, Story::Plain(plain_balloon::play), Length::Long);
    for kernel in [Kernel::V6_12, Kernel::V6_1] {
        push("ejection", kernel, Story::Plain(ejection::play), Length::Long);
    }
    let mut add = |name: &str, kernel, story| push(name, kernel, story, Length::Short);
    for kernel in Kernel::ALL.into_iter().rev() {
        add("stock-driver", kernel, Story::Plain(stock_driver::play));
        add("agent", kernel, Story::Plain(end_to_end::agent));
    }
    for kernel in [NEWEST, Kernel::V6_1] {
        add("plain-balloon", kernel, Story::Plain(plain_balloon::play));
    }
    add("reclaim", NEWEST, Story::Plain(reclaim::play));
    add("reclaim", Kernel::V6_12, Story::Plain(reclaim::play));
    add("contents", NEWEST, Story::Plain(contents::play));
    add("device-death", NEWEST, Story::Plain(device_death::play));
    add("dimms", NEWEST, Story::Plain(dimms::play));
    add("ejection", NEWEST, Story::Plain(ejection::play));
    add("huge-pages", NEWEST, Story::Plain(huge_pages::play));
    add("lockdown", NEWEST, Story::Plain(lockdown::play));
    add("pieces", NEWEST, Story::Plain(pieces::play));
    add("removal", NEWEST, Story::Plain(removal::play));
    add("two-balloons", NEWEST, Story::Plain(two_balloons::play));
    for (what, times) in SHORT_TORTURES {
        add(&format!("torture-{}", what.name()), NEWEST, Story::Torture(what, times));
    }
    all
}

/// Plays those on this kernel, if one is named, whose names start so; if nothing is given, all but the
/// long ones.
pub(super) fn run(only: Option<Kernel>, named: Option<&str>, jobs: u8) -> Result<Tally> {
    let is_wanted = |scenario: &Scenario| {
        only.is_none_or(|kernel| kernel == scenario.kernel)
            && match named {
                Some(named) => scenario.name.starts_with(named),
                None => scenario.length == Length::Short,
            }
    };
    let wanted: VecDeque<Scenario> = scenarios().into_iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        let names: Vec<String> = scenarios().into_iter().map(|scenario| scenario.name).collect();
        return Err(format!("there is no such scenario: choose of {}", names.join(", ")).into());
    }
    let used = |kernel: &Kernel| wanted.iter().any(|scenario| scenario.kernel == *kernel);
    let kernels: Vec<Kernel> = Kernel::ALL.into_iter().filter(used).collect();
    let lab = lab::set_up(&kernels)?;
    let programs = programs::build()?;
    memtide_scenarios::interrupt::listen();
    let workers = usize::from(jobs).min(wanted.len());
    if workers > 1 {
        screen::share();
    }
    let queue = Mutex::new(wanted);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> std::result::Result<Tally, String> {
        let mut tally = Tally::default();
        while let Some(scenario) = next() {
            memtide_scenarios::interrupt::check().map_err(|error| error.to_string())?;
            tally.join(play(&scenario, &lab, &programs)?);
        }
        Ok(tally)
    };
    let tallies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|tally| tally.unwrap_or_else(|_| Err("a scenario panicked".into()))).collect()
    });
    let tallies: std::result::Result<Vec<Tally>, String> = tallies;
    let mut sum = Tally::default();
    tallies?.into_iter().for_each(|tally| sum.join(tally));
    Ok(sum)
}

fn play(scenario: &Scenario, lab: &Lab, programs: &Built) -> std::result::Result<Tally, String> {
    let (name, start) = (&scenario.name, Instant::now());
    let logs = PathBuf::from("artifacts").join(name);
    crate::demo::fresh_dir(&logs).map_err(|error| error.to_string())?;
    let checks = scenario.play(lab, programs, &logs);
    let took = start.elapsed().as_secs_f64();
    println!("{name} took {took:.0} s, its logs are in {}", logs.display());
    let failures = checks.failures().to_vec();
    let last_lines = (!failures.is_empty()).then(|| last_lines::read(&logs)).into_iter().collect();
    Ok(Tally { passed: checks.passed(), failures, last_lines })
}
