//! When the guest keeps what it could give.

use memtide_units::Permille;

use super::*;

#[test]
fn where_free_memory_reaches_the_host_anyway_only_the_host_is_in_a_hurry() {
    let mut story = Story::of(16, 4);
    story.seen.free_memory = FreeMemory::ReportedToHost;
    story.used = 1000;
    story.run(30, 0);
    story.used = 200;
    story.run(60, 0);
    story.seen.balloon = ByteSize::from_mib(512);
    story.run(3, 0);
    story.seen.balloon = ByteSize::ZERO;
    story.run(600, 0);
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: pressure is being measured
          2.0  2048 MiB  rest: what is free reaches the host as it is: only what was not used for 600 s is stolen
         90.0  2048 MiB  steal memory15, memory14, memory13, memory12: 1.8 GiB available, 204.7 MiB are kept, the host's target leaves 1.5 GiB online
         90.1  2048 MiB  stealing goes on
         90.5  1536 MiB  rest: what is free reaches the host as it is: only what was not used for 600 s is stolen
        600.0  1536 MiB  steal memory11: 1.3 GiB available, 345.5 MiB are kept
        600.1  1536 MiB  stealing goes on
        600.2  1408 MiB  rest: what is free reaches the host as it is: only what was not used for 600 s is stolen
        630.0  1408 MiB  steal memory10, memory9, memory8, memory7: 1.1 GiB available, 332.7 MiB are kept
        630.1  1408 MiB  stealing goes on
        630.5   896 MiB  rest: pressure is being measured
        632.5   896 MiB  steal memory6, memory5, memory4: 696 MiB available, 281.5 MiB are kept
        632.6   896 MiB  stealing goes on
        632.9   512 MiB  rest: one block less would be below the minimum 512 MiB
        ",
    );
}

/// What the kernel has had to do for want of memory so far.
fn squeezed(events: u64, reread_mib: u64) -> Option<Squeeze> {
    Some(Squeeze { events, reread: ByteSize::from_mib(reread_mib), ..Squeeze::default() })
}

#[test]
fn a_container_at_its_limit_is_not_the_guest() {
    let mut story = Story::of(16, 4);
    story.used = 200;
    story.seen.squeeze = squeezed(900, 0);
    story.run(72, 8_000);
    // Now the guest is short too.
    story.seen.squeeze = squeezed(901, 0);
    story.run(2, 8_000);
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: pressure is being measured
          2.0  2048 MiB  rest: pressure 8.00 % is over the goal 0.10 %
         60.0  2048 MiB  steal memory15: 1.8 GiB available, 396.7 MiB are kept
         60.1  2048 MiB  stealing goes on
         60.2  1920 MiB  rest: pressure is being measured
         62.2  1920 MiB  steal memory14, memory13: 1.6 GiB available, 384 MiB are kept
         62.3  1920 MiB  stealing goes on
         62.5  1664 MiB  rest: pressure is being measured
         64.5  1664 MiB  steal memory12, memory11, memory10, memory9: 1.4 GiB available, 358.3 MiB are kept
         64.6  1664 MiB  stealing goes on
         65.0  1152 MiB  rest: pressure is being measured
         67.0  1152 MiB  steal memory8, memory7, memory6, memory5 and 1 more: 952 MiB available, 307.1 MiB are kept
         67.1  1152 MiB  stealing goes on
         67.6   512 MiB  rest: one block less would be below the minimum 512 MiB
         72.0   512 MiB  rest: pressure 8.00 % is over the goal 0.10 %
        ",
    );
}

/// A service wakes up and waits for what was paged out. No block would spare it that, as long as there is room for
/// all of it.
#[test]
fn who_waits_for_what_was_paged_out_lacks_no_memory_as_long_as_it_fits() {
    let mut story = Story::of(16, 4);
    story.used = 200;
    let (total, swapped) = (ByteSize::from_mib(2_048), ByteSize::from_mib(1_000));
    story.seen.swap = Some(Swap { total, free: total - swapped, swapped, ..Swap::default() });
    for swapped_in in 0..180 {
        story.seen.squeeze = Some(Squeeze { swapped_in, ..Squeeze::default() });
        story.run(1, 8_000);
    }
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: pressure is being measured
          2.0  2048 MiB  rest: pressure 8.00 % is over the goal 0.10 %
         60.0  2048 MiB  steal memory15: 1.8 GiB available, 1.3 GiB are kept
         60.1  2048 MiB  stealing goes on
         60.2  1920 MiB  rest: pressure is being measured
         62.2  1920 MiB  steal memory14, memory13: 1.6 GiB available, 1.3 GiB are kept
         62.3  1920 MiB  stealing goes on
         62.5  1664 MiB  rest: 1.4 GiB available, one more block needs 1.4 GiB, 1000 MiB of it for what is in swap
        ",
    );
}

