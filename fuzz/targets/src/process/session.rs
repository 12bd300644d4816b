//! The vhost-user session: messages and descriptors of any kind, kicks in between, files that are cut
//! short under the device, and a guest whose rings make no sense.
//!
//! As long as messages end where they say, every request that has a reply gets it, with the bytes
//! that it must have, and the connection stays. In the end no descriptor is open and no guest memory
//! mapped that was not before.

use std::cell::OnceCell;

use arbitrary::{Arbitrary, Unstructured};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{QUEUES, Settings};
use memtide_units::{BlockSize, ByteSize, GpaRange};
use memtide_wire::block::{Hello, RESPONSE_LEN, Request, ReturnRequest, Urgency};

use super::descriptors::{Holdings, Kind};
use super::guest_memory::{
    BLOCKS_LEN, BLOCKS_START, GuestMemory, LOW_LEN, ODD_START, USER_BASE, block,
};
use super::vmm::number::*;
use super::vmm::{BUFFERS, RINGS, Vmm, halves, region, words};
use crate::meter;

/// A session with all its slots, and a request of the largest size.
const MEMORY_MAX: usize = 4 << 20;
const STEPS_MAX: usize = 24;

/// An address of the guest near where something is, or anywhere.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Place {
    Ring(u16),
    Buffer(u16),
    Edge(u8, i8),
    Block(u16),
    /// In memory that may go away.
    Odd(u16),
    Any(u64),
}

impl Place {
    fn address(self) -> u64 {
        let edges = [0, LOW_LEN, BLOCKS_START, BLOCKS_START + BLOCKS_LEN];
        match self {
            Self::Ring(offset) => RINGS + u64::from(offset) % 0xc000,
            Self::Buffer(offset) => BUFFERS + u64::from(offset),
            Self::Edge(edge, by) => edges[usize::from(edge) % 4].wrapping_add_signed(by.into()),
            Self::Block(pages) => BLOCKS_START + 4096 * u64::from(pages),
            Self::Odd(offset) => ODD_START + u64::from(offset),
            Self::Any(address) => address,
        }
    }

    fn user(self) -> u64 {
        self.address().wrapping_add(USER_BASE)
    }
}

#[derive(Clone, Copy, Debug, Arbitrary)]
struct Region {
    guest: Place,
    pages: u16,
    ragged: u8,
    user: Option<Place>,
    offset: u32,
    fd: Kind,
}

