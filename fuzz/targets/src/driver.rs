//! The agent's virtio driver against a device that lies: registers, capability list, used ring,
//! responses, configuration.
//!
//! Whatever the device says, the driver panics nowhere, reaches no register outside its windows or
//! off its boundary, has the device reach its own pages only, and believes no answer to a request
//! that was not asked. And the rule that a guest's memory rests on: where [`Link::settle`] says that
//! nothing is dropped any more, no steal and no hello is on its way.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use memtide_agent::dma::{Area, PAGE, PAGES, Pages};
use memtide_agent::link::{Guest, Link, LinkEvent};
use memtide_agent::virtio::caps::{Layout, Place};
use memtide_agent::virtio::mmio::Registers;
use memtide_agent::virtio::transport::{QueueAddresses, Transport};
use memtide_units::{BlockId, BlockSize, ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::block::{Hello, Verdict};
use memtide_wire::block::{HoldReason, RefuseReason, Request, Response, ReturnRequest, Urgency};
use memtide_wire::config::{BalloonConfig, ConfigSpace, Extension};
use memtide_wire::features;

use crate::meter;

/// Requests of a page or so, some dozens of them that wait.
const MEMORY_MAX: usize = 1 << 20;
const STEPS_MAX: usize = 96;

const QUEUES: u16 = 6;
const INFLATE_QUEUE: u16 = 0;
const BLOCK_QUEUE: u16 = 5;
/// Pages of the area lie here, in falling order: nothing is contiguous.
const TOP: u64 = 0x20_0000;

/// Reads `data` as a capability list and what lies behind it, and as what a device does.
pub fn run(data: &[u8]) {
    meter::within(MEMORY_MAX, || {
        capabilities(data);
        link(&mut Unstructured::new(data));
    });
}

/// Registers that hold nothing but noise.
struct Noise {
    size: usize,
    noise: RefCell<Vec<u8>>,
}

impl Noise {
    fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        self.check(at, N);
        let mut noise = self.noise.borrow_mut();
        std::array::from_fn(|_| noise.pop().unwrap_or(0))
    }

    /// As the mapped registers do: outside them, or off a boundary, is a bug of the driver's.
    fn check(&self, at: usize, width: usize) {
        assert!(at + width <= self.size && at.is_multiple_of(width), "no register at {at:#x}");
    }
}

impl Registers for Noise {
    fn size(&self) -> usize {
        self.size
    }
    fn read_u8(&self, at: usize) -> u8 {
        u8::from_le_bytes(self.read(at))
    }
    fn read_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.read(at))
    }
    fn read_u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.read(at))
    }
    fn write_u8(&self, at: usize, _: u8) {
        self.check(at, 1);
    }
    fn write_u16(&self, at: usize, _: u16) {
        self.check(at, 2);
    }
    fn write_u32(&self, at: usize, _: u32) {
        self.check(at, 4);
    }
}

/// A function whose configuration space is `data`, and a driver that takes it at its word.
fn capabilities(data: &[u8]) {
    let Ok(layout) = Layout::find(&data[..data.len().min(256)]) else { return };
    let noise = data.iter().rev().copied().collect();
    let registers: Rc<dyn Registers> = Rc::new(Noise { size: 0x4000, noise: RefCell::new(noise) });
    let Ok(transport) = Transport::open(&layout, |_| Ok(Rc::clone(&registers))) else { return };
    _ = transport.negotiate(u64::MAX);
    _ = transport.is_broken();
    for index in [0, BLOCK_QUEUE, u16::MAX] {
        let addresses = QueueAddresses { desc: 0x1000, avail: 0x1800, used: 0x1a00 };
        _ = transport.queue_size_max(index);
        if let Ok(doorbell) = transport.enable_queue(index, 128, addresses) {
            transport.ring(doorbell);
        }
    }
    _ = transport.acknowledge_interrupt();
    if let Ok(config) = transport.config() {
        _ = Extension::find(&config);
    }
    (0..64).step_by(4).for_each(|offset| _ = transport.config_u32(offset));
    _ = transport.reset(Duration::ZERO);
}

