use super::*;
use crate::virtio::fake::{FakeDevice, answer, granted};
use memtide_units::{BlockId, BlockSize};
use memtide_wire::block::{HoldReason, ReturnRequest, Telemetry, Urgency};

fn hello(epoch: u32) -> Hello {
    Hello {
        ejected: Vec::new(),
        epoch,
        block_size: BlockSize::X86_SMALL,
        present: ByteSize::from_gib(1),
        online: ByteSize::from_gib(1),
        min: ByteSize::from_mib(256),
        max: ByteSize::from_gib(1),
        stolen: vec![],
    }
}

/// A guest in which nobody else puts anything online.
impl<F: Fn(u32) -> Hello> Guest for F {
    fn introduction(&self, config: &HostConfig) -> Hello {
        self(config.hello_epoch)
    }

    fn is_offline(&self, _: GpaRange) -> bool {
        true
    }

    fn block_size(&self) -> BlockSize {
        BlockSize::X86_SMALL
    }
}

fn block(n: u64) -> GpaRange {
    BlockSize::X86_SMALL.range(BlockId(n)).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn linked() -> (FakeDevice, Link) {
    let fake = FakeDevice::new();
    let link = Link::new(at(0), fake.transport(), fake.area(), Box::new(|| Ok(())));
    (fake, link)
}

/// What the agent does: service until nothing comes back.
fn pump(link: &mut Link, now: Instant) -> Vec<LinkEvent> {
    let mut all = vec![];
    loop {
        let events = link.service(now, &hello);
        if events.is_empty() {
            return all;
        }
        all.extend(events);
    }
}

fn greeted() -> (FakeDevice, Link) {
    let (fake, mut link) = linked();
    assert_eq!(pump(&mut link, at(0)), []);
    fake.answer(granted).unwrap();
    assert_eq!(pump(&mut link, at(1)).len(), 1);
    assert_eq!(link.device_state(), DeviceState::Ready);
    (fake, link)
}

#[test]
fn hello_comes_first_and_carries_the_epoch() {
    let (fake, mut link) = linked();
    link.post(Request::Goodbye);
    pump(&mut link, at(0));
    assert_eq!(link.device_state(), DeviceState::Silent { since: at(0) });
    let (_, request) = fake.answer(granted).unwrap();
    assert_eq!(request, Request::Hello(hello(1)));
    pump(&mut link, at(1));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Goodbye);
}

#[test]
fn reports_wait_together_and_telemetry_waits_for_nobody() {
    let (fake, mut link) = greeted();
    link.post(Request::Cancel { ticket: 1 });
    pump(&mut link, at(2));
    link.report_stolen(vec![block(7)]);
    link.report_stolen(vec![block(5)]);
    link.post(Request::Telemetry(Telemetry::default()));
    fake.answer(granted).unwrap();
    pump(&mut link, at(3));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Steal(vec![block(7)]));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Steal(vec![block(5)]));
    assert_eq!(pump(&mut link, at(4)).len(), 2);
    assert!(link.is_idle());
}

/// What is stolen as it goes offline: a run of four blocks, and three.
fn steals(link: &mut Link) -> [GpaRange; 4] {
    let four = GpaRange::new(block(40).start(), BlockSize::X86_SMALL.size().times(4)).unwrap();
    let waiting = [four, block(7), block(6), block(5)];
    waiting.iter().for_each(|range| link.report_stolen(vec![*range]));
    waiting
}

#[test]
fn reports_in_flight_name_no_more_than_the_host_drops_in_a_moment() {
    let (fake, mut link) = greeted();
    let [four, ..] = steals(&mut link);
    pump(&mut link, at(2));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Steal(vec![four]));
    assert!(fake.waiting().is_none(), "nothing goes beside what is longer already");
    assert!(!link.unreport(four) && link.unreport(block(5)), "what is in flight has been said");
    for turn in 3..5 {
        assert_eq!(pump(&mut link, at(turn)).len(), 1);
        assert!(fake.waiting().is_some(), "two blocks go side by side");
        let told = fake.answer(granted).unwrap().1;
        assert_eq!(told, Request::Steal(vec![block(10 - turn)]));
    }
    pump(&mut link, at(6));
    assert!(link.is_idle());
}

#[test]
fn a_host_that_has_dropped_one_report_has_the_next() {
    let (fake, mut link) = greeted();
    (10..20).for_each(|n| link.report_stolen(vec![block(n)]));
    pump(&mut link, at(2));
    for turn in 0..9 {
        fake.answer(granted).unwrap();
        assert_eq!(fake.waiting(), Some(Request::Steal(vec![block(turn + 11)])));
        assert_eq!(pump(&mut link, at(3 + turn)).len(), 1);
    }
}

