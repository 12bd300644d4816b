//! The demo's report: what was measured in the run that wrote it.

use serde::{Deserialize, Serialize};

/// `cargo xtask demo --report FILE` writes this as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that one: what was tried.
    pub accelerator_reason: String,
    /// The guest's `uname -r`.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// Guest memory.
    pub guest_mib: u64,
    /// Guest memory resident on the host, read from the memfd behind it.
    pub host_resident_mib: Resident,
    /// Memory blocks of the guest.
    pub blocks: Blocks,
    /// What the host's gate did.
    pub gate: Gate,
    /// Backing found under stolen blocks after the steal, by `SEEK_DATA` on the memfd.
    pub stolen_but_resident_kib: u64,
    /// The workload's own check of its pages.
    pub integrity: Integrity,
    /// The guest's own counters at the end.
    pub guest: Guest,
    /// Largest resident sizes of Memtide's own processes.
    pub rss_mib: Rss,
    /// An emulated CPU hides accesses from DAMON unless a neighbour flushes its TLB.
    pub tlb_neighbour: bool,
    /// How long the run took, without set-up and build.
    pub seconds: u64,
    /// What did not come out as promised; empty when all did.
    pub failures: Vec<String>,
}

/// Guest memory resident on the host, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// The most there was.
    pub peak: u64,
    /// After the workload freed its memory and the agent had stolen what it could.
    pub after_steal: u64,
    /// After the workload grew again.
    pub after_return: u64,
}

/// Memory blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// All that the guest has.
    pub total: u32,
    /// In ZONE_MOVABLE, stolen ones included.
    pub movable: u32,
    /// The most that were stolen at once.
    pub stolen_peak: u32,
    /// Returned through the gate, over the run.
    pub returned: u64,
    /// Steals that failed.
    pub failed: u32,
}

/// The gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Returns asked for.
    pub asked: u64,
    /// Granted.
    pub granted: u64,
    /// Held for a while.
    pub held: u64,
    /// The longest hold, in milliseconds.
    pub held_ms_max: u64,
}

/// Pages whose checksum was verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Integrity {
    /// How many checks.
    pub pages_checked: u64,
    /// How many of them found a wrong page.
    pub pages_bad: u64,
}

impl Integrity {
    /// Whether pages were looked at, and none was wrong.
    pub fn is_whole(&self) -> bool {
        self.pages_checked > 0 && self.pages_bad == 0
    }
}

/// The guest's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// OOM kills.
    pub oom_kills: u32,
    /// PSI some for memory over the run, in microseconds.
    pub psi_some_us: u64,
}

/// Resident memory of our own processes, in MiB, rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rss {
    /// memtide-agent, in the guest.
    pub agent: u64,
    /// vhost-user-balloon.
    pub device: u64,
    /// memtided.
    pub memtided: u64,
}