/// What the device and the driver do.
#[derive(Debug, Arbitrary)]
enum Step<'a> {
    /// The driver does what is due.
    Service,
    Post(Post),
    ReportStolen(u8),
    Unreport(u8),
    GreetAgain,
    Look,
    Check,
    Settle,
    /// The device answers what waits as it should.
    Answer {
        verdict: u8,
        reason: u8,
    },
    /// It answers something else.
    AnswerBytes {
        bytes: &'a [u8],
        id: u8,
        len: u32,
        by: i8,
    },
    /// It writes where it likes among what it was given.
    /// It gives arrays or statistics back, as a plain balloon does.
    GiveBack {
        queue: u8,
        chains: u8,
    },
    /// It gives back what was not there, or not so.
    GiveBackOther {
        queue: u8,
        id: u8,
        by: i8,
    },
    Scribble {
        page: u8,
        offset: u16,
        bytes: &'a [u8],
    },
    Config {
        offset: u8,
        bytes: [u8; 4],
    },
    Lie(Lie),
    Wait(u16),
}

#[derive(Debug, Arbitrary)]
enum Post {
    Steal(u8),
    Return(u8),
    Taken(u8),
    Cancel,
    Goodbye,
}

#[derive(Debug, Arbitrary)]
enum Lie {
    Features(u64),
    RefusesFeatures,
    QueueSize(u16),
    Queues(u16),
    NotifyOffset(u16),
    Broken,
    Generation(u8),
    Honest,
}

#[derive(Default)]
struct Queue {
    size: u16,
    parts: [u64; 3],
    enabled: bool,
    /// Chains that were given back since it was enabled.
    seen: u16,
}

struct State {
    config: ConfigSpace,
    offered: u64,
    accepts: bool,
    queues: u16,
    queue_max: u16,
    notify_offset: u16,
    generation_step: u8,
    generation: u8,
    status: u8,
    select: u32,
    queue_select: u16,
    up: [Queue; QUEUES as usize],
    memory: Pages,
    scribbled: bool,
    /// Answers of the block queue that were given and not taken in.
    answers: u32,
}

/// The device. Clones are the same one.
#[derive(Clone)]
struct Device(Rc<RefCell<State>>);

thread_local! {
    static AREA: Pages = Pages::anonymous(PAGES).expect("a test needs memory");
}

fn place(page: usize) -> Gpa {
    Gpa(TOP - (page * PAGE) as u64)
}

/// Where in the area a guest-physical address lies.
fn find(gpa: u64) -> usize {
    let page =
        (0..PAGES).find(|page| (place(*page).0..place(*page).0 + PAGE as u64).contains(&gpa));
    let page = page.unwrap_or_else(|| panic!("the driver gave away {gpa:#x}"));
    page * PAGE + (gpa - place(page).0) as usize
}

fn link(input: &mut Unstructured<'_>) {
    let memory = AREA.with(Pages::clone);
    memory.clear();
    let device = Device::new(memory.clone());
    let layout = layout();
    let registers: Rc<dyn Registers> = Rc::new(device.clone());
    let transport = Transport::open(&layout, |_| Ok(Rc::clone(&registers))).expect("it fits");
    let area = Area::located(memory, (0..PAGES).map(place).collect());
    let mut now = Instant::from_millis(0);
    let mut link = Link::new(now, transport, area, Box::new(|| Ok(())));
    for _ in 0..STEPS_MAX {
        let Ok(step) = Step::arbitrary(input) else { break };
        match step {
            Step::Wait(ms) => now = now + Duration::from_millis(ms.into()),
            Step::Service => service(&mut link, now, &device),
            Step::Settle => {
                let settled = link.settle();
                assert!(!settled || !device.may_drop(), "settled, and a steal is on its way");
            }
            step => drive(&mut link, &device, step, now),
        }
        if input.is_empty() {
            break;
        }
    }
}

/// A guest that somebody else puts memory online in: every fifth block, whatever is reported.
struct Kernel;

impl Guest for Kernel {
    fn introduction(&self, epoch: u32) -> Hello {
        Hello {
            epoch,
            block_size: BlockSize::X86_SMALL,
            present: ByteSize::from_gib(1),
            online: ByteSize::from_gib(1),
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen: Vec::new(),
        }
    }

    fn is_offline(&self, range: GpaRange) -> bool {
        !(range.start().0 / range.len().bytes()).is_multiple_of(5)
    }

    fn block_size(&self) -> BlockSize {
        BlockSize::X86_SMALL
    }
}

fn service(link: &mut Link, now: Instant, device: &Device) {
    let waited = device.waiting();
    for event in link.service(now, &Kernel) {
        match event {
            LinkEvent::Answered(request, _) => {
                // One that still waits in the ring of an honest device has had no answer, unless it is
                // the same once more.
                let honest = !device.0.borrow().scribbled;
                let given = device.takes_answer();
                assert!(!honest || given || waited != Some(request), "an answer that nobody gave");
            }
            LinkEvent::NotOffline(ranges) => {
                assert!(!ranges.iter().any(|range| Kernel.is_offline(*range)), "{ranges:?} are");
            }
            _ => {}
        }
    }
}

