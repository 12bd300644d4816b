//! Which promises a measurement kept: each of [`super::limits`], whether or not its part was measured.

use super::limits::{
    ABOVE, AGENT_MEMORY, PAIRS, REST, SAVED, SETTLED, SLOW_DOWN, STALL, SURGE_HARM, SURGE_TIME,
};
use super::report::{Pair, Report, Steady, within_goal};
use super::surge::middle;
use crate::promise::{Judged, Promise};
use crate::setting::Swap;

/// All of them, in the order in which they are shown.
pub(super) fn judged(report: &Report) -> Vec<Judged> {
    vec![
        slow_down(report),
        saved(report),
        stall(report),
        settled(report),
        surge_harm(report),
        surge_time(report),
        rest(report),
        agent_memory(report),
    ]
}

fn not_measured(promise: Promise, part: &str) -> Judged {
    promise.untold(None, format!("{part} was not measured (see --only)"))
}

/// Of a workload that stays as it is; of no pairs nothing is told.
fn of_steady(
    promise: Promise,
    report: &Report,
    judge: impl FnOnce(Promise, &Steady) -> Judged,
) -> Judged {
    match report.steady.as_ref().filter(|steady| !steady.pairs.is_empty()) {
        Some(steady) => judge(promise, steady),
        None => not_measured(promise, "steady"),
    }
}

fn slow_down(report: &Report) -> Judged {
    of_steady(SLOW_DOWN, report, |promise, steady| {
        let pairs = steady.pairs.iter().filter_map(Pair::slower_percent).count();
        let value = (pairs > 0).then_some(steady.slower_percent);
        match (report.setting.why_no_hundredth(), value) {
            (None, Some(value)) if pairs >= PAIRS => promise.judge(value),
            (None, _) => {
                let because =
                    format!("it takes {PAIRS} pairs of which both did work, there are {pairs}");
                promise.untold(value, because)
            }
            (Some(because), _) => promise.untold(value, because),
        }
    })
}

fn saved(report: &Report) -> Judged {
    of_steady(SAVED, report, |promise, steady| {
        let (value, takes) = (steady.saved_percent, steady.paged_out.zram_takes_mib);
        match report.setting.swap {
            Some(Swap::Disk { in_host_memory: false, .. }) => promise.judge(value),
            Some(Swap::Disk { in_host_memory: true, .. }) => promise.untold(
                Some(value),
                "what went to the disk is in the host's memory all the same, and is not counted",
            ),
            Some(Swap::Zram) => promise.not_promised(
                value,
                format!(
                    "what is paged out stays in the guest: {takes} MiB with zram (see --swap disk)"
                ),
            ),
            None => promise.untold(Some(value), "nothing is known of where guests page out to"),
        }
    })
}

fn stall(report: &Report) -> Judged {
    of_steady(STALL, report, |promise, steady| match steady.stalls.as_slice() {
        [] => promise.untold(None, "no window was whole"),
        stalls => promise.judge(within_goal(stalls) * 100.0),
    })
}

fn settled(report: &Report) -> Judged {
    of_steady(SETTLED, report, |promise, steady| {
        if report.sweep.is_empty() {
            return not_measured(promise, "sweep");
        }
        let least = report.smallest_unhurt_mib();
        let above = least.map(|least| percent_above(steady.size_mib, least));
        if let Some(because) = report.setting.why_no_hundredth() {
            return promise.untold(above, because);
        }
        let (Some(least), Some(above)) = (least, above) else {
            return promise.untold(None, "even the whole guest hurts by this measure");
        };
        // None is larger than the smallest that was found not to hurt, so this much is certain.
        match unresolved(report, least) {
            Some(because) if above <= ABOVE => promise.untold(Some(above), because),
            _ => promise.judge(above),
        }
    })
}

/// Why the smallest size that does not hurt may be much smaller than the smallest that was found.
fn unresolved(report: &Report, least_mib: u64) -> Option<String> {
    let below = report.sweep.iter().map(|size| size.size_mib).find(|mib| *mib < least_mib);
    let Some(below) = below else {
        return Some(format!("none of the sizes hurts, not even {least_mib} MiB"));
    };
    (percent_above(least_mib, below) > ABOVE).then(|| {
        format!(
            "{least_mib} MiB does not hurt and {below} MiB does, and no size between was measured"
        )
    })
}

fn percent_above(size_mib: u64, least_mib: u64) -> f64 {
    (size_mib as f64 / least_mib as f64 - 1.0) * 100.0
}

fn surge_harm(report: &Report) -> Judged {
    match report.surge.get("memtide").filter(|surge| !surge.each.is_empty()) {
        Some(surge) => SURGE_HARM.judge((surge.failures + surge.oom_kills) as f64),
        None => not_measured(SURGE_HARM, "surge"),
    }
}

fn surge_time(report: &Report) -> Judged {
    let of = |name: &str| report.surge.get(name);
    let (Some(memtide), Some(none)) = (of("memtide"), of("none")) else {
        return not_measured(SURGE_TIME, "surge");
    };
    let wanted = report.surge_wants();
    let short = memtide.short_of(wanted);
    if short.is_empty() {
        let times = memtide.seconds().zip(none.seconds()).map(|(seconds, base)| seconds / base);
        let because = format!(
            "before each of them the {wanted} that is wanted could be had: nothing had to come back"
        );
        return SURGE_TIME.untold(times, because);
    }
    match (middle(&short), none.seconds()) {
        (Some(seconds), Some(base)) => SURGE_TIME.judge(seconds / base),
        // It never ended.
        (None, Some(_)) => SURGE_TIME.judge(f64::INFINITY),
        (_, None) => SURGE_TIME.untold(None, "surges failed in the guest never shrunk as well"),
    }
}

const NO_AGENT: &str = "no agent was seen";

fn rest(report: &Report) -> Judged {
    let Some(cost) = &report.rest else { return not_measured(REST, "surge") };
    let value = cost.agent_percent + cost.damon_percent;
    match report.setting.why_no_hundredth() {
        _ if cost.agent_mib == 0.0 => REST.untold(None, NO_AGENT),
        Some(because) => REST.untold(Some(value), because),
        None => REST.judge(value),
    }
}

/// The largest that was seen, at rest or at work.
fn agent_memory(report: &Report) -> Judged {
    let steady = report.steady.as_ref().map(|steady| steady.cost);
    let seen = report.rest.into_iter().chain(steady).map(|cost| cost.agent_mib);
    match seen.reduce(f64::max) {
        None => AGENT_MEMORY.untold(None, "neither steady nor surge was measured (see --only)"),
        Some(0.0) => AGENT_MEMORY.untold(None, NO_AGENT),
        Some(mib) => AGENT_MEMORY.judge(mib),
    }
}

#[cfg(test)]
mod tests;
