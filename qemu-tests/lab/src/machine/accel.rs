//! KVM or emulation: decided by booting, not by looking.
//!
//! /dev/kvm may open and still be unable to run a stock kernel (nested and restricted ones end in
//! "KVM internal error" or hang). So the first machine on a host boots the lab's kernel under KVM
//! once, with a deadline, and the verdict is kept for as long as the host runs.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::command::outcome;
use crate::error::{IoContext, Result};
use crate::lab::Lab;
use crate::machine::POLL;
use crate::machine::command_line::{Files, probe};
use crate::machine::process::{QemuProcess, Terminal};
use crate::machine::spec::Accel;
use crate::rundir::RunDir;
use crate::setup::Kernel;
use crate::setup::initramfs::PROBE_MARKER;
use crate::text::file_tail;

/// A working KVM needs one or two seconds; a nested one that works needs five.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);
/// What QEMU says when the processor refused an instruction; it then waits for ever.
const KVM_GAVE_UP: &str = "KVM internal error";

/// What executes a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// QEMU's emulation: works everywhere, some ten times slower.
    Tcg,
    /// QEMU's emulation of processors that take a nanosecond of the guest's time for each instruction,
    /// whatever the host takes (QEMU, docs/devel/tcg-icount.rst). See [`GuestClock::Counted`].
    ///
    /// [`GuestClock::Counted`]: crate::machine::GuestClock::Counted
    Counted,
    /// The host kernel's virtualisation.
    Kvm,
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcg => "tcg",
            Self::Counted => "tcg, counted",
            Self::Kvm => "kvm",
        })
    }
}

/// An engine and why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceleration {
    /// The engine.
    pub engine: Engine,
    /// The reason, for reports.
    pub reason: String,
}

/// A verdict with all that it depends on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    host_boot: String,
    qemu: String,
    kernel: String,
    acceleration: Acceleration,
}

/// The engine for a machine.
pub(crate) fn choose(lab: &Lab, kernel: Kernel, wish: Accel) -> Result<Acceleration> {
    let wanted = |engine| Acceleration { engine, reason: "asked for".to_owned() };
    match wish {
        Accel::Tcg => Ok(wanted(Engine::Tcg)),
        Accel::Counted => Ok(wanted(Engine::Counted)),
        Accel::Kvm => Ok(wanted(Engine::Kvm)),
        Accel::Auto => probed(lab, kernel),
    }
}

fn probed(lab: &Lab, kernel: Kernel) -> Result<Acceleration> {
    let path = lab.cache().join(format!("kvm-{}.json", kernel.name()));
    let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
    let host_boot = fs::read_to_string(boot_id).on("read", boot_id)?.trim().to_owned();
    let release = lab.kernel(kernel)?.release;
    if let Some(known) = remembered(&path) {
        let same = known.host_boot == host_boot
            && known.qemu == lab.qemu().version()
            && known.kernel == release;
        if same {
            return Ok(known.acceleration);
        }
    }
    let acceleration = try_kvm(lab, kernel)?;
    let qemu = lab.qemu().version().to_owned();
    let verdict = Verdict { host_boot, qemu, kernel: release, acceleration: acceleration.clone() };
    remember(&path, &verdict)?;
    Ok(acceleration)
}

fn remembered(path: &Path) -> Option<Verdict> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Written aside and renamed: tests run at the same time.
fn remember(path: &Path, verdict: &Verdict) -> Result<()> {
    let text = serde_json::to_vec_pretty(verdict).expect("strings become JSON");
    let aside = path.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&aside, text).on("write", &aside)?;
    fs::rename(&aside, path).on("move into place", &aside)
}

fn try_kvm(lab: &Lab, kernel: Kernel) -> Result<Acceleration> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        let reason = format!("/dev/kvm cannot be opened: {error}");
        return Ok(Acceleration { engine: Engine::Tcg, reason });
    }
    let start = Instant::now();
    let scratch = RunDir::new()?;
    let files = Files {
        vmlinuz: lab.kernel(kernel)?.vmlinuz,
        initramfs: lab.initramfs(kernel),
        root: PathBuf::new(),
        modules: PathBuf::new(),
        tools: PathBuf::new(),
        serial_log: scratch.join("serial.log"),
    };
    let log = scratch.join("qemu.log");
    let arguments = probe(Engine::Kvm, &files);
    let qemu = QemuProcess::start(lab.qemu(), &arguments, Vec::new(), Terminal::Closed, &log)?;
    let verdict = watch(&qemu, &files.serial_log, &log, start + PROBE_DEADLINE);
    let seconds = start.elapsed().as_secs_f64();
    Ok(match verdict {
        Ok(()) => Acceleration {
            engine: Engine::Kvm,
            reason: format!("a stock kernel boots under KVM in {seconds:.1} s"),
        },
        Err(why) => Acceleration {
            engine: Engine::Tcg,
            reason: format!("a stock kernel does not boot under KVM: {why} ({seconds:.1} s)"),
        },
    })
}

/// Waits for the marker, or for a reason to give up.
fn watch(qemu: &QemuProcess, serial: &Path, log: &Path, until: Instant) -> Result<(), String> {
    loop {
        // Looked at first: what a QEMU that has ended has written is all there.
        let ended = qemu.ended();
        let has = |path: &Path, marker: &str| file_tail(path, 0, usize::MAX).contains(marker);
        if has(serial, PROBE_MARKER) {
            return Ok(());
        }
        if has(log, KVM_GAVE_UP) {
            return Err(KVM_GAVE_UP.to_owned());
        }
        if let Some(status) = ended {
            return Err(format!("QEMU ended with {}: {}", outcome(status), file_tail(log, 0, 1)));
        }
        if Instant::now() >= until {
            return Err("no life sign".to_owned());
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_remembered_and_a_broken_memory_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvm.json");
        assert!(remembered(&path).is_none());
        let acceleration = Acceleration { engine: Engine::Tcg, reason: "no".to_owned() };
        let verdict = Verdict {
            host_boot: "a".to_owned(),
            qemu: "11.1".to_owned(),
            kernel: "6.12".to_owned(),
            acceleration,
        };
        remember(&path, &verdict).unwrap();
        assert_eq!(remembered(&path), Some(verdict));
        fs::write(&path, "{").unwrap();
        assert!(remembered(&path).is_none());
    }
}
