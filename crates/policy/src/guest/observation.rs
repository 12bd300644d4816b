//! What one step of the policy looks at.

use alloc::vec::Vec;
use core::time::Duration;

use memtide_units::{BlockId, BlockSize, ByteSize, Instant, Permille};

use super::heat::Heat;
use super::plan::Urgency;

/// Everything the policy may know at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The guest's memory.
    pub memory: Memory,
    /// What becomes of memory that is free while its block is online.
    pub free_memory: FreeMemory,
    /// What the kernel has had to do for want of memory, or `None` where it does not count that.
    pub squeeze: Option<Squeeze>,
    /// PSI's counters, or `None` where the kernel has no PSI: then nothing is stolen.
    pub psi: Option<PsiTotals>,
    /// A PSI trigger has fired since the last step: some task is stalling right now.
    pub trigger_fired: bool,
    /// What the host wants to have in the balloon (`num_pages` times 4 KiB).
    pub balloon: ByteSize,
    /// All memory blocks, in ascending order.
    pub blocks: Vec<BlockView>,
    /// Memory that was touched lately, where somebody watches.
    pub working_set: Option<ByteSize>,
    /// Where cold memory can be paged out to; `None` where there is nowhere, or nobody to do it.
    pub swap: Option<Swap>,
    /// What the thread that takes blocks offline does.
    pub steal: StealState,
    /// What that has cost, and may cost.
    pub effort: Effort,
    /// The return that is being asked for.
    pub ticket: Option<Ticket>,
    /// Whether the device can be talked to.
    pub device: DeviceState,
    /// What an operator wants.
    pub mode: Mode,
    /// What has ended since the last step.
    pub outcomes: Vec<Outcome>,
}

/// Processor time that Memtide takes on its own account, since nobody has asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// What it may take of each second ([`super::SpareTime::for_stealing`]).
    pub per_second: Duration,
    /// What taking blocks offline has taken so far, tries that failed among them. It starts over with
    /// the agent.
    pub stealing: Duration,
}

/// `/proc/meminfo`, as far as the policy needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// `MemTotal`: falls with every stolen block.
    pub total: ByteSize,
    /// `MemFree`.
    pub free: ByteSize,
    /// `MemAvailable`.
    pub available: ByteSize,
    /// Page cache that can be dropped: `Cached` and `Buffers` less `Shmem`. `MemAvailable` counts
    /// nearly all of it, whether programs read it all the time or never again.
    pub cache: ByteSize,
}

/// `/proc/vmstat`, as far as it tells why tasks stall. Counters since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Squeeze {
    /// What is done only where the guest as a whole is short, in pages or times: `pgscan_kswapd`,
    /// `pgscan_direct`, `compact_stall`. Reclaim in a control group that is at its own limit
    /// does not count there (mm/vmscan.c, `shrink_inactive_list`: not where `cgroup_reclaim`).
    pub events: u64,
    /// What was read from swap, in pages: `pswpin` and `zswpin`. It may have been paged out long ago, when the guest was
    /// short or for the policy's sake.
    pub swapped_in: u64,
    /// File pages that were read again so soon after they had been reclaimed that more memory would
    /// have kept them: `workingset_activate_file` (mm/workingset.c, `workingset_refault`), as bytes.
    pub reread: ByteSize,
    /// All that was needed again after it had been reclaimed, by whomever, however long after:
    /// `workingset_refault_anon` and `workingset_refault_file`, as bytes.
    pub refaulted: ByteSize,
}

impl Memory {
    /// What is in use and cannot be had at once: `MemTotal` less `MemAvailable`. It does not move when
    /// a block is stolen or returned, since both lose or gain the block.
    pub(super) fn used(&self) -> ByteSize {
        self.total - self.available
    }
}

/// What becomes of memory that is free while its block is online.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreeMemory {
    /// It costs the host as much as memory in use: only stealing its block gives it back.
    #[default]
    KeptByGuest,
    /// The host has it without the block being stolen, by free page reporting, and the guest takes it
    /// again by touching it. What stealing gains besides is small, and what it costs is not.
    ReportedToHost,
}

/// Swap space that takes what is paged out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    /// All of it.
    pub total: ByteSize,
    /// What can still be written to it.
    pub free: ByteSize,
    /// How much memory what is in it takes all the same, as a share of its size: nothing on a disk,
    /// some of it in compressed memory.
    pub costs: Permille,
    /// All that was paged out so far for the policy's sake, wherever to: of what is in files too, which takes no
    /// swap.
    pub paged_out: ByteSize,
    /// What is in it and nowhere else, of this moment.
    pub swapped: ByteSize,
}

impl Swap {
    /// What memory it would take if all that is in it came back.
    pub(super) fn returning(&self) -> ByteSize {
        self.swapped - self.costs.of(self.swapped)
    }
}

/// Stall for memory since boot, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PsiTotals {
    /// Some task stalled.
    pub some_us: u64,
    /// All tasks stalled.
    pub full_us: u64,
}

/// One memory block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockView {
    /// Its number.
    pub id: BlockId,
    /// What it is to the agent.
    pub state: BlockState,
    /// How much of it was touched lately, where somebody watches.
    pub heat: Option<Heat>,
    /// What its pages are, where somebody counted or can tell by a sample.
    pub census: Option<Census>,
}

