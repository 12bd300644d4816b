//! A device for tests: the registers of QEMU's vhost-user balloon or of its own plain one, and the
//! device's side of the queues in the same memory that the driver uses.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use memtide_units::{ByteSize, Gpa, Pfn};
use memtide_wire::block::{Request, Response, Verdict};
use memtide_wire::config::{BalloonConfig, CONFIG_LEN, ConfigSpace, EXTENSION_OFFSET, Extension};
use memtide_wire::stats::{self, Stat};
use memtide_wire::{features, pfn};

use super::balloon_queues::Way;
use super::caps::Layout;
use super::mmio::Registers;
use super::transport::{QueueAddresses, Transport};
use crate::dma::{Area, PAGE, PAGES, Pages};

/// Queues of a Memtide device, and of QEMU's own.
const QUEUES: u16 = 6;
const QUEUES_PLAIN: u16 = 3;
const BLOCK_QUEUE: u16 = 5;
const STATS_QUEUE: u16 = 2;
/// Pages of the fake's area lie here, in falling order: nothing is contiguous.
const TOP: u64 = 0x20_0000;

#[derive(Clone, Copy, Default)]
struct Queue {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    is_enabled: bool,
    rung: bool,
    /// Chains taken so far, free-running.
    seen: u16,
}

/// An array of pages that the driver has sent to a plain balloon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) way: Way,
    pub(crate) frames: Vec<Pfn>,
}

/// What the driver has made available in one chain.
struct Offered {
    head: u16,
    bytes: Vec<u8>,
    /// Where the first writable buffer lies.
    response_at: Option<u64>,
}

