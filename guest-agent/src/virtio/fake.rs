//! A device for tests: the registers of QEMU's vhost-user balloon, and the device's side of the
//! block queue in the same memory that the driver uses.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use memtide_units::{ByteSize, Gpa};
use memtide_wire::block::{Request, Response, Verdict};
use memtide_wire::config::{BalloonConfig, CONFIG_LEN, ConfigSpace, Extension};
use memtide_wire::features;

use super::caps::Layout;
use super::mmio::Registers;
use super::transport::{QueueAddresses, Transport};
use crate::dma::{Area, PAGE, PAGES, Pages};

const QUEUES: u16 = 6;
const BLOCK_QUEUE: u16 = 5;
/// Pages of the fake's area lie here, in falling order: nothing is contiguous.
const TOP: u64 = 0x20_0000;

#[derive(Clone, Copy, Default)]
struct Queue {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    is_enabled: bool,
}

struct State {
    config: ConfigSpace,
    offered: u64,
    accepts_features: bool,
    select: [u32; 2],
    driver_features: u64,
    status: u8,
    resets_hang: bool,
    queue_select: u16,
    queue_max: u16,
    queues: BTreeMap<u16, Queue>,
    rung: bool,
    isr: u8,
    seen: u16,
    memory: Pages,
    config_reads: u32,
}

/// The device. Clones are the same device.
#[derive(Clone)]
pub(crate) struct FakeDevice(Rc<RefCell<State>>);

/// The answer that everything is well.
pub(crate) fn granted(sequence: u32, _: &Request) -> Response {
    answer(sequence, Verdict::Ok)
}

/// An answer with this verdict.
pub(crate) fn answer(sequence: u32, verdict: Verdict) -> Response {
    Response { sequence, verdict, bytes: ByteSize::ZERO, retry_ms: 250, min: ByteSize::ZERO }
}

impl FakeDevice {
    /// A Memtide device with the block queue at index 5.
    pub(crate) fn new() -> Self {
        let config = ConfigSpace {
            balloon: BalloonConfig::default(),
            extension: Extension::new(BLOCK_QUEUE, ByteSize::from_kib(4)),
        };
        Self(Rc::new(RefCell::new(State {
            config,
            offered: features::VERSION_1 | features::STATS_VQ | features::RING_EVENT_IDX,
            accepts_features: true,
            select: [0; 2],
            driver_features: 0,
            status: 1,
            resets_hang: false,
            queue_select: 0,
            queue_max: 128,
            queues: BTreeMap::new(),
            rung: false,
            isr: 0,
            seen: 0,
            memory: Pages::anonymous(PAGES).unwrap(),
            config_reads: 0,
        })))
    }

    pub(crate) fn registers(&self) -> Rc<dyn Registers> {
        Rc::new(self.clone())
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::find(&super::caps::tests::qemu_config()).unwrap()
    }

    pub(crate) fn transport(&self) -> Transport {
        Transport::open(&self.layout(), |_| Ok(self.registers())).unwrap()
    }

    /// The driver's memory, which the device sees as well.
    pub(crate) fn area(&self) -> Area {
        let places = (0..PAGES).map(place).collect();
        Area::located(self.0.borrow().memory.clone(), places)
    }

    pub(crate) fn status(&self) -> u8 {
        self.0.borrow().status
    }

    /// How often the driver has read the device's configuration.
    pub(crate) fn config_reads(&self) -> u32 {
        self.0.borrow().config_reads
    }

    pub(crate) fn break_down(&self) {
        self.0.borrow_mut().status |= 0x40;
    }

    pub(crate) fn driver_features(&self) -> u64 {
        self.0.borrow().driver_features
    }

    pub(crate) fn offer(&self, features: u64) {
        self.0.borrow_mut().offered = features;
    }

    pub(crate) fn refuse_features(&self) {
        self.0.borrow_mut().accepts_features = false;
    }

    pub(crate) fn shorten_queues(&self, size: u16) {
        self.0.borrow_mut().queue_max = size;
    }

