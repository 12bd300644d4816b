//! The lines that the program prints: one JSON object each, told apart by `event`.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::control::Go;
use crate::pattern::Fault;

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: Event<'a>,
    /// Milliseconds since the program started.
    at_ms: u64,
}

/// What happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// The script is good, the signal handlers stand; playing begins.
    Start {
        /// The process to send signals to.
        pid: u32,
        /// Milliseconds since 1970, to line `at_ms` up with other records.
        unix_ms: u64,
        /// Steps that will be played.
        steps: usize,
    },
    /// Neighbours run beside the workload: CPU time that is not the workload's is theirs.
    TlbNeighbours {
        /// Why they were started.
        why: &'static str,
        /// The processors that have one.
        cpus: &'a [usize],
        /// Their processes.
        pids: &'a [u32],
    },
    /// A phase begins.
    Phase {
        /// The command as written.
        name: &'a str,
    },
    /// The phase waits for the host.
    Waiting,
    /// The host said "go".
    Go {
        /// How.
        by: Go,
    },
    /// A long phase is still at it.
    Progress {
        /// The phase.
        name: &'a str,
        #[serde(flatten)]
        counts: Counts,
    },
    /// A page is not what it must be.
    BadPage(BadPage<'a>),
    /// A phase is over.
    PhaseDone {
        /// The phase.
        name: &'a str,
        /// How long it took.
        duration_ms: u64,
        /// The slowest single page.
        slowest_touch_us: u64,
        #[serde(flatten)]
        counts: Counts,
    },
    /// Where the pages lie (`--census`).
    Census {
        /// Every memory block that the guest has, ascending.
        blocks: &'a [BlockContents],
    },
    /// The script cannot go on, or nothing be counted any more.
    Error {
        /// What failed, on what, and why.
        message: &'a str,
    },
    /// The last line, however the program ends (unless it is killed outright).
    Summary(Summary),
}

/// What of this program's lies in a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BlockContents {
    /// Its number.
    pub(crate) block: u64,
    /// What the kernel does with it, right after the pages were counted.
    pub(crate) state: BlockState,
    /// Whether it is in `ZONE_MOVABLE`.
    pub(crate) movable: bool,
    /// Pages of regions in it; files are not counted, nor what is in swap.
    pub(crate) pages: u64,
    /// How many of these were touched in the last minute.
    pub(crate) hot: u64,
}

/// What the kernel does with a memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BlockState {
    /// It is in use.
    Online,
    /// Somebody is taking it offline.
    GoingOffline,
    /// It is out of use.
    Offline,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Memory that is mapped and filled now; files are not in it.
    pub(crate) owned_bytes: u64,
    /// Verifications of whole pages.
    pub(crate) pages_checked: u64,
    /// Pages that were wrong; each is repaired when seen, so each loss counts once.
    pub(crate) pages_bad: u64,
}

/// A page that is not what it must be.
#[derive(Debug, Serialize)]
pub(crate) struct BadPage<'a> {
    /// `zeroed`, `stale`, `foreign` or `corrupt`.
    pub(crate) kind: &'static str,
    /// The region, or `files`.
    pub(crate) region: &'a str,
    #[serde(flatten)]
    pub(crate) place: Place,
    /// What was found where what was expected.
    pub(crate) detail: String,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Place {
    /// In memory.
    Memory {
        /// Its address in this process.
        #[serde(serialize_with = "hexadecimal")]
        address: usize,
        /// Its physical frame in the guest; `null` without root.
        pfn: Option<u64>,
    },
    /// In the file of a `files` phase.
    File {
        /// Its offset in bytes.
        file_offset: u64,
    },
}

/// How playing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Every step was played.
    Finished,
    /// SIGTERM or SIGINT came first; everything counted until then counts.
    Interrupted,
    /// A bad page ended it (`--keep-going=no`).
    StoppedAtBadPage,
    /// The kernel refused something; an `error` line says what.
    Failed,
}

/// Everything in one line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// Verifications of whole pages.
    pub(crate) pages_checked: u64,
    /// Wrong pages of all kinds; the exit code is 0 only where this is 0.
    pub(crate) pages_bad: u64,
    /// The wrong pages by kind.
    #[serde(flatten)]
    pub(crate) faults: FaultCounts,
    /// Single words read while memory was kept hot.
    pub(crate) pages_touched: u64,
    /// Since the start.
    pub(crate) seconds: f64,
    /// The slowest touch of a page of memory: what a stolen or swapped page cost at worst. Reads
    /// of files are not in it.
    pub(crate) max_stall_us: u64,
}

/// Wrong pages by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct FaultCounts {
    /// All zero.
    pub(crate) zeroed: u64,
    /// An earlier version of themselves.
    pub(crate) stale: u64,
    /// Whole pages from elsewhere.
    pub(crate) foreign: u64,
    /// Anything else.
    pub(crate) corrupt: u64,
}

impl FaultCounts {
    /// Counts a fault; returns how many of its kind there are now.
    pub(crate) fn count(&mut self, fault: Fault) -> u64 {
        let counter = match fault {
            Fault::Zeroed => &mut self.zeroed,
            Fault::Stale { .. } => &mut self.stale,
            Fault::Foreign { .. } => &mut self.foreign,
            Fault::Corrupt { .. } => &mut self.corrupt,
        };
        *counter += 1;
        *counter
    }

    /// All kinds together.
    pub(crate) fn total(self) -> u64 {
        self.zeroed + self.stale + self.foreign + self.corrupt
    }
}

/// A fault's name in the output.
pub(crate) fn kind(fault: Fault) -> &'static str {
    match fault {
        Fault::Zeroed => "zeroed",
        Fault::Stale { .. } => "stale",
        Fault::Foreign { .. } => "foreign",
        Fault::Corrupt { .. } => "corrupt",
    }
}

/// A fault of a page of generation `expected`, for a person to read.
pub(crate) fn detail(fault: Fault, expected: u16) -> String {
    match fault {
        Fault::Zeroed => format!("all zero where generation {expected} was written"),
        Fault::Stale { generation } => {
            format!("generation {generation} where generation {expected} was written")
        }
        Fault::Foreign { found } => format!(
            "page {} of extent {}, generation {} (or a page of another run)",
            found.page, found.extent, found.generation
        ),
        Fault::Corrupt { offset, expected, found } => {
            format!("from byte {offset} on: {found:#018x} where {expected:#018x} was written")
        }
    }
}

/// Prints an event as one line, at once; `started` is when the program did.
///
/// # Errors
/// Where the output is closed or full.
pub(crate) fn print(out: &mut impl Write, event: Event<'_>, started: Instant) -> io::Result<()> {
    let mut line = serde_json::to_string(&Line { event, at_ms: millis(started.elapsed()) })?;
    line.push('\n');
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// A time as the lines have it.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn hexadecimal<S: Serializer>(address: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{address:#x}"))
}
