//! Host pages larger than the balloon's: each goes when the last of its balloon pages is in, never
//! before, and never after one of them was taken out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;

use common::{Guest, PAGES, range};
use memtide_balloon::fake::Buffer;
use memtide_balloon::{MemoryPart, RangeSet, Rings};
use memtide_units::{ByteSize, Gpa, GpaRange, Pfn};
use memtide_wire::features::{MUST_TELL_HOST, QueueRole, REPORTING, STATS_VQ};
use proptest::prelude::*;

const HUGE: u64 = 2 << 20;
const PER_HUGE: u32 = 512;
const FEATURES: u64 = MUST_TELL_HOST | STATS_VQ | REPORTING;

fn part(range: GpaRange, unit: u64, file_offset: u64) -> MemoryPart {
    let (unit, file_offset) = (ByteSize::from_bytes(unit), ByteSize::from_bytes(file_offset));
    MemoryPart { range, unit, file_offset }
}

/// A guest whose memory from 16 MiB on consists of 2 MiB pages.
fn huge_guest() -> Guest {
    let mut guest = Guest::new();
    let parts = [part(range(0, 16 * PAGES), 4096, 0), part(range(16 * PAGES, 48 * PAGES), HUGE, 0)];
    guest.balloon.set_features(FEATURES);
    guest.balloon.set_memory_parts(parts);
    guest
}

fn send(guest: &mut Guest, role: QueueRole, pfns: impl IntoIterator<Item = u32>) -> Vec<GpaRange> {
    let buffer = guest.pfns(2 * PAGES, pfns);
    let head = guest.add(&[buffer]);
    guest.process(role);
    assert_eq!(guest.take_used(), [(head, 0)]);
    guest.host.dropped.drain(..).collect()
}

fn inflate(guest: &mut Guest, pfns: impl IntoIterator<Item = u32>) -> Vec<GpaRange> {
    send(guest, QueueRole::Inflate, pfns)
}

fn deflate(guest: &mut Guest, pfns: impl IntoIterator<Item = u32>) {
    assert_eq!(send(guest, QueueRole::Deflate, pfns), []);
}

/// PFNs of the nth huge page.
fn page(n: u32) -> std::ops::Range<u32> {
    n * PER_HUGE..(n + 1) * PER_HUGE
}

#[test]
fn a_page_goes_with_its_last_piece_in_any_order() {
    let mut guest = huge_guest();
    // As Linux does it: 256 at a time, from the top down.
    let pfns: Vec<u32> = page(10).rev().collect();
    assert_eq!(inflate(&mut guest, pfns[..256].to_vec()), []);
    assert_eq!(inflate(&mut guest, pfns[256..511].to_vec()), []);
    assert_eq!(inflate(&mut guest, [pfns[511]]), [range(10 * HUGE, HUGE)]);
}

#[test]
fn several_pages_of_one_request_go_as_one() {
    let mut guest = huge_guest();
    assert_eq!(inflate(&mut guest, 10 * PER_HUGE..10 * PER_HUGE + 100), []);
    let rest = 10 * PER_HUGE + 100..13 * PER_HUGE + 5;
    assert_eq!(inflate(&mut guest, rest), [range(10 * HUGE, 3 * HUGE)]);
    assert_eq!(inflate(&mut guest, 13 * PER_HUGE + 5..14 * PER_HUGE), [range(13 * HUGE, HUGE)]);
}

#[test]
fn a_deflated_piece_keeps_its_page_until_it_is_back() {
    let mut guest = huge_guest();
    let (first, last) = (page(9).start, page(9).end - 1);
    assert_eq!(inflate(&mut guest, first..last), []);
    deflate(&mut guest, [first + 7]);
    assert_eq!(inflate(&mut guest, [last]), [], "one is missing");
    assert_eq!(inflate(&mut guest, [first + 7]), [range(9 * HUGE, HUGE)]);
    // Touched, the whole page is resident again, and goes again.
    deflate(&mut guest, [first + 7]);
    assert_eq!(inflate(&mut guest, [first + 7]), [range(9 * HUGE, HUGE)]);
}

#[test]
fn a_report_is_not_remembered() {
    let mut guest = huge_guest();
    let mut report = |at, len| {
        guest.add(&[Buffer::Writable(at, len)]);
        guest.process(QueueRole::Reporting);
        guest.host.dropped.drain(..).collect::<Vec<_>>()
    };
    let half = HUGE as u32 / 2;
    assert_eq!(report(10 * HUGE, half), []);
    assert_eq!(report(10 * HUGE + HUGE / 2, half), [], "the first half may be in use by now");
    assert_eq!(report(10 * HUGE - 4096, 2 * HUGE as u32), [range(10 * HUGE, HUGE)]);
}

#[test]
fn a_driver_that_does_not_tell_is_not_relied_on() {
    let mut guest = huge_guest();
    guest.balloon.set_features(FEATURES & !MUST_TELL_HOST);
    assert_eq!(inflate(&mut guest, page(9).start..page(9).end - 1), []);
    assert_eq!(inflate(&mut guest, [page(9).end - 1]), []);
    assert_eq!(inflate(&mut guest, page(9)), [range(9 * HUGE, HUGE)], "all of it at once is safe");
}

