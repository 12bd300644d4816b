//! How the kernel treats memory that is plugged in.

use super::DIR;
use crate::{Result, Root};

/// What happens to a block that is plugged in (`auto_online_blocks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoOnline {
    /// It waits for someone to put it online.
    Offline,
    /// It goes online to the zone that the kernel prefers.
    Online,
    /// It goes online to a kernel zone.
    OnlineKernel,
    /// It goes online to `ZONE_MOVABLE`.
    OnlineMovable,
}

impl AutoOnline {
    /// The keyword that the kernel knows it by.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Online => "online",
            Self::OnlineKernel => "online_kernel",
            Self::OnlineMovable => "online_movable",
        }
    }

    /// The policy of this name.
    pub fn from_keyword(text: &str) -> Option<Self> {
        let all = [Self::Offline, Self::Online, Self::OnlineKernel, Self::OnlineMovable];
        all.into_iter().find(|policy| policy.keyword() == text)
    }
}

/// Reads `auto_online_blocks`: `offline` on Debian's 6.1, `online` on 6.12 and 7.3.
///
/// # Errors
/// [`crate::Error::Missing`]: a kernel without memory hotplug. [`crate::Error::Garbage`].
pub fn auto_online(root: &Root) -> Result<AutoOnline> {
    let expected = "offline, online, online_kernel or online_movable";
    root.parsed(format!("{DIR}/auto_online_blocks"), expected, AutoOnline::from_keyword)
}

/// Says what is to happen to memory that is plugged in from now on.
///
/// # Errors
/// [`crate::Error::Missing`]: a kernel without memory hotplug. [`crate::Error::Refused`].
pub fn set_auto_online(root: &Root, policy: AutoOnline) -> Result<()> {
    root.write(format!("{DIR}/auto_online_blocks"), policy.keyword())
}

/// Where the `struct page`s of blocks plugged in from now on lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemmapOnMemory {
    /// In other memory.
    Off,
    /// In the first pages of the block itself, where sizes fit. Those pages stay in use while the
    /// block is offline, and must not be discarded.
    On,
    /// The same, wasting memory where sizes do not fit.
    Forced,
}

/// Reads the parameter of the module `memory_hotplug`. It says nothing of blocks that were plugged
/// in before somebody changed it.
///
/// # Errors
/// [`crate::Error::Missing`]: the kernel cannot do it. [`crate::Error::Garbage`].
pub fn memmap_on_memory(root: &Root) -> Result<MemmapOnMemory> {
    let file = "sys/module/memory_hotplug/parameters/memmap_on_memory";
    root.parsed(file, "Y, N or force", |text| match text {
        "N" => Some(MemmapOnMemory::Off),
        "Y" => Some(MemmapOnMemory::On),
        "force" => Some(MemmapOnMemory::Forced),
        _ => None,
    })
}

/// True unless no block that is plugged in now would hold its own `struct page`s. Those that do may
/// not be discarded while they are only offline; which blocks can at all, [`super::Origins`] tells. From 6.11 on those pages carry no flag in `/proc/kpageflags` by which to
/// tell them (mm/memory_hotplug.c, `mhp_init_memmap_on_memory`), so a census cannot answer this.
pub fn may_hold_own_structs(root: &Root) -> bool {
    let setting = crate::error::optional(memmap_on_memory(root));
    !matches!(setting, Ok(None | Some(MemmapOnMemory::Off)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::fake::FakeRoot;

    #[test]
    fn settings_are_read_and_strange_ones_refused() {
        let fake = FakeRoot::new();
        assert!(auto_online(&fake.root()).unwrap_err().is_missing());
        assert!(memmap_on_memory(&fake.root()).unwrap_err().is_missing());
        fake.put("sys/devices/system/memory/auto_online_blocks", "online_movable\n");
        fake.put("sys/module/memory_hotplug/parameters/memmap_on_memory", "force\n");
        assert_eq!(auto_online(&fake.root()).unwrap(), AutoOnline::OnlineMovable);
        set_auto_online(&fake.root(), AutoOnline::Offline).unwrap();
        assert_eq!(auto_online(&fake.root()).unwrap(), AutoOnline::Offline);
        assert_eq!(memmap_on_memory(&fake.root()).unwrap(), MemmapOnMemory::Forced);
        assert!(may_hold_own_structs(&fake.root()));
        fake.put("sys/devices/system/memory/auto_online_blocks", "maybe\n");
        assert!(matches!(auto_online(&fake.root()), Err(Error::Garbage { .. })));
    }
}