/// The first is refused, and the guest has all of the block back while the second is on its way: the host
/// would drop the rest of it in use.
#[test]
fn pieces_of_a_block_never_go_side_by_side() {
    let (fake, mut link) = greeted();
    let piece = |n: u64| {
        let start = memtide_units::Gpa((512 + 2 * n) << 20);
        GpaRange::new(start, ByteSize::from_mib(2)).unwrap()
    };
    let pieces: Vec<GpaRange> = (0..100).map(piece).collect();
    link.report_stolen(vec![block(7)]);
    link.report_stolen(pieces.clone());
    pump(&mut link, at(2));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Steal(vec![block(7)]));
    assert!(fake.waiting().is_none(), "no pieces beside a block");
    pump(&mut link, at(3));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Steal(pieces[..64].to_vec()));
    assert!(fake.waiting().is_none(), "nor beside pieces");
    link.report_stolen(vec![block(6)]);
    pump(&mut link, at(4));
    fake.answer(granted).unwrap();
    assert!(fake.waiting().is_none(), "nor a block beside them");
}

#[test]
fn a_silent_device_is_given_no_second_report() {
    let (fake, mut link) = greeted();
    link.report_stolen(vec![block(7)]);
    pump(&mut link, at(10));
    assert_eq!(pump(&mut link, at(5_010)), [LinkEvent::Silent]);
    link.report_stolen(vec![block(6)]);
    pump(&mut link, at(5_020));
    assert!(link.unreport(block(6)), "it was not sent");
    fake.answer(granted).unwrap();
    assert!(fake.waiting().is_none());
}

#[test]
fn a_return_is_not_overtaken_by_reports() {
    let (fake, mut link) = greeted();
    (10..20).for_each(|n| link.report_stolen(vec![block(n)]));
    pump(&mut link, at(2));
    link.post(Request::Cancel { ticket: 1 });
    let told = |link: &mut Link, now| {
        let told = fake.answer(granted).unwrap().1;
        pump(link, at(now));
        told
    };
    assert_eq!(told(&mut link, 3), Request::Steal(vec![block(10)]));
    assert_eq!(told(&mut link, 4), Request::Steal(vec![block(11)]));
    assert_eq!(told(&mut link, 5), Request::Cancel { ticket: 1 });
    assert_eq!(told(&mut link, 6), Request::Steal(vec![block(12)]));
}

#[test]
fn a_hello_waits_for_both_reports() {
    let (fake, mut link) = greeted();
    (10..20).for_each(|n| link.report_stolen(vec![block(n)]));
    pump(&mut link, at(2));
    let refuse = |sequence, _: &Request| answer(sequence, Verdict::Refused(RefuseReason::NoHello));
    fake.answer(refuse).unwrap();
    assert_eq!(pump(&mut link, at(3)).len(), 1);
    assert!(!link.is_idle() && link.settle(), "the second may still drop memory");
    assert_eq!(fake.status(), 0, "so the device had to be stopped");
    let (fake, mut link) = greeted();
    (10..20).for_each(|n| link.report_stolen(vec![block(n)]));
    pump(&mut link, at(2));
    fake.answer(refuse).unwrap();
    pump(&mut link, at(3));
    assert_eq!(fake.answer(refuse).unwrap().1, Request::Steal(vec![block(11)]));
    pump(&mut link, at(4));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Hello(hello(1)));
}

#[test]
fn where_nothing_has_moved_one_read_says_so() {
    let (fake, mut link) = greeted();
    let before = fake.config_reads();
    link.look_soon();
    pump(&mut link, at(2));
    assert_eq!(fake.config_reads(), before + 1);
    fake.configure(|config| config.balloon.num_pages.set(512));
    link.look_soon();
    pump(&mut link, at(3));
    assert_eq!(link.config().balloon, ByteSize::from_mib(2));
}

#[test]
fn a_device_that_drops_memory_is_not_asked_for_its_configuration() {
    let (fake, mut link) = greeted();
    (10..60).for_each(|n| link.report_stolen(vec![block(n)]));
    pump(&mut link, at(10));
    let before = fake.config_reads();
    for n in 1..10 {
        // Each answer comes with an interrupt, which may be a doorbell as well.
        link.look_soon();
        assert_eq!(pump(&mut link, at(10 + 20 * n)), []);
        fake.answer(granted).unwrap();
        assert_eq!(pump(&mut link, at(20 + 20 * n)).len(), 1);
        assert!(fake.waiting().is_some(), "the next report goes out at once");
    }
    assert_eq!(fake.config_reads(), before);
    for n in 15..35 {
        link.look_soon();
        fake.answer(granted).unwrap();
        pump(&mut link, at(20 * n));
    }
    assert_eq!(fake.config_reads(), before, "nor later, where nothing in it has moved");
    fake.configure(|config| config.balloon.num_pages.set(512));
    for now in [800, 801] {
        link.look_soon();
        fake.answer(granted).unwrap();
        pump(&mut link, at(now));
    }
    assert_eq!(link.config().balloon, ByteSize::from_mib(2), "else it is, with none in flight");
    assert!(fake.waiting().is_some());
}

