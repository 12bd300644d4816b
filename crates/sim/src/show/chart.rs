//! A run as a picture of text: time runs down, memory to the right.

use std::fmt::Write as _;

use memtide_policy::guest::FreeMemory;
use memtide_units::PpMillion;

use super::summary;
use crate::kernel::{Pace, Release, SwapSpace};
use crate::monitor::Watch;
use crate::scenario::{Psi, Scenario};
use crate::story::{About, Line, Sample};
use crate::world::Outcome;

/// Columns of memory, rows of time.
const COLUMNS: u64 = 48;
const ROWS: usize = 40;
/// What befell the guest is cut off after so many characters.
const REMARK: usize = 72;

/// The picture, a line below for each broken promise, and the numbers.
pub fn chart(outcome: &Outcome) -> String {
    let mut out = heading(&outcome.scenario);
    rows(outcome, &mut out);
    legend(&mut out);
    numbers(outcome, &mut out);
    out
}

fn heading(scenario: &Scenario) -> String {
    let Scenario { seed, workload, minutes, unit, blocks, weather, .. } = scenario;
    let cpus = scenario.machine.cpus;
    let machine = match scenario.machine.pace {
        Pace::Emulated => format!("{cpus} emulated CPUs"),
        Pace::Hardware => format!("{cpus} CPUs"),
    };
    let psi = match scenario.psi {
        Psi::Absent => ", without PSI",
        Psi::Present => "",
    };
    let free = match scenario.free {
        FreeMemory::KeptByGuest => "",
        FreeMemory::ReportedToHost => ", reports free memory",
    };
    let release = match scenario.machine.release {
        Release::V6_12 => "Linux 6.12",
        Release::V7_3 => "Linux 7.3",
    };
    let watch = match scenario.watch {
        Watch::Damon => "with DAMON",
        Watch::Nobody => "without DAMON",
    };
    let swap = match scenario.swap_space() {
        SwapSpace::None => "",
        SwapSpace::Disk => ", swap on a disk",
        SwapSpace::Zram => ", zram",
    };
    let deadline = match scenario.gate_deadline {
        Some(time) => format!("helps itself after {} s", time.as_secs()),
        None => "never helps itself".into(),
    };
    let limits = scenario.settings().limits;
    format!(
        "seed {seed} · {workload} · {minutes} minutes, the second half calm · {} weather\n\
         {} in {blocks} blocks of {} · min {} · max {} · {machine}, {release} {watch}{psi}{free}{swap} · {deadline}\n\n",
        weather.name(),
        scenario.present(),
        unit.size(),
        limits.min(),
        limits.max(),
    )
}

fn rows(outcome: &Outcome, out: &mut String) {
    let present = outcome.scenario.present();
    let half = memtide_units::ByteSize::from_bytes(present.bytes() / 2);
    let width = COLUMNS as usize;
    let (middle, right) = (format!("{half}"), format!("{present}"));
    let scale = format!("0{middle:>0$}{right:>1$}", width / 2, width / 2 - 1);
    let _ = writeln!(out, "  time  {scale}   stall  what happened");
    let samples = &outcome.story.samples;
    let step = samples.len().div_ceil(ROWS).max(1);
    let mut lines = outcome.story.lines.iter().peekable();
    for chunk in samples.chunks(step) {
        let until = chunk.last().map_or(0, |sample| sample.at_ms) + 1000;
        let mut told = Vec::new();
        while let Some(line) = lines.next_if(|line| line.at_ms < until) {
            told.push(line);
        }
        row(chunk, present.mib(), &told, out);
    }
}

/// One row stands for some seconds: the smallest free memory in them, the worst stall.
fn row(chunk: &[Sample], present: u64, told: &[&Line], out: &mut String) {
    let (Some(first), Some(shown)) = (chunk.first(), chunk.iter().min_by_key(|s| s.available_mib))
    else {
        return;
    };
    let (minutes, seconds) = (first.at_ms / 60_000, first.at_ms / 1000 % 60);
    let worst = chunk.iter().map(|sample| sample.stalled_ppm).max().unwrap_or(0);
    let stall = if worst == 0 { String::new() } else { PpMillion(worst).to_string() };
    let bar = bar(shown, present);
    let line = format!("{minutes:>3}:{seconds:02}  {bar}  {stall:>7}  {}", remark(told));
    let _ = writeln!(out, "{}", line.trim_end());
}

fn bar(sample: &Sample, present: u64) -> String {
    let at = |mib: u64| (mib * COLUMNS / present.max(1)).min(COLUMNS);
    let (hot, used) = (at(sample.hot_mib), at(sample.used_mib));
    let (cache, online) = (at(sample.used_mib + sample.cache_mib), at(sample.online_mib));
    (0..COLUMNS)
        .map(|n| match n {
            n if n < hot => '█',
            n if n < used => '▓',
            n if n < cache => '▒',
            n if n < online => '░',
            _ => '·',
        })
        .collect()
}

/// What happened in the time of a row: faults first, then what was decided most.
fn remark(told: &[&Line]) -> String {
    let of = |about| told.iter().filter(move |line| line.about == about);
    let mut parts: Vec<String> = Vec::new();
    let broken = of(About::Broken).count();
    let killed = of(About::Killed).count();
    if broken > 0 {
        parts.push(format!("{broken} BROKEN"));
    }
    if killed > 0 {
        parts.push(format!("{killed} killed"));
    }
    parts.extend(of(About::Fault).map(|line| line.text.clone()));
    let begins = |start: &'static str| {
        of(About::Decision).filter(|line| line.text.starts_with(start)).count()
    };
    for (start, name) in [
        ("steal memory", "steals"),
        ("ask ", "asks"),
        ("take ", "takes unasked"),
        ("cancel", "cancels"),
        ("stop stealing", "aborts"),
    ] {
        match begins(start) {
            0 => {}
            1 => parts.push(name.to_owned()),
            n => parts.push(format!("{name} ×{n}")),
        }
    }
    let text = parts.join(", ");
    match text.char_indices().nth(REMARK) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

fn legend(out: &mut String) {
    let _ = writeln!(
        out,
        "\n        █ touched   ▓ kept by programs and the kernel   ▒ page cache   ░ free   · given up"
    );
}

fn numbers(outcome: &Outcome, out: &mut String) {
    let of = summary(outcome);
    let percent = |permille: u64| format!("{}.{} %", permille / 10, permille % 10);
    let _ = writeln!(
        out,
        "\n{} given up on average, {} at the end; over the pressure goal in {} of the seconds",
        percent(of.saved_permille),
        percent(of.saved_at_end_permille),
        percent(of.over_goal_permille),
    );
    let _ = writeln!(
        out,
        "{} blocks stolen ({} tries failed), {} came back ({} unasked), {} denials, {} killed for memory",
        of.stolen, of.failed, of.returned, of.unasked, of.denied, of.kills,
    );
    if outcome.scenario.swap_space() != SwapSpace::None {
        let _ = writeln!(
            out,
            "{} MiB in swap at most, {} at the end",
            of.swapped_mib_most, of.swapped_mib_at_end
        );
    }
    if outcome.broken.is_empty() {
        let _ = writeln!(out, "all {} promises kept", crate::check::Promise::ALL.len());
        return;
    }
    for broken in &outcome.broken {
        let (s, tenth) = (broken.at_ms / 1000, broken.at_ms % 1000 / 100);
        let _ = writeln!(out, "BROKEN at {s}.{tenth} s: {}: {}", broken.promise, broken.what);
    }
    let _ = writeln!(out, "again: {}", outcome.scenario.command());
}
