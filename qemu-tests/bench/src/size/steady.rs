//! A workload that stays as it is, in a guest that Memtide shrinks and in one that nothing does. For each
//! window the other one is stopped, so that each has both of the host's processors for its two. Where the
//! guests' clocks count instructions they do not disturb each other, and both have their windows at once.

use std::time::Duration;

use memtide_lab::machine::GuestClock;
use memtide_units::ByteSize;

use super::cost::Used;
use super::guests::{Bench, median};
use super::report::{Pair, Steady};
use super::script::{self, stretched};
use super::swap::PagedOut;
use super::watched::{Watched, Window, listen_for};
use crate::error::Result;
use crate::qemu_devices::resident;
use crate::subject::Subject;

/// For filling memory, under emulation, and the rest between, in guests of the usual size.
pub(super) const FILL: Duration = Duration::from_secs(1000);
/// Settled is what has not shrunk for so long: DAMON calls memory cold after a minute.
const SETTLED: Duration = Duration::from_secs(75);
/// Measured is after so long in any case, in guests of the usual size.
const SETTLES: Duration = Duration::from_secs(420);
/// One window of a pair.
const WINDOW: Duration = Duration::from_secs(30);
/// After a guest goes on.
const CHANGE: Duration = Duration::from_secs(2);
/// For the workload's last words.
pub(super) const ENDS: Duration = Duration::from_secs(60);
/// Between two tries.
const LOOK: Duration = Duration::from_secs(1);

/// Those of this part alone; what nothing shrinks lives longer.
#[derive(Clone, Copy)]
pub(super) struct Guests<'a> {
    /// With Memtide, and a balloon that reports.
    pub(super) shrunk: &'a Subject,
    /// With that balloon alone.
    pub(super) reporting: &'a Subject,
}

/// Plays the workload in all guests, waits until Memtide has found its size, and compares.
pub(super) fn measure(bench: &mut Bench<'_>, guests: Guests<'_>, pairs: u32) -> Result<Steady> {
    let Guests { shrunk, reporting } = guests;
    let script = script::steady(bench.machines.memory);
    let mut with = Watched::start(shrunk, &script)?;
    bench.plain.thaw()?;
    let mut without = Watched::start(&bench.plain, &script)?;
    let mut beside = Watched::start(reporting, &script)?;
    let fill = stretched(bench.machines.memory, FILL);
    with.await_hot(fill)?;
    without.await_hot(fill)?;
    beside.await_hot(fill)?;
    let held_reporting = held(reporting)?;
    reporting.freeze()?;
    (bench.say)("the workload has its memory; Memtide finds the guest's size");
    let settles = stretched(bench.machines.memory, SETTLES);
    let settled_after = settle(&mut with, &mut without, settles)?;
    (bench.say)(&format!(
        "it is {} after {:.0} s; {pairs} pairs of windows follow",
        with.total(),
        settled_after.as_secs_f64()
    ));
    let (before, before_without) = (Used::so_far(shrunk)?, Used::so_far(&bench.plain)?);
    let mut steady = Steady {
        settled_after_s: settled_after.as_secs_f64(),
        held_reporting_mib: held_reporting.mib(),
        ..Steady::default()
    };
    for turn in 0..pairs {
        let used = Used::so_far(shrunk)?;
        // Who is first takes turns too: the host may be another by and by.
        let (with, without) = if bench.machines.clock == GuestClock::Counted {
            at_once(&mut with, &mut without)?
        } else if turn % 2 == 0 {
            let with = alone(&mut with, &bench.plain)?;
            (with, alone(&mut without, shrunk)?)
        } else {
            let without = alone(&mut without, shrunk)?;
            (alone(&mut with, &bench.plain)?, without)
        };
        steady.stalls.extend(with.stalls);
        steady.stalls_without.extend(without.stalls);
        steady.size_mib = with.total.mib();
        let pair = Pair {
            with: with.pages_per_second,
            without: without.pages_per_second,
            cost: Used::so_far(shrunk)?.since(&used),
        };
        (bench.say)(&format!("pair {} of {pairs}: {}", turn + 1, told(&pair)));
        steady.pairs.push(pair);
        // How each pair went its way is a question for when they differ.
        let artifacts = bench.machines.artifacts.join(shrunk.name());
        shrunk.keep_state(&artifacts, &format!("pair-{}.txt", turn + 1))?;
    }
    steady.cost = Used::so_far(shrunk)?.since(&before);
    steady.cost_without = Used::so_far(&bench.plain)?.since(&before_without);
    steady.paged_out = PagedOut::of(shrunk)?;
    steady.held_mib = held(shrunk)?.mib();
    steady.held_without_mib = held(&bench.plain)?.mib();
    let slower: Vec<f64> = steady.pairs.iter().filter_map(Pair::slower_percent).collect();
    steady.slower_percent = median(&slower);
    let saved = steady.held_without_mib as f64 - steady.held_mib as f64;
    steady.saved_percent = saved * 100.0 / bench.machines.memory.mib() as f64;
    (bench.say)(&format!(
        "slower by {:.1} %, {:.0} % of the guest is saved",
        steady.slower_percent, steady.saved_percent
    ));
    steady.oom_kills = shrunk.oom_kills()?;
    reporting.thaw()?;
    steady.pages_bad = with.end(ENDS)? + without.end(ENDS)? + beside.end(ENDS)?;
    bench.plain.freeze()?;
    Ok(steady)
}

fn told(pair: &Pair) -> String {
    format!(
        "slower by {}; the agent used {:.2} % of a processor, DAMON {:.2} %",
        pair.slower_percent().map_or("?".into(), |percent| format!("{percent:.1} %")),
        pair.cost.agent_percent,
        pair.cost.damon_percent
    )
}

/// One window of this guest's, while the other one is stopped.
fn alone(guest: &mut Watched<'_>, other: &Subject) -> Result<Window> {
    other.freeze()?;
    listen_for(&mut [guest], CHANGE)?;
    let mark = guest.mark();
    listen_for(&mut [guest], WINDOW)?;
    let window = guest.since(mark);
    other.thaw()?;
    Ok(window)
}

/// One window of both, side by side.
fn at_once<'a>(with: &mut Watched<'a>, without: &mut Watched<'a>) -> Result<(Window, Window)> {
    listen_for(&mut [with, without], CHANGE)?;
    let marks = (with.mark(), without.mark());
    listen_for(&mut [with, without], WINDOW)?;
    Ok((with.since(marks.0), without.since(marks.1)))
}

/// How long it took, by its own clock, until the guest shrank no further, or until that has taken long enough.
fn settle<'a>(
    with: &mut Watched<'a>,
    without: &mut Watched<'a>,
    longest: Duration,
) -> Result<Duration> {
    let started = with.clock();
    let (mut least, mut since) = (with.total(), Duration::ZERO);
    loop {
        listen_for(&mut [with, without], LOOK)?;
        let now = with.clock().saturating_sub(started);
        if with.total() < least {
            (least, since) = (with.total(), now);
        }
        if now.saturating_sub(since) > SETTLED || now > longest {
            return Ok(since);
        }
    }
}

fn held(subject: &Subject) -> Result<ByteSize> {
    Ok(ByteSize::from_bytes(resident(subject.machine().memory())?))
}
