//! What this kernel's DAMON can do, or why it is not to be had.

use super::monitor::is_on;
use super::{CONTEXT, DAMON, KDAMOND, KDAMONDS};
use crate::{Error, Root};

/// What the monitor needs and can use, by the files that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Physical addresses can be watched (`CONFIG_DAMON_PADDR`): without it nothing here works.
    pub paddr: bool,
    /// The kernel tunes the intervals itself towards a goal, and says what it chose (6.15).
    pub intervals_goal: bool,
    /// The kernel refreshes what can be read by itself (6.17).
    pub refresh: bool,
    /// Monitoring can pause without stopping (7.2).
    pub pause: bool,
}

/// A part of the kernel that uses DAMON itself and excludes everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// `damon_stat`: running from boot on Debian's 7.3. See [`super::pause_module`].
    Stat,
    /// `damon_reclaim`.
    Reclaim,
    /// `damon_lru_sort`.
    LruSort,
}

impl Module {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Stat, Self::Reclaim, Self::LruSort];

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|module| module.name() == name)
    }

    /// The module's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stat => "damon_stat",
            Self::Reclaim => "damon_reclaim",
            Self::LruSort => "damon_lru_sort",
        }
    }

    pub(super) fn switch(self) -> String {
        format!("sys/module/{}/parameters/enabled", self.name())
    }
}

/// Why there is no DAMON to be had.
#[derive(Debug, thiserror::Error)]
pub enum Absence {
    /// `CONFIG_DAMON` is off, as in Debian's 6.1.
    #[error(
        "this kernel has no DAMON (CONFIG_DAMON): memory is chosen without knowing what is used"
    )]
    NotBuilt,
    /// DAMON is there, its sysfs interface (`CONFIG_DAMON_SYSFS`) is not.
    #[error("this kernel's DAMON cannot be driven from user space (CONFIG_DAMON_SYSFS)")]
    NoInterface,
    /// It cannot watch physical addresses.
    #[error("this kernel's DAMON cannot watch physical addresses (CONFIG_DAMON_PADDR)")]
    NoPaddr,
    /// Somebody's kdamond runs: another tool's, or one that a killed process left behind.
    #[error("kdamond {0} is running already: stop whoever uses DAMON, or write off to its state")]
    Running(u64),
    /// Somebody has set up so many kdamonds, and none of them runs. Whoever sets up others has these forgotten:
    /// the kernel makes all of them anew (mm/damon/sysfs.c, `nr_kdamonds_store`).
    #[error(
        "{0} kdamonds are set up and stopped: write 0 to {KDAMONDS}/nr_kdamonds if nobody needs them"
    )]
    SetUp(u64),
    /// A part of the kernel uses DAMON.
    #[error("{} uses DAMON: write N to {}", .0.name(), .0.switch())]
    UsedBy(Module),
    /// The files could not be read or written, most often for lack of privilege.
    #[error(transparent)]
    File(#[from] Error),
}

/// Finds out what DAMON can do here. Where no kdamond is set up it sets one up, without starting
/// it, to see its files, and takes it down again; where one is, it looks at that one.
///
/// # Errors
/// [`Absence`]: what is missing or in the way.
pub fn probe(root: &Root) -> Result<Capabilities, Absence> {
    if !root.exists(DAMON) {
        return Err(Absence::NotBuilt);
    }
    if !root.exists(KDAMONDS) {
        return Err(Absence::NoInterface);
    }
    in_use(root)?;
    let was = root.value::<u64>(format!("{KDAMONDS}/nr_kdamonds"), "a number")?;
    if was != 0 {
        return if root.exists(CONTEXT) { look(root) } else { Err(Absence::SetUp(was)) };
    }
    let found = make_context(root).map_err(Absence::from).and_then(|()| look(root));
    root.write(format!("{KDAMONDS}/nr_kdamonds"), "0")?;
    found
}

/// How many kdamonds somebody has set up of which none runs: a monitor has them forgotten. 0 where one runs, and where there is no DAMON.
///
/// # Errors
/// That the kernel cannot be asked.
pub fn set_up_and_stopped(root: &Root) -> crate::Result<u64> {
    let kdamonds = crate::error::optional(root.numbers(KDAMONDS, ""))?.unwrap_or_default();
    for kdamond in &kdamonds {
        if is_on(root, *kdamond)? {
            return Ok(0);
        }
    }
    Ok(kdamonds.len() as u64)
}