fn drive(link: &mut Link, device: &Device, step: Step<'_>, now: Instant) {
    let range = |n: u8| BlockSize::X86_SMALL.range(BlockId(u64::from(n % 16))).expect("small");
    match step {
        Step::Post(Post::Steal(n)) => link.post(Request::Steal(vec![range(n)])),
        Step::Post(Post::Taken(n)) => link.post(Request::Taken(vec![range(n)])),
        Step::Post(Post::Cancel) => link.post(Request::Cancel { ticket: 1 }),
        Step::Post(Post::Goodbye) => link.post(Request::Goodbye),
        Step::Post(Post::Return(n)) => link.post(Request::Return(ReturnRequest {
            ticket: 1,
            urgency: Urgency::Pressure,
            ranges: vec![range(n)],
        })),
        Step::ReportStolen(n) => link.report_stolen(vec![range(n)]),
        Step::Unreport(n) => _ = link.unreport(range(n)),
        Step::GreetAgain => link.greet_again(),
        Step::Look => link.look_soon(),
        Step::Check => _ = link.check(now),
        Step::Answer { verdict, reason } => device.answer(verdict, reason),
        Step::AnswerBytes { bytes, id, len, by } => device.answer_bytes(bytes, id, len, by),
        Step::GiveBack { queue, chains } => device.give_back(queue, chains),
        Step::GiveBackOther { queue, id, by } => device.give_back_other(queue, id, by),
        Step::Scribble { page, offset, bytes } => device.scribble(page, offset, bytes),
        Step::Config { offset, bytes } => device.configure(offset, bytes),
        Step::Lie(lie) => device.lie(&lie),
        Step::Service | Step::Settle | Step::Wait(_) => {}
    }
    assert!(link.due().is_none_or(|due| due <= now + Duration::from_secs(60)));
}

/// As QEMU lays its devices out.
fn layout() -> Layout {
    let place = |offset, length| Place { bar: 4, offset, length };
    Layout {
        common: place(0, 0x1000),
        isr: place(0x1000, 0x1000),
        device: place(0x2000, 0x1000),
        notify: place(0x3000, 0x1000),
        notify_multiplier: 4,
    }
}

impl Device {
    fn new(memory: Pages) -> Self {
        let extension = Extension::new(BLOCK_QUEUE, ByteSize::from_kib(4));
        Self(Rc::new(RefCell::new(State {
            config: ConfigSpace { balloon: BalloonConfig::default(), extension },
            offered: features::VERSION_1 | features::STATS_VQ,
            accepts: true,
            queues: QUEUES,
            queue_max: 128,
            notify_offset: BLOCK_QUEUE,
            generation_step: 0,
            generation: 0,
            status: 1,
            select: 0,
            queue_select: 0,
            up: Default::default(),
            memory,
            scribbled: false,
            answers: 0,
        })))
    }

    /// The chain that waits in a queue, of an honest device, and where its writable part lies; the
    /// driver's descriptors are checked.
    fn chain(&self, index: u16) -> Option<(Vec<u8>, Option<u64>)> {
        let state = self.0.borrow();
        let (memory, queue) = (&state.memory, &state.up[usize::from(index)]);
        let is_running = queue.enabled && state.status & 4 != 0 && !state.scribbled;
        if !is_running || memory.load_u16(find(queue.parts[1] + 2)) == queue.seen {
            return None;
        }
        let slot = u64::from(queue.seen % queue.size);
        let mut next = memory.load_u16(find(queue.parts[1] + 4 + 2 * slot));
        let mut bytes = Vec::new();
        loop {
            let at = find(queue.parts[0] + 16 * u64::from(next));
            let (gpa, len) = (memory.load_u64(at), memory.load_u32(at + 8) as usize);
            let flags = memory.load_u16(at + 12);
            assert!(find(gpa) % PAGE + len <= PAGE, "a buffer leaves its page");
            if flags & 2 != 0 {
                return Some((bytes, Some(gpa)));
            }
            bytes.extend(memory.read(find(gpa), len));
            if flags & 1 == 0 {
                return Some((bytes, None));
            }
            next = memory.load_u16(at + 14);
        }
    }

    /// The request that waits, and where its response goes.
    fn request(&self) -> Option<(Vec<u8>, u64)> {
        let (bytes, at) = self.chain(BLOCK_QUEUE)?;
        Some((bytes, at.expect("a request without room for a response")))
    }

