//! `cargo xtask bench`: measurements, with a table, a picture and a report.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use memtide_bench::{HugePagesUse, Options, PACKAGES, Report, footprint, size};
use memtide_lab::Kernel;
use memtide_lab::cargo::{self, Profile};
use memtide_lab::machine::GuestClock;
use memtide_units::ByteSize;

use crate::demo::{fresh_dir, output_file, write};
use crate::lab::{self, Result};

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// How fast a guest's memory goes to the host and comes back: Memtide, QEMU's virtio-balloon and
    /// virtio-mem, and the raw limits, in one go. Takes about seven minutes.
    Reclaim(Reclaim),
    /// How much of the host's memory a guest holds over time, with nothing to give memory back, with
    /// free page reporting, with `DAMON_RECLAIM` besides, and with Memtide. Takes about twenty minutes.
    Footprint(Footprint),
    /// Whether a guest finds its size by itself: a workload that stays as it is, beside the same in a guest
    /// that nothing shrinks; a quarter of the guest at once; and guests of fixed sizes. Takes about an hour.
    Size(Size),
}

/// Options of `bench size`.
#[derive(Debug, Args)]
pub(crate) struct Size {
    /// The guests' kernel; 6.1 has no DAMON.
    #[arg(long, value_name = "VERSION", default_value = "7.3")]
    kernel: Kernel,
    /// Memory of each guest but those of fixed sizes, from 2GiB to 32GiB; what takes long takes longer in
    /// larger guests.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = guest_memory)]
    memory: ByteSize,
    /// Virtual processors of each guest.
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=8))]
    processors: u32,
    /// By what the guests' clocks go: host, or counted, where each instruction takes a nanosecond of the
    /// guest's time. Then figures do not depend on what else the host does, and show what the agent executes;
    /// it takes longer, and all processors of a guest share what one can do.
    #[arg(long, value_name = "CLOCK", default_value = "host")]
    clock: GuestClock,
    /// Where guests page out to: zram, which the agent sets up by itself, or disk, one for each guest that
    /// is there from the start (a file in artifacts/bench-size, as large as the guest's memory at most).
    #[arg(long, value_name = "KIND", default_value = "zram")]
    swap: size::SwapKind,
    /// Pairs of windows that are compared.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Surges of each guest.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    surges: u32,
    /// Measure these only: steady, surge, sweep [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<size::Part>,
    /// Write the report here as JSON [default: artifacts/bench-size/report.json].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    report: Option<PathBuf>,
    /// Write the picture here (SVG) [default: artifacts/bench-size/size.svg].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    picture: Option<PathBuf>,
}

/// Options of `bench footprint`.
#[derive(Debug, Args)]
pub(crate) struct Footprint {
    /// The guests' kernel; 6.1 has no DAMON.
    #[arg(long, value_name = "VERSION", default_value = "7.3")]
    kernel: Kernel,
    /// Memory of each guest, from 2GiB to 32GiB.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = guest_memory)]
    memory: ByteSize,
    /// How often growth, page cache and rest follow each other.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100))]
    cycles: u32,
    /// Measure these only: none, free_page_reporting, damon_reclaim, memtide [default: all].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<footprint::Means>,
    /// Measure this once more, which takes five minutes: two runs of one say by how much runs differ, and so
    /// whether Memtide slows the work down. Best free_page_reporting, which it is compared with.
    #[arg(long, value_name = "NAME")]
    again: Option<footprint::Means>,
    /// Write the report here as JSON [default: artifacts/bench-footprint/report.json].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    report: Option<PathBuf>,
    /// Write the picture here (SVG) [default: artifacts/bench-footprint/footprint.svg].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    picture: Option<PathBuf>,
}

