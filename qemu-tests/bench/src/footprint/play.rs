//! Plays the script in a guest and watches what the guest holds.

use std::time::{Duration, Instant};

use memtide_units::ByteSize;

use super::report::{Point, Run};
use crate::error::{BenchError, Result};
use crate::qemu_devices::resident;
use crate::subject::Subject;
use crate::workload::{Heard, Line, Told};

/// Between two looks at the memfd.
const LOOK: Duration = Duration::from_millis(250);
/// For all of the script; under emulation most of it is filling and checking pages.
const WHOLE: Duration = Duration::from_secs(900);

/// What has been seen so far.
struct Watch {
    started: Instant,
    trace: Vec<Point>,
    /// Time in phases whose work is fixed.
    work: Duration,
    gib_after_idle: f64,
    told: Told,
}

/// Plays `script` to its end.
pub(super) fn play(subject: &Subject, script: &str) -> Result<Run> {
    let argv = ["/opt/memtide/bin/memtide-workload", "play", script];
    let process = subject.machine().guest().spawn("workload", &argv)?;
    let mut watch = Watch {
        started: Instant::now(),
        trace: Vec::new(),
        work: Duration::ZERO,
        gib_after_idle: 0.0,
        told: Told::default(),
    };
    while watch.told.summary.is_none() {
        memtide_scenarios::interrupt::check()?;
        watch.look(subject)?;
        process.new_events().into_iter().for_each(|event| watch.hear(Heard::of(event)));
        if let Some(text) = watch.told.error.take() {
            return Err(subject.unexpected("the workload", text));
        }
        if watch.started.elapsed() > WHOLE {
            let (who, what) = (subject.name().to_owned(), "the workload ends");
            return Err(BenchError::Late { who, what, waited: WHOLE, seen: watch.told.phase });
        }
        std::thread::sleep(LOOK);
    }
    let oom_kills = subject.oom_kills()?;
    Ok(watch.into_run(oom_kills))
}

impl Watch {
    fn look(&mut self, subject: &Subject) -> Result<()> {
        let held = ByteSize::from_bytes(resident(subject.machine().memory())?);
        let gib = held.bytes() as f64 / ByteSize::from_gib(1).bytes() as f64;
        self.trace.push(Point { seconds: self.started.elapsed().as_secs_f64(), gib });
        Ok(())
    }

    fn hear(&mut self, heard: Heard) {
        let Some(Line::PhaseDone { name, duration_ms }) = self.told.hear(heard) else { return };
        if is_fixed_work(&name) {
            self.work += Duration::from_millis(duration_ms);
        }
        if name.starts_with("idle") {
            self.gib_after_idle = self.trace.last().map_or(0.0, |point| point.gib);
        }
    }

    fn into_run(self, oom_kills: u64) -> Run {
        Run {
            gib_minutes: area(&self.trace) / 60.0,
            seconds: self.trace.last().map_or(0.0, |point| point.seconds),
            work_seconds: self.work.as_secs_f64(),
            gib_after_idle: self.gib_after_idle,
            pages_bad: self.told.summary.unwrap_or_default(),
            oom_kills,
            trace: self.trace,
        }
    }
}

/// Phases that take as long as their work does; the others take the time that they are given.
fn is_fixed_work(phase: &str) -> bool {
    ["alloc", "grow", "verify", "read"].iter().any(|word| phase.starts_with(word))
}

/// The area below a trace, in GiB times seconds.
fn area(trace: &[Point]) -> f64 {
    trace
        .windows(2)
        .map(|pair| (pair[1].seconds - pair[0].seconds) * (pair[0].gib + pair[1].gib) / 2.0)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_of_trapezoids() {
        let point = |seconds, gib| Point { seconds, gib };
        assert_eq!(area(&[point(0.0, 1.0), point(2.0, 1.0), point(4.0, 3.0)]), 6.0);
        assert_eq!(area(&[]), 0.0);
    }

    #[test]
    fn rests_are_no_work_and_the_last_one_counts() {
        let mut watch = Watch {
            started: Instant::now(),
            trace: vec![Point { seconds: 1.0, gib: 0.5 }],
            work: Duration::ZERO,
            gib_after_idle: 0.0,
            told: Told::default(),
        };
        for line in [
            r#"{"event":"phase","name":"alloc cc 8MiB","at_ms":1}"#,
            r#"{"event":"phase_done","name":"alloc cc 8MiB","duration_ms":1500,"at_ms":2}"#,
            r#"{"event":"phase_done","name":"hot cc 8MiB 5s","duration_ms":5000,"at_ms":2}"#,
            r#"{"event":"phase_done","name":"idle 20s","duration_ms":20000,"at_ms":3}"#,
            r#"{"event":"summary","outcome":"finished","pages_checked":9,"pages_bad":0,"at_ms":4}"#,
        ] {
            watch.hear(Heard::of_line(line));
        }
        assert_eq!((watch.work.as_millis(), watch.told.summary), (1500, Some(0)));
        assert_eq!((watch.gib_after_idle, watch.told.error.clone()), (0.5, None));
        watch.hear(Heard::of_line("thread 'main' panicked"));
        assert!(watch.told.error.is_some());
    }
}
