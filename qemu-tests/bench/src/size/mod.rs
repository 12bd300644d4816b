//! Whether the guest finds its size by itself, and what that costs the workload.
//!
//! A workload keeps a known part of its memory hot and never touches the rest again. In turns run a guest
//! that Memtide shrinks, beside a balloon that reports what is free, and one that nothing shrinks, and
//! what both get done is compared, window by window. A third has the balloon that reports alone: what that
//! saves is not Memtide's doing. Then the same workload runs in guests of fixed sizes: the
//! smallest that does not hurt is what the agent should have found. And a surge: a quarter of the
//! guest's memory is wanted at once, while more than that is stolen.

mod calibration;
mod cost;
mod guests;
mod ladder;
mod limits;
mod parts;
mod picture;
mod promises;
mod report;
mod script;
mod steady;
mod surge;
mod swap;
mod table;
mod watched;

use std::path::{Path, PathBuf};
use std::time::Instant;

use memtide_lab::cargo::Built;
use memtide_lab::machine::{Backing, GuestClock};
use memtide_lab::rundir::RunDir;
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

pub use cost::{Cost, Instructions};
pub use parts::{NoSuchPart, Part};
pub use picture::picture;
pub use report::{FixedSize, Pair, Report, Steady, Surge};
pub use swap::{NoSuchSwap, PagedOut, SwapKind};
pub use table::table;

use crate::error::Result;
use crate::machines::Machines;
use crate::memtide::Device;
use crate::setting::Setting;
use guests::Bench;

/// The packages whose programs are used, for `memtide_lab::cargo::build`.
pub const PACKAGES: [&str; 4] = super::footprint::PACKAGES;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The guests' kernel.
    pub kernel: Kernel,
    /// Memory of each guest but those of fixed sizes.
    pub memory: ByteSize,
    /// Virtual processors of each guest.
    pub processors: u32,
    /// By what the guests' clocks go.
    pub clock: GuestClock,
    /// Where guests page out to.
    pub swap: SwapKind,
    /// Pairs of windows that are compared.
    pub pairs: u32,
    /// Surges of each guest.
    pub surges: u32,
    /// What is measured; they follow each other in the order of [`Part::ALL`].
    pub parts: Vec<Part>,
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
    let (started, sockets) = (Instant::now(), RunDir::new()?);
    let machines = Machines {
        lab,
        programs,
        kernel: options.kernel,
        memory: options.memory,
        vcpus: options.processors,
        clock: options.clock,
        artifacts: options.artifacts.clone(),
        tools: &["memtide-agent", "memtide-workload"],
        agent_options: "",
        swap_disk: options.swap.disk(&options.artifacts, options.memory)?,
    };
    say("a guest boots that nothing shrinks");
    let plain = machines.plain("plain")?;
    // As after a while: all memory was in use once, and the host has backing under it.
    plain.fill_and_free()?;
    let whole = plain.meminfo("MemTotal")?;
    let mut report = Report {
        setting: Setting {
            swap: Some(swap::setting(&machines)),
            clock: Some(calibration::clock_of(&plain)?),
            ..Setting::of(&machines, &plain, script::steady(options.memory))
        },
        ..Report::default()
    };
    plain.freeze()?;
    let mut bench = Bench { machines, plain, whole, say };
    let wants = |part| options.parts.contains(&part);
    if wants(Part::Steady) {
        steady_part(&mut bench, sockets.path(), options.pairs, &mut report)?;
    }
    if wants(Part::Surge) {
        surge_part(&mut bench, sockets.path(), options.surges, &mut report)?;
    }
    let Bench { machines, plain, say, .. } = bench;
    // Others take its place.
    drop(plain);
    if wants(Part::Sweep) {
        report.sweep = ladder::measure(&machines, say)?;
    }
    report.setting.seconds = started.elapsed().as_secs();
    Ok(report.judged())
}

/// With the guests that only this part needs.
fn steady_part(
    bench: &mut Bench<'_>,
    sockets: &Path,
    pairs: u32,
    report: &mut Report,
) -> Result<()> {
    (bench.say)("two more boot, one with Memtide and both with a balloon that reports");
    let device = Device::of_guest(&bench.machines, "steady", sockets)?;
    let shrunk = bench.machines.with_memtide_and_reporting("steady", device.socket())?;
    shrunk.fill_and_free()?;
    let reporting = bench.machines.with_reporting("reporting", &[])?;
    reporting.fill_and_free()?;
    let guests = steady::Guests { shrunk: &shrunk, reporting: &reporting };
    report.steady = Some(steady::measure(bench, guests, pairs)?.by(report.setting.clock));
    Ok(())
}

/// The same.
fn surge_part(
    bench: &mut Bench<'_>,
    sockets: &Path,
    surges: u32,
    report: &mut Report,
) -> Result<()> {
    (bench.say)("another one boots, with Memtide");
    let device = Device::of_guest(&bench.machines, "memtide", sockets)?;
    let memtide = bench.machines.with_memtide("memtide", device.socket(), Backing::Memfd)?;
    memtide.fill_and_free()?;
    surge::measure(bench, &memtide, surges, report)
}
