//! How much of the host's memory a guest holds over time, and what holding less costs the workload.
//!
//! One guest after the other plays the same script: growth, page cache, rest, as a machine that
//! builds software does, and a longer rest at the end. All boot the same kernel on the same QEMU with as much
//! memory; they differ in what gives memory back. What a guest holds is what the memfd behind it
//! holds, looked at four times a second; the area below it is what somebody pays for.

mod limits;
mod means;
mod picture;
mod play;
mod promises;
mod report;
mod script;
mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use memtide_lab::cargo::Built;
use memtide_lab::machine::GuestClock;
use memtide_lab::rundir::RunDir;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

pub use picture::picture;
pub use report::{Again, Report, Run};
pub use table::table;

use crate::error::Result;
use crate::machines::Machines;
use crate::setting::Setting;
use crate::subject::GUEST_STATE;
pub use means::{Means, NoSuchMeans};

/// The packages whose programs are used, for `memtide_lab::cargo::build`.
pub const PACKAGES: [&str; 4] =
    ["memtide-agent", "memtide-lab-guest", "memtide-workload", "vhost-user-balloon"];

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guests' kernel.
    pub kernel: Kernel,
    /// Memory of each guest.
    pub memory: ByteSize,
    /// How often growth, page cache and rest follow each other.
    pub cycles: u32,
    /// What is measured; they take their turns in the order of [`Means::ALL`].
    pub means: Vec<Means>,
    /// What is measured once more at the end: two runs of one say by how much runs differ.
    pub again: Option<Means>,
    /// Where logs go.
    pub artifacts: PathBuf,
}

/// Measures; `say` gets a line for each step.
///
/// # Errors
/// The first step that fails. Guests and processes are gone in any case.
pub fn run(
    lab: &Lab,
    programs: &Built,
    options: &Options,
    say: &mut dyn FnMut(&str),
) -> Result<Report> {
    let started = Instant::now();
    let sockets = RunDir::new()?;
    let machines = Machines {
        lab,
        programs,
        kernel: options.kernel,
        memory: options.memory,
        vcpus: 2,
        clock: GuestClock::Host,
        artifacts: options.artifacts.clone(),
        tools: &["memtide-agent", "memtide-workload"],
        agent_options: "",
        swap_disk: None,
    };
    let script = script::of(options.memory, options.cycles);
    let mut report = Report::default();
    let mut bench = Bench { machines, sockets: sockets.path(), say };
    for means in Means::ALL.into_iter().filter(|means| options.means.contains(means)) {
        let (run, setting) = bench.measure(means, means.name(), &script)?;
        report.setting = setting;
        report.runs.insert(means.name().to_owned(), run);
    }
    if let Some(means) = options.again {
        let (run, _) = bench.measure(means, "again", &script)?;
        report.again = Some(Again { of: means.name().to_owned(), run });
    }
    report.setting.seconds = started.elapsed().as_secs();
    Ok(report.judged())
}

/// What all guests share.
struct Bench<'a> {
    machines: Machines<'a>,
    sockets: &'a Path,
    say: &'a mut dyn FnMut(&str),
}

impl Bench<'_> {
    /// A guest of this name, from its boot to its end.
    fn measure(
        &mut self,
        means: Means,
        name: &'static str,
        script: &str,
    ) -> Result<(Run, Setting)> {
        (self.say)(&format!("{name}: the guest boots"));
        let guest = means.start(name, &self.machines, self.sockets)?;
        let run = play::play(&guest.subject, script)?;
        guest.subject.keep_state(&self.machines.artifacts.join(name), GUEST_STATE)?;
        (self.say)(&format!(
            "{name}: {:.2} GiB·min in {:.0} s, {:.2} GiB after the last rest",
            run.gib_minutes, run.seconds, run.gib_after_idle
        ));
        Ok((run, Setting::of(&self.machines, &guest.subject, script.to_owned())))
    }
}
