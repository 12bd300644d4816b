//! What the guest's drivers make available.

use std::collections::BTreeSet;

use memtide_balloon::fake::Buffer;
use memtide_balloon::{BLOCK_QUEUE, QUEUES, Rings};
use memtide_units::{BlockSize, ByteSize};
use memtide_wire::block::{Hello, RESPONSE_LEN, Request};
use memtide_wire::features::{self, QueueRole};
use vm_memory::{Bytes, GuestAddress};

use super::given::page;
use super::{BLOCKS, BUFFERS, Content, PAGES, SLOT, WAITING_MAX, Waiting, World};
use crate::device::memory::{BLOCK, block};

impl World<'_> {
    /// Makes a chain available, unless its ring is full or is not there; `buffers` are made for the
    /// slot at an address.
    pub(super) fn add(
        &mut self,
        role: QueueRole,
        content: Content,
        buffers: impl FnOnce(u64) -> Vec<Buffer>,
    ) {
        let Some(ring) = self.ring_of(role).filter(|_| self.can_add(role)) else { return };
        let slot = self.slot();
        let head = self.drivers[ring].add(self.memory, &buffers(slot));
        self.waiting[ring].push_back(Waiting { head, slot, content });
        self.slots += 1;
    }

    fn can_add(&self, role: QueueRole) -> bool {
        let room = |ring: usize| self.is_running(ring) && self.waiting[ring].len() < WAITING_MAX;
        self.ring_of(role).is_some_and(room)
    }

    /// A stock driver does not know the block queue.
    pub(super) fn is_running(&self, ring: usize) -> bool {
        self.balloon.rings() == Rings::WithBlock || ring != BLOCK_QUEUE
    }

    /// Where the next chain's buffers go: there are more slots than chains can wait in all rings.
    fn slot(&self) -> u64 {
        let count = (QUEUES * (WAITING_MAX + 1)) as u64;
        let mut slots = (self.slots..self.slots + count).map(|n| BUFFERS + n % count * SLOT);
        let is_free = |slot: &u64| self.waiting.iter().flatten().all(|chain| chain.slot != *slot);
        slots.find(is_free).expect("one is free")
    }

    fn write_pages(&self, pages: &[u64]) -> Buffer {
        let frame = |number: &u64| (page(*number).start().0 / 4096) as u32;
        let bytes: Vec<u8> = pages.iter().flat_map(|number| frame(number).to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(self.slot())).expect("a slot is memory");
        Buffer::Readable(self.slot(), bytes.len() as u32)
    }

    /// Is the page on its way into the balloon or out of it?
    fn is_on_its_way(&self, number: u64) -> bool {
        self.waiting.iter().flatten().any(|chain| match &chain.content {
            Content::Inflate(pages) | Content::Deflate(pages) => pages.contains(&number),
            _ => false,
        })
    }

    fn is_used(&self, number: u64) -> bool {
        let given = self.given.borrow();
        let is_given = given.pages.contains(&number) || given.reported.contains(&number);
        !is_given && !self.is_on_its_way(number)
    }

    /// Pages that the guest uses go into the balloon.
    pub(super) fn inflate(&mut self, pages: &[u8]) {
        if !self.can_add(QueueRole::Inflate) {
            return;
        }
        let pages: Vec<u64> = page_numbers(pages).filter(|n| self.is_used(*n)).collect();
        self.given.borrow_mut().pages.extend(&pages);
        let buffer = self.write_pages(&pages);
        self.add(QueueRole::Inflate, Content::Inflate(pages), |_| vec![buffer]);
    }

    /// Pages come out again: those whose inflation was acknowledged; and some that never were in.
    pub(super) fn deflate(&mut self, pages: &[u8]) {
        if !self.can_add(QueueRole::Deflate) {
            return;
        }
        let pages: Vec<u64> = page_numbers(pages).filter(|n| !self.is_on_its_way(*n)).collect();
        if self.balloon.features() & features::MUST_TELL_HOST == 0 {
            // It uses them at once, and tells later.
            pages.iter().for_each(|n| _ = self.given.borrow_mut().pages.remove(n));
        }
        let buffer = self.write_pages(&pages);
        self.add(QueueRole::Deflate, Content::Deflate(pages), |_| vec![buffer]);
    }

    /// Free pages, as buffers themselves: two at most, as descriptors are few.
    pub(super) fn report(&mut self, pages: &[u8]) {
        if !self.can_add(QueueRole::Reporting) {
            return;
        }
        let pages: Vec<u64> = page_numbers(pages).filter(|n| self.is_used(*n)).take(2).collect();
        self.given.borrow_mut().reported.extend(&pages);
        if pages.is_empty() {
            return;
        }
        let buffers = pages.iter().map(|n| Buffer::Writable(page(*n).start().0, 4096)).collect();
        self.add(QueueRole::Reporting, Content::Report(pages), |_| buffers);
    }

    /// Blocks are offline before the device hears of it.
    pub(super) fn steal(&mut self, blocks: &[u8]) {
        if !self.can_add(QueueRole::Block) {
            return;
        }
        let blocks: BTreeSet<u64> = numbers(blocks).collect();
        // Of a block that is on its way back nothing is certain.
        if blocks.iter().any(|number| self.waits_to_return(*number)) {
            return;
        }
        self.given.borrow_mut().offline.extend(&blocks);
        self.unheard.retain(|number| !blocks.contains(number));
        self.ask(Request::Steal(blocks.iter().map(|number| block(*number)).collect()));
    }

    pub(super) fn hello(&mut self) {
        if !self.can_add(QueueRole::Block) || self.waiting[BLOCK_QUEUE].iter().any(drops_or_returns)
        {
            return;
        }
        let stolen = self.given.borrow().offline.iter().map(|number| block(*number)).collect();
        self.ask(Request::Hello(Hello {
            ejected: Vec::new(),
            epoch: self.balloon.hello_epoch(),
            block_size: BlockSize::new(BLOCK).expect("it is one"),
            present: ByteSize::from_mib(34),
            online: BLOCK,
            min: ByteSize::ZERO,
            max: ByteSize::MAX,
            stolen,
        }));
    }

    /// The guest cannot wait: but it does wait for what the device may still drop.
    pub(super) fn take_unasked(&mut self, blocks: &[u8]) {
        if !self.can_add(QueueRole::Block) || self.waiting[BLOCK_QUEUE].iter().any(drops_or_returns)
        {
            return;
        }
        let blocks: BTreeSet<u64> = numbers(blocks).collect();
        self.given.borrow_mut().offline.retain(|number| !blocks.contains(number));
        // Until the device has read it, and for good where it refuses.
        self.unheard.extend(&blocks);
        self.ask(Request::Taken(blocks.iter().map(|number| block(*number)).collect()));
    }

    pub(super) fn online_unheard(&mut self, number: u64) {
        if self.given.borrow_mut().offline.remove(&number) {
            self.unheard.insert(number);
        }
    }

    fn waits_to_return(&self, number: u64) -> bool {
        self.waiting[BLOCK_QUEUE].iter().any(|chain| match &chain.content {
            Content::Request(Request::Return(wanted)) => wanted.ranges.contains(&block(number)),
            _ => false,
        })
    }

    pub(super) fn ask(&mut self, request: Request) {
        if !self.can_add(QueueRole::Block) {
            return;
        }
        self.sequence += 1;
        let bytes = request.encode(self.sequence);
        assert!(bytes.len() as u64 + RESPONSE_LEN as u64 <= SLOT, "a slot holds any request here");
        self.memory.write_slice(&bytes, GuestAddress(self.slot())).expect("a slot is memory");
        self.add(QueueRole::Block, Content::Request(request), |at| {
            let answer = at + SLOT - RESPONSE_LEN as u64;
            vec![
                Buffer::Readable(at, bytes.len() as u32),
                Buffer::Writable(answer, RESPONSE_LEN as u32),
            ]
        });
    }
}

/// May the device drop blocks for it still, or hand some back?
fn drops_or_returns(chain: &Waiting) -> bool {
    let Content::Request(request) = &chain.content else { return false };
    matches!(request, Request::Steal(_) | Request::Hello(_) | Request::Return(_))
}

pub(super) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.iter().take(BLOCKS.len()).map(|byte| BLOCKS[usize::from(*byte) % BLOCKS.len()])
}

fn page_numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let distinct: BTreeSet<u64> = bytes.iter().map(|byte| u64::from(*byte) % PAGES).collect();
    distinct.into_iter()
}
