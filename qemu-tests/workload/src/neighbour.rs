//! A quiet neighbour on every processor, so that DAMON sees accesses under TCG.
//!
//! TCG keeps translations in a software TLB of its own and sets a page's accessed bit when it fills
//! an entry. A busy process that is alone on its processor keeps its entries, so DAMON clears the
//! bit once and never sees it again: hot memory looks cold. Each switch to another address space
//! flushes the entries; that is why the neighbours are processes and not threads. They sleep, wake
//! and touch nothing. On a real processor they are of no use.
//!
//! Seen under QEMU 7.2 with Linux 6.12, of 2 MiB kept hot in small pages: DAMON called none of it
//! accessed without neighbours, and all of it, in every sample, with them. 32 MiB in small pages
//! and 2 to 128 MiB in huge ones were right without, presumably because they overflow the TLB or
//! share a bit; another workload's 32 MiB were lost under QEMU 11.1, so do not count on it. The
//! price under TCG: 7 to 9 % of each processor, and 13 to 25 % of the workload's speed.

use std::io;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::tcg;

/// Time between two wakes. DAMON's shortest useful sampling interval is 5 ms: ten flushes in each
/// leave no sample without one, also when the host is slow.
const WAKE_EVERY: Duration = Duration::from_micros(500);

/// Whether to start neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TlbNeighbour {
    /// Under TCG only.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl TlbNeighbour {
    /// Whether this run needs neighbours, and why.
    pub(crate) fn reason(self) -> Option<&'static str> {
        match self {
            Self::On => Some("asked for"),
            Self::Auto => tcg::is_emulated().then_some("the processor is emulated by TCG"),
            Self::Off => None,
        }
    }
}

/// The running neighbours; they end when this is dropped, and with the parent however it ends.
#[derive(Debug)]
pub(crate) struct Neighbours {
    children: Vec<Child>,
    /// The processors that have one.
    pub(crate) cpus: Vec<usize>,
}

impl Neighbours {
    /// Starts one for each online processor that this process may use. To be called by the main
    /// thread: the kernel ends them when the thread that started them ends.
    ///
    /// # Errors
    /// Where the processors cannot be listed or this program cannot be started again.
    pub(crate) fn start() -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let program = std::env::current_exe()?;
        let mut neighbours = Self { children: Vec::new(), cpus: Vec::new() };
        for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)) {
            let child = Command::new(&program)
                .arg("neighbour")
                .arg(cpu.to_string())
                .arg(std::process::id().to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()?;
            neighbours.children.push(child);
            neighbours.cpus.push(cpu);
        }
        Ok(neighbours)
    }

    /// Their process numbers, in the order of `cpus`.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended already; then there is nothing to end and nothing to wait for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a neighbour does until it is ended: wakes on `cpu`, and sleeps again.
///
/// # Errors
/// Where the processor is gone, or where the process `parent` ended before it could be tied to it.
pub(crate) fn run(cpu: usize, parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(Pid::as_raw_nonzero).is_none_or(|pid| pid.get() != parent) {
        return Err(io::Error::other("the workload that this neighbour belongs to has ended"));
    }
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    loop {
        thread::sleep(WAKE_EVERY);
    }
}
