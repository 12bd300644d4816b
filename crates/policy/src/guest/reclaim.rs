//! Whether cold memory is paged out now.
//!
//! How much of it goes, and how fast, is DAMON's feedback loop's to find out; here is decided only
//! whether there is anything to gain. That is so while the guest may shrink, and all that keeps it
//! from shrinking is that too little is available: what is paged out is available then, and the next
//! block can be stolen. A guest that has all its blocks and little available is short of what its own
//! cold memory holds. While a return is pending, or pressure is over the goal, it would make worse what
//! is bad already.

use core::fmt;
use core::time::Duration;

use memtide_units::{ByteSize, Instant, Permille};

use super::observation::{Mode, Swap};
use super::plan::{Decision, WaitReason, begun_seconds};
use super::vain::{Amounts, Vain};

/// A guest that stalled keeps what it has for this long, five windows: what it touches again by then
/// was not cold.
const AFTER_PRESSURE: Duration = Duration::from_secs(10);
/// This part of all swap stays free: the kernel may need it in a hurry.
const SWAP_KEPT: u64 = 16;
/// Where what is paged out takes more memory than this all the same, it is not worth the processor's
/// time: it is encrypted, or compressed already.
const COSTS_MOST: Permille = Permille(700);

/// Whether cold memory is paged out, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// It is.
    On(Gain),
    /// It is not.
    Off(NoReclaim),
}

/// What is gained by paging out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// So much more must be available before the next block can be stolen.
    Block {
        /// Bytes.
        missing: ByteSize,
    },
    /// No block can be asked back, and so much too little is available.
    Headroom {
        /// Bytes.
        missing: ByteSize,
    },
    /// The kernel has too little free for the next block's pages to move to.
    Room,
    /// What becomes free reaches the host as it is.
    Reported,
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { missing } => write!(f, "one more block needs {missing} more"),
            Self::Headroom { missing } => {
                write!(f, "{missing} more should be available, and no block can be asked back")
            }
            Self::Room => f.write_str("too little is free"),
            Self::Reported => f.write_str("what becomes free reaches the host"),
        }
    }
}

/// Why nothing is paged out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReclaim {
    /// There is nowhere to page out to, or nobody who knows what is cold.
    NoPlace,
    /// Too little swap is free.
    SwapFull {
        /// So much.
        free: ByteSize,
    },
    /// What was paged out takes nearly as much memory as before.
    DoesNotShrink {
        /// Of its size.
        costs: Permille,
    },
    /// The guest gives nothing away, or cannot: see what it says of stealing.
    NothingToGain,
    /// Enough is available as it is.
    NotNeeded,
    /// Blocks are asked back, or were a short while ago.
    Returning,
    /// Some task stalls, or did a short while ago.
    Pressure,
    /// What was paged out has been needed again.
    InVain {
        /// So long until the next try.
        left: Duration,
    },
}

impl fmt::Display for NoReclaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace => f.write_str("there is nowhere to page out to"),
            Self::SwapFull { free } => write!(f, "only {free} of swap are free"),
            Self::DoesNotShrink { costs } => {
                write!(f, "what was paged out takes {} % of its size in memory", costs.0 / 10)
            }
            Self::NothingToGain => f.write_str("nothing is to be gained by it"),
            Self::NotNeeded => f.write_str("enough is available without it"),
            Self::Returning => f.write_str("memory was needed back lately"),
            Self::Pressure => f.write_str("tasks stall for memory, or did lately"),
            Self::InVain { left } => {
                let seconds = begun_seconds(*left);
                write!(f, "what was paged out was needed again; next try in {seconds} s")
            }
        }
    }
}

impl fmt::Display for Reclaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(gain) => write!(f, "cold memory is paged out: {gain}"),
            Self::Off(reason) => write!(f, "cold memory stays: {reason}"),
        }
    }
}

/// What is looked at besides what was decided on blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    pub(super) mode: Mode,
    pub(super) swap: Option<Swap>,
    /// Some task stalls too much, also where all that is waited for is what was paged out. The host's target
    /// lets blocks go in spite of it; that is no reason to page out.
    pub(super) stalls: bool,
    /// `MemAvailable`.
    pub(super) available: ByteSize,
    /// What was needed again after it had been reclaimed, where the kernel counts it.
    pub(super) refaulted: Option<ByteSize>,
    /// What is in use, where that is known.
    pub(super) working_set: Option<ByteSize>,
}

/// Remembers what was decided last, and when some task last stalled.
#[derive(Clone, Debug)]
pub(super) struct Reclaimer {
    last: Reclaim,
    stalled: Option<Instant>,
    vain: Vain,
}

