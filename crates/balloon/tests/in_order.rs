//! `VIRTIO_F_IN_ORDER`: on every queue, buffers are used in the order in which they came.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Guest, PAGES};
use memtide_balloon::Ring;
use memtide_balloon::fake::Buffer;
use memtide_units::Instant;
use memtide_wire::features::{
    FREE_PAGE_HINT, IN_ORDER, QueueRole, RING_PACKED, RING_RESET, VERSION_1,
};
use proptest::prelude::*;

#[test]
fn it_is_offered_and_what_cannot_be_kept_is_not() {
    let offered = Guest::new().balloon.offered_features();
    assert_eq!(offered & (IN_ORDER | VERSION_1), IN_ORDER | VERSION_1);
    assert_eq!(offered & (FREE_PAGE_HINT | RING_PACKED | RING_RESET), 0);
}

#[test]
fn a_queue_that_was_never_offered_gives_its_buffers_back() {
    let mut guest = Guest::new();
    let command = guest.bytes(2 * PAGES, &2_u32.to_le_bytes());
    let heads = [guest.add(&[command]), guest.add(&[Buffer::Writable(8 * PAGES, 4 << 20)])];
    guest.process(QueueRole::Hinting);
    assert_eq!(guest.take_used(), heads.map(|head| (head, 0)));
    assert!(guest.host.dropped.is_empty(), "a hint is no permission");
}

#[derive(Clone, Debug)]
enum Step {
    Offer(Vec<(bool, u32)>),
    Loop,
    Pass,
    AskStatistics,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let buffers = prop::collection::vec((any::<bool>(), 0_u32..9000), 1..4);
    let step = prop_oneof![
        4 => buffers.prop_map(Step::Offer),
        1 => Just(Step::Loop),
        3 => Just(Step::Pass),
        2 => Just(Step::AskStatistics),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

fn role() -> impl Strategy<Value = QueueRole> {
    prop::sample::select(vec![
        QueueRole::Inflate,
        QueueRole::Deflate,
        QueueRole::Stats,
        QueueRole::Hinting,
        QueueRole::Reporting,
        QueueRole::Block,
    ])
}

proptest! {
    #[test]
    fn used_order_is_available_order(role in role(), steps in steps()) {
        let mut guest = Guest::new();
        let (mut available, mut used) = (Vec::new(), Vec::new());
        for step in steps {
            guest.now = Instant::from_millis(guest.now.as_millis() + 2000);
            let has_room = available.len() - used.len() < 5;
            match step {
                Step::Offer(buffers) if has_room => {
                    let buffer = |(reads, len): &(bool, u32)| match reads {
                        true => Buffer::Readable(2 * PAGES, *len),
                        false => Buffer::Writable(3 * PAGES, *len),
                    };
                    let buffers: Vec<Buffer> = buffers.iter().map(buffer).collect();
                    available.push(guest.add(&buffers));
                }
                Step::Loop if has_room => {
                    guest.driver.put_descriptor(&guest.memory, 15, (2 * PAGES, 4, 1, 15));
                    guest.driver.offer(&guest.memory, 15);
                    available.push(15);
                }
                Step::Offer(_) | Step::Loop => {}
                Step::Pass => _ = guest.process(role),
                Step::AskStatistics => {
                    guest.balloon.want_stats(guest.now);
                    let mut ring = Ring { queue: &mut guest.queue, memory: &guest.memory };
                    guest.balloon.ask_stats(&mut ring, guest.now).unwrap();
                }
                // What a VMM does that stops a ring and starts it at the used index.
                Step::Restart => {
                    guest.balloon.ring_stops(role, &mut guest.queue);
                    prop_assert_eq!(
                        virtio_queue::QueueT::next_avail(&guest.queue),
                        virtio_queue::QueueT::next_used(&guest.queue)
                    );
                }
            }
            used.extend(guest.take_used().into_iter().map(|(head, _)| head));
            prop_assert_eq!(&available[..used.len()], &used[..]);
        }
    }
}
