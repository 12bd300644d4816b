//! How something was measured, where all guests do the same.

use std::fmt;

use memtide_lab::machine::Engine;
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

/// By what the guests' clocks went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Clock {
    /// By the host's.
    Host,
    /// By their own instructions, a nanosecond each.
    Counted {
        /// So many times as fast as a guest is this host's own processor at reading files of `/proc`, which
        /// is work of the kernel's. An estimate: other work has another ratio, and both have a kernel of
        /// their own.
        host_times_faster: f64,
    },
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Host => f.write_str("the guests' clock is the host's"),
            Self::Counted { host_times_faster } => write!(
                f,
                "the guests' clock counts: a nanosecond an instruction; this host's processor is about \
                 {host_times_faster:.1} times as fast"
            ),
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
    /// `kvm`, `tcg`, or `tcg, counted`.
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
    /// By what the guests' clocks went, where that is chosen. Figures of one do not compare with those of
    /// another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
    /// How long all of it took, by the host's clock.
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
            clock: None,
            seconds: 0,
        }
    }

    /// Why a hundredth of a guest's time cannot be told from none, where it cannot.
    pub(crate) fn why_no_hundredth(&self) -> Option<&'static str> {
        let is_counted = matches!(self.clock, Some(Clock::Counted { .. }));
        // Where processors are the host's own they have the time that the host has.
        (!is_counted && self.accelerator != Engine::Kvm.to_string()).then_some(
            "by the host's clock windows of one emulated guest differ by a seventh (see --clock counted)",
        )
    }

    /// Two lines for the head of a table, one for swap and one for the clock.
    pub(crate) fn heading(&self) -> String {
        let swap = self.swap.map(|swap| format!("{swap}\n")).unwrap_or_default();
        let clock = self.clock.map(|clock| format!("{clock}\n")).unwrap_or_default();
        format!(
            "{} MiB guests of {} processors, Linux {} on QEMU {} ({}), {} processors, {} s\n{}\n{swap}{clock}",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundredth_is_told_where_instructions_are_counted_or_nothing_is_emulated() {
        let setting = |clock, engine: Engine| Setting {
            clock,
            accelerator: engine.to_string(),
            ..Setting::default()
        };
        let counted = Some(Clock::Counted { host_times_faster: 8.0 });
        let tells = |setting: Setting| setting.why_no_hundredth().is_none();
        assert!(tells(setting(counted, Engine::Counted)));
        assert!(tells(setting(Some(Clock::Host), Engine::Kvm)));
        assert!(!tells(setting(Some(Clock::Host), Engine::Tcg)));
        assert!(!tells(Setting::default()), "nothing is known of it");
    }
}
