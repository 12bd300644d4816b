//! A quarter of the guest's memory at once, while more than that is stolen; beside it the same in a guest
//! that nothing shrank, and in one with as little memory to be had as the first, in which QEMU's balloon
//! holds the rest and deflates when memory is out.

use std::time::{Duration, Instant};

use memtide_units::ByteSize;
use serde_json::json;

use super::cost::{Cost, Used};
use super::guests::{Bench, awake, median, pause, total_and_available};
use super::report::{OneSurge, Report, Surge};
use super::script::{self, stretched};
use super::swap;
use crate::error::{BenchError, Result};
use crate::subject::{GUEST_STATE, Subject};
use crate::workload::{Heard, Line};

/// For stealing, and for the balloon, in guests of the usual size.
const SHRINKS: Duration = Duration::from_secs(240);
/// So long nothing more was stolen.
const STEADY: Duration = Duration::from_secs(10);
/// For the surge.
const SURGES: Duration = Duration::from_secs(120);
/// The agent at rest is watched for so long.
const REST: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);

/// What is done in guests of a size, and how long it may take.
struct Play {
    script: String,
    shrinks: Duration,
    surges: Duration,
}

impl Play {
    fn of(memory: ByteSize) -> Self {
        Self {
            script: script::surge(memory),
            shrinks: stretched(memory, SHRINKS),
            surges: stretched(memory, SURGES),
        }
    }
}

/// Measures all three, and the agent at rest.
pub(super) fn measure(
    bench: &mut Bench<'_>,
    memtide: &Subject,
    count: u32,
    report: &mut Report,
) -> Result<()> {
    let play = Play::of(bench.machines.memory);
    let mut shrunk = Surge::default();
    for turn in 1..=count {
        let available = shrink(bench, memtide, play.shrinks)?;
        (bench.say)(&format!("surge {turn} of {count}: {available} can be had in Memtide's guest"));
        once(memtide, &play, available, &mut shrunk)?;
    }
    shrink(bench, memtide, play.shrinks)?;
    (bench.say)("the agent is watched at rest");
    report.rest = Some(at_rest(memtide)?.by(report.setting.clock));
    memtide.keep_state(&bench.machines.artifacts.join(memtide.name()), GUEST_STATE)?;
    memtide.freeze()?;
    let mut plain = Surge::default();
    awake(&bench.plain, || {
        (0..count).try_for_each(|_| {
            let (_, available) = total_and_available(&bench.plain)?;
            once(&bench.plain, &play, available, &mut plain)
        })
    })?;
    let mut balloon = Surge::default();
    let subject = bench.machines.with_deflation("balloon")?;
    subject.fill_and_free()?;
    // What Memtide's guest has as well.
    swap::give(&bench.machines, &subject)?;
    for _ in 0..count {
        let wanted = ByteSize::from_mib(shrunk.available_mib);
        let available = inflate(&subject, wanted, play.shrinks)?;
        once(&subject, &play, available, &mut balloon)?;
    }
    let surges = [("none", plain), ("memtide", shrunk), ("deflate_on_oom", balloon)];
    report.surge = surges.map(|(name, surge)| (name.to_owned(), surge)).into();
    let base = report.surge["none"].seconds();
    for (name, surge) in &report.surge {
        let text = match (surge.seconds(), base) {
            (Some(seconds), Some(base)) => {
                let times = seconds / base;
                format!(
                    "{seconds:.1} s, {times:.2} times as long as in a guest that nothing shrank"
                )
            }
            _ => "failed".to_owned(),
        };
        (bench.say)(&format!("surge, {name}: {text}"));
    }
    Ok(())
}

/// Waits until as much as the surge wants is stolen, and no more is being stolen; what could be had then, which
/// may be more than is wanted.
/// Times are the guest's: one that counts its instructions is slow while it steals.
fn shrink(bench: &Bench<'_>, memtide: &Subject, within: Duration) -> Result<ByteSize> {
    let (whole, limit) = (bench.whole, memtide.patience(within));
    let wanted = script::surge_size(bench.machines.memory);
    let started = Instant::now();
    let (mut least, mut since) = (whole, memtide.uptime()?);
    loop {
        let (total, available) = total_and_available(memtide)?;
        let now = memtide.uptime()?;
        if total < least {
            (least, since) = (total, now);
        }
        if least + wanted <= whole && now.saturating_sub(since) > STEADY {
            return Ok(available);
        }
        if started.elapsed() > limit {
            let (who, what) = (memtide.name().to_owned(), "enough is stolen");
            let seen = format!("{total} of {whole}");
            return Err(BenchError::Late { who, what, waited: limit, seen });
        }
        pause(LOOK)?;
    }
}