/// What a block is to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Online in `ZONE_MOVABLE`: can be emptied.
    Movable,
    /// Online in a kernel zone: can be emptied while no kernel page lies in it.
    Kernel,
    /// Online, and cannot be emptied; but as much memory as it is can be had in huge pages from
    /// wherever they are free, and stands for it then.
    ByPieces,
    /// Online and to be left alone.
    Fixed(FixedReason),
    /// Between online and stolen, in either direction: the host does not know yet that it is
    /// offline, or it is being put online.
    InTransit,
    /// Offline, by the agent, and the host knows.
    Stolen,
    /// Offline, by somebody else, before the agent came: never touched.
    Foreign,
}

impl BlockState {
    /// True where the guest's kernel uses it.
    pub const fn is_online(self) -> bool {
        matches!(self, Self::Movable | Self::Kernel | Self::ByPieces | Self::Fixed(_))
    }
}

/// Why an online block is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixedReason {
    /// It spans zones or holes, so that the kernel refuses to take it offline.
    NeverOffline,
    /// The agent's own DMA memory lies in it: taking it offline would loop in the kernel.
    AgentMemory,
    /// It may hold its own `struct page`s, which the kernel needs while it is only offline.
    OwnStructs,
}

/// What the pages of a block are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Pages that would have to be moved, as bytes.
    pub to_migrate: ByteSize,
    /// Pages that cannot be moved.
    pub unmovable_pages: u64,
}

/// What the thread that takes blocks offline does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StealState {
    /// It waits for work.
    Idle,
    /// It is at work, or blocks that it took offline are not reported yet.
    Running,
}

/// A return that the executor holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its number.
    pub ticket: u32,
    /// What was asked for.
    pub blocks: Vec<BlockId>,
    /// How urgently.
    pub urgency: Urgency,
    /// What the gate said last.
    pub answer: Answer,
}

/// What the gate said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet: the device, or whoever decides behind it, has been silent since then.
    Silence {
        /// When it was first asked.
        since: Instant,
        /// When to ask again.
        retry: Instant,
    },
    /// Not now: ask again then.
    Held {
        /// When.
        retry: Instant,
    },
    /// Yes: the blocks are being put online.
    Granted,
}

/// Whether the device can be talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// It answers, and has accepted the hello.
    Ready,
    /// It has not answered since then; it is being reset and asked again.
    Silent {
        /// The last time when it was well.
        since: Instant,
    },
}

/// What an operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Scale by what is used.
    #[default]
    Tune,
    /// Ask everything back and steal no more.
    Restore,
}

/// Something that has ended since the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A block is offline and the host knows.
    Stolen(BlockId),
    /// A block could not be stolen and is online as before.
    StealFailed(BlockId, StealFailure),
    /// A return was granted and its blocks are online.
    Returned,
    /// The gate denied a return: its ticket is gone.
    Denied,
}

/// Why a block could not be stolen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StealFailure {
    /// It holds pages that do not move, or the kernel said busy.
    Busy,
    /// It took longer than its deadline.
    TimedOut,
    /// The policy changed its mind: not the block's fault.
    Aborted,
    /// There was too little room for its pages just then: not the block's fault.
    NoRoom,
    /// The host could not drop the backing.
    HostRefused,
}

impl Outcome {
    /// Whether a block was tried for it: it cost something.
    pub(super) fn is_try(&self) -> bool {
        match self {
            Self::Stolen(_) => true,
            Self::StealFailed(_, failure) => *failure != StealFailure::Aborted,
            Self::Returned | Self::Denied => false,
        }
    }
}

impl Observation {
    /// A guest of which nothing is known and in which nothing happens, for tests to start from.
    #[cfg(test)]
    pub(super) fn of_nothing() -> Self {
        Self {
            memory: Memory::default(),
            free_memory: FreeMemory::KeptByGuest,
            squeeze: None,
            psi: None,
            trigger_fired: false,
            balloon: ByteSize::ZERO,
            blocks: Vec::new(),
            working_set: None,
            swap: None,
            steal: StealState::Idle,
            effort: Effort::default(),
            ticket: None,
            device: DeviceState::Ready,
            mode: Mode::Tune,
            outcomes: Vec::new(),
        }
    }

    /// Bytes in blocks that pass `test`.
    pub(super) fn bytes_where(
        &self,
        block: BlockSize,
        test: impl Fn(BlockState) -> bool,
    ) -> ByteSize {
        let count = self.blocks.iter().filter(|view| test(view.state)).count();
        block.size().times(count as u64)
    }

    /// Stolen blocks, nearest to the rest of the memory first: ACMA returns the lowest first, so
    /// that what stays stolen stays contiguous at the top.
    pub(super) fn stolen(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.blocks.iter().filter(|view| view.state == BlockState::Stolen).map(|view| view.id)
    }
}

impl Answer {
    /// How long nobody has decided, at `now`.
    pub(super) fn silent_for(self, now: Instant) -> Option<Duration> {
        match self {
            Self::Silence { since, .. } => Some(now.since(since)),
            Self::Held { .. } | Self::Granted => None,
        }
    }
}
