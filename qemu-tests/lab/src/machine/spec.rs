//! What a machine shall be.

use std::path::PathBuf;

use crate::setup::Kernel;

/// A machine to start. Fields are public: change what [`MachineSpec::new`] chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSpec {
    /// Its name in messages.
    pub name: String,
    /// The kernel that it runs.
    pub kernel: Kernel,
    /// Memory at boot, in MiB.
    pub memory_mib: u64,
    /// Room for memory hot-plug (8 slots), in MiB; `None` for none.
    pub max_memory_mib: Option<u64>,
    /// What holds the memory on the host.
    pub backing: Backing,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// KVM or emulation.
    pub accelerator: Accel,
    /// Its balloon.
    pub balloon: Balloon,
    /// The directory that becomes `/opt/memtide` (see [`crate::tools`]).
    pub tools_dir: PathBuf,
    /// Where its logs go; made if missing.
    pub artifacts_dir: PathBuf,
    /// What a reset does, whether from inside or from the monitor.
    pub on_reset: OnReset,
    /// The interactive console.
    pub console: Console,
    /// Modules that are loaded before systemd starts, as udev would on a machine that has it.
    pub modules: Vec<String>,
    /// Words for the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// Words for QEMU's command line.
    pub qemu_arguments: Vec<String>,
}

impl MachineSpec {
    /// A machine with 2 CPUs, 1 GiB, no balloon and no console; KVM if it works.
    pub fn new(
        name: &str,
        kernel: Kernel,
        tools_dir: impl Into<PathBuf>,
        artifacts_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            kernel,
            memory_mib: 1024,
            max_memory_mib: None,
            backing: Backing::Memfd,
            vcpus: 2,
            accelerator: Accel::Auto,
            balloon: Balloon::None,
            tools_dir: tools_dir.into(),
            artifacts_dir: artifacts_dir.into(),
            on_reset: OnReset::Ends,
            console: Console::None,
            modules: Vec::new(),
            kernel_arguments: Vec::new(),
            qemu_arguments: Vec::new(),
        }
    }

    /// Memory at boot, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }
}

/// What holds a guest's memory on the host. Always shared, as a vhost-user back end needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A memfd of ordinary pages.
    Memfd,
    /// A memfd of 2 MiB pages out of the host's pool, which must hold enough free ones.
    HugeMemfd,
    /// A nameless file in this directory: on tmpfs, or on a disk.
    FileIn(PathBuf),
}

/// What becomes of a machine that is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReset {
    /// It ends: a guest that resets itself unasked has failed.
    Ends,
    /// It boots anew in the same QEMU.
    Boots,
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// KVM if a stock kernel boots under it here, else emulation.
    Auto,
    /// QEMU's emulation.
    Tcg,
    /// QEMU's emulation by a counted clock ([`Engine::Counted`](crate::machine::Engine::Counted)).
    Counted,
    /// The kernel's virtualisation.
    Kvm,
}

/// QEMU's own balloon, which reports free pages: what stands behind its `-device`.
pub const QEMU_BALLOON: &str = "virtio-balloon-pci,free-page-reporting=on";

/// The machine's balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balloon {
    /// It has none.
    None,
    /// A vhost-user back end that already listens on this socket.
    VhostUser {
        /// The socket.
        socket: PathBuf,
    },
    /// QEMU's own, with free page reporting ([`QEMU_BALLOON`]).
    Qemu,
}

impl Balloon {
    /// Whether there is one.
    pub fn is_present(&self) -> bool {
        *self != Self::None
    }
}

/// The machine's interactive console (hvc0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// It has none.
    None,
    /// A root shell on our own terminal; the machine powers off when the shell ends.
    Terminal {
        /// The terminal's size.
        rows: u16,
        /// The terminal's size.
        columns: u16,
    },
}