/// One surge, before which so much could be had.
fn once(subject: &Subject, play: &Play, available: ByteSize, surge: &mut Surge) -> Result<()> {
    let kills = subject.oom_kills()?;
    let argv = ["/opt/memtide/bin/memtide-workload", "play", play.script.as_str()];
    let process = subject.machine().guest().spawn("surge", &argv)?;
    let (mut took, mut is_over, started) = (None, false, Instant::now());
    let waited = subject.patience(play.surges);
    while !is_over {
        if started.elapsed() > waited {
            let (who, what) = (subject.name().to_owned(), "the surge is over");
            return Err(BenchError::Late { who, what, waited, seen: String::new() });
        }
        for event in process.next_event(LOOK).into_iter().chain(process.new_events()) {
            match Heard::of(event) {
                Heard::Line(Line::PhaseDone { duration_ms, .. }) => took = Some(duration_ms),
                Heard::Line(Line::Error { message }) => {
                    return Err(subject.unexpected("surge", message));
                }
                Heard::Line(_) | Heard::Noise(_) => {}
                Heard::Ended(_) => is_over = true,
            }
        }
        memtide_scenarios::interrupt::check()?;
    }
    surge.note(available.mib(), took.map(|ms| ms as f64 / 1000.0));
    surge.oom_kills += subject.oom_kills()? - kills;
    Ok(())
}

/// What the agent and DAMON cost in a guest in which nothing happens.
fn at_rest(subject: &Subject) -> Result<Cost> {
    let (before, started) = (Used::so_far(subject)?, Instant::now());
    while started.elapsed() < REST {
        pause(LOOK)?;
    }
    Ok(Used::so_far(subject)?.since(&before))
}

/// Inflates QEMU's balloon until so much can be had.
fn inflate(subject: &Subject, wanted: ByteSize, within: Duration) -> Result<ByteSize> {
    let qmp = subject.machine().qmp();
    let (started, within) = (Instant::now(), subject.patience(within));
    loop {
        let available = subject.meminfo("MemAvailable")?;
        // Within a megabyte of it: the guest itself moves as much.
        if available <= wanted + ByteSize::from_mib(1) {
            return Ok(available);
        }
        let actual = qmp.execute("query-balloon", json!({}))?["actual"].as_u64().unwrap_or(0);
        let left = actual.saturating_sub((available - wanted).bytes());
        qmp.execute("balloon", json!({ "value": left }))?;
        if started.elapsed() > within {
            let (who, what) = (subject.name().to_owned(), "the balloon is inflated");
            let seen = format!("{available} can be had still");
            return Err(BenchError::Late { who, what, waited: within, seen });
        }
        pause(LOOK)?;
    }
}

impl Surge {
    /// One more.
    pub(super) fn note(&mut self, available_mib: u64, seconds: Option<f64>) {
        self.available_mib = available_mib;
        self.each.push(OneSurge { available_mib, seconds });
        self.seconds.extend(seconds);
        self.failures += u64::from(seconds.is_none());
    }

    /// The middle one, of all that were tried; `None` where half of them or more failed.
    pub(super) fn seconds(&self) -> Option<f64> {
        middle(&self.each)
    }

    /// Those before which less could be had than was wanted: for these alone something had to come back.
    pub(super) fn short_of(&self, wanted: ByteSize) -> Vec<OneSurge> {
        let is_short = |one: &OneSurge| one.available_mib < wanted.mib();
        self.each.iter().copied().filter(is_short).collect()
    }
}

/// The middle one; `None` where half of them or more failed.
pub(super) fn middle(surges: &[OneSurge]) -> Option<f64> {
    let all: Vec<f64> = surges.iter().map(|one| one.seconds.unwrap_or(f64::INFINITY)).collect();
    Some(median(&all)).filter(|seconds| seconds.is_finite() && *seconds > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surge_that_has_all_it_wants_waits_for_nothing() {
        let mut surge = Surge::default();
        for (available, seconds) in [(419, Some(3.7)), (786, Some(1.0)), (512, None), (511, None)] {
            surge.note(available, seconds);
        }
        let short = surge.short_of(ByteSize::from_mib(512));
        let available: Vec<u64> = short.iter().map(|one| one.available_mib).collect();
        assert_eq!(available, [419, 511]);
        assert_eq!(middle(&short), None, "half of them failed");
        assert_eq!(middle(&short[..1]), Some(3.7));
    }
}
