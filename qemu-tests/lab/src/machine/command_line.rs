//! From a spec to QEMU's words and the kernel's.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use crate::guest::protocol::PORT_NAME;
use crate::machine::accel::Engine;
use crate::machine::bare::BareSpec;
use crate::machine::spec::{Backing, Balloon, Console, MachineSpec, OnReset, QEMU_BALLOON};
use crate::setup::qemu::VHOST_USER_DEVICE;

/// Virtqueues of the vhost-user balloon: inflate, deflate, statistics, free page hinting, free
/// page reporting, and our block queue.
const BALLOON_QUEUES: u32 = 6;
/// Its configuration space, in bytes: the standard 16, our extension, and room to grow.
const BALLOON_CONFIG_BYTES: u32 = 64;

/// The kernel arguments of every guest. What a spec adds comes later and wins.
const KERNEL_ARGUMENTS: [&str; 6] = [
    "console=ttyS0",
    // A panic ends the machine at once: whoever waits for it learns of it.
    "panic=-1",
    "quiet",
    "systemd.show_status=0",
    "systemd.unit=multi-user.target",
    // Debian's list without "bpf", whose one systemd program costs over a second under emulation.
    "lsm=landlock,lockdown,yama,integrity,apparmor",
];

/// What QEMU boots and attaches.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) vmlinuz: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) modules: PathBuf,
    pub(crate) tools: PathBuf,
    pub(crate) serial_log: PathBuf,
}

/// Connected sockets that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sockets {
    pub(crate) monitor: RawFd,
    pub(crate) guest: RawFd,
}

/// QEMU's command line, word by word.
#[derive(Debug, Default)]
struct Words(Vec<OsString>);

impl Words {
    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }
}

/// All of QEMU's arguments for a lab machine.
pub(crate) fn qemu(
    spec: &MachineSpec,
    engine: Engine,
    files: &Files,
    sockets: Sockets,
) -> Vec<OsString> {
    let mut words = Words::default();
    words.option("-name", spec.name.as_str());
    words.option("-machine", "q35,memory-backend=mem");
    words.option("-object", backing(spec));
    words.option("-m", memory(spec));
    words.option("-smp", spec.vcpus.to_string());
    processor(&mut words, engine);
    quiet_hardware(&mut words);
    if spec.on_reset == OnReset::Ends {
        words.flag("-no-reboot");
    }
    boot(&mut words, files);
    words.option("-append", kernel(spec));
    disks(&mut words, files);
    ports(&mut words, spec, sockets);
    balloon(&mut words, &spec.balloon);
    words.0.extend(spec.qemu_arguments.iter().map(Into::into));
    words.0
}

/// QEMU's arguments for a machine that only shows whether a kernel starts under this engine.
pub(crate) fn probe(engine: Engine, files: &Files) -> Vec<OsString> {
    let mut words = Words::default();
    words.option("-machine", "q35");
    words.option("-m", "256M");
    processor(&mut words, engine);
    quiet_hardware(&mut words);
    words.flag("-no-reboot");
    boot(&mut words, files);
    words.option("-append", "console=ttyS0 panic=-1 memtide.probe=1");
    words.0
}

/// QEMU's arguments for a machine that boots one file and has a balloon, a serial line and nothing
/// else.
pub(crate) fn bare(spec: &BareSpec, monitor: RawFd) -> Vec<OsString> {
    let mut words = Words::default();
    let size = spec.memory_mib << 20;
    words.option("-name", spec.name.as_str());
    words.option("-machine", "q35,memory-backend=mem");
    words.option("-object", format!("memory-backend-memfd,id=mem,size={size},share=on"));
    words.option("-m", format!("size={}M", spec.memory_mib));
    processor(&mut words, Engine::Tcg);
    quiet_hardware(&mut words);
    words.flag("-no-reboot");
    words.option("-kernel", &spec.image);
    words.option("-append", spec.command_line.as_str());
    words.option("-serial", prefixed("file:", &spec.artifacts_dir.join("serial.log")));
    words.option("-chardev", format!("socket,id=qmp,fd={monitor}"));
    words.option("-qmp", "chardev:qmp");
    balloon(&mut words, &spec.balloon);
    words.0
}

fn backing(spec: &MachineSpec) -> String {
    let size = spec.memory_bytes();
    match &spec.backing {
        Backing::Memfd => format!("memory-backend-memfd,id=mem,size={size},share=on"),
        Backing::HugeMemfd => {
            let huge = "hugetlb=on,hugetlbsize=2M";
            format!("memory-backend-memfd,id=mem,size={size},share=on,{huge}")
        }
        Backing::FileIn(directory) => {
            let directory = comma_doubled(directory);
            format!("memory-backend-file,id=mem,size={size},share=on,mem-path={directory}")
        }
    }
}