/// The answer lies in the ring, and the device may have died since it wrote it.
#[test]
fn an_answer_that_tells_of_no_change_spares_the_look() {
    let (fake, mut link) = greeted();
    let before = fake.config_reads();
    link.post(Request::Taken(vec![block(3)]));
    pump(&mut link, at(10));
    fake.answer(granted).unwrap();
    link.look_soon();
    assert_eq!(pump(&mut link, at(11)).len(), 1);
    assert_eq!(fake.config_reads(), before);
}

#[test]
fn what_changed_behind_an_answer_is_seen_with_the_next() {
    let (fake, mut link) = greeted();
    let ask = |link: &mut Link, now| {
        link.post(Request::Taken(vec![block(3)]));
        pump(link, at(now));
        fake.answer(granted).unwrap();
    };
    ask(&mut link, 10);
    fake.configure(|config| config.balloon.num_pages.set(512));
    link.look_soon();
    pump(&mut link, at(11));
    assert_eq!(link.config().balloon, ByteSize::ZERO);
    ask(&mut link, 12);
    pump(&mut link, at(13));
    assert_eq!(link.config().balloon, ByteSize::from_mib(2));
}

#[test]
fn a_return_that_is_held_may_be_granted_behind_its_answer() {
    let (fake, mut link) = greeted();
    let before = fake.config_reads();
    let ranges = vec![block(3)];
    link.post(Request::Return(ReturnRequest { ticket: 1, urgency: Urgency::Comfort, ranges }));
    pump(&mut link, at(10));
    let held = |sequence, _: &Request| answer(sequence, Verdict::Held(HoldReason::Asking));
    fake.answer(held).unwrap();
    link.look_soon();
    pump(&mut link, at(11));
    assert_eq!(fake.config_reads(), before + 1);
}

#[test]
fn a_device_that_does_not_say_is_looked_at_after_each_answer() {
    let (fake, mut link) = greeted();
    let before = fake.config_reads();
    link.post(Request::Taken(vec![block(3)]));
    pump(&mut link, at(10));
    fake.answer_bytes(&answer(2, Verdict::Ok).encode());
    pump(&mut link, at(11));
    assert_eq!(fake.config_reads(), before + 1);
}

#[test]
fn a_report_of_what_is_online_again_is_forgotten_while_a_hello_is_on_its_way() {
    let (fake, mut link) = greeted();
    link.greet_again();
    pump(&mut link, at(2));
    link.report_stolen(vec![block(7)]);
    assert!(!link.unreport(block(7)), "the hello may have named it");
    assert!(link.forget_report(block(7)));
    fake.answer(granted).unwrap();
    pump(&mut link, at(3));
    assert!(link.is_idle(), "nothing else is sent");
}

#[test]
fn a_report_can_be_taken_back_until_it_is_sent() {
    let (fake, mut link) = greeted();
    link.report_stolen(vec![block(7)]);
    assert!(link.unreport(block(7)));
    assert!(!link.unreport(block(7)));
    link.report_stolen(vec![block(6)]);
    pump(&mut link, at(2));
    assert!(!link.unreport(block(6)), "it is in flight");
    fake.answer(granted).unwrap();
    pump(&mut link, at(3));
    link.greet_again();
    link.report_stolen(vec![block(5)]);
    pump(&mut link, at(4));
    assert!(!link.unreport(block(5)), "the hello in flight names it");
}

#[test]
fn a_silent_device_is_left_alone_and_its_late_answer_counts() {
    let (fake, mut link) = greeted();
    link.post(Request::Taken(vec![block(3)]));
    pump(&mut link, at(10));
    assert_eq!(pump(&mut link, at(5_009)), []);
    let touched = fake.config_reads();
    assert_eq!(pump(&mut link, at(5_010)), [LinkEvent::Silent]);
    assert_eq!(link.device_state(), DeviceState::Silent { since: at(1) });
    assert_eq!(pump(&mut link, at(60_000)), [], "it is said once");
    assert!(link.settle(), "nothing in flight drops memory");
    assert_eq!((fake.status(), fake.config_reads()), (0x0f, touched));
    fake.answer(granted).unwrap();
    assert_eq!(pump(&mut link, at(61_000)).len(), 1);
    assert_eq!(link.device_state(), DeviceState::Ready);
}

