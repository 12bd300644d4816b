//! The production policy on a simulated guest kernel: one thread, one seed, replayable.
//!
//! What decides here is what decides in a guest and on a host: `memtide_policy`'s guest
//! [`Controller`](memtide_policy::guest::Controller) with its heat map and its conversions, and its
//! host gate, ledger and targets. What they decide about is a model: a kernel with memory blocks,
//! zones, unmovable pages, migration, reclaim, pressure and an OOM killer ([`kernel`]), workloads
//! ([`workload`]), an access monitor that is sometimes wrong ([`monitor`]), a device and its host in
//! good and bad moods ([`host`]), and the executor between them ([`agent`]).
//!
//! Time is a number that [`world`] counts up, chance is drawn from one seed ([`chance`]): the same
//! seed and the same sources give the same run, to the last page. While a run goes on, [`check`]
//! holds it to the promises that Memtide makes.

pub mod agent;
pub mod chance;
pub mod check;
pub mod fault;
pub mod host;
pub mod kernel;
pub mod monitor;
pub mod scenario;
pub mod show;
pub mod story;
pub mod workload;
pub mod world;

pub use scenario::Scenario;
pub use world::{Outcome, run};

use std::time::Duration;

/// The step of simulated time. The kernel looks at a PSI trigger ten times in its window
/// (kernel/sched/psi.c, `psi_trigger_create`: the poll interval is the window divided by
/// `UPDATES_PER_WINDOW`), which for the agent's window of half a second is this.
pub const TICK: Duration = Duration::from_millis(50);