fn memory(spec: &MachineSpec) -> String {
    match spec.max_memory_mib {
        Some(max) => format!("size={}M,slots=8,maxmem={max}M", spec.memory_mib),
        None => format!("size={}M", spec.memory_mib),
    }
}

fn processor(words: &mut Words, engine: Engine) {
    words.option(
        "-accel",
        match engine {
            Engine::Tcg => "tcg,thread=multi",
            Engine::Counted => "tcg,thread=single",
            Engine::Kvm => "kvm",
        },
    );
    if engine == Engine::Counted {
        // One nanosecond (two to the power of zero); a guest that has nothing to do waits by the host's clock.
        words.option("-icount", "shift=0,sleep=on");
    }
    words.option("-cpu", "max");
}

/// No hardware that nobody asked for.
fn quiet_hardware(words: &mut Words) {
    words.flag("-nodefaults");
    words.flag("-no-user-config");
    words.option("-display", "none");
    words.option("-vga", "none");
}

fn boot(words: &mut Words, files: &Files) {
    words.option("-kernel", &files.vmlinuz);
    words.option("-initrd", &files.initramfs);
    words.option("-serial", prefixed("file:", &files.serial_log));
}

/// The initramfs finds each disk by its serial number, so more disks may come with the spec.
fn disks(words: &mut Words, files: &Files) {
    disk(words, "memtide-root", &files.root, "snapshot=on");
    disk(words, "memtide-modules", &files.modules, "readonly=on");
    disk(words, "memtide-tools", &files.tools, "readonly=on");
}

fn disk(words: &mut Words, serial: &str, image: &Path, access: &str) {
    let mut drive =
        OsString::from(format!("if=none,id={serial},format=raw,cache=unsafe,{access},file="));
    drive.push(comma_doubled(image));
    words.option("-drive", drive);
    words.option("-device", format!("virtio-blk-pci,drive={serial},serial={serial}"));
}

/// QEMU splits option values at commas; a doubled one stands for itself.
fn comma_doubled(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut word = OsString::from(prefix);
    word.push(path);
    word
}

/// The monitor, the runner's port and perhaps a console.
fn ports(words: &mut Words, spec: &MachineSpec, sockets: Sockets) {
    words.option("-chardev", format!("socket,id=qmp,fd={}", sockets.monitor));
    words.option("-qmp", "chardev:qmp");
    words.option("-device", "virtio-serial-pci,id=ports");
    words.option("-chardev", format!("socket,id=runner,fd={}", sockets.guest));
    // The runner finds it by name.
    words.option("-device", format!("virtserialport,bus=ports.0,chardev=runner,name={PORT_NAME}"));
    if spec.console != Console::None {
        // "mux" brings QEMU's own escape key (Ctrl-a x), "signal=off" leaves Ctrl-c to the guest.
        words.option("-chardev", "stdio,id=terminal,mux=on,signal=off");
        words.option("-device", "virtconsole,bus=ports.0,chardev=terminal");
    }
}

fn balloon(words: &mut Words, balloon: &Balloon) {
    match balloon {
        Balloon::None => {}
        Balloon::Qemu => words.option("-device", QEMU_BALLOON),
        Balloon::VhostUser { socket } => {
            let socket = comma_doubled(socket);
            words.option("-chardev", format!("socket,id=balloon,path={socket}"));
            let shape =
                format!("num_vqs={BALLOON_QUEUES},vq_size=128,config_size={BALLOON_CONFIG_BYTES}");
            words.option(
                "-device",
                format!("{VHOST_USER_DEVICE},chardev=balloon,virtio-id=5,{shape}"),
            );
        }
    }
}

/// The kernel's command line.
pub(crate) fn kernel(spec: &MachineSpec) -> String {
    let mut words: Vec<String> = KERNEL_ARGUMENTS.map(Into::into).into();
    let mut modules = spec.modules.clone();
    if spec.balloon.is_present() {
        modules.push("virtio_balloon".to_owned());
    }
    if !modules.is_empty() {
        words.push(format!("memtide.modules={}", modules.join(",")));
    }
    if let Console::Terminal { rows, columns } = spec.console {
        words.push("memtide.shell=1".to_owned());
        words.push(format!("systemd.tty.rows.hvc0={rows} systemd.tty.columns.hvc0={columns}"));
    }
    words.extend(spec.kernel_arguments.iter().cloned());
    words.join(" ")
}

#[cfg(test)]
mod tests;
