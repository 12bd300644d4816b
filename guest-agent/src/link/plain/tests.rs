//! A link to a balloon that QEMU could have made.

use std::collections::BTreeSet;

use memtide_policy::guest::DeviceState;
use memtide_units::{BlockId, BlockSize, ByteSize, Gpa, GpaRange, Instant, Pfn};
use memtide_wire::block::{
    Hello, HoldReason, RefuseReason, Request, ReturnRequest, Telemetry, Urgency, Verdict,
};
use memtide_wire::features;

use crate::link::{Coarseness, Grain, Link, LinkEvent};
use crate::virtio::balloon_queues::Way;
use crate::virtio::fake::FakeDevice;

const SIZE: BlockSize = BlockSize::X86_SMALL;
const BLOCK_PAGES: u64 = 32_768;

/// A link, its balloon, and what the balloon has seen.
struct Pair {
    fake: FakeDevice,
    link: Link,
    /// What an agent would introduce itself with.
    stolen: Vec<GpaRange>,
    inflated: BTreeSet<Pfn>,
    now: u64,
}

impl Pair {
    fn new(fake: FakeDevice, stolen: &[u64]) -> Self {
        let link = Link::new(at(0), fake.transport(), fake.area(), Box::new(|| Ok(())));
        let stolen = stolen.iter().copied().map(block).collect();
        Self { fake, link, stolen, inflated: BTreeSet::new(), now: 0 }
    }