/// Options of `bench reclaim`.
#[derive(Debug, Args)]
pub(crate) struct Reclaim {
    /// The guests' kernel.
    #[arg(long, value_name = "VERSION", default_value = "7.3")]
    kernel: Kernel,
    /// Memory of each guest, from 2GiB to 32GiB; five eighths of it move in each turn.
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = guest_memory)]
    memory: ByteSize,
    /// Turns of each, of which the median counts, three times as many of Memtide and of the raw limit; one more before them does not count.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: u8,
    /// Leave Memtide on huge pages out; they need root and as much free memory as one guest has.
    #[arg(long)]
    no_huge_pages: bool,
    /// Write the report here as JSON [default: artifacts/bench-reclaim/report.json].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    report: Option<PathBuf>,
    /// Write the picture here (SVG) [default: artifacts/bench-reclaim/reclaim.svg].
    #[arg(long, value_name = "FILE", value_parser = output_file)]
    picture: Option<PathBuf>,
}

/// Where files go; made anew by each run.
pub(crate) const ARTIFACTS: &str = "artifacts/bench-reclaim";
const FOOTPRINT_ARTIFACTS: &str = "artifacts/bench-footprint";
const SIZE_ARTIFACTS: &str = "artifacts/bench-size";

/// Smaller guests have too few blocks to move, and larger ones take too long.
fn guest_memory(text: &str) -> std::result::Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    let (least, most) = (ByteSize::from_gib(2), ByteSize::from_gib(32));
    if (least..=most).contains(&size) {
        Ok(size)
    } else {
        Err(format!("{size} is not between {least} and {most}: write for example 4GiB"))
    }
}

/// Measures.
pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Reclaim(arguments) => reclaim(arguments),
        Task::Footprint(arguments) => footprint(arguments),
        Task::Size(arguments) => size(arguments),
    }
}

/// What is measured, unless what is to run once more would not have run before: two runs of one are compared.
fn means(arguments: &Footprint) -> Result<Vec<footprint::Means>> {
    let means = match arguments.only.as_slice() {
        [] => footprint::Means::ALL.to_vec(),
        only => only.to_vec(),
    };
    match arguments.again.filter(|again| !means.contains(again)) {
        None => Ok(means),
        Some(again) => {
            let name = again.name();
            Err(format!(
                "--again {name} measures once more what --only leaves out: add {name} to --only"
            )
            .into())
        }
    }
}

