//! What the policy answers: actions, a waiting time, and the reason in one sentence.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use memtide_units::{BlockId, ByteSize, PpMillion};

use super::choice::Choice;
use super::limits::Ceiling;
use super::pressure::Pressure;
use super::reclaim::Reclaim;

/// What to do now, when to look again, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order; at most three.
    pub actions: Vec<Action>,
    /// Look again after this time at the latest, sooner when something happens.
    pub wait: Duration,
    /// Where the next look is for nothing but growth: as long as free memory stays at this, it need not be
    /// had for a second.
    pub while_free: Option<ByteSize>,
    /// Why.
    pub report: Decision,
    /// Whether cold memory is to be paged out meanwhile, and why.
    pub reclaim: Reclaim,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take blocks offline, one after the other in this order, and report each.
    Steal {
        /// Which.
        blocks: Vec<BlockId>,
        /// What must be left available after each: see [`precheck`](super::precheck). Less than
        /// what the plan counted with, so that a breath of the guest in between changes nothing.
        keep: ByteSize,
    },
    /// Stop taking blocks offline: the one at work too.
    AbortSteal,
    /// Take no more than so many of those that were to be taken and are online still. Who has gone too far for
    /// that ends them all: what is wanted still is chosen anew.
    ShortenSteal {
        /// How many, the one at work included.
        to: u64,
    },
    /// Ask the gate, for the first time or again, under this ticket.
    AskReturn {
        /// The ticket's number.
        ticket: u32,
        /// All of them or none, in ascending order.
        blocks: Vec<BlockId>,
        /// How badly.
        urgency: Urgency,
    },
    /// The ticket is not wanted any more.
    CancelReturn {
        /// Its number.
        ticket: u32,
    },
    /// Put these online although nobody has granted it, and tell the host once it listens.
    TakeUnasked(Vec<BlockId>),
}

/// How badly a return is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Room for growth that nobody waits for.
    Comfort,
    /// Free memory is falling, or pressure is over the goal.
    Pressure,
    /// The guest is about to run out of memory.
    Emergency,
}

impl fmt::Display for Urgency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Comfort => "comfort",
            Self::Pressure => "pressure",
            Self::Emergency => "emergency",
        })
    }
}

/// What was decided and the numbers that decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Blocks are being stolen.
    Steal {
        /// Which.
        blocks: Vec<BlockId>,
        /// What speaks for these.
        choice: Choice,
        /// What is available before.
        available: ByteSize,
        /// What has to be left after.
        keep: ByteSize,
        /// Set where that much may not be online, and not the guest's plenty, is the reason.
        ceiling: Option<Ceiling>,
    },
    /// A running steal goes on.
    Stealing,
    /// A running steal is stopped.
    Abort(WaitReason),
    /// Blocks are asked back.
    Ask {
        /// Under which ticket.
        ticket: u32,
        /// How many.
        count: usize,
        /// How urgently.
        urgency: Urgency,
        /// What is available.
        available: ByteSize,
        /// What should be.
        low: ByteSize,
        /// Pressure over the last window.
        pressure: Pressure,
    },
    /// Blocks are asked back because less is online than the user wants at least: `min` was raised.
    AskForMinimum {
        /// Under which ticket.
        ticket: u32,
        /// How many.
        count: usize,
        /// What is online.
        online: ByteSize,
        /// What should be at least.
        min: ByteSize,
    },
    /// The gate has not granted the return yet.
    Waiting {
        /// The ticket.
        ticket: u32,
        /// How urgently it is wanted.
        urgency: Urgency,
    },
    /// A grant is being carried out.
    PuttingOnline {
        /// The ticket.
        ticket: u32,
    },
    /// A return is not needed any more.
    Cancel {
        /// The ticket.
        ticket: u32,
        /// What is available.
        available: ByteSize,
    },
    /// A return would leave more online than the user allows: `max` was lowered meanwhile.
    CancelOverMaximum {
        /// The ticket.
        ticket: u32,
        /// What may be online.
        max: ByteSize,
    },
    /// Nobody decides, and the guest's life comes first.
    TakeUnasked {
        /// How many blocks.
        count: usize,
        /// How long nobody has decided.
        silent: Duration,
    },
    /// Nothing to do.
    Rest(WaitReason),
}

