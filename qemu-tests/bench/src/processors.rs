//! Which processor does what.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::{BenchError, Result};

/// Numbers of the processors that this process may use; one at least.
pub(crate) fn allowed() -> Vec<usize> {
    let all = sched_getaffinity(None).unwrap_or_default();
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    if allowed.is_empty() { vec![0] } else { allowed }
}

/// Has a process, or this thread, run on one processor only.
pub(crate) fn run_on(pid: Option<Pid>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(pid, &set).map_err(BenchError::call("a processor cannot be chosen"))
}
