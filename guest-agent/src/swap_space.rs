//! Somewhere to page cold memory out to.
//!
//! Where the guest has swap, that is it. Where it has none, the agent makes one: a zram device, which
//! keeps pages compressed in the guest's own memory. It stays over a restart of the agent, since all
//! that is in it would have to come back into memory first, and goes when the agent hands back.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use memtide_policy::guest::Swap;
use memtide_sysfs::meminfo::Meminfo;
use memtide_sysfs::swaps::{self, SwapArea};
use memtide_sysfs::zram::{self, Content, Zram};
use memtide_sysfs::{Error, Root};
use memtide_units::{ByteSize, Permille};

use crate::takeover::modprobe_with;

/// The device holds half of the guest's memory, as the usual setups have it. Its table costs a 200th
/// of that at most, at once.
const SIZE_SHARE: u64 = 2;
/// Most that it holds: larger ones have tables that are felt.
const SIZE_MOST: ByteSize = ByteSize::from_gib(64);
/// Half of that is the most memory that it takes: pages that do not shrink to half on the average are
/// no gain, and the kernel then keeps the next ones where they are.
const MEMORY_SHARE: u64 = 2;
/// So much must be in it before it tells how well it shrinks.
const ENOUGH_TO_TELL: ByteSize = ByteSize::from_mib(16);
/// What stays available when the content comes back into memory: a program can still be started.
const KEEP: ByteSize = ByteSize::from_mib(128);
/// Somebody (udev, a monitor) may have the device open for a moment when it is to go.
const REMOVE_TRIES: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(50);

/// What to do for somewhere to page out to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SwapUse {
    /// As `zram`, but make none on a node of Kubernetes.
    #[default]
    Auto,
    /// Use the swap that there is, and make one in compressed memory where there is none.
    Zram,
    /// Use the swap that there is.
    Existing,
    /// Page nothing out.
    Off,
}

/// Why no swap is made where a kubelet is.
pub const NO_SWAP_FOR_KUBELET: &str = "this guest has none, and a kubelet is installed, which does not \
     start beside swap unless it was told to (failSwapOn); swap = \"zram\" makes it all the same";

/// Whether a kubelet is installed: where it keeps its state, or its settings.
pub fn is_kubernetes_node(root: &Root) -> bool {
    ["var/lib/kubelet", "etc/kubernetes", "var/lib/rancher"].iter().any(|path| root.exists(path))
}

/// What is done by programs, not by files: `modprobe`, and the tools of util-linux.
pub trait SwapTools {
    /// Loads the driver of zram, without any device.
    ///
    /// # Errors
    /// What the program said.
    fn load_zram(&self) -> io::Result<()>;

    /// Runs `mkswap`, `swapon` or `swapoff` on a device.
    ///
    /// # Errors
    /// What the program said.
    fn run(&self, tool: &'static str, device: &str) -> io::Result<()>;
}

/// The programs of this system.
#[derive(Clone, Copy, Debug)]
pub struct SystemTools;

impl SwapTools for SystemTools {
    fn load_zram(&self) -> io::Result<()> {
        modprobe_with("zram", &["num_devices=0"])
    }

    fn run(&self, tool: &'static str, device: &str) -> io::Result<()> {
        let places = [format!("/sbin/{tool}"), format!("/usr/sbin/{tool}")];
        let path = places.into_iter().find(|path| Path::new(path).exists());
        let output = Command::new(path.as_deref().unwrap_or(tool)).arg(device).output();
        let output =
            output.map_err(|error| io::Error::new(error.kind(), format!("{tool}: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_string()))
    }
}

/// Where cold memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapSpace {
    /// To swap that somebody else has set up.
    Existing,
    /// To the agent's own device.
    Ours(Zram),
}

/// What became of the agent's own device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// There was none, or it is gone.
    Gone,
    /// It stays: what is in it finds no room in memory.
    Full {
        /// What is in it.
        used: ByteSize,
        /// What is available.
        available: ByteSize,
    },
}

impl SwapSpace {
    /// Finds swap, or makes one on a guest with so much memory. The file `mark` remembers which device
    /// is the agent's own.
    ///
    /// # Errors
    /// Why there is none, in one sentence.
    pub fn prepare(
        root: &Root,
        how: SwapUse,
        present: ByteSize,
        mark: &Path,
        tools: &dyn SwapTools,
    ) -> Result<Self, String> {
        if how == SwapUse::Off {
            return Err("switched off by the configuration (swap = \"off\")".into());
        }
        let areas = swaps::read(root).map_err(|error| error.to_string())?;
        let own = OwnDevice::find(root, mark);
        if let Some(own) = own.filter(|own| own.area(&areas).is_some()) {
            return Ok(Self::Ours(own.zram));
        }
        // An agent was killed before the device was in use, or somebody has switched it off.
        if let Some(own) = own {
            own.remove(root, mark).map_err(|error| error.to_string())?;
        }
        if !areas.is_empty() {
            return Ok(Self::Existing);
        }
        if how == SwapUse::Existing {
            return Err("this guest has none, and swap = \"existing\" forbids making one".into());
        }
        if how == SwapUse::Auto && is_kubernetes_node(root) {
            return Err(NO_SWAP_FOR_KUBELET.into());
        }
        OwnDevice::make(root, present, mark, tools).map(|own| Self::Ours(own.zram))
    }