impl Default for Reclaimer {
    fn default() -> Self {
        Self { last: Reclaim::Off(NoReclaim::NotNeeded), stalled: None, vain: Vain::default() }
    }
}

impl Reclaimer {
    /// Decides beside what was decided on blocks.
    pub(super) fn decide(&mut self, now: Instant, around: Around, decision: &Decision) -> Reclaim {
        if around.stalls {
            self.stalled = Some(now);
        }
        let wanted = match (place(around.swap), around.mode) {
            (Err(reason), _) => Reclaim::Off(reason),
            (Ok(()), Mode::Restore) => Reclaim::Off(NoReclaim::NothingToGain),
            (Ok(()), Mode::Tune) => self.beside(now, decision),
        };
        self.last = self.unless_in_vain(now, &around, decision, wanted);
        self.last
    }

    /// What is wanted, unless what was paged out lately for one more block, or to be reported to the host, was
    /// needed again and has made no room.
    fn unless_in_vain(
        &mut self,
        now: Instant,
        around: &Around,
        decision: &Decision,
        wanted: Reclaim,
    ) -> Reclaim {
        match (wanted, decision) {
            (wanted, Decision::Steal { .. }) => {
                self.vain.begin_anew();
                match wanted {
                    Reclaim::Off(NoReclaim::InVain { .. }) => Reclaim::Off(NoReclaim::NotNeeded),
                    other => other,
                }
            }
            (Reclaim::Off(NoReclaim::Returning), _) => {
                self.vain.begin_anew();
                wanted
            }
            // What is available is told of this moment.
            (Reclaim::On(Gain::Block { .. } | Gain::Reported), Decision::Rest(reason))
                if *reason != WaitReason::Measuring =>
            {
                let left = self.left_alone(now, around);
                left.map_or(wanted, |left| Reclaim::Off(NoReclaim::InVain { left }))
            }
            _ => {
                self.vain.forget();
                wanted
            }
        }
    }

    fn left_alone(&mut self, now: Instant, around: &Around) -> Option<Duration> {
        let Some((refaulted, swap)) = around.refaulted.zip(around.swap) else {
            self.vain.forget();
            return None;
        };
        let Around { available, working_set, .. } = *around;
        let amounts = Amounts { available, paged_out: swap.paged_out, refaulted, working_set };
        self.vain.judge(now, amounts)
    }

    fn beside(&mut self, now: Instant, decision: &Decision) -> Reclaim {
        let reason = match decision {
            // What is available changes meanwhile: whether it was enough shows after.
            Decision::Steal { .. } | Decision::Stealing => return self.still(now),
            Decision::Ask { .. }
            | Decision::AskForMinimum { .. }
            | Decision::Waiting { .. }
            | Decision::PuttingOnline { .. }
            | Decision::Cancel { .. }
            | Decision::CancelOverMaximum { .. }
            | Decision::TakeUnasked { .. } => return Reclaim::Off(NoReclaim::Returning),
            Decision::Abort(reason) | Decision::Rest(reason) => reason,
        };
        match *reason {
            WaitReason::Measuring => self.still(now),
            WaitReason::Steady { available, needed, .. } => {
                self.unless_stalled(now, Gain::Block { missing: needed - available })
            }
            WaitReason::CacheInUse { missing, .. } => {
                self.unless_stalled(now, Gain::Block { missing })
            }
            WaitReason::NoFree { .. } => self.unless_stalled(now, Gain::Room),
            WaitReason::Patient { .. } => self.unless_stalled(now, Gain::Reported),
            WaitReason::Pressure { .. } | WaitReason::Trigger => {
                self.stalled = Some(now);
                Reclaim::Off(NoReclaim::Pressure)
            }
            WaitReason::AfterStall { .. } => Reclaim::Off(NoReclaim::Pressure),
            // Room for one more is there already.
            WaitReason::UsedLately { .. } | WaitReason::Costly { .. } => {
                Reclaim::Off(NoReclaim::NotNeeded)
            }
            WaitReason::NothingToReturn { missing: Some(missing), .. } => {
                self.unless_stalled(now, Gain::Headroom { missing })
            }
            WaitReason::NothingToReturn { missing: None, .. } => {
                Reclaim::Off(NoReclaim::NothingToGain)
            }
            WaitReason::AfterReturn { .. } | WaitReason::Denied => {
                Reclaim::Off(NoReclaim::Returning)
            }
            WaitReason::NoPsi
            | WaitReason::DeviceSilent
            | WaitReason::AtTarget { .. }
            | WaitReason::AtMinimum { .. }
            | WaitReason::NoCandidate { .. }
            | WaitReason::Restoring => Reclaim::Off(NoReclaim::NothingToGain),
        }
    }

