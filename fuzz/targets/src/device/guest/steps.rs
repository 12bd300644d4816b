//! What happens: to the guest, and by those above it.

use arbitrary::Arbitrary;
use memtide_balloon::MemoryPart;
use memtide_units::Pfn;

use crate::device::memory;

#[derive(Debug, Arbitrary)]
pub(super) enum Step {
    Inflate(Vec<u8>),
    /// Neighbours, as many as may make a host page.
    InflateRun {
        first: u8,
        count: u8,
    },
    Deflate(Vec<u8>),
    Report(Vec<u8>),
    Statistics,
    AskStatistics,
    Steal(Vec<u8>),
    Return {
        ticket: u8,
        urgency: u8,
        blocks: Vec<u8>,
    },
    Taken(Vec<u8>),
    Cancel(u8),
    Hello,
    Goodbye,
    /// The device looks at a ring.
    Work(u8),
    /// The driver looks at its used rings.
    Look,
    /// The rings stop, with whatever waits in them, and start again.
    Restart(Start),
    /// Somebody puts a block online while no driver runs, and the next one comes.
    OnlineMeanwhile(u8),
    /// Another VMM, another guest.
    Another,
    /// A region is taken away and put back, as a VMM does.
    Blink(u8),
    /// The VM is paused and goes on, here or on another host: the rings stay as they are.
    Pause,
    Move,
    Actual(u32),
    Controller(bool),
    Decide {
        ticket: u8,
        decision: u8,
    },
    Target(u16),
    Min(u8),
    AskHello,
    Wait(u16),
    HostFails(bool),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
pub(super) enum Start {
    Agent,
    Stock { features: u8, poison: u8 },
}

/// In what pieces the host can drop memory: its pages may be larger than the guest's, and begin
/// elsewhere.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub(super) struct Backing {
    shift: u8,
    offset: u8,
}

impl Backing {
    pub(super) fn parts(self) -> [MemoryPart; 3] {
        let unit = Pfn::SIZE.times(1 << (self.shift % 5));
        memory::ranges().map(|range| MemoryPart {
            range,
            unit,
            file_offset: Pfn::SIZE.times(self.offset.into()),
        })
    }
}
