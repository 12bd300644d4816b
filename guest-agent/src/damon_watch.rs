//! The thread that asks DAMON what is used.
//!
//! Reading a snapshot waits for the end of an aggregation, up to two seconds, so it happens on a
//! thread of its own, which sends what it finds. Where there is no DAMON the agent works on,
//! unaware of access, and says so; where it ends, [`crate::watching`] tries again.

mod module_switch;
mod page_sampling;
mod watcher;

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use memtide_policy::guest::{AccessRegion, IntervalsAim};
use memtide_sysfs::Root;
use memtide_sysfs::damon::{
    self, Absence, Capabilities, DamonError, Feedback, IntervalsGoal, Monitor, MonitorConfig,
    PageoutConfig, PageoutStats, Paging, RegionCount,
};
use memtide_units::{ByteSize, GpaRange};

use crate::config::DamonUse;

pub use self::module_switch::ModuleSwitch;

use self::watcher::Watcher;

/// Between two looks at a page; the kernel's default of 5 ms is called too short for most uses by
/// DAMON's own documentation.
const SAMPLE_US: u64 = 200_000;
/// Five looks are summed up. The documentation recommends twenty, for who wants to know how hot something is; here
/// it is asked what is cold, by 150 looks at least, and how much is touched is a question to a sample of pages.
const AGGREGATION_US: u64 = 1_000_000;
/// The documentation's goal for tuned intervals: 4 % of all possible access events.
const GOAL: IntervalsGoal = IntervalsGoal {
    access_bp: 400,
    aggrs: 3,
    // Five looks at each region in a second: where much is touched the goal has DAMON look as often as it
    // may, and at 10 ms that took it a twentieth of a processor with 10^9 instructions a second.
    min_sample_us: 200_000,
    // Two seconds of aggregation: a thief that looks less often is a blind one.
    max_sample_us: 400_000,
};
/// The same, for a kernel that does not tune them.
const AIM: IntervalsAim = IntervalsAim {
    access_bp: GOAL.access_bp,
    aggrs: GOAL.aggrs,
    least: Duration::from_micros(GOAL.min_sample_us),
    most: Duration::from_micros(GOAL.max_sample_us),
};
/// Regions of a block at least: with DAMON's default of ten in all, a region spans several blocks.
const REGIONS_PER_BLOCK: u64 = 6;
/// And so many at most. DAMON divides regions until there are more than half of these, whatever lies in them, and
/// each costs two walks through whoever has a page mapped, five times a second.
const REGIONS_PER_BLOCK_MOST: u64 = 24;
/// Bounds of all regions: what a snapshot costs grows with them.
const REGIONS_LEAST: u64 = 64;
const REGIONS_MIN_MOST: u64 = 1_500;
const REGIONS_MAX: u64 = 3_000;
const STACK: usize = 256 << 10;

/// How memory is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closeness {
    /// Time between two looks at a page.
    pub sample: Duration,
    /// Over how long looks are summed up.
    pub aggregation: Duration,
    /// Into how many regions memory is divided.
    pub regions: usize,
}

/// What was seen at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Memory by region, ascending.
    pub regions: Vec<AccessRegion>,
    /// How much was touched in the last half minute, by a sample of pages, where there is one.
    pub touched: Option<ByteSize>,
    /// How it was seen.
    pub closeness: Closeness,
}

/// What the thread has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A snapshot.
    Snapshot(Seen),
    /// What was paged out since the start.
    PagedOut(PageoutStats),
    /// It has ended, and why: what was known is getting stale. Nothing of it is left.
    Ended(String),
}

/// Why nobody watches.
#[derive(Debug, thiserror::Error)]
pub enum Unwatched {
    /// Nobody wants it.
    #[error("switched off by the configuration (damon = \"off\")")]
    SwitchedOff,
    /// DAMON is not to be had.
    #[error(transparent)]
    Damon(#[from] DamonError),
    /// The thread.
    #[error("its thread could not be started: {0}")]
    Thread(io::Error),
}

impl Unwatched {
    /// Whether it may be otherwise at another time, with the same kernel and the same settings.
    pub fn may_pass(&self) -> bool {
        use Absence::{NoInterface, NoPaddr, NotBuilt};
        let is_kernels = |error: &DamonError| {
            matches!(error, DamonError::Absent(NotBuilt | NoInterface | NoPaddr))
        };
        match self {
            Self::SwitchedOff => false,
            Self::Damon(error) => !is_kernels(error),
            Self::Thread(_) => true,
        }
    }
}

/// The memory of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// What is watched: what is online.
    pub ranges: Vec<GpaRange>,
    /// All of it, offline or not.
    pub memory: Vec<GpaRange>,
    /// The memory blocks that it consists of.
    pub blocks: usize,
}

/// What to watch, and what to do about it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The memory.
    pub watched: Watched,
    /// How what is cold is paged out, where that may be wanted.
    pub pageout: Option<PageoutConfig>,
}

enum Order {
    Watch(Watched),
    PageOut(Paging),
    Stall(u64),
    Goal(u64),
    Stop,
}

/// The thread, from outside. Dropping it stops the monitor.
#[derive(Debug)]
pub struct DamonWatch {
    orders: Sender<Order>,
    findings: Receiver<Finding>,
    thread: Option<JoinHandle<()>>,
    feedback: Option<Feedback>,
    tuner: Tuner,
    /// What was ordered last.
    paging: Paging,
    watched: Watched,
}

