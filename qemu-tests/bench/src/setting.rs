//! How something was measured, where all guests do the same.

use serde::Serialize;

use crate::machines::Machines;
use crate::subject::Subject;

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
            seconds: 0,
        }
    }

    /// Two lines for the head of a table.
    pub(crate) fn heading(&self) -> String {
        format!(
            "{} MiB guests of {} processors, Linux {} on QEMU {} ({}), {} processors, {} s\n{}\n",
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
