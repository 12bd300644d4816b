//! The device: what it has been given, and what it does with that.

use std::cell::RefCell;
use std::rc::Rc;

use memtide_agent::dma::{PAGE, PAGES, Pages};
use memtide_units::ByteSize;
use memtide_wire::block::{HoldReason, RefuseReason, Request, Response, Verdict};
use memtide_wire::config::{BalloonConfig, ConfigSpace, Extension};
use memtide_wire::features;

use super::steps::Lie;
use super::{BLOCK_QUEUE, INFLATE_QUEUE, QUEUES, find};

#[derive(Default)]
pub(super) struct Queue {
    pub(super) size: u16,
    pub(super) parts: [u64; 3],
    pub(super) enabled: bool,
    /// Chains that were given back since it was enabled.
    pub(super) seen: u16,
}

pub(super) struct State {
    pub(super) config: ConfigSpace,
    pub(super) offered: u64,
    pub(super) accepts: bool,
    pub(super) queues: u16,
    pub(super) queue_max: u16,
    pub(super) notify_offset: u16,
    pub(super) generation_step: u8,
    pub(super) generation: u8,
    pub(super) status: u8,
    pub(super) select: u32,
    pub(super) queue_select: u16,
    pub(super) up: [Queue; QUEUES as usize],
    pub(super) memory: Pages,
    pub(super) scribbled: bool,
    /// Answers of the block queue that were given and not taken in.
    pub(super) answers: u32,
}

/// The device. Clones are the same one.
#[derive(Clone)]
pub(super) struct Device(pub(super) Rc<RefCell<State>>);

impl Device {
    pub(super) fn new(memory: Pages) -> Self {
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

    pub(super) fn waiting(&self) -> Option<Request> {
        let (bytes, _) = self.request()?;
        Some(Request::decode(&bytes).expect("the driver sends requests").1)
    }

    pub(super) fn may_drop(&self) -> bool {
        matches!(self.waiting(), Some(Request::Steal(_) | Request::Hello(_)))
            || self.chain(INFLATE_QUEUE).is_some()
    }

    /// Gives chains of a standard queue back, in order.
    pub(super) fn give_back(&self, queue: u8, chains: u8) {
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
    pub(super) fn give_back_other(&self, queue: u8, id: u8, by: i8) {
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
    pub(super) fn takes_answer(&self) -> bool {
        let answers = &mut self.0.borrow_mut().answers;
        let was = *answers;
        *answers = was.saturating_sub(1);
        was > 0
    }

    pub(super) fn answer(&self, verdict: u8, reason: u8) {
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

    pub(super) fn answer_bytes(&self, bytes: &[u8], id: u8, len: u32, by: i8) {
        let Some((_, at)) = self.request() else { return };
        self.complete(at, &bytes[..bytes.len().min(32)], (id.into(), len), by);
        self.0.borrow_mut().scribbled = true;
    }

    /// Writes a response and a used entry, and moves the used index by so much.
    fn complete(&self, at: u64, bytes: &[u8], used: (u32, u32), by: i8) {
        self.0.borrow().memory.write(find(at), bytes);
        self.use_chain(BLOCK_QUEUE, used, by);
    }

    pub(super) fn scribble(&self, page: u8, offset: u16, bytes: &[u8]) {
        let state = &mut *self.0.borrow_mut();
        let at = usize::from(page) % PAGES * PAGE + usize::from(offset) % PAGE;
        let end = (at + bytes.len()).min(PAGES * PAGE);
        state.memory.write(at, &bytes[..end - at]);
        state.scribbled = true;
    }

    pub(super) fn configure(&self, offset: u8, bytes: [u8; 4]) {
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

    pub(super) fn lie(&self, lie: &Lie) {
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
    pub(super) fn config_bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.config.read(at - 0x2000, &mut bytes);
        bytes
    }

    pub(super) fn reset(&mut self) {
        (self.up, self.scribbled, self.answers) = (Default::default(), false, 0);
        self.status = 0;
    }

    /// The queue that is selected; one that is not there is as good as the last.
    pub(super) fn selected(&mut self) -> &mut Queue {
        let index = usize::from(self.queue_select).min(self.up.len() - 1);
        &mut self.up[index]
    }
}
