//! What a guest can make its device remember has a limit, however large the guest is.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Guest, PAGES, range};
use memtide_balloon::MemoryPart;
use memtide_units::ByteSize;
use memtide_wire::features::{MUST_TELL_HOST, QueueRole};

/// Resident bytes of this process: the second field of /proc/self/statm, in pages.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn send(guest: &mut Guest, role: QueueRole, pfns: impl IntoIterator<Item = u32>) {
    let buffer = guest.pfns(2 * PAGES, pfns);
    guest.add(&[buffer]);
    guest.process(role);
    guest.host.dropped.clear();
}

/// A terabyte of 64 KiB, 2 MiB and 1 GiB pages; balloon pages as scattered as they can be, first in
/// parts of host pages, then whole host pages with one piece taken out.
#[test]
fn a_scattered_balloon_of_a_terabyte_costs_two_megabytes_at_most() {
    for (unit, step) in [(64 << 10, 16_u32), (2 << 20, 512), (1 << 30, 262_144)] {
        let mut guest = Guest::new();
        guest.balloon.set_features(MUST_TELL_HOST);
        let unit = ByteSize::from_bytes(unit);
        guest.balloon.set_memory_parts([MemoryPart::new(range(0, 1 << 40), unit)]);
        let all = 1_u32 << 28;
        let places: Vec<u32> = (0..all).step_by(step as usize).collect();
        send(&mut guest, QueueRole::Inflate, (0..32_768).map(|n| n * 4096));
        let before = resident();
        let mut worst = 0;
        for some in places.chunks(32_768).take(16) {
            send(&mut guest, QueueRole::Inflate, some.iter().copied());
            worst = worst.max(resident().saturating_sub(before));
        }
        for first in (0..1 << 20).step_by(1 << 15) {
            send(&mut guest, QueueRole::Inflate, first..first + (1 << 15));
        }
        send(&mut guest, QueueRole::Deflate, (0..32_768_u32).map(|n| n.wrapping_mul(step)));
        worst = worst.max(resident().saturating_sub(before));
        assert!(worst < 2 << 20, "{unit}: {worst} bytes");
    }
}
