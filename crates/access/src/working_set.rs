//! The figures: how large the working set was, what there is now; and a history for programs.

use memtide_units::{ByteSize, Gpa, GpaRange};
use serde::{Deserialize, Serialize};

use crate::cell::Kind;
use crate::digest::{Amounts, PERCENTS, TAIL_S, percentile};
use crate::history::{History, Spread};
use crate::region::Temperature;

/// The version of both texts.
const VERSION: u32 = 1;
/// The percentiles of the working set over time.
pub(crate) const QUARTILES: [u64; 5] = [0, 25, 50, 75, 100];

/// How large the working set was, and what memory is now. Sizes are bytes, times milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Of this text: 1.
    pub version: u32,
    /// The percents of `working_set`.
    pub percents: [u64; 5],
    /// The working set's size in percentiles of time, where it was known.
    pub working_set: Option<[ByteSize; 5]>,
    /// Over how much time.
    pub over_ms: u64,
    /// Snapshots that were taken in it.
    pub snapshots: u64,
    /// How long somebody has been watching without a break: no idle time can be longer.
    pub watched_ms: u64,
    /// What memory was by the last snapshot.
    pub now: Amounts,
    /// The seconds of `now.untouched`.
    pub tail_s: [u64; 3],
    /// The percents of `now.idle_ms`.
    pub idle_percents: [u64; 5],
}

impl WorkingSet {
    /// Of all that is kept, or of the last `window_ms`; nothing where there is no snapshot.
    pub fn of(history: &History, window_ms: Option<u64>) -> Option<Self> {
        let last = history.last()?;
        let since = window_ms.map_or(0, |window| last.at_ms.saturating_sub(window));
        let columns = || history.columns().filter(move |column| column.to_ms > since);
        let known: Vec<(Spread, u64)> =
            columns().filter_map(|column| Some((column.working_set?, column.span_ms()))).collect();
        let from = columns().next().map_or(last.at_ms, |column| column.from_ms.max(since));
        Some(Self {
            version: VERSION,
            percents: QUARTILES,
            working_set: percentiles(&known),
            over_ms: last.at_ms - from,
            snapshots: columns().map(|column| column.snapshots).fold(0, u64::saturating_add),
            watched_ms: last.watched_ms,
            now: last.amounts,
            tail_s: TAIL_S,
            idle_percents: PERCENTS,
        })
    }
}

/// The extremes are those of single snapshots, the rest of columns' means, each for as long as it lasted.
fn percentiles(known: &[(Spread, u64)]) -> Option<[ByteSize; 5]> {
    let least = known.iter().map(|(set, _)| set.min).min()?;
    let most = known.iter().map(|(set, _)| set.max).max()?;
    let mut means: Vec<(u64, u64)> =
        known.iter().map(|(set, weight)| (set.mean.bytes(), *weight)).collect();
    means.sort_unstable();
    Some(QUARTILES.map(|percent| match percent {
        0 => least,
        100 => most,
        _ => ByteSize::from_bytes(percentile(&means, percent)),
    }))
}

/// All that is kept, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heat {
    /// Of this text: 1.
    pub version: u32,
    /// Bytes of a cell; the last one of a span may be smaller.
    pub cell: ByteSize,
    /// The memory that there is.
    pub spans: Vec<GpaRange>,
    /// Where each cell begins.
    pub addresses: Vec<Gpa>,
    /// Oldest first.
    pub columns: Vec<HeatColumn>,
}

/// Memory over some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeatColumn {
    /// It began so long before the last snapshot, in milliseconds.
    pub from_ago_ms: u64,
    /// And ended so long before it.
    pub to_ago_ms: u64,
    /// The working set, where it was known.
    pub working_set: Option<Spread>,
    /// One letter for each cell: `u` used, `f` free, `k` the kernel's, `s` stolen, `-` not watched.
    pub kinds: String,
    /// damo's access temperature of each cell that is used: weights 0, 100 and 100.
    pub temperature: Vec<Option<Temperature>>,
    /// In how many of DAMON's samples each used cell was found touched, in thousandths.
    pub accessed: Vec<Option<u32>>,
}

impl Heat {
    /// Of all that is kept; nothing where there is no snapshot.
    pub fn of(history: &History) -> Option<Self> {
        let last = history.last()?;
        let column = |column: &crate::history::Column| {
            let kinds = || column.cells.iter().map(|cell| cell.kind());
            let used = |kind: Kind| match kind {
                Kind::Used(rate, temperature) => Some((rate, temperature)),
                _ => None,
            };
            HeatColumn {
                from_ago_ms: last.at_ms - column.from_ms,
                to_ago_ms: last.at_ms - column.to_ms,
                working_set: column.working_set,
                kinds: kinds().map(letter).collect(),
                temperature: kinds().map(|kind| used(kind).map(|(_, warmth)| warmth)).collect(),
                accessed: kinds().map(|kind| used(kind).map(|(rate, _)| rate.0)).collect(),
            }
        };
        Some(Self {
            version: VERSION,
            cell: last.layout.cell(),
            spans: last.layout.spans().to_vec(),
            addresses: last.layout.ranges().map(|range| range.start()).collect(),
            columns: history.columns().map(column).collect(),
        })
    }
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::Used(..) => 'u',
        Kind::Free => 'f',
        Kind::Kernel => 'k',
        Kind::Stolen => 's',
        Kind::Unwatched => '-',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::example;
    use crate::history::Limits;

    #[test]
    fn a_phase_in_the_middle_is_in_the_upper_percentiles() {
        let set = WorkingSet::of(&example(), None).unwrap();
        let sizes = set.working_set.unwrap().map(|size| size.mib());
        // 768 MiB for 230 of 1170 s, 256 MiB for the rest.
        assert_eq!([sizes[0], sizes[1], sizes[2], sizes[4]], [256, 256, 256, 768]);
        assert_eq!((set.over_ms, set.snapshots), (1_200_000, 600));
        let recent = WorkingSet::of(&example(), Some(300_000)).unwrap();
        assert_eq!(recent.working_set.unwrap()[4].mib(), 256);
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<WorkingSet>(&text).unwrap(), set);
        assert_eq!(WorkingSet::of(&History::new(Limits::AGENT), None), None);
    }

    #[test]
    fn programs_get_every_cell() {
        let heat = Heat::of(&example()).unwrap();
        assert_eq!((heat.cell.mib(), heat.addresses.len()), (8, 512));
        let last = heat.columns.last().unwrap();
        let (from, kinds) = (last.to_ago_ms, &last.kinds);
        assert_eq!((from, kinds.len(), &kinds[..1], &kinds[511..]), (0, 512, "k", "s"));
        // MiB 512 is cell 64: used, and idle for ten minutes.
        let temperature = last.temperature[64].unwrap();
        assert!((-60_100_000_000..-53_000_000_000).contains(&temperature.0), "{temperature:?}");
        assert_eq!((last.accessed[64], last.accessed[0]), (Some(0), None));
        assert_eq!(last.accessed[32], Some(900));
    }
}