    fn waiting(&self) -> Option<Request> {
        let (bytes, _) = self.request()?;
        Some(Request::decode(&bytes).expect("the driver sends requests").1)
    }

    fn may_drop(&self) -> bool {
        matches!(self.waiting(), Some(Request::Steal(_) | Request::Hello(_)))
            || self.chain(INFLATE_QUEUE).is_some()
    }

    /// Gives chains of a standard queue back, in order.
    fn give_back(&self, queue: u8, chains: u8) {
        let index = u16::from(queue) % BLOCK_QUEUE;
        for _ in 0..chains {
            // A block queue may be anywhere: where it lies is the device's to say.
            let Some((bytes, None)) = self.chain(index) else { return };
            assert!(bytes.len() <= 1024, "no driver sends so long an array");
            let head = self.next_head(index);
            self.use_chain(index, (head, 0), 1);
        }
    }

    /// The first descriptor of the chain that waits.
    fn next_head(&self, index: u16) -> u32 {
        let state = self.0.borrow();
        let queue = &state.up[usize::from(index)];
        let slot = u64::from(queue.seen % queue.size);
        state.memory.load_u16(find(queue.parts[1] + 4 + 2 * slot)).into()
    }

    /// Writes any used entry into a standard queue, and moves its index by so much.
    fn give_back_other(&self, queue: u8, id: u8, by: i8) {
        let index = u16::from(queue) % BLOCK_QUEUE;
        if self.chain(index).is_some() {
            self.use_chain(index, (id.into(), 0), by);
            self.0.borrow_mut().scribbled = true;
        }
    }

    fn use_chain(&self, index: u16, (id, len): (u32, u32), by: i8) {
        let state = &mut *self.0.borrow_mut();
        let (memory, queue) = (&state.memory, &mut state.up[usize::from(index)]);
        let entry = queue.parts[2] + 4 + 8 * u64::from(queue.seen % queue.size);
        memory.store_u32(find(entry), id);
        memory.store_u32(find(entry + 4), len);
        queue.seen = queue.seen.wrapping_add_signed(by.into());
        memory.store_u16(find(queue.parts[2] + 2), queue.seen);
    }

    /// Whether there was an answer that the driver may take in.
    fn takes_answer(&self) -> bool {
        let answers = &mut self.0.borrow_mut().answers;
        let was = *answers;
        *answers = was.saturating_sub(1);
        was > 0
    }

    fn answer(&self, verdict: u8, reason: u8) {
        let Some((bytes, at)) = self.request() else { return };
        let (sequence, _) = Request::decode(&bytes).expect("the driver sends requests");
        let hold = HoldReason::ALL[usize::from(reason) % HoldReason::ALL.len()];
        let refuse = RefuseReason::ALL[usize::from(reason) % RefuseReason::ALL.len()];
        let verdict = match verdict % 6 {
            0 => Verdict::Refused(refuse),
            1 => Verdict::Held(hold),
            2 => Verdict::Denied(hold),
            _ => Verdict::Ok,
        };
        let min = ByteSize::from_mib(u64::from(reason));
        let generation = u32::from(self.0.borrow().generation);
        let bytes = ByteSize::ZERO;
        let response = Response { sequence, verdict, bytes, retry_ms: 250, min, generation };
        let head = self.next_head(BLOCK_QUEUE);
        self.complete(at, &response.encode(), (head, 32), 1);
        self.0.borrow_mut().answers += 1;
    }

    fn answer_bytes(&self, bytes: &[u8], id: u8, len: u32, by: i8) {
        let Some((_, at)) = self.request() else { return };
        self.complete(at, &bytes[..bytes.len().min(32)], (id.into(), len), by);
        self.0.borrow_mut().scribbled = true;
    }

    /// Writes a response and a used entry, and moves the used index by so much.
    fn complete(&self, at: u64, bytes: &[u8], used: (u32, u32), by: i8) {
        self.0.borrow().memory.write(find(at), bytes);
        self.use_chain(BLOCK_QUEUE, used, by);
    }

    fn scribble(&self, page: u8, offset: u16, bytes: &[u8]) {
        let state = &mut *self.0.borrow_mut();
        let at = usize::from(page) % PAGES * PAGE + usize::from(offset) % PAGE;
        let end = (at + bytes.len()).min(PAGES * PAGE);
        state.memory.write(at, &bytes[..end - at]);
        state.scribbled = true;
    }

