//! What the device makes of it, and what the guest then knows.

use memtide_balloon::{BLOCK_QUEUE, Driver, Left, Moment, QUEUES, Ring, Rings};
use memtide_units::Gpa;
use memtide_wire::block::{RANGES_MAX, RESPONSE_LEN, Request, Response, Verdict};
use memtide_wire::features::QueueRole;
use vm_memory::{Bytes, GuestAddress};

use super::{BLOCKS, Content, SIZE, World};
use crate::device::memory::{BLOCK, block};

impl World<'_> {
    /// The device works on one ring; says what it left.
    pub(super) fn work(&mut self, ring: usize) -> Option<Left> {
        let now = self.now();
        let role = QueueRole::of(ring, self.balloon.features(), BLOCK_QUEUE)?;
        if !self.is_running(ring) {
            return None;
        }
        self.given.borrow_mut().poisoned = self.poison != 0;
        let mut moment = Moment { now, host: &mut self.host };
        let mut queue = Ring { queue: &mut self.queues[ring], memory: self.memory };
        let pass = self.balloon.process(role, &mut queue, &mut moment);
        Some(pass.expect("these rings make sense").left)
    }

    pub(super) fn ask_statistics(&mut self) {
        let now = self.now();
        self.balloon.want_stats(now);
        let Some(ring) = self.ring_of(QueueRole::Stats) else { return };
        let mut queue = Ring { queue: &mut self.queues[ring], memory: self.memory };
        self.balloon.ask_stats(&mut queue, now).expect("these rings make sense");
    }

    /// The driver takes what has been used, in any order that it was answered in.
    pub(super) fn look(&mut self) {
        for ring in 0..QUEUES {
            for (head, written) in self.drivers[ring].take_used(self.memory) {
                let at = self.waiting[ring].iter().position(|chain| chain.head == head);
                let at = at.unwrap_or_else(|| panic!("{head} is answered and was not asked"));
                let chain = self.waiting[ring].remove(at).expect("it is there");
                self.answered(head, written, chain.content);
            }
        }
    }

    fn answered(&mut self, head: u16, written: u32, content: Content) {
        let mut given = self.given.borrow_mut();
        match content {
            Content::Inflate(_) | Content::Statistics => assert_eq!(written, 0),
            Content::Deflate(pages) => pages.iter().for_each(|n| _ = given.pages.remove(n)),
            Content::Report(pages) => pages.iter().for_each(|n| _ = given.reported.remove(n)),
            Content::Request(request) => {
                drop(given);
                assert_eq!(written as usize, RESPONSE_LEN);
                let response = self.response(head);
                self.told(&request, response);
            }
        }
    }

    /// The response of the chain with this head: its second descriptor says where.
    fn response(&self, head: u16) -> Response {
        let table = self.drivers[BLOCK_QUEUE].descriptors();
        let second = table + 16 * u64::from((head + 1) % SIZE);
        let at: u64 = self.memory.read_obj(GuestAddress(second)).expect("the ring is memory");
        let mut bytes = [0; RESPONSE_LEN];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("a slot is memory");
        Response::decode(&bytes).expect("a device of this version")
    }

    fn told(&mut self, request: &Request, response: Response) {
        match (request, response.verdict) {
            (Request::Return(wanted), Verdict::Ok) => {
                let mut given = self.given.borrow_mut();
                for range in &wanted.ranges {
                    let number = range.start().0 / BLOCK.bytes();
                    given.offline.remove(&number);
                }
            }
            (Request::Taken(ranges), Verdict::Ok) => {
                let taken = |number: &u64| ranges.contains(&block(*number));
                self.unheard.retain(|number| !taken(number));
            }
            (Request::Hello(_), Verdict::Ok) => self.unheard.clear(),
            (Request::Return(_), _) => {}
            (_, Verdict::Held(_) | Verdict::Denied(_)) => panic!("{request:?}: {response:?}"),
            _ => {}
        }
    }

    pub(super) fn check_books(&mut self) {
        _ = self.balloon.take_events();
        let stolen = self.balloon.stolen();
        assert!(stolen.len() <= RANGES_MAX);
        let given = self.given.borrow();
        for number in BLOCKS.iter().filter(|number| stolen.overlaps(block(**number))) {
            let known = given.offline.contains(number) || self.unheard.contains(number);
            assert!(known, "block {number} is in the books, and online");
        }
        assert!(stolen.iter().all(|range| range.end() <= Gpa(24 * BLOCK.bytes())));
    }

    /// In the end everything that waits is answered, and a hello sets the books right.
    pub(super) fn finish(&mut self) {
        self.host.fails = false;
        self.settle();
        if self.balloon.rings() != Rings::WithBlock {
            return;
        }
        self.hello();
        self.settle();
        let offline = self.given.borrow().offline.iter().map(|number| block(*number)).collect();
        assert_eq!(self.balloon.stolen(), &offline);
        assert_eq!(self.balloon.driver(), Driver::Agent);
    }

    fn settle(&mut self) {
        for ring in 0..QUEUES {
            let mut passes = 0;
            while let Some(left) = self.work(ring) {
                passes += 1;
                assert!(passes < 100, "ring {ring} does not end");
                match left {
                    Left::Nothing => break,
                    Left::More => {}
                    Left::Until(when) => self.now = when.as_millis(),
                }
            }
        }
        self.look();
        self.check_books();
        for (ring, waiting) in self.waiting.iter().enumerate() {
            let kept = usize::from(self.ring_of(QueueRole::Stats) == Some(ring));
            assert!(waiting.len() <= kept, "ring {ring}: {waiting:?} was never answered");
        }
    }
}
