//! What programs in the guest do.
//!
//! A workload says at each moment what it wants to have ([`Demand`]); it gets as much of it as the
//! kernel can give. Sizes are shares of the guest's memory, so that one workload fits every guest. In
//! the second half of a run all of them become small and calm ([`Phase::Calm`]): what was given back
//! for their sake must go again.

mod boxed;
mod building;
mod bursty;
mod caching;
mod diurnal;
mod forking;
mod leaking;
mod scanning;
mod steady;
mod waking;

use std::fmt;
use std::time::Duration;

use memtide_units::{ByteSize, Instant};

use crate::chance::{Chance, Stream};
use crate::kernel::{Demand, in_pages};

/// A killed program comes back after this long, from nothing: what systemd's `Restart=` does with
/// `RestartSec=5`.
const COMES_BACK: Duration = Duration::from_secs(5);

/// The workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// The same all the time, with a little tremble.
    Steady,
    /// Grows and shrinks slowly, as with day and night.
    Diurnal,
    /// A quarter of the guest at once, for a few seconds, again and again.
    Bursty,
    /// Reads files larger than memory, once each.
    Scanning,
    /// Grows by what it forgets to free, until it is restarted.
    Leaking,
    /// Many short processes, with page tables and stacks in kernel memory.
    ForkHeavy,
    /// Reads two fifths of the guest from files again and again.
    Caching,
    /// Builds something, idles, and builds again.
    Building,
    /// A container that is at its limit stalls all the time, in a guest with plenty of memory.
    Boxed,
    /// Uses most of what it has for four minutes of twelve.
    Waking,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Steady,
        Self::Diurnal,
        Self::Bursty,
        Self::Scanning,
        Self::Leaking,
        Self::ForkHeavy,
        Self::Caching,
        Self::Building,
        Self::Boxed,
        Self::Waking,
    ];

    /// As it is written on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Diurnal => "diurnal",
            Self::Bursty => "bursty",
            Self::Scanning => "scanning",
            Self::Leaking => "leaking",
            Self::ForkHeavy => "fork-heavy",
            Self::Caching => "caching",
            Self::Building => "building",
            Self::Boxed => "boxed",
            Self::Waking => "waking",
        }
    }

    /// What it does, in a sentence.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Steady => "the same all the time, with a little tremble",
            Self::Diurnal => "grows and shrinks slowly, as with day and night, in twenty minutes",
            Self::Bursty => "a quarter of the guest at once, for some seconds, again and again",
            Self::Scanning => "reads files larger than memory, once each",
            Self::Leaking => "grows by what it forgets to free, until somebody restarts it",
            Self::ForkHeavy => "many short processes, with page tables and stacks in kernel memory",
            Self::Caching => "reads two fifths of the guest from files again and again",
            Self::Building => {
                "builds for half a minute, idles for twenty seconds, and builds again"
            }
            Self::Boxed => "a container at its own limit stalls, in a guest with plenty of memory",
            Self::Waking => "uses most of what it has for four minutes of twelve",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the workload is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its own way of living.
    Busy,
    /// Small and calm: the night.
    Calm,
}

/// A way of living.
trait Life: fmt::Debug {
    /// What it wants at `now`. Called once a tick.
    fn wants(&mut self, now: Instant, share: &Share, chance: &mut Chance) -> Demand;
    /// It was killed, and starts over at `now`.
    fn reborn(&mut self, now: Instant);
}

/// Turns shares into pages.
#[derive(Clone, Copy, Debug)]
struct Share {
    present: ByteSize,
}

impl Share {
    /// So many thousandths of the guest's memory.
    fn permille(&self, permille: u64) -> u64 {
        in_pages(self.present) * permille / 1000
    }
}

/// A workload.
#[derive(Debug)]
pub struct Workload {
    life: Box<dyn Life>,
    share: Share,
    chance: Chance,
    dead_until: Instant,
}

impl Workload {
    /// This one, in a guest with `present` bytes of memory.
    pub fn new(name: Name, present: ByteSize, seed: u64) -> Self {
        let life: Box<dyn Life> = match name {
            Name::Steady => Box::new(steady::Steady::default()),
            Name::Diurnal => Box::new(diurnal::Diurnal),
            Name::Bursty => Box::new(bursty::Bursty::default()),
            Name::Scanning => Box::new(scanning::Scanning::default()),
            Name::Leaking => Box::new(leaking::Leaking::default()),
            Name::ForkHeavy => Box::new(forking::Forking::default()),
            Name::Caching => Box::new(caching::Caching),
            Name::Building => Box::new(building::Building),
            Name::Boxed => Box::new(boxed::Boxed),
            Name::Waking => Box::new(waking::Waking),
        };
        let chance = Chance::of(seed, Stream::Workload);
        Self { life, share: Share { present }, chance, dead_until: Instant::default() }
    }

    /// What it wants now.
    pub fn wants(&mut self, now: Instant, phase: Phase) -> Demand {
        // It lives on while it is calm, so that its chance does not depend on the phase.
        let wants = self.life.wants(now, &self.share, &mut self.chance);
        let is_dead = now < self.dead_until;
        match phase {
            _ if is_dead => Demand { cache: wants.cache, ..Demand::default() },
            Phase::Busy => wants,
            Phase::Calm => Demand { boxed: wants.boxed, ..self.calm() },
        }
    }

    fn calm(&self) -> Demand {
        let share = &self.share;
        Demand {
            hot: share.permille(60),
            cold: share.permille(60),
            cache: share.permille(20),
            ..Demand::default()
        }
    }

    /// The OOM killer came.
    pub fn killed(&mut self, now: Instant) {
        self.dead_until = now + COMES_BACK;
        self.life.reborn(self.dead_until);
    }
}
