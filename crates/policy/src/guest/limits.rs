//! What the user grants and forbids: a minimum, a maximum, an acceptable pressure.

use core::fmt;

use memtide_units::{ByteSize, Permille, PpMillion};

/// Acceptable pressure where nobody says otherwise: 0.1 % of the time some task may stall for
/// memory. The figure of TMO's production use, which ACMA's proposal takes over (1000 us a second).
pub const PSI_GOAL_DEFAULT: PpMillion = PpMillion(1_000);
/// Smallest goal that is more than noise: 0.01 % is 200 us in a window of two seconds.
pub const PSI_GOAL_MIN: PpMillion = PpMillion(100);
/// Largest goal that still is one: at 10 % a machine is visibly slow.
pub const PSI_GOAL_MAX: PpMillion = PpMillion(100_000);

/// No guest is scaled below this by default: what a small Debian with a service needs to live.
const MIN_FLOOR: ByteSize = ByteSize::from_mib(256);
/// Default minimum as a share of what is present: leaves a movable-to-kernel ratio of 3:1.
const MIN_SHARE: Permille = Permille(250);

/// What somebody asked for; `None` takes the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsWish {
    /// Never steal below this much online memory. Default: a quarter of all, at least 256 MiB.
    pub min: Option<ByteSize>,
    /// Never take back beyond this much online memory. Default: all.
    pub max: Option<ByteSize>,
    /// Acceptable share of time in which some task stalls for memory. Default 0.1 %.
    pub psi_goal: Option<PpMillion>,
}

/// Why a wish cannot be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The minimum is larger than the maximum.
    #[error("min is {min} and max is {max}: lower min or raise max until min <= max")]
    MinAboveMax {
        /// The minimum.
        min: ByteSize,
        /// The maximum.
        max: ByteSize,
    },
    /// The goal is out of range.
    #[error("the psi goal {0} is out of its range: choose from {PSI_GOAL_MIN} to {PSI_GOAL_MAX}")]
    GoalOutOfRange(PpMillion),
}

/// Checked limits: `min <= max <= present`, goal in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    min: ByteSize,
    max: ByteSize,
    psi_goal: PpMillion,
}

impl Limits {
    /// The limits of a guest that has `present` bytes in its memory blocks, online or not. A wish
    /// for more than is there means all that is there.
    ///
    /// # Errors
    /// [`LimitsError`] for a minimum above the maximum, or a goal out of range.
    pub fn new(present: ByteSize, wish: LimitsWish) -> Result<Self, LimitsError> {
        let max = wish.max.unwrap_or(present);
        let default_min = MIN_SHARE.of(present).max(MIN_FLOOR).min(max);
        let min = wish.min.unwrap_or(default_min);
        if min > max && wish.max.is_some() {
            return Err(LimitsError::MinAboveMax { min, max });
        }
        let psi_goal = wish.psi_goal.unwrap_or(PSI_GOAL_DEFAULT);
        if !(PSI_GOAL_MIN..=PSI_GOAL_MAX).contains(&psi_goal) {
            return Err(LimitsError::GoalOutOfRange(psi_goal));
        }
        Ok(Self { min: min.min(present), max: max.min(present), psi_goal })
    }

    /// Never steal below this much online memory.
    pub const fn min(&self) -> ByteSize {
        self.min
    }

    /// Never take back beyond this much online memory.
    pub const fn max(&self) -> ByteSize {
        self.max
    }

    /// Acceptable pressure.
    pub const fn psi_goal(&self) -> PpMillion {
        self.psi_goal
    }

    /// How much may be online while the host wants `balloon` bytes of `present`: the balloon's
    /// standard `num_pages` stays a command that works, but never below the user's minimum.
    pub fn ceiling(&self, present: ByteSize, balloon: ByteSize) -> Ceiling {
        let by_host = present - balloon;
        if self.max < by_host {
            Ceiling::Maximum(self.max)
        } else {
            Ceiling::Target(by_host.max(self.min))
        }
    }
}

/// What may be online, and by whose will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// By the user's maximum, which is less than the host's target leaves.
    Maximum(ByteSize),
    /// By the host's target, and the user's minimum where the host wants even more.
    Target(ByteSize),
}

impl Ceiling {
    /// How much.
    pub const fn size(self) -> ByteSize {
        match self {
            Self::Maximum(size) | Self::Target(size) => size,
        }
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maximum(size) => write!(f, "the maximum leaves {size} online"),
            Self::Target(size) => write!(f, "the host's target leaves {size} online"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gib(n: u64) -> ByteSize {
        ByteSize::from_gib(n)
    }

    #[test]
    fn the_defaults_leave_a_quarter_and_never_less_than_a_small_system_needs() {
        let of = |present| Limits::new(present, LimitsWish::default()).unwrap();
        assert_eq!((of(gib(8)).min(), of(gib(8)).max()), (gib(2), gib(8)));
        assert_eq!(of(ByteSize::from_mib(512)).min(), ByteSize::from_mib(256));
        assert_eq!(of(ByteSize::from_mib(128)).min(), ByteSize::from_mib(128));
    }

    #[test]
    fn a_wish_for_more_than_there_is_means_all() {
        let wish = LimitsWish { min: Some(gib(64)), ..LimitsWish::default() };
        assert_eq!(Limits::new(gib(4), wish).unwrap().min(), gib(4));
    }

    #[test]
    fn what_cannot_be_granted_is_named() {
        let wish = LimitsWish { min: Some(gib(3)), max: Some(gib(2)), psi_goal: None };
        let error = LimitsError::MinAboveMax { min: gib(3), max: gib(2) };
        assert_eq!(Limits::new(gib(4), wish), Err(error));
        for goal in [PpMillion(99), PpMillion(100_001)] {
            let wish = LimitsWish { psi_goal: Some(goal), ..LimitsWish::default() };
            assert_eq!(Limits::new(gib(4), wish), Err(LimitsError::GoalOutOfRange(goal)));
        }
    }

    #[test]
    fn the_hosts_target_lowers_the_ceiling_down_to_the_minimum() {
        let limits = Limits::new(gib(8), LimitsWish::default()).unwrap();
        let ceiling = |balloon| limits.ceiling(gib(8), balloon);
        assert_eq!(ceiling(ByteSize::ZERO), Ceiling::Target(gib(8)));
        assert_eq!(ceiling(gib(3)), Ceiling::Target(gib(5)));
        assert_eq!(ceiling(gib(7)), Ceiling::Target(gib(2)));
        assert_eq!(ceiling(ByteSize::MAX), Ceiling::Target(gib(2)));
    }

    #[test]
    fn the_lower_of_target_and_maximum_is_the_ceiling() {
        let wish = LimitsWish { max: Some(gib(6)), ..LimitsWish::default() };
        let limits = Limits::new(gib(8), wish).unwrap();
        let ceiling = |balloon| limits.ceiling(gib(8), gib(balloon));
        assert_eq!([ceiling(0), ceiling(1)], [Ceiling::Maximum(gib(6)); 2]);
        assert_eq!([ceiling(2), ceiling(3)], [Ceiling::Target(gib(6)), Ceiling::Target(gib(5))]);
    }
}
