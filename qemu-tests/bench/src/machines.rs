//! The guests: one kernel, one QEMU, as much memory each; only what moves the memory differs.

use std::path::{Path, PathBuf};

use memtide_lab::cargo::Built;
use memtide_lab::machine::{Backing, Balloon, GuestClock, Machine, MachineSpec, QEMU_BALLOON};
use memtide_lab::tools::{Start, Tools};
use memtide_lab::{Kernel, Lab};
use memtide_units::ByteSize;

use crate::error::{BenchError, Result};
use crate::subject::Subject;
use crate::swap_disk::{self, SwapDisk};

/// What all guests have in common.
#[derive(Clone)]
pub(crate) struct Machines<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) programs: &'a Built,
    pub(crate) kernel: Kernel,
    pub(crate) memory: ByteSize,
    /// Virtual processors of each.
    pub(crate) vcpus: u32,
    /// By what the guests' clocks go.
    pub(crate) clock: GuestClock,
    pub(crate) artifacts: PathBuf,
    /// Programs of ours that are in each guest.
    pub(crate) tools: &'static [&'static str],
    /// What the agent is started with, besides what its unit says.
    pub(crate) agent_options: &'static str,
    /// A disk for each to page out to.
    pub(crate) swap_disk: Option<SwapDisk>,
}

/// The agent's unit as it is shipped, and what of it differs here.
const AGENT_UNIT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-agent/memtide-agent.service");
const SHIPPED_START: &str = "/usr/bin/memtide-agent run";
const BENCH_START: &str = "/opt/memtide/bin/memtide-agent run";

/// The kernel's test of its timer compares emulated time with emulated instructions, and panics on
/// a host that is busy ("IO-APIC + timer doesn't work"). KVM guests leave it out by themselves.
const NO_TIMER_CHECK: &str = "no_timer_check";

impl Machines<'_> {
    /// A guest with nothing that moves its memory.
    pub(crate) fn plain(&self, name: &'static str) -> Result<Subject> {
        self.start(name, |_| {})
    }

    /// A guest with nothing that moves its memory, and with these modules.
    pub(crate) fn with_modules(&self, name: &'static str, modules: &[&str]) -> Result<Subject> {
        self.start(name, |spec| spec.modules = modules.iter().map(|m| (*m).to_owned()).collect())
    }

    /// A guest with QEMU's balloon, which gives way where the guest is out of memory, and the module zram.
    pub(crate) fn with_deflation(&self, name: &'static str) -> Result<Subject> {
        self.start(name, |spec| {
            let device = "virtio-balloon-pci,id=balloon0,deflate-on-oom=on";
            spec.qemu_arguments = words(["-device", device]);
            spec.modules = words(["virtio_balloon", "zram"]);
        })
    }

    /// A guest with QEMU's balloon, which is asked for nothing but its size: with free page
    /// reporting on, what is to be measured would be gone before.
    pub(crate) fn with_balloon(&self, name: &'static str) -> Result<Subject> {
        self.start(name, |spec| {
            spec.qemu_arguments = words(["-device", "virtio-balloon-pci,id=balloon0"]);
            spec.modules = words(["virtio_balloon"]);
        })
    }

    /// A guest with QEMU's balloon and free page reporting, which is all that it is asked for, and
    /// with these modules as well.
    pub(crate) fn with_reporting(&self, name: &'static str, modules: &[&str]) -> Result<Subject> {
        self.start(name, |spec| {
            report_free_pages(spec);
            spec.modules.extend(modules.iter().map(|module| (*module).to_owned()));
        })
    }

    /// A guest of whose memory `size` is plugged in by virtio-mem, in `ZONE_MOVABLE`. Its backing is
    /// a memfd of its own.
    pub(crate) fn with_virtio_mem(&self, name: &'static str, size: ByteSize) -> Result<Subject> {
        self.start(name, |spec| {
            spec.memory_mib = (self.memory - size).mib();
            spec.max_memory_mib = Some(self.memory.mib());
            let bytes = size.bytes();
            spec.qemu_arguments = vec![
                "-object".into(),
                format!("memory-backend-memfd,id=vmem,size={bytes},share=on"),
                "-device".into(),
                format!("virtio-mem-pci,id=vmem0,memdev=vmem,requested-size={bytes}"),
            ];
            spec.modules = words(["virtio_mem"]);
            spec.kernel_arguments.push("memhp_default_state=online_movable".into());
        })
    }

    /// A guest with Memtide's device, which listens on `socket`, and the agent in it.
    pub(crate) fn with_memtide(
        &self,
        name: &'static str,
        socket: &Path,
        backing: Backing,
    ) -> Result<Subject> {
        self.start(name, |spec| {
            spec.balloon = Balloon::VhostUser { socket: socket.to_owned() };
            spec.backing = backing;
        })
    }

    /// The same, and QEMU's own balloon besides, for which the stock driver reports free pages.
    pub(crate) fn with_memtide_and_reporting(
        &self,
        name: &'static str,
        socket: &Path,
    ) -> Result<Subject> {
        self.start(name, |spec| {
            spec.balloon = Balloon::VhostUser { socket: socket.to_owned() };
            report_free_pages(spec);
        })
    }

    fn start(&self, name: &'static str, differ: impl FnOnce(&mut MachineSpec)) -> Result<Subject> {
        let mut tools = Tools::new(self.programs.program("memtide-lab-guest")?)?;
        for name in self.tools {
            tools.program(name, self.programs.program(name)?)?;
        }
        let artifacts = self.artifacts.join(name);
        let mut spec = MachineSpec::new(name, self.kernel, tools.path(), artifacts);
        spec.memory_mib = self.memory.mib();
        spec.vcpus = self.vcpus;
        spec.accelerator = self.clock.accelerator();
        spec.kernel_arguments = words([NO_TIMER_CHECK]);
        differ(&mut spec);
        if matches!(spec.balloon, Balloon::VhostUser { .. }) {
            tools.unit("memtide-agent.service", &self.agent_unit()?, Start::AtBoot)?;
        }
        let attach = |disk: &SwapDisk| disk.attach(&mut spec, &mut tools);
        let swap_file = self.swap_disk.as_ref().map(attach).transpose()?;
        let subject = Subject::new(name, Machine::start(self.lab, &spec)?)?;
        if swap_file.is_some() {
            swap_disk::await_use(&subject)?;
        }
        Ok(subject)
    }

    fn agent_unit(&self) -> Result<String> {
        let path = PathBuf::from(AGENT_UNIT);
        let failed = |source| BenchError::File { doing: "read", path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        Ok(with_options(&text, self.agent_options))
    }
}

/// The shipped unit, for where the lab's guest has the program, with these options.
fn with_options(unit: &str, options: &str) -> String {
    let start = format!("{BENCH_START} {options}");
    unit.replace(SHIPPED_START, start.trim_end())
}

/// Gives it QEMU's balloon, and the stock driver for that.
fn report_free_pages(spec: &mut MachineSpec) {
    spec.qemu_arguments = words(["-device", QEMU_BALLOON]);
    spec.modules = words(["virtio_balloon"]);
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(Into::into).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_unit_is_the_one_that_is_run_but_for_its_command() {
        let shipped = std::fs::read_to_string(AGENT_UNIT).unwrap();
        let unit = with_options(&shipped, "--scale-by target");
        let start = "ExecStart=/opt/memtide/bin/memtide-agent run --scale-by target\n";
        assert!(unit.contains(start), "{unit}");
        assert!(with_options(&shipped, "").contains("memtide-agent run\n"));
    }
}
