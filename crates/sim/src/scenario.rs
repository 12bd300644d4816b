//! What kind of guest a seed is.

use std::time::Duration;

use memtide_policy::guest::{FreeMemory, KernelZone, Limits, LimitsWish, ScaleBy, Settings};
use memtide_units::{BlockSize, ByteSize, Permille, PpMillion};

use crate::chance::{Chance, Stream};
use crate::fault::Fault;
use crate::kernel::{Machine, Pace, Release, SwapSpace};
use crate::monitor::Watch;
use crate::workload::Name;

/// How much goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Nothing does, except that a block is busy now and then.
    Fair,
    /// Something every few minutes.
    Gusty,
    /// Something all the time.
    Stormy,
}

impl Weather {
    /// As people say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::Gusty => "gusty",
            Self::Stormy => "stormy",
        }
    }
}

/// A guest, what runs in it, and what befalls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What all of it follows from, with the workload and the length.
    pub seed: u64,
    /// What runs in the guest.
    pub workload: Name,
    /// How long; the second half is calm.
    pub minutes: u64,
    /// What is under it.
    pub machine: Machine,
    /// Size of a memory block.
    pub unit: BlockSize,
    /// How many.
    pub blocks: u64,
    /// What the user asked for.
    pub wish: LimitsWish,
    /// When the agent helps itself.
    pub gate_deadline: Option<Duration>,
    /// Whether DAMON runs.
    pub watch: Watch,
    /// How much goes wrong.
    pub weather: Weather,
    /// One block was offline before the agent came.
    pub foreign: Foreign,
    /// Whether stalls can be seen.
    pub psi: Psi,
    /// What becomes of free memory that is not stolen.
    pub free: FreeMemory,
    /// What the processors do.
    pub load: Load,
    /// Where cold memory can go.
    pub swap: SwapSpace,
    /// What befalls the guest besides, and when. No seed draws it: it is for stories.
    pub script: Vec<(Duration, Fault)>,
}

/// Whether the kernel has PSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Psi {
    /// It was booted with `psi=0`.
    Absent,
    /// As usual.
    Present,
}

/// Whether the guest's processors have something to do all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// They idle most of it.
    Rests,
    /// They never do.
    Works,
}

impl Load {
    /// Of a second so much is nobody's.
    pub const fn idle(self) -> PpMillion {
        match self {
            Self::Rests => PpMillion(900_000),
            Self::Works => PpMillion(0),
        }
    }
}

/// Whether somebody else holds a block offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Nobody.
    None,
    /// The last block but one.
    One,
}

impl Scenario {
    /// The scenario of a seed. `workload` takes the place of what the seed would draw.
    pub fn of(seed: u64, workload: Option<Name>, minutes: u64) -> Self {
        let mut chance = Chance::of(seed, Stream::Scenario);
        let drawn = chance.one_of(&Name::ALL);
        // Sizes of memory blocks: 128 MiB, and up to 2 GiB in guests of 64 GiB and more
        // (arch/x86/mm/init_64.c, `probe_memory_block_size`).
        let (unit_mib, counts) = chance.one_of(&[
            (128, [8, 16]),
            (128, [16, 32]),
            (128, [32, 64]),
            (1024, [32, 64]),
            (2048, [32, 48]),
        ]);
        let unit =
            BlockSize::try_from(ByteSize::from_mib(unit_mib)).unwrap_or(BlockSize::X86_SMALL);
        let blocks = chance.one_of(&counts);
        let pace = chance.one_of(&[Pace::Hardware, Pace::Emulated]);
        let release = chance.one_of(&[Release::V6_12, Release::V7_3]);
        let cpus = match pace {
            Pace::Emulated => chance.between(1, 2),
            Pace::Hardware => chance.one_of(&[1, 2, 4, 8]),
        };
        let present = unit.size().times(blocks);
        Self {
            seed,
            workload: workload.unwrap_or(drawn),
            minutes,
            machine: Machine { pace, release, cpus },
            unit,
            blocks,
            wish: wish(&mut chance, present),
            gate_deadline: (!chance.happens(150)).then_some(Duration::from_secs(10)),
            watch: if chance.happens(250) { Watch::Nobody } else { Watch::Damon },
            weather: chance.one_of(&[Weather::Fair, Weather::Gusty, Weather::Stormy]),
            foreign: if chance.happens(100) { Foreign::One } else { Foreign::None },
            psi: if chance.happens(30) { Psi::Absent } else { Psi::Present },
            free: match chance.happens(200) {
                true => FreeMemory::ReportedToHost,
                false => FreeMemory::KeptByGuest,
            },
            load: if chance.happens(500) { Load::Works } else { Load::Rests },
            swap: chance.one_of(&[SwapSpace::None, SwapSpace::Disk, SwapSpace::Zram]),
            script: Vec::new(),
        }
    }

    /// A guest of 4 GiB on a server, where nothing goes wrong: what the golden stories tell.
    pub fn plain(workload: Name, minutes: u64) -> Self {
        Self {
            seed: 1,
            workload,
            minutes,
            machine: Machine { pace: Pace::Hardware, release: Release::V6_12, cpus: 2 },
            unit: BlockSize::X86_SMALL,
            blocks: 32,
            wish: LimitsWish::default(),
            gate_deadline: Some(Duration::from_secs(10)),
            watch: Watch::Damon,
            weather: Weather::Fair,
            foreign: Foreign::None,
            psi: Psi::Present,
            free: FreeMemory::KeptByGuest,
            load: Load::Rests,
            swap: SwapSpace::None,
            script: Vec::new(),
        }
    }

    /// Memory in blocks.
    pub fn present(&self) -> ByteSize {
        self.unit.size().times(self.blocks)
    }

    /// What swap there is. Only an agent that knows what is cold makes some of its own.
    pub fn swap_space(&self) -> SwapSpace {
        match (self.swap, self.watch) {
            (SwapSpace::Zram, Watch::Nobody) => SwapSpace::None,
            (space, _) => space,
        }
    }

    /// The limits that a wish comes to in this guest.
    ///
    /// # Panics
    /// Where it contradicts itself, which none that is drawn does.
    pub fn limits(&self, wish: LimitsWish) -> Limits {
        Limits::new(self.present(), wish).expect("a wish that can be granted")
    }

    /// What the agent is told at first.
    pub fn settings(&self) -> Settings {
        let limits = self.limits(self.wish);
        Settings {
            block: self.unit,
            limits,
            scale_by: ScaleBy::Use,
            kernel_zone: KernelZone::Leave,
            gate_deadline: self.gate_deadline,
            first_ticket: 1,
        }
    }

    /// How long the run is.
    pub fn length(&self) -> Duration {
        Duration::from_secs(self.minutes * 60)
    }

    /// The command that plays it again.
    pub fn command(&self) -> String {
        format!(
            "cargo run -p memtide-sim -- run --seed {} --workload {} --minutes {} --swap {}",
            self.seed,
            self.workload,
            self.minutes,
            self.swap.name()
        )
    }
}

/// Most people wish for nothing; some for a minimum or a maximum.
fn wish(chance: &mut Chance, present: ByteSize) -> LimitsWish {
    let share = |permille: u64| Permille(u32::try_from(permille).unwrap_or(1000)).of(present);
    let min = chance.happens(250).then(|| share(chance.between(200, 500)));
    let max = chance.happens(200).then(|| share(chance.between(700, 1000)));
    LimitsWish { min, max, psi_goal: None }
}