#[test]
fn a_silent_device_that_may_still_drop_memory_is_stopped_for_good() {
    let (fake, mut link) = greeted();
    link.post(Request::Taken(vec![block(3)]));
    link.report_stolen(vec![block(7)]);
    pump(&mut link, at(10));
    fake.answer(granted).unwrap();
    pump(&mut link, at(11));
    pump(&mut link, at(6_000));
    let touched = fake.config_reads();
    assert!(link.settle());
    assert_eq!((fake.status(), link.is_given_up()), (0, true));
    assert_eq!(pump(&mut link, at(600_000)), []);
    assert_eq!((fake.status(), fake.config_reads()), (0, touched));
}

#[test]
fn a_broken_device_is_reset_and_greeted_again() {
    let (fake, mut link) = greeted();
    fake.break_down();
    assert!(matches!(link.check(at(5)), Some(LinkEvent::Lost(_))));
    assert!(link.settle());
    assert_eq!(link.device_state(), DeviceState::Silent { since: at(1) });
    pump(&mut link, at(600));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Hello(hello(1)));
    pump(&mut link, at(601));
    assert_eq!(link.device_state(), DeviceState::Ready);
}

#[test]
fn a_silent_device_whose_status_says_broken_has_not_shown_that_it_lives() {
    let (fake, mut link) = greeted();
    link.post(Request::Taken(vec![block(3)]));
    pump(&mut link, at(10));
    assert_eq!(pump(&mut link, at(6_000)), [LinkEvent::Silent]);
    let touched = fake.config_reads();
    fake.break_down();
    assert!(matches!(link.check(at(6_001)), Some(LinkEvent::Lost(_))));
    assert_eq!(pump(&mut link, at(60_000)), []);
    assert_eq!((link.is_given_up(), fake.config_reads()), (true, touched));
}

#[test]
fn a_device_that_cannot_be_stopped_is_never_called_settled() {
    let (fake, mut link) = greeted();
    fake.break_down();
    fake.hang();
    assert!(matches!(link.check(at(5)), Some(LinkEvent::Lost(_))));
    assert!(!link.settle());
}

#[test]
fn the_host_can_ask_for_a_new_hello() {
    let (fake, mut link) = greeted();
    fake.configure(|config| {
        config.extension.hello_epoch.set(9);
        config.balloon.num_pages.set(512);
    });
    link.post(Request::Cancel { ticket: 1 });
    pump(&mut link, at(5));
    fake.answer(|sequence, _| answer(sequence, Verdict::Refused(RefuseReason::NoHello)));
    pump(&mut link, at(6));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Hello(hello(9)));
    pump(&mut link, at(7));
    fake.configure(|config| config.extension.hello_epoch.set(10));
    link.look_soon();
    pump(&mut link, at(8));
    assert_eq!(link.config().balloon, ByteSize::from_mib(2));
    assert_eq!(fake.answer(granted).unwrap().1, Request::Hello(hello(10)));
}

#[test]
fn a_refused_hello_is_tried_again_ever_more_slowly() {
    let (fake, mut link) = linked();
    let refuse = |sequence, _: &Request| answer(sequence, Verdict::Refused(RefuseReason::Overlap));
    pump(&mut link, at(0));
    fake.answer(refuse).unwrap();
    let lost = pump(&mut link, at(1));
    assert!(matches!(&lost[..], [LinkEvent::Lost(why)] if why.contains("overlaps")), "{lost:?}");
    assert_eq!(pump(&mut link, at(400)), []);
    assert!(fake.answer(granted).is_none());
    pump(&mut link, at(502));
    assert!(fake.answer(granted).is_some());
}

#[test]
fn as_much_is_made_ready_as_the_host_drops_in_a_moment() {
    let (fake, mut link) = greeted();
    let rooms = |link: &Link| {
        [ByteSize::from_mib(128), ByteSize::from_gib(2)]
            .map(|size| link.room(BlockSize::new(size).unwrap()))
    };
    assert_eq!(rooms(&link), [4, 2]);
    for n in [7, 6, 5] {
        link.report_stolen(vec![block(n)]);
        pump(&mut link, at(2));
    }
    assert_eq!(rooms(&link), [1, 1], "two are in flight, and one waits");
    fake.answer(granted).unwrap();
    pump(&mut link, at(3));
    assert_eq!(rooms(&link), [2, 1]);
}