fn footprint(arguments: &Footprint) -> Result<()> {
    let means = means(arguments)?;
    let lab = lab::set_up(&[arguments.kernel])?;
    eprintln!("building Memtide's programs (a few minutes the first time) ...");
    let programs = cargo::build(&footprint::PACKAGES, Profile::Release)?;
    let artifacts = PathBuf::from(FOOTPRINT_ARTIFACTS);
    fresh_dir(&artifacts)?;
    let options = footprint::Options {
        kernel: arguments.kernel,
        memory: arguments.memory,
        cycles: arguments.cycles,
        means,
        again: arguments.again,
        artifacts: artifacts.clone(),
    };
    memtide_scenarios::interrupt::listen();
    let started = std::time::Instant::now();
    let mut say = |text: &str| println!("{:>6.1} s  {text}", started.elapsed().as_secs_f64());
    let report = footprint::run(&lab, &programs, &options, &mut say)?;
    let picture = arguments.picture.clone().unwrap_or_else(|| artifacts.join("footprint.svg"));
    write(&picture, &footprint::picture(&report))?;
    let file = arguments.report.clone().unwrap_or_else(|| artifacts.join("report.json"));
    write(&file, &format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    println!("\n{}", footprint::table(&report));
    println!("picture: {}\nreport:  {}", picture.display(), file.display());
    none_broken(&report.broken())
}

fn size(arguments: &Size) -> Result<()> {
    let lab = lab::set_up(&[arguments.kernel])?;
    eprintln!("building Memtide's programs (a few minutes the first time) ...");
    let programs = cargo::build(&size::PACKAGES, Profile::Release)?;
    let artifacts = PathBuf::from(SIZE_ARTIFACTS);
    fresh_dir(&artifacts)?;
    let options = size::Options {
        kernel: arguments.kernel,
        memory: arguments.memory,
        processors: arguments.processors,
        clock: arguments.clock,
        swap: arguments.swap,
        pairs: arguments.pairs,
        surges: arguments.surges,
        parts: match arguments.only.as_slice() {
            [] => size::Part::ALL.to_vec(),
            only => only.to_vec(),
        },
        artifacts: artifacts.clone(),
    };
    memtide_scenarios::interrupt::listen();
    let started = std::time::Instant::now();
    let mut say = |text: &str| println!("{:>6.1} s  {text}", started.elapsed().as_secs_f64());
    let report = size::run(&lab, &programs, &options, &mut say)?;
    let picture = arguments.picture.clone().unwrap_or_else(|| artifacts.join("size.svg"));
    write(&picture, &size::picture(&report))?;
    let file = arguments.report.clone().unwrap_or_else(|| artifacts.join("report.json"));
    write(&file, &format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    println!("\n{}", size::table(&report));
    println!("picture: {}\nreport:  {}", picture.display(), file.display());
    none_broken(&report.broken())
}

fn none_broken(broken: &[String]) -> Result<()> {
    match broken {
        [] => Ok(()),
        broken => Err(format!("promises were not kept: {}", broken.join("; ")).into()),
    }
}

fn reclaim(arguments: &Reclaim) -> Result<()> {
    let lab = lab::set_up(&[arguments.kernel])?;
    eprintln!("building Memtide's programs (a few minutes the first time) ...");
    let programs = cargo::build(&PACKAGES, Profile::Release)?;
    let artifacts = PathBuf::from(ARTIFACTS);
    fresh_dir(&artifacts)?;
    let options = Options {
        kernel: arguments.kernel,
        memory: arguments.memory,
        rounds: arguments.rounds.into(),
        huge_pages: if arguments.no_huge_pages {
            HugePagesUse::LeaveOut
        } else {
            HugePagesUse::Reserve
        },
        artifacts: artifacts.clone(),
    };
    memtide_scenarios::interrupt::listen();
    let started = std::time::Instant::now();
    let mut say = |text: &str| println!("{:>6.1} s  {text}", started.elapsed().as_secs_f64());
    let report = memtide_bench::run(&lab, &programs, &options, &mut say)?;
    let picture = arguments.picture.clone().unwrap_or_else(|| artifacts.join("reclaim.svg"));
    write(&picture, &memtide_bench::picture(&report))?;
    let file = arguments.report.clone().unwrap_or_else(|| artifacts.join("report.json"));
    write(&file, &format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    println!("\n{}", memtide_bench::table(&report));
    println!("picture: {}\nreport:  {}", picture.display(), file.display());
    kept(&report)
}

fn kept(report: &Report) -> Result<()> {
    match report.broken().count() {
        0 => Ok(()),
        broken => Err(format!("{broken} promises were not kept, see above").into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_guest_that_cannot_be_measured_is_refused() {
        assert_eq!(guest_memory("4GiB"), Ok(ByteSize::from_gib(4)));
        assert!(guest_memory("1GiB").unwrap_err().contains("1 GiB is not between"));
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(subcommand)]
        task: Task,
    }

    /// What `bench footprint` with these options measures.
    fn measured(options: &[&str]) -> std::result::Result<Vec<footprint::Means>, String> {
        let all = ["bench", "footprint"].iter().chain(options);
        match Cli::parse_from(all).task {
            Task::Footprint(arguments) => means(&arguments).map_err(|error| error.to_string()),
            task => panic!("{task:?}"),
        }
    }

    #[test]
    fn what_does_not_run_once_does_not_run_again() {
        use footprint::Means::{FreePageReporting, Memtide};
        let again = ["--again", "free_page_reporting"];
        assert_eq!(measured(&again), Ok(footprint::Means::ALL.to_vec()));
        let only = |names| measured(&[&again[..], &["--only", names]].concat());
        let both = Ok(vec![FreePageReporting, Memtide]);
        assert_eq!(only("free_page_reporting,memtide"), both);
        let error = only("none,memtide").unwrap_err();
        assert!(error.ends_with("add free_page_reporting to --only"), "{error}");
    }
}
