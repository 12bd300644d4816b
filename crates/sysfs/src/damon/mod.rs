//! DAMON, the kernel's data access monitor, through `/sys/kernel/mm/damon/admin`
//! (Documentation/admin-guide/mm/damon/usage.rst).
//!
//! What a kernel can do is found by the files that it has, never by its version. One kdamond
//! watches physical memory under a scheme with the action `stat`, which does nothing but let regions
//! be read, and where that is wanted under another one that pages cold memory out. A second one counts, of a
//! sample of pages, what was touched lately. Only one user of DAMON can run at a time: [`probe`] names the one
//! in the way.

mod monitor;
mod pageout;
mod pause;
mod probe;
mod regions;
mod sample;
mod setup;

pub use monitor::{Intervals, Monitor, is_ours, stop_leftover};
pub use pageout::{Feedback, PageoutConfig, PageoutStats, Paging};
pub use pause::{ModulePause, adopt_pause, pause_module};
pub use probe::{Absence, Capabilities, Module, forget_stopped, probe, set_up_and_stopped};
pub use regions::Region;
pub use sample::PageCount;
pub use setup::{ConfigError, IntervalsGoal, MonitorConfig, RegionCount};

use crate::{Error, Root};

const DAMON: &str = "sys/kernel/mm/damon";
const KDAMONDS: &str = "sys/kernel/mm/damon/admin/kdamonds";
const KDAMOND: &str = "sys/kernel/mm/damon/admin/kdamonds/0";
const STATE: &str = "sys/kernel/mm/damon/admin/kdamonds/0/state";
const CONTEXT: &str = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0";
const SCHEME: &str = "sys/kernel/mm/damon/admin/kdamonds/0/contexts/0/schemes/0";

/// Why a monitor did not start, or could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DamonError {
    /// There is no DAMON to be had here.
    #[error(transparent)]
    Absent(#[from] Absence),
    /// No kernel would take this configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kdamond that is set up is not, or no longer, the one that was started.
    #[error("its kdamond was taken down, or set up anew, by somebody else")]
    Taken,
    /// A file of DAMON's could not be read or written.
    #[error(transparent)]
    File(#[from] Error),
}

/// A result of the monitor's.
pub type Result<T> = std::result::Result<T, DamonError>;

fn put(root: &Root, file: &str, value: u64) -> crate::Result<()> {
    root.write(file, &value.to_string())
}
