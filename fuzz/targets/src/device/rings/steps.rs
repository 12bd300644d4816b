//! What happens, and where.

use arbitrary::Arbitrary;
use memtide_balloon::QUEUES;
use memtide_balloon::fake::FakeDriver;
use memtide_units::{BlockSize, ByteSize, GpaRange};
use memtide_wire::block::{Hello, Request, ReturnRequest, Telemetry, Urgency};

use super::{BUFFERS, RINGS};
use crate::device::memory::{self, BLOCK, block};

/// An address near where something is, or anywhere.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub(super) enum Place {
    /// In a ring that was laid well.
    Ring(u8, u16),
    /// Among the buffers.
    Buffer(u16),
    /// Around the start or the end of a region.
    Edge(u8, bool, i8),
    Any(u64),
}

impl Place {
    pub(super) fn address(self) -> u64 {
        match self {
            Self::Ring(ring, offset) => {
                RINGS
                    + (u64::from(ring) % QUEUES as u64) * FakeDriver::LEN
                    + u64::from(offset) % FakeDriver::LEN
            }
            Self::Buffer(offset) => BUFFERS + u64::from(offset),
            Self::Edge(region, end, by) => {
                let region = memory::ranges()[usize::from(region) % 3];
                let edge = if end { region.end() } else { region.start() };
                edge.0.wrapping_add_signed(by.into())
            }
            Self::Any(address) => address,
        }
    }
}

#[derive(Clone, Copy, Debug, Arbitrary)]
pub(super) enum Len {
    Small(u8),
    Page,
    /// Of an indirect table with so many descriptors.
    Table(u8),
    Any(u32),
}

impl Len {
    pub(super) fn bytes(self) -> u32 {
        match self {
            Self::Small(len) => len.into(),
            Self::Page => 4096,
            Self::Table(count) => 16 * u32::from(count),
            // What is read in full takes milliseconds, and is no more than the same again and again.
            Self::Any(len @ 0x1_0000..0x20_0000) => len & 0xffff,
            Self::Any(len) => len,
        }
    }
}

#[derive(Debug, Arbitrary)]
pub(super) enum Step<'a> {
    /// A descriptor, in the table of a ring or in an indirect one.
    Descriptor {
        table: Place,
        index: u8,
        place: Place,
        len: Len,
        flags: u8,
        next: u8,
    },
    /// Makes a head available.
    Offer {
        ring: u8,
        head: u16,
    },
    /// Makes a chain of two buffers available, as a driver would.
    Chain {
        ring: u8,
        read: (Place, Len),
        write: (Place, Len),
    },
    /// A request of an agent, in so many pieces.
    Ask {
        request: Ask,
        pieces: u8,
        room: u8,
    },
    AvailableIndex {
        ring: u8,
        index: u16,
    },
    Write {
        at: Place,
        bytes: &'a [u8],
    },
    /// Page numbers, so many from the first on, each so far from the one before.
    Pages {
        at: Place,
        first: u32,
        apart: i8,
        count: u8,
    },
    /// Lays a ring anywhere.
    Lay {
        ring: u8,
        size: u16,
        parts: [Place; 3],
        positions: (u16, u16),
    },
    LayWell {
        ring: u8,
        event_index: bool,
    },
    Work {
        ring: u8,
    },
    Stop,
    Start {
        with_block: bool,
    },
    Features(u64),
    Memory(u8),
    Config {
        offset: u16,
        bytes: &'a [u8],
    },
    AskStatistics,
    Controller {
        attached: bool,
    },
    Decide {
        ticket: u8,
        decision: u8,
    },
    Target(u32),
    AskHello,
    Wait(u16),
    HostFails(bool),
}

#[derive(Debug, Arbitrary)]
pub(super) enum Ask {
    Hello { shift: u8, blocks: Vec<u8> },
    Steal(Vec<u8>),
    Return { ticket: u8, urgency: u8, blocks: Vec<u8> },
    Cancel(u8),
    Taken(Vec<u8>),
    Telemetry,
    Goodbye,
    Eject(Vec<u8>),
    Plug(Vec<u8>),
}

impl Ask {
    pub(super) fn request(&self, epoch: u32) -> Request {
        let ranges = |blocks: &[u8]| -> Vec<GpaRange> {
            blocks.iter().map(|number| block(u64::from(*number))).collect()
        };
        match self {
            Self::Hello { shift, blocks } => Request::Hello(Hello {
                ejected: Vec::new(),
                epoch,
                block_size: BlockSize::new(BLOCK.times(1 << (shift % 4))).expect("it is one"),
                present: ByteSize::from_mib(34),
                online: ByteSize::from_mib(34),
                min: ByteSize::ZERO,
                max: ByteSize::MAX,
                stolen: ranges(blocks),
            }),
            Self::Steal(blocks) => Request::Steal(ranges(blocks)),
            Self::Return { ticket, urgency, blocks } => {
                let all = [Urgency::Comfort, Urgency::Pressure, Urgency::Emergency];
                let urgency = all[usize::from(*urgency) % 3];
                let ticket = u32::from(ticket % 4);
                Request::Return(ReturnRequest { ticket, urgency, ranges: ranges(blocks) })
            }
            Self::Cancel(ticket) => Request::Cancel { ticket: u32::from(ticket % 4) },
            Self::Taken(blocks) => Request::Taken(ranges(blocks)),
            Self::Telemetry => Request::Telemetry(Telemetry::default()),
            Self::Goodbye => Request::Goodbye,
            Self::Eject(blocks) => Request::Eject(ranges(blocks)),
            Self::Plug(blocks) => Request::Plug(ranges(blocks)),
        }
    }
}