#[test]
fn who_waits_for_more_than_would_fit_is_short() {
    let mut story = Story::of(16, 4);
    story.used = 200;
    let (total, swapped) = (ByteSize::from_mib(2_048), ByteSize::from_mib(1_700));
    story.seen.swap = Some(Swap { total, free: total - swapped, swapped, ..Swap::default() });
    let waits = |story: &mut Story, seconds, costs| {
        story.seen.swap = story.seen.swap.map(|swap| Swap { costs: Permille(costs), ..swap });
        for _ in 0..seconds {
            let squeeze = story.seen.squeeze.get_or_insert_default();
            squeeze.swapped_in += 1;
            story.run(1, 8_000);
        }
    };
    waits(&mut story, 70, 0);
    assert!(story.last.starts_with("rest: pressure "), "{}", story.text);
    // Compressed in memory half of it is there already.
    waits(&mut story, 5, 500);
    assert!(story.text.contains("steal memory15"), "{}", story.text);
}

/// But paging out more would make it worse, also where what becomes free reaches the host.
#[test]
fn nothing_is_paged_out_while_somebody_waits_for_what_was() {
    let mut story = Story::of(16, 4);
    story.used = 200;
    story.seen.free_memory = FreeMemory::ReportedToHost;
    let (total, swapped) = (ByteSize::from_mib(2_048), ByteSize::from_mib(100));
    story.seen.swap = Some(Swap { total, free: total - swapped, swapped, ..Swap::default() });
    story.seen.squeeze = Some(Squeeze::default());
    story.run(65, 0);
    let last = |story: &Story| story.last_of.map(|(reclaim, _)| reclaim);
    assert_eq!(last(&story), Some(Reclaim::On(Gain::Reported)));
    for swapped_in in 1..5 {
        story.seen.squeeze = Some(Squeeze { swapped_in, ..Squeeze::default() });
        story.run(1, 8_000);
    }
    assert!(story.last.starts_with("rest: what is free reaches the host"), "{}", story.last);
    assert_eq!(last(&story), Some(Reclaim::Off(NoReclaim::Pressure)));
}

#[test]
fn who_builds_again_and_again_keeps_the_memory_of_the_pauses() {
    let mut story = Story::of(16, 4);
    story.used = 200;
    story.run(15, 0);
    story.text.clear();
    for _ in 0..3 {
        story.used = 900;
        story.run(30, 0);
        story.used = 200;
        story.run(20, 0);
    }
    assert_story(
        &story,
        "
         15.0   512 MiB  ask 3 back (ticket 1, emergency): 0 B available of 102.3 MiB, pressure 0.00 %
         15.1   512 MiB  put ticket 1 online
         15.2   896 MiB  ask 3 back (ticket 2, emergency): 0 B available of 179.1 MiB, pressure 0.00 %
         15.3   896 MiB  put ticket 2 online
         15.4  1280 MiB  rest: a return was needed lately: no steal for 20 s
         35.4  1280 MiB  rest: 380 MiB available, one more block needs 576 MiB
         95.4  1280 MiB  steal memory9, memory8, memory7, memory6: 1 GiB available, 448 MiB are kept
         95.5  1280 MiB  stealing goes on
         95.9   768 MiB  rest: pressure is being measured
         97.9   768 MiB  steal memory5: 568 MiB available, 345.5 MiB are kept
         98.0   768 MiB  stealing goes on
         98.1   640 MiB  rest: 440 MiB available, one more block needs 448 MiB
        115.0   640 MiB  ask 3 back (ticket 3, emergency): 0 B available of 128 MiB, pressure 0.00 %
        115.1   640 MiB  put ticket 3 online
        115.2  1024 MiB  ask 3 back (ticket 4, comfort): 124 MiB available of 204.7 MiB, pressure 0.00 %
        115.3  1024 MiB  put ticket 4 online
        115.4  1408 MiB  rest: a return was needed lately: no steal for 40 s
        155.4  1408 MiB  rest: 900 MiB were in use within the last 40 s, and are kept this time
        ",
    );
}

