//! Any descriptors, any ring contents: no panic, no endless work, nothing dropped beyond memory.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use memtide_balloon::fake::{FakeDriver, FakeHost};
use memtide_balloon::{Balloon, Left, Moment, RangeSet, Ring, Rings, Settings};
use memtide_units::{ByteSize, Gpa, GpaRange, Instant};
use memtide_wire::features::QueueRole;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 2 << 20;
const RING: u64 = 0x4000;

/// Addresses and lengths near every edge there is.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..MEMORY,
        Just(MEMORY - 4),
        MEMORY - 64..MEMORY + 64,
        Just(RING),
        u64::MAX - 64..=u64::MAX,
        any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..300, Just(4096), Just(32 * 16), any::<u32>()]
}

fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    prop::collection::vec((address(), length(), 0_u16..8, 0_u16..20), 16)
}

fn role() -> impl Strategy<Value = QueueRole> {
    prop_oneof![
        Just(QueueRole::Inflate),
        Just(QueueRole::Deflate),
        Just(QueueRole::Stats),
        Just(QueueRole::Hinting),
        Just(QueueRole::Reporting),
        Just(QueueRole::Block),
    ]
}

proptest! {
    #[test]
    fn every_ring_comes_to_an_end(
        descriptors in descriptors(),
        heads in prop::collection::vec(0_u16..20, 0..16),
        noise in prop::collection::vec(any::<u8>(), 512),
        role in role(),
    ) {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let mut driver = FakeDriver::new(RING, 16);
        memory.write_slice(&noise, GuestAddress(0)).unwrap();
        for (index, fields) in descriptors.into_iter().enumerate() {
            driver.put_descriptor(&memory, index as u16, fields);
        }
        let all = GpaRange::new(Gpa(0), ByteSize::from_bytes(MEMORY)).unwrap();
        let mut now = Instant::from_millis(0);
        let mut balloon = Balloon::new(Settings::default(), now);
        balloon.set_memory([all], ByteSize::from_kib(4));
        balloon.set_rings(Rings::WithBlock);
        for head in &heads {
            driver.offer(&memory, *head);
        }
        let mut queue = driver.queue();
        let mut host = FakeHost::default();
        let mut passes = 0;
        let mut ring = Ring { queue: &mut queue, memory: &memory };
        loop {
            let mut moment = Moment { now, host: &mut host };
            let Ok(pass) = balloon.process(role, &mut ring, &mut moment) else { break };
            match pass.left {
                Left::Nothing => break,
                Left::More => {}
                Left::Until(when) => now = when,
            }
            passes += 1;
            prop_assert!(passes < 100, "a ring of 16 takes a few passes");
        }
        let memory: RangeSet = [all].into_iter().collect();
        prop_assert!(host.dropped.iter().all(|range| memory.contains(*range)));
    }
}