    fn configure(&self, offset: u8, bytes: [u8; 4]) {
        use zerocopy::IntoBytes;
        let state = &mut *self.0.borrow_mut();
        let at = usize::from(offset % 44);
        for (n, byte) in bytes.into_iter().enumerate() {
            match at + n {
                at @ ..16 => state.config.balloon.as_mut_bytes()[at] = byte,
                at @ 16..44 => state.config.extension.as_mut_bytes()[at - 16] = byte,
                _ => {}
            }
        }
    }

    fn lie(&self, lie: &Lie) {
        let state = &mut *self.0.borrow_mut();
        match *lie {
            Lie::Features(offered) => state.offered = offered,
            Lie::RefusesFeatures => state.accepts = false,
            Lie::QueueSize(size) => state.queue_max = size,
            Lie::Queues(queues) => state.queues = queues,
            Lie::NotifyOffset(offset) => state.notify_offset = offset,
            Lie::Broken => state.status |= 0x40,
            Lie::Generation(step) => state.generation_step = step,
            Lie::Honest => {
                let (memory, config) = (state.memory.clone(), state.config);
                let fresh = Self::new(memory);
                let fresh = Rc::into_inner(fresh.0).expect("nobody else has it").into_inner();
                let kept = (state.status, state.scribbled, state.answers);
                let up = std::mem::take(&mut state.up);
                *state = State { config, up, ..fresh };
                (state.status, state.scribbled, state.answers) = kept;
            }
        }
    }
}

impl State {
    fn config_bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.config.read(at - 0x2000, &mut bytes);
        bytes
    }

    fn reset(&mut self) {
        (self.up, self.scribbled, self.answers) = (Default::default(), false, 0);
        self.status = 0;
    }

    /// The queue that is selected; one that is not there is as good as the last.
    fn selected(&mut self) -> &mut Queue {
        let index = usize::from(self.queue_select).min(self.up.len() - 1);
        &mut self.up[index]
    }
}

fn check(at: usize, width: usize) {
    assert!(at.is_multiple_of(width) && at + width <= 0x4000, "no register at {at:#x}");
}

impl Registers for Device {
    fn size(&self) -> usize {
        0x4000
    }

    fn read_u8(&self, at: usize) -> u8 {
        let state = &mut *self.0.borrow_mut();
        match at {
            20 => state.status,
            21 => {
                state.generation = state.generation.wrapping_add(state.generation_step);
                state.generation
            }
            0x2000..0x3000 => state.config_bytes::<1>(at)[0],
            _ => 0,
        }
    }

    fn read_u16(&self, at: usize) -> u16 {
        check(at, 2);
        let state = self.0.borrow();
        match at {
            18 => state.queues,
            24 => state.queue_max,
            30 => state.notify_offset,
            0x2000..0x3000 => u16::from_le_bytes(state.config_bytes(at)),
            _ => 0,
        }
    }

    fn read_u32(&self, at: usize) -> u32 {
        check(at, 4);
        let state = self.0.borrow();
        match at {
            4 => (state.offered >> (32 * (state.select & 1))) as u32,
            0x2000..0x3000 => u32::from_le_bytes(state.config_bytes(at)),
            _ => 0,
        }
    }

    fn write_u8(&self, at: usize, value: u8) {
        let state = &mut *self.0.borrow_mut();
        match (at, value) {
            (20, 0) => state.reset(),
            (20, bits) if bits & 8 != 0 && !state.accepts => state.status = bits & !8,
            (20, bits) => state.status = bits,
            _ => {}
        }
    }

    fn write_u16(&self, at: usize, value: u16) {
        check(at, 2);
        let state = &mut *self.0.borrow_mut();
        match at {
            22 => state.queue_select = value,
            24 => state.selected().size = value,
            28 => {
                let queue = state.selected();
                assert!(queue.size.is_power_of_two(), "a queue of {}", queue.size);
                (queue.enabled, queue.seen) = (value != 0, 0);
            }
            _ => {}
        }
    }

    fn write_u32(&self, at: usize, value: u32) {
        check(at, 4);
        let state = &mut *self.0.borrow_mut();
        let half = |old: u64, high: bool| {
            let shift = if high { 32 } else { 0 };
            old & !(0xffff_ffff << shift) | u64::from(value) << shift
        };
        match at {
            0 => state.select = value,
            32 | 36 | 40 | 44 | 48 | 52 => {
                let part = &mut state.selected().parts[(at - 32) / 8];
                *part = half(*part, at % 8 == 4);
            }
            0x2000..0x3000 => _ = state.config.write(at - 0x2000, &value.to_le_bytes()),
            _ => {}
        }
    }
}