    /// Services the link until nothing comes back; the host does nothing meanwhile.
    fn pump(&mut self) -> Vec<(Request, Verdict)> {
        let stolen = self.stolen.clone();
        let hello = |epoch| Hello {
            ejected: Vec::new(),
            epoch,
            block_size: SIZE,
            present: ByteSize::from_gib(1),
            online: ByteSize::from_gib(1),
            min: ByteSize::ZERO,
            max: ByteSize::from_gib(1),
            stolen: stolen.clone(),
        };
        let mut answers = vec![];
        loop {
            self.now += 1;
            let events = self.link.service(at(self.now), &hello);
            if events.is_empty() {
                return answers;
            }
            for event in events {
                match event {
                    LinkEvent::Answered(request, response) => {
                        self.put_online(&request, response.verdict);
                        answers.push((request, response.verdict));
                    }
                    LinkEvent::StatisticsWanted => self.link.send_statistics(&[]),
                    // Before the first hello: it takes no pieces.
                    LinkEvent::Grain(Grain::Block(Coarseness::Plain)) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// As the agent does with a grant.
    fn put_online(&mut self, request: &Request, verdict: Verdict) {
        if let (Request::Return(asked), Verdict::Ok) = (request, verdict) {
            asked.ranges.iter().for_each(|range| _ = self.link.forget_report(*range));
        }
    }

    /// Has the host work through what is there, up to `arrays`, and services the link.
    fn work(&mut self, arrays: usize) -> Vec<(Request, Verdict)> {
        let mut answers = self.pump();
        let mut left = arrays;
        while left > 0 {
            let given = self.fake.take_pages(1);
            for given in &given {
                for frame in &given.frames {
                    match given.way {
                        Way::Inflate => _ = self.inflated.insert(*frame),
                        Way::Deflate => assert!(self.inflated.remove(frame), "never inflated"),
                    }
                }
            }
            answers.extend(self.pump());
            if given.is_empty() {
                break;
            }
            left -= 1;
        }
        answers
    }

    fn all(&mut self) -> Vec<(Request, Verdict)> {
        self.work(usize::MAX)
    }

    fn asks(&mut self, blocks: &[u64], urgency: Urgency) -> Verdict {
        let ranges = blocks.iter().copied().map(block).collect();
        self.link.post(Request::Return(ReturnRequest { ticket: 1, urgency, ranges }));
        self.all().into_iter().find(|(request, _)| matches!(request, Request::Return(_))).unwrap().1
    }

    fn host_wants(&mut self, mib: u64) {
        let pages = u32::try_from(mib * 256).unwrap();
        self.fake.configure(|config| config.balloon.num_pages.set(pages));
        self.link.look();
    }
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn block(n: u64) -> GpaRange {
    SIZE.range(BlockId(n)).unwrap()
}

fn pages(blocks: &[u64]) -> BTreeSet<Pfn> {
    let of = |n: &u64| (n * BLOCK_PAGES..(n + 1) * BLOCK_PAGES).map(|pfn| Pfn(pfn as u32));
    blocks.iter().flat_map(of).collect()
}

fn blocks(count: u64) -> ByteSize {
    SIZE.size().times(count)
}

#[test]
fn a_stolen_block_is_inflated_page_by_page_and_then_counted() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    pair.all();
    assert_eq!(pair.link.device_state(), DeviceState::Ready);
    pair.link.report_stolen(vec![block(6)]);
    assert_eq!(pair.work(127), [], "not all of its pages are");
    assert_eq!((pair.fake.actual(), pair.inflated.len()), (ByteSize::ZERO, 127 * 256));
    assert_eq!(pair.all(), [(Request::Steal(vec![block(6)]), Verdict::Ok)]);
    assert!(pair.inflated == pages(&[6]));
    assert_eq!(pair.fake.actual(), blocks(1));
}

#[test]
fn a_returned_block_is_deflated_before_the_grant_is_read() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    pair.all();
    pair.link.report_stolen(vec![block(6)]);
    pair.all();
    pair.link.post(Request::Return(ReturnRequest {
        ticket: 1,
        urgency: Urgency::Comfort,
        ranges: vec![block(6)],
    }));
    assert_eq!(pair.work(127), []);
    assert!(matches!(&pair.all()[..], [(Request::Return(_), Verdict::Ok)]));
    assert_eq!((pair.fake.actual(), pair.inflated.len()), (ByteSize::ZERO, 0));
}

#[test]
fn the_hosts_target_is_obeyed_as_the_standard_says() {
    let held = Verdict::Held(HoldReason::VmLimit);
    for (offered, in_emergency) in [(0, held), (features::DEFLATE_ON_OOM, Verdict::Ok)] {
        let fake = FakeDevice::plain();
        fake.offer(features::VERSION_1 | offered);
        let mut pair = Pair::new(fake, &[]);
        pair.all();
        pair.link.report_stolen(vec![block(5)]);
        pair.link.report_stolen(vec![block(6)]);
        pair.all();
        pair.host_wants(200);
        assert_eq!(pair.link.config().balloon, ByteSize::from_mib(200));
        assert_eq!(pair.asks(&[5], Urgency::Pressure), held, "128 MiB would be left");
        assert_eq!(pair.asks(&[5], Urgency::Emergency), in_emergency);
        pair.host_wants(128);
        if in_emergency == held {
            assert_eq!(pair.asks(&[5], Urgency::Comfort), Verdict::Ok);
        }
        assert_eq!(pair.fake.actual(), blocks(1));
        assert_eq!(pair.asks(&[6], Urgency::Pressure), held);
        pair.host_wants(0);
        assert_eq!(pair.asks(&[6], Urgency::Comfort), Verdict::Ok);
    }
}

#[test]
fn a_new_target_moves_the_generation_so_that_a_held_return_is_asked_again() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    pair.all();
    let before = pair.link.config().generation;
    pair.link.look();
    assert_eq!(pair.link.config().generation, before);
    pair.host_wants(64);
    assert_ne!(pair.link.config().generation, before);
}

/// A new agent after kill -9: the device was reset, and nobody knows what it was told of.
#[test]
fn what_an_earlier_agent_left_offline_is_counted_at_once_and_inflated_again() {
    let mut pair = Pair::new(FakeDevice::plain(), &[4, 5, 6]);
    pair.work(1);
    assert_eq!(pair.fake.actual(), blocks(3));
    assert_eq!(pair.link.device_state(), DeviceState::Ready);
    pair.all();
    assert!(pair.inflated == pages(&[4, 5, 6]));
    pair.link.greet_again();
    pair.all();
    assert!(pair.fake.take_pages(1).is_empty(), "it was told of them once");
}

#[test]
fn a_return_does_not_wait_for_what_is_told_once_more_and_deflates_what_was_told_alone() {
    let mut pair = Pair::new(FakeDevice::plain(), &[4, 5, 6]);
    pair.work(16);
    // Block 4 is on its way; nobody has told the host of 5 since the reset.
    let before = pair.inflated.len();
    assert!(before > 0 && pair.inflated.is_subset(&pages(&[4])));
    assert_eq!(pair.asks(&[5], Urgency::Emergency), Verdict::Ok);
    assert_eq!(pair.fake.actual(), blocks(2));
    assert!(pair.link.is_idle());
}

#[test]
fn a_block_that_came_back_is_not_told_once_more() {
    let mut pair = Pair::new(FakeDevice::plain(), &[4, 5, 6]);
    pair.work(16);
    // As the agent does when it puts a block online.
    pair.link.forget_report(block(6));
    pair.link.post(Request::Taken(vec![block(6)]));
    pair.all();
    assert!(pair.inflated == pages(&[4, 5]));
    assert_eq!(pair.fake.actual(), blocks(2));
}

#[test]
fn while_pages_go_into_the_balloon_nothing_is_settled_until_the_device_is_stopped() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    pair.all();
    pair.link.report_stolen(vec![block(6)]);
    pair.work(100);
    assert_eq!(pair.fake.status(), 0x0f);
    assert!(pair.link.settle());
    assert_eq!(pair.fake.status(), 0, "it was stopped for that");
}

#[test]
fn a_long_steal_is_no_silence_as_long_as_it_goes_on() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    pair.all();
    pair.link.report_stolen(vec![block(6)]);
    for _ in 0..7 {
        pair.now += 4_000;
        assert_eq!(pair.work(16), []);
        assert_eq!(pair.link.device_state(), DeviceState::Ready);
    }
    assert_eq!(pair.all().len(), 1);
}