/// Inflates all but the last piece of a page, lets something happen, inflates the last piece.
fn is_forgotten(event: impl Fn(&mut Guest)) -> bool {
    let mut guest = huge_guest();
    inflate(&mut guest, page(9).start..page(9).end - 1);
    event(&mut guest);
    inflate(&mut guest, [page(9).end - 1]).is_empty()
}

#[test]
fn what_ends_a_balloon_ends_the_memory_of_it() {
    assert!(!is_forgotten(|_| {}));
    assert!(is_forgotten(|guest| {
        guest.balloon.set_rings(Rings::Stopped);
        guest.balloon.set_rings(Rings::Standard);
    }));
    assert!(is_forgotten(|guest| guest.balloon.set_features(FEATURES)));
    let part = |from: u64, unit| part(range(from, 64 * PAGES - from), unit, from);
    assert!(is_forgotten(|guest| {
        guest.balloon.set_memory_parts([]);
        guest.balloon.set_memory_parts([part(16 * PAGES, HUGE)]);
    }));
    assert!(is_forgotten(|guest| guest.balloon.set_memory_parts([part(0, HUGE / 2)])));
    // Other memory that comes or goes is no reason.
    assert!(!is_forgotten(|guest| guest.balloon.set_memory_parts([part(0, HUGE)])));
}

#[test]
fn a_ring_that_is_given_up_forgets_everything() {
    // A deflate in memory that was lost reads as another one, and is answered.
    assert!(is_forgotten(|guest| {
        deflate(guest, [0]);
        guest.balloon.note_bad_ring(guest.now, || "memory was lost".into());
    }));
}

#[test]
fn a_deflate_that_cannot_be_read_forgets_everything() {
    assert!(is_forgotten(|guest| {
        let head = guest.add(&[Buffer::Readable(common::MEMORY - 4, 8)]);
        guest.process(QueueRole::Deflate);
        assert_eq!(guest.take_used(), [(head, 0)]);
    }));
    assert!(is_forgotten(|guest| {
        guest.driver.put_descriptor(&guest.memory, 0, (0, 4, 1, 0));
        guest.driver.offer(&guest.memory, 0);
        guest.process(QueueRole::Deflate);
        assert_eq!(guest.take_used(), [(0, 0)]);
    }));
}

#[test]
fn a_page_that_is_cut_by_a_region_stays() {
    let mut guest = Guest::new();
    guest.balloon.set_features(FEATURES);
    // The hole for video memory: neither the page around it nor one that only half is memory goes.
    let parts = [
        part(range(0, 640 << 10), HUGE, 0),
        part(range(768 << 10, 5 * PAGES - (768 << 10)), HUGE, 768 << 10),
    ];
    guest.balloon.set_memory_parts(parts);
    assert_eq!(inflate(&mut guest, 0..8 * 256), [range(HUGE, HUGE)]);
}

#[test]
fn the_memory_for_it_is_bounded_and_what_is_forgotten_is_counted() {
    let mut guest = Guest::new();
    guest.balloon.set_features(FEATURES);
    // 1 TiB of 2 MiB pages, and a guest that inflates every second balloon page of it.
    guest.balloon.set_memory_parts([part(range(0, 1 << 40), HUGE, 0)]);
    for half in 0..16 {
        let pages = (0..32_768_u32).map(|n| (half * 32_768 + n) * PER_HUGE);
        assert_eq!(inflate(&mut guest, pages), []);
    }
    assert!(guest.refused("host-page-forgotten") >= 1);
    // The oldest are gone, the youngest are there.
    assert_eq!(inflate(&mut guest, 1..PER_HUGE), []);
    let last = 524_287 * PER_HUGE;
    let expected = range(u64::from(last) << 12, HUGE);
    assert_eq!(inflate(&mut guest, last + 1..last + PER_HUGE), [expected]);
}

#[derive(Clone, Debug)]
enum Step {
    Inflate(Vec<u32>),
    Deflate(Vec<u32>),
    Report(u64, u32),
    Restart,
    Grow,
}

/// Requests of some runs of pages around few places, so that host pages fill up.
fn runs() -> impl Strategy<Value = Vec<u32>> {
    let run = (0_u32..120, 1_u32..40).prop_map(|(start, len)| start..start + len);
    prop::collection::vec(run, 1..5).prop_map(|runs| runs.into_iter().flatten().collect())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => runs().prop_map(Step::Inflate),
        3 => runs().prop_map(Step::Deflate),
        1 => (0_u64..100, 1_u32..50).prop_map(|(at, pages)| Step::Report(at, pages)),
        1 => Just(Step::Restart),
        1 => Just(Step::Grow),
    ];
    prop::collection::vec(step, 1..40)
}

