//! How something was measured, where all guests do the same.

use std::fmt;

use serde::Serialize;

use crate::machines::Machines;
use crate::subject::Subject;

/// Where guests page out to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Swap {
    /// To compressed memory of their own. Memtide's agent sets it up by itself.
    Zram,
    /// Each to a disk of its own, which it has from the start.
    Disk {
        /// The disk's size, in MiB.
        size_mib: u64,
        /// The host keeps what is on the disk in its memory: the file system of the disk's file leaves
        /// no choice.
        in_host_memory: bool,
    },
}

impl fmt::Display for Swap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Zram => {
                f.write_str("swap on zram, in the guest's own memory; the agent sets it up")
            }
            Self::Disk { size_mib, in_host_memory } => {
                write!(f, "swap on a disk of {size_mib} MiB for each guest")?;
                let note = ", in the host's memory (a file system without O_DIRECT, or tmpfs)";
                if in_host_memory { f.write_str(note) } else { Ok(()) }
            }
        }
    }
}

/// How it was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Setting {
    /// The guests' `uname -r`.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// The host's processors.
    pub processors: usize,
    /// Memory of each guest, in MiB.
    pub guest_memory_mib: u64,
    /// Processors of each guest.
    pub guest_processors: u32,
    /// What is played in them.
    pub script: String,
    /// Where all guests page out to, where that is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
    /// How long all of it took.
    pub seconds: u64,
}

impl Setting {
    /// As in this guest.
    pub(crate) fn of(machines: &Machines<'_>, subject: &Subject, script: String) -> Self {
        Self {
            kernel: subject.kernel().to_owned(),
            qemu: machines.lab.qemu().version().to_string(),
            accelerator: subject.machine().acceleration().engine.to_string(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            guest_memory_mib: machines.memory.mib(),
            guest_processors: machines.vcpus,
            script,
            swap: None,
            seconds: 0,
        }
    }

    /// Two lines for the head of a table, and one for swap.
    pub(crate) fn heading(&self) -> String {
        let swap = self.swap.map(|swap| format!("{swap}\n")).unwrap_or_default();
        format!(
            "{} MiB guests of {} processors, Linux {} on QEMU {} ({}), {} processors, {} s\n{}\n{swap}",
            self.guest_memory_mib,
            self.guest_processors,
            self.kernel,
            self.qemu,
            self.accelerator,
            self.processors,
            self.seconds,
            self.script
        )
    }
}