#[test]
fn what_a_page_number_cannot_name_is_refused() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    pair.all();
    let beyond = block(16 << 13);
    pair.link.report_stolen(vec![beyond]);
    let refused = Verdict::Refused(RefuseReason::OutsideMemory);
    assert_eq!(pair.all(), [(Request::Steal(vec![beyond]), refused)]);
    pair.link.report_stolen(vec![block((16 << 13) - 1)]);
    assert_eq!(pair.all()[0].1, Verdict::Ok);
}

/// A block that lies in a range only in part may be in use.
#[test]
fn nothing_but_whole_blocks_goes_into_the_balloon() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    let shifted = |mib: u64| GpaRange::new(Gpa(mib << 20), SIZE.size().times(2)).unwrap();
    pair.stolen = vec![shifted(128 + 16)];
    pair.all();
    assert_eq!((pair.fake.actual(), pair.inflated.len()), (ByteSize::ZERO, 0));
    pair.link.report_stolen(vec![shifted(512 + 16)]);
    let refused = Verdict::Refused(RefuseReason::Misaligned);
    assert_eq!(pair.all(), [(Request::Steal(vec![shifted(512 + 16)]), refused)]);
    assert_eq!((pair.fake.actual(), pair.inflated.len()), (ByteSize::ZERO, 0));
}

#[test]
fn telemetry_is_heard_by_nobody_and_has_the_target_looked_at() {
    let mut pair = Pair::new(FakeDevice::plain(), &[]);
    pair.all();
    pair.link.post(Request::Telemetry(Telemetry::default()));
    assert_eq!(pair.all().len(), 1);
    assert!(pair.fake.take_pages(1).is_empty());
}

#[test]
fn a_memtide_device_of_another_version_is_driven_as_a_plain_one_and_not_looked_at_unasked() {
    let fake = FakeDevice::new();
    fake.configure(|config| config.extension.version.set(9));
    let mut pair = Pair::new(fake, &[3]);
    pair.all();
    assert!(pair.inflated == pages(&[3]));
    assert_eq!(pair.fake.actual(), blocks(1));
    pair.link.post(Request::Telemetry(Telemetry::default()));
    assert_eq!(pair.all(), [], "its answer would be no sign of life");
}