/// Host pages of the model: their balloon pages. 4 KiB ones below page 16; 16 KiB ones to 64, which
/// begin 4 KiB into the part; 64 KiB ones from 64 to 112, behind which nothing is.
fn host_page(pfn: u32) -> Option<std::ops::Range<u32>> {
    let page = match pfn {
        0..16 => pfn..pfn + 1,
        16..64 => {
            let start = (pfn + 1) / 4 * 4 - 1;
            start..start + 4
        }
        64..112 => pfn / 16 * 16..pfn / 16 * 16 + 16,
        _ => return None,
    };
    let inside = |limits: std::ops::Range<u32>| {
        limits.contains(&page.start) && limits.contains(&(page.end - 1))
    };
    (inside(0..16) || inside(16..64) || inside(64..112)).then_some(page)
}

fn frames(ranges: &[GpaRange]) -> Vec<u32> {
    ranges.iter().flat_map(|r| (r.start().0 >> 12) as u32..(r.end().0 >> 12) as u32).collect()
}

proptest! {
    /// The slow way: a set of all pages that are in the balloon.
    #[test]
    fn just_the_complete_host_pages_go(steps in steps()) {
        const KIB: u64 = 1 << 10;
        // The ring and the requests lie beyond; PFNs are those of the model.
        let mut guest = Guest::new();
        guest.balloon.set_features(FEATURES);
        let model = [
            part(range(0, 64 * KIB), 4 * KIB, 0),
            part(range(64 * KIB, 192 * KIB), 16 * KIB, 4 * KIB),
            part(range(256 * KIB, 192 * KIB), 64 * KIB, 0),
        ];
        guest.balloon.set_memory_parts(model);
        let mut balloon = BTreeSet::new();
        for step in steps {
            match step {
                Step::Inflate(pfns) => {
                    balloon.extend(pfns.iter().copied());
                    let pages = pfns.iter().filter_map(|pfn| host_page(*pfn));
                    let complete = pages.filter(|page| page.clone().all(|pfn| balloon.contains(&pfn)));
                    let expected: BTreeSet<u32> = complete.flatten().collect();
                    let dropped = inflate(&mut guest, pfns.iter().copied());
                    let dropped: BTreeSet<u32> = frames(&dropped).into_iter().collect();
                    prop_assert_eq!(dropped, expected);
                }
                Step::Deflate(pfns) => {
                    pfns.iter().for_each(|pfn| _ = balloon.remove(pfn));
                    deflate(&mut guest, pfns);
                }
                Step::Report(at, pages) => {
                    let named = at as u32..at as u32 + pages;
                    guest.add(&[Buffer::Writable(at << 12, pages << 12)]);
                    guest.process(QueueRole::Reporting);
                    let dropped: Vec<GpaRange> = guest.host.dropped.drain(..).collect();
                    let whole = |page: &std::ops::Range<u32>| page.clone().all(|p| named.contains(&p));
                    let pages = named.clone().filter_map(host_page).filter(whole);
                    let expected: BTreeSet<u32> = pages.flatten().collect();
                    prop_assert_eq!(frames(&dropped), expected.into_iter().collect::<Vec<_>>());
                }
                Step::Restart => {
                    guest.balloon.set_rings(Rings::Stopped);
                    guest.balloon.set_rings(Rings::Standard);
                    balloon.clear();
                }
                Step::Grow => {
                    let more = part(range(32 * PAGES, 32 * PAGES), HUGE, 0);
                    guest.balloon.set_memory_parts(model.into_iter().chain([more]));
                }
            }
            guest.take_used();
        }
    }

    /// Whatever the units and where the files begin: nothing beyond memory, nothing that a whole
    /// host page does not justify.
    #[test]
    fn any_layout_is_safe(
        units in prop::collection::vec((0_u32..40, 0_u64..1 << 24, 1_u64..1 << 20, 0_u64..1 << 24), 0..6),
        requests in prop::collection::vec((any::<bool>(), prop::collection::vec(0_u32..4096, 0..64)), 0..20),
    ) {
        let parts: Vec<MemoryPart> = units
            .iter()
            .map(|(unit, start, len, offset)| part(range(*start, *len), 1 << unit, *offset))
            .collect();
        let mut guest = Guest::new();
        guest.balloon.set_features(FEATURES);
        guest.balloon.set_memory_parts(parts.clone());
        let memory: RangeSet = parts.iter().map(|part| part.range).collect();
        let mut balloon = BTreeSet::new();
        for (grows, pfns) in requests {
            if grows {
                balloon.extend(pfns.iter().copied());
                for dropped in inflate(&mut guest, pfns) {
                    prop_assert!(memory.contains(dropped));
                    let first = Pfn((dropped.start().0 >> 12) as u32);
                    let end = dropped.end().0.div_ceil(4096) as u32;
                    prop_assert!((first.0..end).all(|pfn| balloon.contains(&pfn)));
                    prop_assert!(dropped.start() >= Gpa(0));
                }
            } else {
                pfns.iter().for_each(|pfn| _ = balloon.remove(pfn));
                deflate(&mut guest, pfns);
            }
        }
    }
}
