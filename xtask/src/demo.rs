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
    /// The guest's kernel: 6.1 (Debian 12), 6.12 (Debian 13) or 7.3 (its backports).
    #[arg(long, value_name = "VERSION", default_value = "7.3")]
    kernel: Kernel,
    /// The guest's memory, from 1GiB to 16GiB.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = guest_memory)]
    memory: ByteSize,
    /// As short as it can be: a minute or two.
    #[arg(long)]
    quick: bool,
    /// Write the report here as JSON [default: artifacts/demo/report.json].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    report: Option<PathBuf>,
    /// Write the picture here (SVG) [default: artifacts/demo/demo.svg].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    picture: Option<PathBuf>,
}

/// Where the demo's files go; made anew by each run.
const ARTIFACTS: &str = "artifacts/demo";

/// A file that can be made, as far as that can be known before the minutes that the demo takes.
pub(crate) fn output_file(text: &str) -> std::result::Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let is_made = [ARTIFACTS, crate::bench::ARTIFACTS].map(Path::new).contains(&directory);
    match (path.is_dir(), directory.is_dir() || is_made) {
        (true, _) => Err(format!("{text} is a directory: name a file in it")),
        (false, false) => Err(format!("there is no directory {}: make it", directory.display())),
        (false, true) => Ok(path),
    }
}

/// The smallest guest with blocks worth stealing, and the largest that this demo's timing fits.
fn guest_memory(text: &str) -> std::result::Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    let (least, most) = (ByteSize::from_gib(1), ByteSize::from_gib(16));
    if (least..=most).contains(&size) {
        Ok(size)
    } else {
        Err(format!(
            "{size} is not between {least} and {most}, which the demo's phases are made for: write \
             for example 2GiB"
        ))
    }
}

/// Plays the demo.
pub(crate) fn run(args: &Demo) -> Result<()> {
    let lab = lab::set_up(&[args.kernel])?;
    let programs = programs::build()?;
    let artifacts = PathBuf::from(ARTIFACTS);
    fresh_dir(&artifacts)?;
    let pace = if args.quick { Pace::Quick } else { Pace::Normal };
    let options = DemoOptions {
        kernel: args.kernel,
        memory: args.memory,
        pace,
        artifacts: artifacts.clone(),
    };
    memtide_scenarios::interrupt::listen();
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

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
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

    #[test]
    fn a_file_that_could_not_be_written_is_refused_before_the_demo() {
        let dir = std::env::temp_dir();
        let good = dir.join("report.json");
        assert_eq!(output_file(&good.to_string_lossy()), Ok(good));
        assert_eq!(output_file("report.json"), Ok("report.json".into()));
        assert!(output_file("artifacts/demo/other.json").is_ok(), "the demo makes that directory");
        assert!(output_file("/proc/nowhere/report.json").unwrap_err().contains("/proc/nowhere"));
        assert!(output_file(&dir.to_string_lossy()).unwrap_err().contains("directory"));
    }
}