    pub(crate) fn queue(&self, index: u16) -> Option<(u16, QueueAddresses)> {
        let state = self.0.borrow();
        let queue = state.queues.get(&index).filter(|queue| queue.is_enabled)?;
        let Queue { desc, avail, used, .. } = *queue;
        Some((queue.size, QueueAddresses { desc, avail, used }))
    }

    /// Changes the configuration and rings, as the device does for its agent.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut ConfigSpace)) {
        let mut state = self.0.borrow_mut();
        change(&mut state.config);
        let generation = state.config.extension.generation.get();
        state.config.extension.generation.set(generation + 1);
        state.isr |= 1;
    }

    /// Takes the next request, if one is there, and answers it.
    pub(crate) fn answer(
        &self,
        respond: impl FnOnce(u32, &Request) -> Response,
    ) -> Option<(u32, Request)> {
        let (bytes, response_at) = self.request()?;
        let (sequence, request) = Request::decode(&bytes).unwrap();
        let response = respond(sequence, &request).encode();
        self.complete(response_at, &response);
        Some((sequence, request))
    }

    /// The request that waits, if one does; it goes on waiting.
    pub(crate) fn waiting(&self) -> Option<Request> {
        let rung = self.0.borrow().rung;
        let request = self.request();
        self.0.borrow_mut().rung = rung;
        request.map(|(bytes, _)| Request::decode(&bytes).unwrap().1)
    }

    /// Answers the next request with these bytes.
    pub(crate) fn answer_bytes(&self, bytes: &[u8]) {
        let (_, response_at) = self.request().unwrap();
        self.complete(response_at, bytes);
    }

    /// The readable bytes of the chain that waits, and where its writable part lies.
    fn request(&self) -> Option<(Vec<u8>, u64)> {
        let state = &mut *self.0.borrow_mut();
        let queue = *state.queues.get(&BLOCK_QUEUE).filter(|queue| queue.is_enabled)?;
        let memory = &state.memory;
        if state.status & 4 == 0 || read_u16(memory, queue.avail + 2) == state.seen {
            return None;
        }
        assert!(state.rung, "a request without a notification would wait for ever");
        state.rung = false;
        let slot = u64::from(state.seen % queue.size);
        let mut next = read_u16(memory, queue.avail + 4 + 2 * slot);
        let mut bytes = vec![];
        loop {
            let at = queue.desc + 16 * u64::from(next);
            let (page, offset) = find(at);
            let gpa = memory.load_u64(page * PAGE + offset);
            let len = memory.load_u32(page * PAGE + offset + 8);
            let flags = memory.load_u16(page * PAGE + offset + 12);
            if flags & 2 != 0 {
                return Some((bytes, gpa));
            }
            let (page, offset) = find(gpa);
            bytes.extend(memory.read(page * PAGE + offset, len as usize));
            assert!(flags & 1 != 0, "no room for a response");
            next = memory.load_u16(find(at).0 * PAGE + find(at).1 + 14);
        }
    }

    fn complete(&self, response_at: u64, bytes: &[u8]) {
        let state = &mut *self.0.borrow_mut();
        let queue = state.queues[&BLOCK_QUEUE];
        let memory = &state.memory;
        let (page, offset) = find(response_at);
        memory.write(page * PAGE + offset, bytes);
        let (page, offset) = find(queue.used + 4 + 8 * u64::from(state.seen % queue.size));
        memory.store_u32(page * PAGE + offset, 0);
        memory.store_u32(page * PAGE + offset + 4, bytes.len() as u32);
        state.seen = state.seen.wrapping_add(1);
        let (page, offset) = find(queue.used + 2);
        memory.store_u16(page * PAGE + offset, state.seen);
        state.isr |= 1;
    }

    /// The device stops answering resets.
    pub(crate) fn hang(&self) {
        self.0.borrow_mut().resets_hang = true;
    }
}

fn place(page: usize) -> Gpa {
    Gpa(TOP - (page * PAGE) as u64)
}