#[test]
fn a_cache_that_was_missed_comes_back_and_stays() {
    let mut story = Story::of(16, 4);
    (story.used, story.cached) = (200, 300);
    story.seen.squeeze = squeezed(1, 0);
    story.run(12, 0);
    story.text.clear();
    story.seen.squeeze = squeezed(2, 40);
    story.run(1, 2_000);
    story.run(30, 0);
    assert_story(
        &story,
        "
         12.1   512 MiB  ask 1 back (ticket 1, pressure): 0 B available of 64 MiB, pressure 0.19 %
         12.2   512 MiB  put ticket 1 online
         12.3   640 MiB  ask 1 back (ticket 2, pressure): 100 MiB available of 64 MiB, pressure 0.38 %
         12.4   640 MiB  put ticket 2 online
         12.5   768 MiB  rest: pressure 0.57 % is over the goal 0.10 %
         14.8   768 MiB  rest: a return was needed lately: no steal for 18 s
         32.5   768 MiB  rest: 340 MiB of page cache are read again and again, one more block needs 168.7 MiB more
        ",
    );
}

#[test]
fn the_hosts_target_is_followed_in_spite_of_a_cache_that_is_read_again() {
    let mut story = Story::of(16, 4);
    (story.used, story.cached) = (200, 700);
    story.seen.balloon = ByteSize::from_mib(4 * 128);
    story.seen.squeeze = squeezed(1, 0);
    story.run(30, 0);
    story.seen.squeeze = squeezed(2, 40);
    story.run(1, 2_000);
    story.seen.balloon = ByteSize::from_mib(10 * 128);
    // The kernel drops what has to go.
    story.cached = 500;
    story.run(60, 0);
    assert!(story.online() <= 6 * 128, "{} MiB online\n{}", story.online(), story.text);
}

/// A tenth of a second of a processor for each block, of which a guest at work lends 15 ms a second.
#[test]
fn what_stealing_costs_a_guest_at_work_is_waited_for_unless_the_host_is_short() {
    let mut story = Story::of(32, 4);
    story.used = 200;
    story.block_costs = Duration::from_millis(100);
    story.seen.effort.per_second = Duration::from_millis(15);
    story.run(30, 0);
    story.seen.balloon = ByteSize::from_mib(1408);
    story.run(2, 0);
    story.seen.balloon = ByteSize::ZERO;
    story.run(20, 0);
    story.seen.effort.per_second = Duration::from_millis(250);
    story.run(10, 0);
    assert_story(
        &story,
        "
          0.0  4096 MiB  rest: pressure is being measured
          2.0  4096 MiB  steal memory31: 3.8 GiB available, 601.5 MiB are kept
          2.1  4096 MiB  stealing goes on
          2.2  3968 MiB  rest: stealing has had its share of the processor: no steal for 7 s
          8.9  3968 MiB  steal memory30, memory29: 3.6 GiB available, 588.7 MiB are kept
          9.0  3968 MiB  stealing goes on
          9.2  3712 MiB  rest: stealing has had its share of the processor: no steal for 14 s
         22.5  3712 MiB  steal memory28, memory27, memory26, memory25: 3.4 GiB available, 563.1 MiB are kept
         22.6  3712 MiB  stealing goes on
         23.0  3200 MiB  rest: stealing has had its share of the processor: no steal for 27 s
         30.0  3200 MiB  steal memory24, memory23, memory22, memory21: 2.9 GiB available, 512 MiB are kept
         30.1  3200 MiB  stealing goes on
         30.5  2688 MiB  rest: stealing has had its share of the processor: no steal for 30 s
         53.5  2688 MiB  steal memory20, memory19, memory18, memory17 and 9 more: 2.4 GiB available, 460.7 MiB are kept
         53.6  2688 MiB  stealing goes on
         54.9  1024 MiB  rest: one block less would be below the minimum 1 GiB
        ",
    );
}
