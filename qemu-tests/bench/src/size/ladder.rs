//! The same workload in guests of fixed sizes, from large to small. Two at a time live beside each other; for
//! its window each has the host to itself.

use std::time::Duration;

use super::guests::awake;
use super::report::FixedSize;
use super::script::{self, stretched};
use super::steady::{ENDS, FILL};
use super::swap;
use super::watched::{Watched, listen_for};
use crate::error::Result;
use crate::machines::Machines;
use crate::subject::Subject;

/// Sizes, in sixteenths of the whole guest; from all of it to hardly more than the hot set with the
/// system's own and, where it goes there, the cold rest in compressed memory.
const RUNGS: [(u64, &str); 6] = [
    (16, "fixed-16"),
    (12, "fixed-12"),
    (11, "fixed-11"),
    (10, "fixed-10"),
    (9, "fixed-9"),
    (8, "fixed-8"),
];
/// After the workload has its memory, until the kernel has found what is cold, in guests of the usual size.
const SETTLE: Duration = Duration::from_secs(45);
/// Of each: the first, the second, and again.
const WINDOW: Duration = Duration::from_secs(41);
const WINDOWS: usize = 2;
/// After a guest goes on.
const CHANGE: Duration = Duration::from_secs(2);

/// Measures all sizes.
pub(super) fn measure(
    machines: &Machines<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<FixedSize>> {
    let mut found = Vec::new();
    for pair in RUNGS.chunks(2) {
        let names: Vec<&str> = pair.iter().map(|(_, name)| *name).collect();
        say(&format!("guests of fixed sizes: {}", names.join(" and ")));
        let subjects =
            pair.iter().map(|rung| start(machines, *rung)).collect::<Result<Vec<_>>>()?;
        found.extend(play(machines, &subjects)?);
    }
    Ok(found)
}

fn start(machines: &Machines<'_>, (count, name): (u64, &'static str)) -> Result<Subject> {
    let memory = script::sixteenths(machines.memory, count);
    let small = Machines { memory, ..machines.clone() };
    let subject = small.with_modules(name, &["zram"])?;
    // As much as a guest of the whole size would have.
    swap::give(machines, &subject)?;
    Ok(subject)
}

fn play(machines: &Machines<'_>, subjects: &[Subject]) -> Result<Vec<FixedSize>> {
    let script = script::steady_at_once(machines.memory);
    let started: Result<Vec<Watched<'_>>> =
        subjects.iter().map(|subject| Watched::start(subject, &script)).collect();
    let mut watched = started?;
    watched.iter_mut().try_for_each(|guest| guest.await_hot(stretched(machines.memory, FILL)))?;
    let mut all: Vec<&mut Watched<'_>> = watched.iter_mut().collect();
    listen_for(&mut all, stretched(machines.memory, SETTLE))?;
    let mut sizes = vec![FixedSize::default(); all.len()];
    subjects.iter().try_for_each(Subject::freeze)?;
    for _ in 0..WINDOWS {
        for ((guest, subject), size) in all.iter_mut().zip(subjects).zip(&mut sizes) {
            let window = awake(subject, || {
                listen_for(&mut [*guest], CHANGE)?;
                let mark = guest.mark();
                listen_for(&mut [*guest], WINDOW)?;
                Ok(guest.since(mark))
            })?;
            size.size_mib = window.total.mib();
            size.pages_per_second += window.pages_per_second / WINDOWS as f64;
            size.stalls.extend(window.stalls);
        }
    }
    subjects.iter().try_for_each(Subject::thaw)?;
    for (guest, size) in watched.into_iter().zip(&mut sizes) {
        size.oom_kills = guest.subject().oom_kills()?;
        size.pages_bad = guest.end(ENDS)?;
    }
    Ok(sizes)
}