    fn still(&self, now: Instant) -> Reclaim {
        match self.last {
            Reclaim::On(gain) => self.unless_stalled(now, gain),
            off @ Reclaim::Off(_) => off,
        }
    }

    fn unless_stalled(&self, now: Instant, gain: Gain) -> Reclaim {
        match self.stalled {
            Some(at) if now.since(at) < AFTER_PRESSURE => Reclaim::Off(NoReclaim::Pressure),
            _ => Reclaim::On(gain),
        }
    }
}

/// Whether there is somewhere to page out to.
fn place(swap: Option<Swap>) -> Result<(), NoReclaim> {
    let Swap { total, free, costs, .. } = swap.ok_or(NoReclaim::NoPlace)?;
    if total.is_zero() {
        return Err(NoReclaim::NoPlace);
    }
    if free.bytes() <= total.bytes() / SWAP_KEPT {
        return Err(NoReclaim::SwapFull { free });
    }
    if costs > COSTS_MOST {
        return Err(NoReclaim::DoesNotShrink { costs });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Choice;
    use memtide_units::PpMillion;

    const STEADY: Decision = Decision::Rest(WaitReason::Steady {
        available: ByteSize::from_mib(300),
        needed: ByteSize::from_mib(400),
        for_swapped: ByteSize::ZERO,
    });
    const OVER: Decision =
        Decision::Rest(WaitReason::Pressure { some: PpMillion(2_000), goal: PpMillion(1_000) });

    fn swap(free: u64) -> Option<Swap> {
        let (total, free) = (ByteSize::from_mib(1024), ByteSize::from_mib(free));
        Some(Swap { total, free, costs: Permille(350), ..Swap::default() })
    }

    fn around(mode: Mode, swap: Option<Swap>) -> Around {
        let available = ByteSize::from_mib(300);
        Around { mode, swap, stalls: false, available, refaulted: None, working_set: None }
    }

    fn story(decisions: &[(u64, Decision)]) -> Vec<String> {
        let mut reclaimer = Reclaimer::default();
        let at = |s: &u64| Instant::from_millis(s * 1_000);
        let mut said = |(s, decision): &(u64, Decision)| {
            let around = around(Mode::Tune, swap(900));
            reclaimer.decide(at(s), around, decision).to_string()
        };
        decisions.iter().map(&mut said).collect()
    }

    #[test]
    fn it_is_on_while_only_room_is_missing_and_a_steal_does_not_interrupt_it() {
        let on = "cold memory is paged out: one more block needs 100 MiB more";
        let said = story(&[
            (0, Decision::Rest(WaitReason::Measuring)),
            (2, STEADY),
            (3, Decision::Stealing),
            (4, Decision::Rest(WaitReason::Measuring)),
            (6, Decision::Rest(WaitReason::NoFree { free: ByteSize::ZERO })),
            (7, Decision::Rest(WaitReason::AtMinimum { min: ByteSize::from_mib(512) })),
        ]);
        let stays = |why: &str| format!("cold memory stays: {why}");
        assert_eq!(said[0], stays("enough is available without it"));
        assert_eq!(said[1..4], [on, on, on]);
        assert_eq!(said[4], "cold memory is paged out: too little is free");
        assert_eq!(said[5], stays("nothing is to be gained by it"));
    }

    /// Else a guest whose programs hold much that they never touch would never shrink again once it has
    /// needed all of its blocks.
    #[test]
    fn a_guest_that_is_whole_and_short_of_memory_pages_out_unless_tasks_stall() {
        let short = |missing| {
            let available = ByteSize::from_mib(100);
            let missing = (missing > 0).then(|| ByteSize::from_mib(missing));
            Decision::Rest(WaitReason::NothingToReturn { available, missing })
        };
        let trigger = Decision::Rest(WaitReason::Trigger);
        let said = story(&[
            (0, short(90)),
            (1, short(0)),
            (2, OVER),
            (3, trigger),
            (4, short(90)),
            (13, short(90)),
        ]);
        let on = "cold memory is paged out: 90 MiB more should be available, and no block can be \
                  asked back";
        let useless = "cold memory stays: nothing is to be gained by it";
        let off = "cold memory stays: tasks stall for memory, or did lately";
        assert_eq!(said, [on, useless, off, off, off, on]);
    }

    #[test]
    fn a_stall_or_a_return_ends_it_and_a_stall_is_remembered() {
        let quiet = WaitReason::AfterReturn { left: Duration::from_secs(3) };
        let said = story(&[
            (0, STEADY),
            (1, Decision::Waiting { ticket: 1, urgency: super::super::Urgency::Pressure }),
            (2, Decision::Rest(quiet)),
            (3, STEADY),
            (4, OVER),
            (5, STEADY),
            (13, STEADY),
            (14, STEADY),
        ]);
        let is_on: Vec<_> = said.iter().map(|said| said.contains("paged out")).collect();
        assert_eq!(is_on, [true, false, false, true, false, false, false, true], "{said:?}");
    }

    /// Text of programs that run every other minute: what was measured of a guest whose cold memory was gone.
    #[test]
    fn what_is_needed_again_and_makes_no_room_is_left_alone() {
        let mut reclaimer = Reclaimer::default();
        let mut at = |s: u64, decision: &Decision, paged_out: u64, refaulted: u64| {
            let paged_out = ByteSize::from_mib(paged_out);
            let swap = swap(900).map(|swap| Swap { paged_out, ..swap });
            let refaulted = Some(ByteSize::from_mib(refaulted));
            let around = Around { refaulted, ..around(Mode::Tune, swap) };
            reclaimer.decide(Instant::from_millis(s * 1_000), around, decision).to_string()
        };
        let on = "cold memory is paged out: one more block needs 100 MiB more";
        let vain = "cold memory stays: what was paged out was needed again; next try in 120 s";
        let (available, keep) = (ByteSize::ZERO, ByteSize::ZERO);
        let steal = Decision::Steal {
            blocks: vec![],
            choice: Choice::default(),
            available,
            keep,
            ceiling: None,
        };
        assert_eq!(at(0, &STEADY, 900, 16), on);
        assert_eq!(at(60, &STEADY, 908, 18), vain);
        assert_eq!(at(61, &steal, 908, 18), "cold memory stays: enough is available without it");
        assert_eq!(at(62, &STEADY, 908, 18), on, "there was something to gain");
        at(90, &OVER, 912, 20);
        assert_eq!(at(122, &STEADY, 912, 20), on, "of calm times only");
        assert_eq!(at(182, &STEADY, 920, 22), vain);
        at(190, &Decision::Rest(WaitReason::AfterReturn { left: Duration::from_secs(3) }), 920, 22);
        assert_eq!(at(200, &STEADY, 920, 22), on, "blocks have come back");
    }

    /// What becomes free reaches the host as it is; and what is needed again reaches it for a moment.
    #[test]
    fn what_is_reported_to_the_host_and_needed_again_is_left_alone_too() {
        let mut reclaimer = Reclaimer::default();
        let patient = Decision::Rest(WaitReason::Patient { within: Duration::from_secs(600) });
        let mut at = |s: u64, (available, paged_out, refaulted): (u64, u64, u64)| {
            let paged_out = ByteSize::from_mib(paged_out);
            let swap = swap(900).map(|swap| Swap { paged_out, ..swap });
            let refaulted = Some(ByteSize::from_mib(refaulted));
            let available = ByteSize::from_mib(available);
            let around = Around { refaulted, available, ..around(Mode::Tune, swap) };
            reclaimer.decide(Instant::from_millis(s * 1_000), around, &patient)
        };
        let on = Reclaim::On(Gain::Reported);
        assert_eq!([at(0, (500, 0, 0)), at(50, (600, 100, 2)), at(60, (600, 110, 2))], [on; 3]);
        assert_eq!(at(110, (600, 116, 5)), on, "the minute before has gained");
        let left = Duration::from_secs(120);
        assert_eq!(at(120, (600, 118, 6)), Reclaim::Off(NoReclaim::InVain { left }));
    }

    #[test]
    fn it_needs_somewhere_to_go_and_leaves_room_there() {
        let decide = |mode, swap| {
            let around = around(mode, swap);
            Reclaimer::default().decide(Instant::default(), around, &STEADY)
        };
        let of = |swap| decide(Mode::Tune, swap);
        assert_eq!(of(None), Reclaim::Off(NoReclaim::NoPlace));
        assert_eq!(of(Some(Swap::default())), Reclaim::Off(NoReclaim::NoPlace));
        let free = ByteSize::from_mib(64);
        assert_eq!(of(swap(64)), Reclaim::Off(NoReclaim::SwapFull { free }));
        assert!(matches!(of(swap(65)), Reclaim::On(Gain::Block { .. })));
        let costs = Permille(701);
        let stubborn = swap(900).map(|swap| Swap { costs, ..swap });
        assert_eq!(of(stubborn), Reclaim::Off(NoReclaim::DoesNotShrink { costs }));
        let restoring = decide(Mode::Restore, swap(900));
        assert_eq!(restoring, Reclaim::Off(NoReclaim::NothingToGain));
    }
}
