//! `cargo xtask demo`: the main job, live in the terminal, with a picture and a report at its end.

use std::path::{Path, PathBuf};

use clap::Args;
use memtide_lab::Kernel;
use memtide_scenarios::demo::{self, DemoOptions, Pace, Undisturbed};
use memtide_scenarios::report::Report;
use memtide_units::ByteSize;

use crate::lab::{self, Result};
use crate::programs;

/// Options of the demo.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The guest's kernel: 6.12 (Debian's stable) or 7.3 (its backports).
    #[arg(long, default_value = "7.3")]
    kernel: Kernel,
    /// The guest's memory, such as 2GiB.
    #[arg(long, default_value = "2GiB", value_parser = guest_memory)]
    memory: ByteSize,
    /// About a minute instead of a few.
    #[arg(long)]
    quick: bool,
    /// Write the report here as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the picture here (SVG).
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// The smallest guest with blocks worth stealing, and the largest that this demo's timing fits.
fn guest_memory(text: &str) -> std::result::Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    let (least, most) = (ByteSize::from_gib(1), ByteSize::from_gib(16));
    if (least..=most).contains(&size) {
        Ok(size)
    } else {
        Err(format!(
            "{size} is not between {least} and {most}, which the demo's phases are made for"
        ))
    }
}

/// Plays the demo.
pub(crate) fn run(args: &Demo) -> Result<()> {
    let lab = lab::set_up(&[args.kernel])?;
    let programs = programs::build()?;
    let artifacts = PathBuf::from("artifacts/demo");
    fresh_dir(&artifacts)?;
    let pace = if args.quick { Pace::Quick } else { Pace::Normal };
    let options = DemoOptions {
        kernel: args.kernel,
        memory: args.memory,
        pace,
        artifacts: artifacts.clone(),
    };
    let (report, run) = demo::play(&lab, &programs, &options, &mut Undisturbed)?;
    let picture = args.picture.clone().unwrap_or_else(|| artifacts.join("demo.svg"));
    write(&picture, &demo::picture(&run, &report))?;
    let json = serde_json::to_string_pretty(&report)?;
    let file = args.report.clone().unwrap_or_else(|| artifacts.join("report.json"));
    write(&file, &format!("{json}\n"))?;
    drop(run);
    summary(&report);
    println!(
        "picture: {}\nreport:  {}\nlogs:    {}",
        picture.display(),
        file.display(),
        artifacts.display()
    );
    if report.failures.is_empty() {
        return Ok(());
    }
    Err(format!("{} promises were not kept, see above", report.failures.len()).into())
}

/// An empty directory at `path`: what an earlier run left there is gone.
pub(crate) fn fresh_dir(path: &Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path)
            .map_err(|e| format!("cannot empty {}: {e}", path.display()))?;
    }
    std::fs::create_dir_all(path).map_err(|e| format!("cannot make {}: {e}", path.display()).into())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}

/// The report for a person.
pub(crate) fn summary(report: &Report) {
    let resident = report.host_resident_mib;
    let blocks = report.blocks;
    let gate = report.gate;
    println!("\nLinux {} under {} for {} s", report.kernel, report.accelerator, report.seconds);
    println!(
        "  host resident   {} MiB at its peak, {} after the steal, {} after the return",
        resident.peak, resident.after_steal, resident.after_return
    );
    println!(
        "  blocks          {} of {} movable stolen ({} in all), {} returned, {} attempts failed",
        blocks.stolen_peak, blocks.movable, blocks.total, blocks.returned, blocks.failed
    );
    println!("  stolen but still backed: {} KiB", report.stolen_but_resident_kib);
    println!(
        "  gate            {} asked, {} granted, {} held, for {} ms at most",
        gate.asked, gate.granted, gate.held, gate.held_ms_max
    );
    println!(
        "  integrity       {} page checks, {} bad; {} OOM kills; {} us of memory stall",
        report.integrity.pages_checked,
        report.integrity.pages_bad,
        report.guest.oom_kills,
        report.guest.psi_some_us
    );
    println!(
        "  our own memory  agent {} MiB, device {} MiB, memtided {} MiB",
        report.rss_mib.agent, report.rss_mib.device, report.rss_mib.memtided
    );
    for failure in &report.failures {
        println!("  NOT KEPT: {failure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_the_phases_do_not_fit_is_refused() {
        assert_eq!(guest_memory("2GiB"), Ok(ByteSize::from_gib(2)));
        assert!(guest_memory("256MiB").unwrap_err().contains("256 MiB is not between"));
        assert!(guest_memory("2048").unwrap_err().contains("no unit"));
    }
}