/// Why nothing is stolen just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// The kernel has no PSI: a thief that cannot hear the victim does not steal.
    NoPsi,
    /// A whole window has not passed yet.
    Measuring,
    /// The device does not answer.
    DeviceSilent,
    /// Pressure is over the goal.
    Pressure {
        /// Over the last window.
        some: PpMillion,
        /// What is acceptable.
        goal: PpMillion,
    },
    /// A PSI trigger fired.
    Trigger,
    /// A return was needed a short while ago.
    AfterReturn {
        /// How much longer nothing is stolen.
        left: Duration,
    },
    /// Tasks stalled a short while ago while blocks were stolen.
    AfterStall {
        /// How much longer nothing is stolen.
        left: Duration,
    },
    /// Taking blocks has cost so much of a processor's time that the guest is left alone for a while.
    Costly {
        /// How much longer nothing is stolen.
        left: Duration,
    },
    /// So much was in use lately that one more block might be missed, as it was before.
    UsedLately {
        /// So much.
        used: ByteSize,
        /// Within so long.
        within: Duration,
    },
    /// One more block would take page cache that is read again and again.
    CacheInUse {
        /// So much of it is.
        cache: ByteSize,
        /// So much more would have to be available.
        missing: ByteSize,
    },
    /// Stealing one more block would leave too little available.
    Steady {
        /// What is available.
        available: ByteSize,
        /// What would have to be available for one more block.
        needed: ByteSize,
        /// How much of that is room for what is in swap.
        for_swapped: ByteSize,
    },
    /// What is free reaches the host as it is, so that only what has not been in use for long is
    /// stolen, and there is no such block yet.
    Patient {
        /// For how long.
        within: Duration,
    },
    /// The host's target alone counts, and no whole block is over it.
    AtTarget {
        /// What may be online.
        ceiling: Ceiling,
    },
    /// `MemFree` is so low that the kernel reclaims already.
    NoFree {
        /// `MemFree`.
        free: ByteSize,
    },
    /// One block less would be below the minimum.
    AtMinimum {
        /// The minimum.
        min: ByteSize,
    },
    /// No block can be stolen: all that could are cooling down or hold kernel pages.
    NoCandidate {
        /// How many cool down after a failure.
        cooling: usize,
    },
    /// Everything has been returned, as an operator wanted, or may not be.
    Restoring,
    /// A return is needed, and no block is stolen, or none more may be online.
    NothingToReturn {
        /// What is available.
        available: ByteSize,
        /// What it is short of, where paging out that much would be of use.
        missing: Option<ByteSize>,
    },
    /// The gate has denied a return a short while ago.
    Denied,
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPsi => f.write_str("the kernel offers no PSI, and nothing is stolen blindly"),
            Self::Measuring => f.write_str("pressure is being measured"),
            Self::DeviceSilent => f.write_str("the device does not answer"),
            Self::Pressure { some, goal } => write!(f, "pressure {some} is over the goal {goal}"),
            Self::Trigger => f.write_str("a task stalls for memory right now"),
            Self::AfterReturn { left } => {
                let seconds = begun_seconds(*left);
                write!(f, "a return was needed lately: no steal for {seconds} s")
            }
            Self::AfterStall { left } => {
                let seconds = begun_seconds(*left);
                write!(f, "tasks stalled when blocks were stolen: no steal for {seconds} s")
            }
            Self::Costly { left } => {
                let seconds = begun_seconds(*left);
                write!(f, "stealing has had its share of the processor: no steal for {seconds} s")
            }
            Self::UsedLately { used, within } => {
                let seconds = within.as_secs();
                write!(f, "{used} were in use within the last {seconds} s, and are kept this time")
            }
            Self::CacheInUse { cache, missing } => write!(
                f,
                "{cache} of page cache are read again and again, one more block needs {missing} more"
            ),
            Self::Steady { available, needed, for_swapped } => {
                write!(f, "{available} available, one more block needs {needed}")?;
                match for_swapped.is_zero() {
                    true => Ok(()),
                    false => write!(f, ", {for_swapped} of it for what is in swap"),
                }
            }
            Self::Patient { within } => write!(
                f,
                "what is free reaches the host as it is: only what was not used for {} s is stolen",
                within.as_secs()
            ),
            Self::AtTarget { ceiling } => {
                write!(f, "{ceiling}, and that is followed")
            }
            Self::NoFree { free } => {
                write!(f, "only {free} free: the kernel is reclaiming already")
            }
            Self::AtMinimum { min } => write!(f, "one block less would be below the minimum {min}"),
            Self::NoCandidate { cooling } => {
                write!(f, "no block can be stolen now ({cooling} cool down after a failure)")
            }
            Self::Restoring => f.write_str("everything is to stay with the guest"),
            Self::NothingToReturn { available, .. } => {
                write!(f, "{available} available is little, and there is no block to ask back")
            }
            Self::Denied => f.write_str("the gate denied a return lately"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steal { blocks, choice, available, keep, ceiling } => {
                write!(f, "steal {}{choice}: ", Names(blocks))?;
                write!(f, "{available} available, {keep} are kept")?;
                match ceiling {
                    Some(ceiling) => write!(f, ", {ceiling}"),
                    None => Ok(()),
                }
            }
            Self::Stealing => f.write_str("stealing goes on"),
            Self::Abort(reason) => write!(f, "stop stealing: {reason}"),
            Self::Ask { ticket, count, urgency, available, low, pressure } => write!(
                f,
                "ask {count} back (ticket {ticket}, {urgency}): {available} available of {low}, pressure {}",
                pressure.some
            ),
            Self::AskForMinimum { ticket, count, online, min } => {
                write!(
                    f,
                    "ask {count} back (ticket {ticket}): {online} is online, the minimum is {min}"
                )
            }
            Self::Waiting { ticket, urgency } => {
                write!(f, "wait for the gate (ticket {ticket}, {urgency})")
            }
            Self::PuttingOnline { ticket } => write!(f, "put ticket {ticket} online"),
            Self::Cancel { ticket, available } => {
                write!(f, "cancel ticket {ticket}: {available} available is enough")
            }
            Self::CancelOverMaximum { ticket, max } => {
                write!(f, "cancel ticket {ticket}: no more than the maximum {max} may be online")
            }
            Self::TakeUnasked { count, silent } => {
                write!(f, "take {count} unasked: nobody decides since {} s", silent.as_secs())
            }
            Self::Rest(reason) => write!(f, "rest: {reason}"),
        }
    }
}

/// At most this many blocks are named; a sentence is for people.
const NAMED_MAX: usize = 4;

/// Block numbers as people list them.
struct Names<'a>(&'a [BlockId]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, block) in self.0.iter().take(NAMED_MAX).enumerate() {
            write!(f, "{}{block}", if n == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(NAMED_MAX) {
            Some(more @ 1..) => write!(f, " and {more} more"),
            _ => Ok(()),
        }
    }
}

/// A time that is left, for people: nobody is told of no seconds while some of one is left.
pub(super) fn begun_seconds(left: Duration) -> u128 {
    left.as_millis().div_ceil(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn what_is_kept_for_swap_is_said() {
        let mib = ByteSize::from_mib;
        let told = |for_swapped| {
            let (available, needed) = (mib(700), mib(1_000));
            WaitReason::Steady { available, needed, for_swapped }.to_string()
        };
        assert_eq!(told(ByteSize::ZERO), "700 MiB available, one more block needs 1000 MiB");
        let with =
            "700 MiB available, one more block needs 1000 MiB, 600 MiB of it for what is in swap";
        assert_eq!(told(mib(600)), with);
    }
}
