//! What a guest steals and asks back.
//!
//! [`Controller::step`] looks at one [`Observation`] and answers with one [`Plan`]: what to do, how
//! long to wait before looking again, and why. It reads no clock and no file; whoever carries the
//! plan out reports back through the next observation's [`Outcome`]s.
//!
//! The idea is ACMA's (access/contiguity-aware memory auto-scaling, RFC of 2024): the user gives a
//! minimum, a maximum and a pressure that is acceptable, and everything else tunes itself.
//!
//! ```text
//!   MemAvailable
//!   ─────────────┬──────────────────────────────────────────────────────────
//!    plenty      │ steal, cold, nearly empty and high blocks first, 1, 2, 4, 8 .. at a time
//!   ─ steal ─────┤ low + 1.5 blocks must be left over after a steal
//!    steady      │ nothing
//!   ─ low ───────┤ 10 % of what is online, or half of the working set
//!    growing     │ ask blocks back until half a block over `low`, nearest block first
//!   ─ emergency ─┤ 3 % of what is online
//!    dying       │ ask back at the highest urgency, even past the host's target
//! ```
//!
//! Pressure (PSI, some) over the goal stops stealing at once, whatever is available, and bad pressure
//! for a while, longer each time. Pressure that lasts while little is free asks blocks back, the
//! sooner the higher it is, and twice as many each time that it was not enough. What a control group
//! suffers at its own limit is not the guest's pressure.
//!
//! While less is online than the minimum, which somebody has raised then, what lacks is asked back; while more is
//! than the maximum, what can go goes as for the host's target ([`Ceiling`]).
//!
//! Page cache that was missed when it was gone is not available, and what was needed again soon
//! after it was given up is kept for as long as that was learned to take.
//!
//! While nothing but room keeps the guest from shrinking, cold memory is paged out ([`Reclaim`]).
//!
//! Where free memory reaches the host without being stolen ([`FreeMemory::ReportedToHost`]) plenty is
//! no reason to hurry: only what was not in use for ten minutes is stolen. The host's target is
//! followed as ever.

mod budget;
mod choice;
mod controller;
mod convert;
mod cooldown;

mod figures;
mod headroom;
mod heat;
mod hot_cache;
mod idle;
mod intervals;
mod limits;
mod next_look;
mod observation;
mod pace;
mod page_sample;
mod paging_bounds;
mod peak;
mod plan;
mod pressure;
mod quiet;
mod reclaim;
mod returns;
mod select;
mod shortage;
mod spare_time;
mod steals;
mod trend;
mod vain;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod transcript;

pub use choice::Choice;
pub use controller::{Controller, KernelZone, ScaleBy, Settings};
pub use convert::{Conversions, MOVABLE_PER_KERNEL_MAX, ZoneBalance, conversions};
pub use headroom::Headroom;
pub use heat::{AccessRegion, Heat, HeatMap};
pub use idle::IdleTimes;
pub use intervals::{IntervalTuner, IntervalsAim};
pub use limits::{
    Ceiling, Limits, LimitsError, LimitsWish, PSI_GOAL_DEFAULT, PSI_GOAL_MAX, PSI_GOAL_MIN,
};
pub use observation::{
    Answer, BlockState, BlockView, Census, DeviceState, Effort, FixedReason, FreeMemory, Memory,
    Mode, Observation, Outcome, PsiTotals, Squeeze, StealFailure, StealState, Swap, Ticket,
};
pub use page_sample::{Counted, PageSample};
pub use paging_bounds::{COLD_AFTER, PagingBounds};
pub use plan::{Action, Decision, Plan, Urgency, WaitReason};
pub use pressure::{Pressure, WINDOW};
pub use reclaim::{Gain, NoReclaim, Reclaim};
pub use select::{SkipReason, precheck};
pub use spare_time::SpareTime;