struct State {
    config: ConfigSpace,
    /// A balloon without the extension.
    is_plain: bool,
    offered: u64,
    accepts_features: bool,
    select: [u32; 2],
    driver_features: u64,
    status: u8,
    resets_hang: bool,
    queue_select: u16,
    queue_max: u16,
    queues: BTreeMap<u16, Queue>,
    isr: u8,
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
    let (bytes, min) = (ByteSize::ZERO, ByteSize::ZERO);
    Response { sequence, verdict, bytes, retry_ms: 250, min, generation: 0 }
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
            is_plain: false,
            offered: features::VERSION_1 | features::STATS_VQ | features::RING_EVENT_IDX,
            accepts_features: true,
            select: [0; 2],
            driver_features: 0,
            status: 1,
            resets_hang: false,
            queue_select: 0,
            queue_max: 128,
            queues: BTreeMap::new(),
            isr: 0,
            memory: Pages::anonymous(PAGES).unwrap(),
            config_reads: 0,
        })))
    }

    /// A balloon as QEMU makes it: 16 bytes of configuration, three queues, no extension.
    pub(crate) fn plain() -> Self {
        let fake = Self::new();
        fake.become_plain();
        fake
    }

    /// From the next start on it is one as QEMU makes it.
    pub(crate) fn become_plain(&self) {
        let mut state = self.0.borrow_mut();
        state.is_plain = true;
        state.offered |= features::PAGE_POISON | features::MUST_TELL_HOST;
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
        state.isr |= if state.is_plain { 3 } else { 1 };
    }

    /// What the driver says is in the balloon.
    pub(crate) fn actual(&self) -> ByteSize {
        Pfn::SIZE.times(self.0.borrow().config.balloon.actual.get().into())
    }

    /// Takes the next request, if one is there, and answers it, with the generation of now.
    pub(crate) fn answer(
        &self,
        respond: impl FnOnce(u32, &Request) -> Response,
    ) -> Option<(u32, Request)> {
        let offered = self.take(BLOCK_QUEUE)?;
        let (sequence, request) = Request::decode(&offered.bytes).unwrap();
        let generation = self.0.borrow().config.extension.generation.get();
        let response = Response { generation, ..respond(sequence, &request) };
        self.give_back(BLOCK_QUEUE, &offered, &response.encode());
        Some((sequence, request))
    }

    /// The request that waits, if one does; it goes on waiting.
    pub(crate) fn waiting(&self) -> Option<Request> {
        let before = self.0.borrow().queues.get(&BLOCK_QUEUE).copied()?;
        let request = self.take(BLOCK_QUEUE);
        self.0.borrow_mut().queues.insert(BLOCK_QUEUE, before);
        request.map(|offered| Request::decode(&offered.bytes).unwrap().1)
    }

    /// Answers the next request with these bytes.
    pub(crate) fn answer_bytes(&self, bytes: &[u8]) {
        let offered = self.take(BLOCK_QUEUE).unwrap();
        self.give_back(BLOCK_QUEUE, &offered, bytes);
    }

    /// Answers the two requests that wait, the second one first.
    pub(crate) fn answer_last_first(&self) {
        let both = [self.take(BLOCK_QUEUE).unwrap(), self.take(BLOCK_QUEUE).unwrap()];
        for offered in both.iter().rev() {
            let (sequence, request) = Request::decode(&offered.bytes).unwrap();
            self.give_back(BLOCK_QUEUE, offered, &granted(sequence, &request).encode());
        }
    }

    /// Takes up to `most` arrays from a plain balloon's inflate and deflate queues, and gives each
    /// back.
    pub(crate) fn take_pages(&self, most: usize) -> Vec<Given> {
        let mut given = vec![];
        for (index, way) in [(0, Way::Inflate), (1, Way::Deflate)] {
            while given.len() < most {
                let Some(offered) = self.take(index) else { break };
                assert!(offered.bytes.len() <= 1024, "longer than any driver's");
                given.push(Given { way, frames: pfn::frames(&offered.bytes).collect() });
                self.give_back(index, &offered, &[]);
            }
        }
        given
    }

    /// Reads the statistics that were handed over, and wants others.
    pub(crate) fn take_statistics(&self) -> Option<Vec<Stat>> {
        let offered = self.take(STATS_QUEUE)?;
        self.give_back(STATS_QUEUE, &offered, &[]);
        Some(stats::decode(&offered.bytes))
    }

    /// Takes the next chain of a queue. Its buffers lie one behind the other in the table.
    fn take(&self, index: u16) -> Option<Offered> {
        let state = &mut *self.0.borrow_mut();
        let is_running = state.status & 4 != 0;
        let memory = state.memory.clone();
        let queue = state.queues.get_mut(&index).filter(|queue| queue.is_enabled && is_running)?;
        if read_u16(&memory, queue.avail + 2) == queue.seen {
            return None;
        }
        assert!(queue.rung, "a request without a notification would wait for ever");
        let slot = u64::from(queue.seen % queue.size);
        let head = read_u16(&memory, queue.avail + 4 + 2 * slot);
        queue.seen = queue.seen.wrapping_add(1);
        queue.rung = read_u16(&memory, queue.avail + 2) != queue.seen;
        let mut offered = Offered { head, bytes: vec![], response_at: None };
        let mut next = head;
        loop {
            let (page, offset) = find(queue.desc + 16 * u64::from(next));
            let at = page * PAGE + offset;
            let (gpa, len) = (memory.load_u64(at), memory.load_u32(at + 8));
            let flags = memory.load_u16(at + 12);
            if flags & 2 != 0 {
                offered.response_at = Some(gpa);
                return Some(offered);
            }
            let (page, offset) = find(gpa);
            offered.bytes.extend(memory.read(page * PAGE + offset, len as usize));
            if flags & 1 == 0 {
                return Some(offered);
            }
            next = memory.load_u16(at + 14);
        }
    }

    fn give_back(&self, index: u16, offered: &Offered, bytes: &[u8]) {
        let state = &mut *self.0.borrow_mut();
        let queue = state.queues[&index];
        let memory = &state.memory;
        if let Some(response_at) = offered.response_at {
            let (page, offset) = find(response_at);
            memory.write(page * PAGE + offset, bytes);
        }
        let used = read_u16(memory, queue.used + 2);
        let (page, offset) = find(queue.used + 4 + 8 * u64::from(used % queue.size));
        memory.store_u32(page * PAGE + offset, offered.head.into());
        memory.store_u32(page * PAGE + offset + 4, bytes.len() as u32);
        let (page, offset) = find(queue.used + 2);
        memory.store_u16(page * PAGE + offset, used.wrapping_add(1));
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
        let mut byte = [0xff];
        if self.is_plain && at >= EXTENSION_OFFSET {
            // As QEMU answers past the end.
            return byte[0];
        }
        self.config.read(at, &mut byte);
        byte[0]
    }

    fn queue(&mut self) -> &mut Queue {
        self.queues.entry(self.queue_select).or_default()
    }

    fn queue_count(&self) -> u16 {
        if self.is_plain { QUEUES_PLAIN } else { QUEUES }
    }

    fn reset(&mut self) {
        self.queues.clear();
        (self.status, self.driver_features) = (0, 0);
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
            18 => state.queue_count(),
            24 if state.queue_select >= state.queue_count() => 0,
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
                state.queues.entry(value).or_default().rung = true;
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
            0x2004 => _ = state.config.write(4, &value.to_le_bytes()),
            _ => panic!("write of four bytes at {at:#x}"),
        }
    }
}