/// Who sees to how often DAMON looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuner {
    /// The kernel (6.15 and later).
    Kernel,
    /// The agent, by the same rule.
    Agent,
}

impl DamonWatch {
    /// Starts watching. `modules` outlives what is started; they may be left off by an attempt that fails.
    ///
    /// # Errors
    /// Why there is nothing to see.
    pub fn start(
        root: &Root,
        how: DamonUse,
        wanted: Wanted,
        modules: &mut ModuleSwitch,
    ) -> Result<Self, Unwatched> {
        if how == DamonUse::Off {
            return Err(Unwatched::SwitchedOff);
        }
        let min_age = wanted.pageout.map(|pageout| pageout.min_age);
        let watched = wanted.watched.clone();
        let monitor = begin(root, how, modules, |found| monitor_config(wanted, found))?;
        let feedback = monitor.feedback();
        let tuner = if monitor.is_tuned() { Tuner::Kernel } else { Tuner::Agent };
        let mut watcher = Watcher::new(root, monitor, min_age);
        watcher.pages.want(&watched.memory);
        let (orders, todo) = channel();
        let (report, findings) = channel();
        let thread = std::thread::Builder::new()
            .name("memtide-damon".into())
            .stack_size(STACK)
            .spawn(move || watcher.run(&todo, &report))
            .map_err(Unwatched::Thread)?;
        Ok(Self {
            orders,
            findings,
            thread: Some(thread),
            feedback,
            tuner,
            paging: Paging::Off,
            watched,
        })
    }

    /// What has been found since the last call.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.try_iter().collect()
    }

    /// Watches this memory from now on. Costs nothing where it is watched already.
    pub fn watch(&mut self, watched: Watched) {
        if self.watched != watched {
            self.watched.clone_from(&watched);
            // An ended thread has said so.
            let _ = self.orders.send(Order::Watch(watched));
        }
    }

    /// Who sees to how often DAMON looks.
    pub fn tuner(&self) -> Tuner {
        self.tuner
    }

    /// How the scheme that pages out learns of the stall; `None` where there is none.
    pub fn feedback(&self) -> Option<Feedback> {
        self.feedback
    }

    /// Has cold memory paged out from now on, or no longer.
    pub fn page_out(&mut self, paging: Paging) {
        if self.paging != paging {
            self.paging = paging;
            let _ = self.orders.send(Order::PageOut(paging));
        }
    }

    /// Some task may stall for so many microseconds of each second from now on.
    pub fn aim_at(&self, stall_us: u64) {
        let _ = self.orders.send(Order::Goal(stall_us));
    }

    /// Tells the scheme what some task stalled in the last second, where the kernel does not.
    pub fn tell_stall(&self, stall_us: u64) {
        if self.feedback == Some(Feedback::User) && self.paging.is_on() {
            let _ = self.orders.send(Order::Stall(stall_us));
        }
    }
}

impl Drop for DamonWatch {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        let Some(thread) = self.thread.take() else { return };
        // A look in progress takes its time, as a rule up to two seconds for regions and two for the sample:
        // none of the kernel's waits in it heeds a signal (mm/damon/core.c, `damos_walk` and `damon_call`; before 6.14 mm/damon/sysfs.c,
        // `damon_sysfs_handle_cmd`).
        let _ = thread.join();
    }
}

fn begin(
    root: &Root,
    how: DamonUse,
    modules: &mut ModuleSwitch,
    config: impl FnOnce(Capabilities) -> MonitorConfig,
) -> Result<Monitor, DamonError> {
    if damon::stop_leftover(root)? {
        tracing::info!("stopped the DAMON monitor of an agent that was killed");
    }
    match damon::set_up_and_stopped(root)? {
        0 => {}
        count if how == DamonUse::Polite => return Err(Absence::SetUp(count).into()),
        count => {
            tracing::info!("{count} kdamonds that somebody had set up, and stopped, make room");
            damon::forget_stopped(root)?;
        }
    }
    let found = loop {
        match damon::probe(root) {
            Err(Absence::UsedBy(module)) if modules.may_switch(how, module) => {
                modules.switch_off(module)?;
            }
            other => break other?,
        }
    };
    modules.adopt();
    Monitor::start(root, &config(found))
}

fn monitor_config(wanted: Wanted, found: Capabilities) -> MonitorConfig {
    MonitorConfig {
        regions: wanted.watched.ranges,
        sample_us: SAMPLE_US,
        aggr_us: AGGREGATION_US,
        region_count: region_count(wanted.watched.blocks),
        intervals_goal: found.intervals_goal.then_some(GOAL),
        pageout: wanted.pageout,
    }
}

fn region_count(blocks: usize) -> RegionCount {
    let blocks = blocks as u64;
    let min = (REGIONS_PER_BLOCK * blocks).clamp(REGIONS_LEAST, REGIONS_MIN_MOST);
    let max = (REGIONS_PER_BLOCK_MOST * blocks).clamp(2 * REGIONS_LEAST, REGIONS_MAX);
    RegionCount { min, max }
}

#[cfg(test)]
pub(crate) mod tests;