/// Page and offset of a guest-physical address.
fn find(gpa: u64) -> (usize, usize) {
    let page = (0..PAGES).find(|page| (place(*page).0..place(*page).0 + 4096).contains(&gpa));
    let page = page.unwrap_or_else(|| panic!("the driver gave away {gpa:#x}"));
    (page, (gpa - place(page).0) as usize)
}

fn read_u16(memory: &Pages, gpa: u64) -> u16 {
    let (page, offset) = find(gpa);
    memory.load_u16(page * PAGE + offset)
}

impl State {
    fn config_byte(&self, at: usize) -> u8 {
        let mut byte = [0];
        self.config.read(at, &mut byte);
        byte[0]
    }

    fn queue(&mut self) -> &mut Queue {
        self.queues.entry(self.queue_select).or_default()
    }

    fn reset(&mut self) {
        self.queues.clear();
        (self.status, self.seen, self.rung, self.driver_features) = (0, 0, false, 0);
    }
}

impl Registers for FakeDevice {
    fn size(&self) -> usize {
        0x4000
    }

    fn read_u8(&self, at: usize) -> u8 {
        let mut state = self.0.borrow_mut();
        match at {
            20 if state.resets_hang => state.status | 0x0f,
            20 => state.status,
            21 => 0,
            0x1000 => std::mem::take(&mut state.isr),
            0x2000..0x3000 => state.config_byte(at - 0x2000),
            _ => panic!("read of one byte at {at:#x}"),
        }
    }

    fn read_u16(&self, at: usize) -> u16 {
        let mut state = self.0.borrow_mut();
        match at {
            18 => QUEUES,
            24 if state.queue_select >= QUEUES => 0,
            24 => state.queue_max,
            28 => state.queue().is_enabled.into(),
            30 => state.queue_select,
            0x2000..0x3000 => {
                u16::from_le_bytes([state.config_byte(at - 0x2000), state.config_byte(at - 0x1fff)])
            }
            _ => panic!("read of two bytes at {at:#x}"),
        }
    }

    fn read_u32(&self, at: usize) -> u32 {
        let mut state = self.0.borrow_mut();
        state.config_reads += u32::from(at >= 0x2000);
        match at {
            4 => (state.offered >> (32 * state.select[0])) as u32,
            0x2000..0x3000 => {
                assert!(at - 0x2000 < CONFIG_LEN && at != 0x2014, "wrong width at {at:#x}");
                u32::from_le_bytes([0, 1, 2, 3].map(|n| state.config_byte(at - 0x2000 + n)))
            }
            _ => panic!("read of four bytes at {at:#x}"),
        }
    }

    fn write_u8(&self, at: usize, value: u8) {
        let mut state = self.0.borrow_mut();
        match (at, value) {
            (20, 0) => state.reset(),
            (20, bits) if bits & 8 != 0 && !state.accepts_features => state.status = bits & !8,
            (20, bits) => state.status = bits,
            _ => panic!("write of one byte at {at:#x}"),
        }
    }

    fn write_u16(&self, at: usize, value: u16) {
        let mut state = self.0.borrow_mut();
        match at {
            22 => state.queue_select = value,
            24 => state.queue().size = value,
            28 => state.queue().is_enabled = value != 0,
            0x3000..0x4000 => {
                assert_eq!((at - 0x3000) / 4, usize::from(value), "wrong doorbell");
                state.rung = true;
            }
            _ => panic!("write of two bytes at {at:#x}"),
        }
    }

    fn write_u32(&self, at: usize, value: u32) {
        let mut state = self.0.borrow_mut();
        let half = |old: u64, high: bool| {
            let shift = if high { 32 } else { 0 };
            old & !(0xffff_ffff << shift) | u64::from(value) << shift
        };
        match at {
            0 => state.select[0] = value,
            8 => state.select[1] = value,
            12 => state.driver_features = half(state.driver_features, state.select[1] == 1),
            32 | 36 => state.queue().desc = half(state.queue().desc, at == 36),
            40 | 44 => state.queue().avail = half(state.queue().avail, at == 44),
            48 | 52 => state.queue().used = half(state.queue().used, at == 52),
            _ => panic!("write of four bytes at {at:#x}"),
        }
    }
}