    /// What it takes now; not what is in it. The agent's own device takes no more than its bound on memory leaves.
    pub fn now(self, root: &Root, meminfo: &Meminfo) -> Swap {
        let total = meminfo.swap_total;
        let areas = swaps::read(root).unwrap_or_default();
        let (content, own) = self.content(root, &areas);
        let bound = match self {
            Self::Existing => meminfo.swap_free,
            Self::Ours(_) => {
                let most = ByteSize::from_bytes(total.bytes() / MEMORY_SHARE);
                (most - own).times(MEMORY_SHARE)
            }
        };
        Swap { total, free: meminfo.swap_free.min(bound), costs: costs(content), ..Swap::default() }
    }

    /// What is in all areas, and what memory that takes: nothing on a disk. Also what the agent's own takes.
    fn content(self, root: &Root, areas: &[SwapArea]) -> (Content, ByteSize) {
        let (mut all, mut own) = (Content::default(), ByteSize::ZERO);
        for area in areas {
            let Some(zram) = area.zram() else {
                all.stored += area.used;
                continue;
            };
            let content = zram.content(root).unwrap_or_default();
            all.stored += content.stored;
            all.memory += content.memory;
            if self == Self::Ours(zram) {
                own = content.memory;
            }
        }
        (all, own)
    }
}

/// What is in swap on the average takes so much memory.
fn costs(content: Content) -> Permille {
    if content.stored < ENOUGH_TO_TELL {
        return Permille(0);
    }
    let share = content.memory.bytes().saturating_mul(1_000) / content.stored.bytes();
    Permille(u32::try_from(share).unwrap_or(u32::MAX))
}

/// Takes the agent's own device out of use and away, where memory has room for what is in it. Can be
/// repeated from wherever an earlier attempt has stopped.
///
/// # Errors
/// What failed; the device stays, and the mark with it.
pub fn undo(root: &Root, mark: &Path, tools: &dyn SwapTools) -> Result<Undone, String> {
    let Some(own) = OwnDevice::find(root, mark) else {
        forget(mark);
        return Ok(Undone::Gone);
    };
    let areas = swaps::read(root).map_err(|error| error.to_string())?;
    if let Some(area) = own.area(&areas) {
        let available = Meminfo::read(root).map_err(|error| error.to_string())?.available;
        if available < area.used + KEEP {
            return Ok(Undone::Full { used: area.used, available });
        }
        tools.run("swapoff", &own.zram.device()).map_err(|error| error.to_string())?;
    }
    own.remove(root, mark).map_err(|error| error.to_string())?;
    Ok(Undone::Gone)
}

/// The device that the mark names.
#[derive(Clone, Copy, Debug)]
struct OwnDevice {
    zram: Zram,
}

impl OwnDevice {
    /// The device of the mark, if it is there still and is the one that was made: its size is in the
    /// mark too, since somebody may have taken it away and made another of that number.
    fn find(root: &Root, mark: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(mark).ok()?;
        let (number, size) = text.trim().split_once(' ')?;
        let zram = Zram(number.parse().ok()?);
        let is_size = |found: ByteSize| found.is_zero() || found.bytes().to_string() == size;
        zram.size(root).ok().filter(|found| is_size(*found)).map(|_| Self { zram })
    }

    fn make(
        root: &Root,
        present: ByteSize,
        mark: &Path,
        tools: &dyn SwapTools,
    ) -> Result<Self, String> {
        if !zram::is_loaded(root) {
            tools.load_zram().map_err(|error| format!("no zram: {error}"))?;
        }
        let zram = Zram::add(root).map_err(|error| format!("no zram: {error}"))?;
        let own = Self { zram };
        let size = ByteSize::from_bytes(present.bytes() / SIZE_SHARE).min(SIZE_MOST);
        // Before it takes anything: a device that no mark names and that has no size costs nothing.
        let marked = std::fs::write(mark, format!("{} {}", zram.0, size.bytes()));
        let made = marked
            .map_err(|error| format!("{} cannot be written: {error}", mark.display()))
            .and_then(|()| own.put_to_use(root, size, tools));
        match made {
            Ok(algorithm) => {
                let name = zram.device();
                tracing::info!("cold memory goes to {name} ({size} of swap, {algorithm})");
                Ok(own)
            }
            Err(why) => {
                if let Err(error) = own.remove(root, mark) {
                    tracing::warn!("{} is left over: {error}", zram.device());
                }
                Err(why)
            }
        }
    }

    fn put_to_use(
        self,
        root: &Root,
        size: ByteSize,
        tools: &dyn SwapTools,
    ) -> Result<String, String> {
        let most = ByteSize::from_bytes(size.bytes() / MEMORY_SHARE);
        let algorithm = self.zram.set_up(root, size, most).map_err(|error| error.to_string())?;
        let device = self.zram.device();
        // Without a priority of its own it comes after all swap that has one, and all that was there
        // before (swapon(2)).
        for tool in ["mkswap", "swapon"] {
            tools.run(tool, &device).map_err(|error| error.to_string())?;
        }
        Ok(algorithm)
    }

    fn area(self, areas: &[SwapArea]) -> Option<&SwapArea> {
        areas.iter().find(|area| area.is_device(&self.zram.name()))
    }

    fn remove(self, root: &Root, mark: &Path) -> Result<(), Error> {
        for attempt in 1.. {
            match self.zram.remove(root) {
                Err(error) if zram::is_busy(&error) && attempt < REMOVE_TRIES => {
                    std::thread::sleep(REMOVE_PAUSE);
                }
                Err(error) if self.zram.exists(root) => return Err(error),
                _ => break,
            }
        }
        forget(mark);
        Ok(())
    }
}

fn forget(mark: &Path) {
    match std::fs::remove_file(mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("{} cannot be removed: {error}", mark.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
