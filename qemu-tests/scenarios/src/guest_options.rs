//! What kind of guest a scenario wants.

use std::path::{Path, PathBuf};

use memtide_lab::Kernel;
use memtide_lab::machine::{Backing, Console, GuestClock, OnReset};
use memtide_units::ByteSize;

/// Whether the agent's unit is in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Installed and started at boot.
    Enabled,
    /// Installed, for whoever starts it.
    Installed,
    /// Not there: the guest has its stock driver and nothing else.
    Absent,
}

/// What kind of guest.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Its kernel.
    pub kernel: Kernel,
    /// Its memory.
    pub memory: ByteSize,
    /// Where logs go.
    pub artifacts: PathBuf,
    /// Whether the agent runs.
    pub agent: Unit,
    /// A prompt for people.
    pub console: Console,
    /// What is out of the ordinary about it.
    pub shape: Shape,
}

impl GuestOptions {
    /// A guest as most are: without a prompt, and nothing out of the ordinary.
    pub fn new((kernel, memory): (Kernel, ByteSize), agent: Unit, artifacts: &Path) -> Self {
        let (artifacts, shape) = (artifacts.to_owned(), Shape::default());
        Self { kernel, memory, artifacts, agent, console: Console::None, shape }
    }
}

/// What may be out of the ordinary about a guest.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What holds its memory.
    pub backing: Backing,
    /// Room for memory that is plugged in later.
    pub memory_max: Option<ByteSize>,
    /// Whether it may be reset.
    pub on_reset: OnReset,
    /// By what its clock goes.
    pub clock: GuestClock,
    /// Words for the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// More words for QEMU's command line.
    pub qemu_arguments: Vec<String>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            backing: Backing::Memfd,
            memory_max: None,
            on_reset: OnReset::Ends,
            clock: GuestClock::Host,
            kernel_arguments: Vec::new(),
            qemu_arguments: Vec::new(),
        }
    }
}
