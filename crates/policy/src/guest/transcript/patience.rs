//! When the guest keeps what it could give.

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