/// Has kdamonds forgotten that somebody has set up and stopped.
///
/// # Errors
/// That the kernel does not take it: EBUSY where one runs.
pub fn forget_stopped(root: &Root) -> crate::Result<()> {
    root.write(format!("{KDAMONDS}/nr_kdamonds"), "0")
}

/// Who uses DAMON now, as an error.
fn in_use(root: &Root) -> Result<(), Absence> {
    for module in Module::ALL {
        if enabled(root, module)? {
            return Err(Absence::UsedBy(module));
        }
    }
    for kdamond in root.numbers(KDAMONDS, "")? {
        let file = format!("{KDAMONDS}/{kdamond}/state");
        let on = root.parsed(file, "on or off", |state| match state {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        })?;
        if on {
            return Err(Absence::Running(kdamond));
        }
    }
    Ok(())
}

pub(super) fn enabled(root: &Root, module: Module) -> crate::Result<bool> {
    let switch = root.parsed(module.switch(), "Y or N", |text| match text {
        "Y" => Some(true),
        "N" => Some(false),
        _ => None,
    });
    Ok(crate::error::optional(switch)?.unwrap_or(false))
}

/// One kdamond with one context, not started.
pub(super) fn make_context(root: &Root) -> crate::Result<()> {
    root.write(format!("{KDAMONDS}/nr_kdamonds"), "1")?;
    root.write(format!("{KDAMOND}/contexts/nr_contexts"), "1")
}

fn look(root: &Root) -> Result<Capabilities, Absence> {
    let operations = root.read(format!("{CONTEXT}/avail_operations"))?;
    if !operations.split_ascii_whitespace().any(|name| name == "paddr") {
        return Err(Absence::NoPaddr);
    }
    Ok(Capabilities {
        paddr: true,
        intervals_goal: root.exists(super::setup::GOAL),
        refresh: root.exists(format!("{KDAMOND}/refresh_ms")),
        pause: root.exists(format!("{CONTEXT}/pause")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeDamon, FakeRoot};

    fn guest(damon: FakeDamon) -> FakeRoot {
        let fake = FakeRoot::new();
        fake.add_damon(damon);
        fake
    }

    #[test]
    fn kernels_are_told_apart_by_what_they_have() {
        let old = probe(&guest(FakeDamon::V6_12).root()).unwrap();
        assert_eq!(old, Capabilities { paddr: true, ..Capabilities::default() });
        let fake = guest(FakeDamon::V7_3);
        fake.put(&Module::Stat.switch(), "N\n");
        let new = probe(&fake.root()).unwrap();
        assert!(new.intervals_goal && new.refresh && new.pause);
    }

    #[test]
    fn probing_leaves_nothing_behind() {
        let fake = guest(FakeDamon::V6_12);
        probe(&fake.root()).unwrap();
        assert!(!fake.root().exists(KDAMOND));
    }

    #[test]
    fn what_is_missing_has_a_name() {
        let fake = FakeRoot::new();
        assert!(matches!(probe(&fake.root()), Err(Absence::NotBuilt)));
        fake.put("sys/kernel/mm/damon/something", "");
        assert!(matches!(probe(&fake.root()), Err(Absence::NoInterface)));
        let fake = guest(FakeDamon::V6_12_WITHOUT_PADDR);
        assert!(matches!(probe(&fake.root()), Err(Absence::NoPaddr)));
        assert!(!fake.root().exists(KDAMOND));
    }

    #[test]
    fn who_is_in_the_way_has_a_name() {
        let fresh = guest(FakeDamon::V7_3);
        assert!(matches!(probe(&fresh.root()), Err(Absence::UsedBy(Module::Stat))));
        let fake = guest(FakeDamon::V6_12);
        make_context(&fake.root()).unwrap();
        fake.put(super::super::STATE, "on\n");
        assert!(matches!(probe(&fake.root()), Err(Absence::Running(0))));
        fake.put(super::super::STATE, "perhaps\n");
        assert!(matches!(probe(&fake.root()), Err(Absence::File(Error::Garbage { .. }))));
    }

    #[test]
    fn an_idle_setup_of_somebody_else_is_left_alone() {
        let fake = guest(FakeDamon::V6_12);
        make_context(&fake.root()).unwrap();
        assert!(probe(&fake.root()).unwrap().paddr);
        assert!(fake.root().exists(CONTEXT));
    }
}