impl Region {
    fn bytes(self) -> Vec<u8> {
        let ragged = if self.ragged > 250 { 77 } else { 0 };
        let size = 4096 * u64::from(self.pages) + ragged;
        let user = self.user.unwrap_or(self.guest).user();
        region((self.guest.address(), size, user, 4096 * u64::from(self.offset >> 20)))
    }
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Raw {
        bytes: &'a [u8],
        fds: Fds,
    },
    Message {
        request: u8,
        flags: u8,
        payload: &'a [u8],
        fds: Fds,
    },
    Long {
        request: u8,
        len: u16,
    },
    SetUp {
        features: u64,
        rings: u8,
    },
    SetUpRing(u8),
    Table {
        regions: Vec<Region>,
        more: Option<Kind>,
    },
    Add(Region),
    Remove {
        region: Region,
        fd: Option<Kind>,
    },
    Ring {
        what: u8,
        ring: u8,
        number: u16,
    },
    Lay {
        ring: u8,
        parts: [Place; 3],
    },
    Event {
        what: u8,
        ring: u8,
        fd: Option<Kind>,
    },
    Features(u64),
    ProtocolFeatures(u64),
    Channel(Kind),
    GetConfig {
        offset: u16,
        size: u16,
        room: u8,
    },
    SetConfig {
        offset: u8,
        size: u8,
        bytes: &'a [u8],
    },
    Write {
        at: Place,
        bytes: &'a [u8],
    },
    Descriptor {
        table: Place,
        place: Place,
        len: u32,
        flags: u8,
        next: u8,
    },
    Offer {
        ring: u8,
        head: u16,
    },
    Chain {
        ring: u8,
        read: (Place, u16),
        write: (Place, u16),
    },
    Ask {
        ask: Ask,
        room: u8,
    },
    Kick,
    /// A file is made to hold the device's own state, with so many changes, or anything.
    KeepState {
        changes: Vec<(u8, u8)>,
    },
    PutState(&'a [u8]),
    Transfer {
        load: bool,
        phase: bool,
        fd: Option<Kind>,
    },
    CheckState,
    /// A pipe is given the next bytes of the device's own state, or any.
    Feed {
        bytes: Option<&'a [u8]>,
        len: u8,
        ends: bool,
    },
    /// The VMM cuts a file short that the device has mapped, or makes it longer.
    Cut(u32),
    Wait(u16),
}

/// A few descriptors, seldom too many.
#[derive(Debug, Arbitrary)]
struct Fds(Vec<Kind>);

impl Fds {
    fn some(&self) -> &[Kind] {
        &self.0[..self.0.len().min(12)]
    }
}

#[derive(Debug, Arbitrary)]
pub(super) enum Ask {
    Hello(Vec<u8>),
    Steal(Vec<u8>),
    Return { ticket: u8, blocks: Vec<u8> },
    Taken(Vec<u8>),
    Cancel(u8),
    Goodbye,
    Eject(Vec<u8>),
    Plug(Vec<u8>),
}

pub(super) fn ranges(blocks: &[u8]) -> Vec<GpaRange> {
    blocks.iter().take(16).map(|number| block(*number)).collect()
}

impl Ask {
    pub(super) fn bytes(&self, epoch: u32) -> Vec<u8> {
        let request = match self {
            Self::Hello(blocks) => Request::Hello(Hello {
                ejected: Vec::new(),
                epoch,
                block_size: BlockSize::new(ByteSize::from_mib(2)).expect("it is one"),
                present: ByteSize::from_mib(16),
                online: ByteSize::from_mib(16),
                min: ByteSize::ZERO,
                max: ByteSize::MAX,
                stolen: ranges(blocks),
            }),
            Self::Steal(blocks) => Request::Steal(ranges(blocks)),
            Self::Return { ticket, blocks } => Request::Return(ReturnRequest {
                ticket: u32::from(ticket % 3),
                urgency: Urgency::Pressure,
                ranges: ranges(blocks),
            }),
            Self::Taken(blocks) => Request::Taken(ranges(blocks)),
            Self::Cancel(ticket) => Request::Cancel { ticket: u32::from(ticket % 3) },
            Self::Goodbye => Request::Goodbye,
            Self::Eject(blocks) => Request::Eject(ranges(blocks)),
            Self::Plug(blocks) => Request::Plug(ranges(blocks)),
        };
        request.encode(9)
    }
}

thread_local! {
    static MEMORY: OnceCell<(GuestMemory, Holdings)> = const { OnceCell::new() };
}

/// Runs `work` on clean guest memory, and checks what is left of it afterwards.
pub(super) fn with_memory(work: impl FnOnce(&GuestMemory)) {
    MEMORY.with(|memory| {
        let (memory, holdings) = memory.get_or_init(|| (GuestMemory::new(), Holdings::now()));
        meter::within(MEMORY_MAX, || work(memory));
        holdings.check();
        memory.clean();
    });
}

/// Carries out the steps in `data`.
pub fn run(data: &[u8]) {
    with_memory(|memory| {
        let mut input = Unstructured::new(data);
        let mut vmm = Vmm::connect(memory, Settings::default());
        let start = u8::arbitrary(&mut input).unwrap_or_default();
        // Otherwise nothing is known to the device yet. Two rings at most: each costs more messages
        // than most inputs have steps, and a step can start the others.
        if start & 0x80 != 0 {
            vmm.set_up(u64::MAX, 1 << (start & 7) | 1 << (start >> 3 & 7));
        }
        for _ in 0..STEPS_MAX {
            let Ok(step) = Step::arbitrary(&mut input) else { break };
            if !take(&mut vmm, &step) {
                return;
            }
            if input.is_empty() {
                break;
            }
        }
        vmm.settle();
    });
}

/// Takes one step; false where the connection has ended.
fn take(vmm: &mut Vmm<'_>, step: &Step<'_>) -> bool {
    match step {
        Step::Raw { bytes, fds } => vmm.send_raw(bytes, fds.some()),
        Step::Message { request, flags, payload, fds } => {
            vmm.send((*request % 48).into(), u32::from(*flags), payload, fds.some())
        }
        Step::Long { request, len } => {
            vmm.send((*request % 48).into(), 8, &vec![1; usize::from(*len % 8192)], &[])
        }
        Step::SetUp { features, rings } => vmm.set_up(*features, *rings),
        Step::SetUpRing(ring) => vmm.set_up_ring(usize::from(*ring) % QUEUES),
        Step::Table { regions, more } => {
            let regions = &regions[..regions.len().min(9)];
            let mut payload = halves(&[regions.len() as u32, 0]);
            regions.iter().for_each(|region| payload.extend(region.bytes()));
            let mut fds: Vec<Kind> = regions.iter().map(|region| region.fd).collect();
            fds.extend(more);
            vmm.send(SET_MEM_TABLE, 8, &payload, &fds)
        }
        Step::Add(region) => {
            vmm.send(ADD_MEM_REG, 8, &[words(&[0]), region.bytes()].concat(), &[region.fd])
        }
        Step::Remove { region, fd } => {
            let payload = [words(&[0]), region.bytes()].concat();
            vmm.send(REM_MEM_REG, 8, &payload, fd.as_slice())
        }
        Step::Ring { what, ring, number } => {
            let requests = [SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE];
            let request = requests[usize::from(what % 4)];
            vmm.send(request, 8, &halves(&[u32::from(ring % 8), u32::from(*number)]), &[])
        }
        Step::Lay { ring, parts } => vmm.lay(u32::from(ring % 8), parts.map(Place::user)),
        Step::Event { what, ring, fd } => {
            let none = if fd.is_none() { 1 << 8 } else { 0 };
            let request = SET_VRING_KICK + u32::from(what % 3);
            vmm.send(request, 8, &words(&[u64::from(ring % 8) | none]), fd.as_slice())
        }
        step => take_more(vmm, step),
    }
}

fn take_more(vmm: &mut Vmm<'_>, step: &Step<'_>) -> bool {
    match step {
        Step::Features(bits) => vmm.send(SET_FEATURES, 0, &words(&[*bits]), &[]),
        Step::ProtocolFeatures(bits) => vmm.send(SET_PROTOCOL_FEATURES, 8, &words(&[*bits]), &[]),
        Step::Channel(fd) => vmm.send(SET_BACKEND_REQ_FD, 8, &[], &[*fd]),
        Step::GetConfig { offset, size, room } => {
            let head = halves(&[(*offset).into(), (*size).into(), 0]);
            vmm.send(GET_CONFIG, 0, &[head, vec![0; (*room).into()]].concat(), &[])
        }
        Step::SetConfig { offset, size, bytes } => {
            let head = halves(&[(*offset).into(), (*size).into(), 0]);
            vmm.send(SET_CONFIG, 8, &[&head[..], bytes].concat(), &[])
        }
        Step::Write { at, bytes } => {
            vmm.memory.write(at.address(), bytes);
            true
        }
        Step::Descriptor { table, place, len, flags, next } => {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&place.address().to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            (bytes[12], bytes[14]) = (flags & 7, next % 20);
            vmm.memory.write(table.address() & !15, &bytes);
            true
        }
        Step::Offer { ring, head } => {
            vmm.drivers[usize::from(*ring) % QUEUES].offer(vmm.memory.map(), *head);
            true
        }
        Step::Chain { ring, read, write } => {
            let read = Buffer::Readable(read.0.address(), read.1.into());
            let write = Buffer::Writable(write.0.address(), write.1.into());
            vmm.drivers[usize::from(*ring) % QUEUES].add(vmm.memory.map(), &[read, write]);
            vmm.kick()
        }
        Step::Ask { ask, room } => {
            let room = if *room > 200 { u32::from(*room) - 200 } else { RESPONSE_LEN as u32 };
            vmm.ask(&ask.bytes(vmm.device.balloon().hello_epoch()), room)
        }
        Step::Kick => vmm.kick(),
        Step::KeepState { changes } => {
            let mut state = vmm.device.balloon().save_state();
            for (at, byte) in changes.iter().take(8) {
                let at = usize::from(*at) % state.len();
                state[at] = *byte;
            }
            vmm.memory.files.put_state(&state);
            true
        }
        Step::PutState(state) => {
            vmm.memory.files.put_state(state);
            true
        }
        Step::Transfer { load, phase, fd } => {
            let parameters = halves(&[u32::from(*load), u32::from(*phase)]);
            vmm.send(SET_DEVICE_STATE_FD, 0, &parameters, fd.as_slice())
        }
        Step::CheckState => vmm.send(CHECK_DEVICE_STATE, 0, &[], &[]),
        Step::Feed { bytes: Some(bytes), ends, .. } => vmm.feed(bytes, *ends),
        Step::Feed { bytes: None, len, ends } => vmm.feed_state((*len).into(), *ends),
        Step::Cut(len) => {
            vmm.memory.cut(u64::from(len % 0x2_0000));
            true
        }
        Step::Wait(ms) => {
            vmm.now += u64::from(*ms);
            vmm.round()
        }
        // Taken already.
        _ => true,
    }
}
