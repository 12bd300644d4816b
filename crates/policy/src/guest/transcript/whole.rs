//! A guest that has all its blocks, and when its next look may wait.

use super::*;
use memtide_units::Permille;

fn story(scale_by: ScaleBy, used: u64) -> Story {
    let mut story = Story::scaled_by(scale_by, 16, 4);
    let size = ByteSize::from_gib(1);
    story.seen.swap =
        Some(Swap { total: size, free: size, costs: Permille(350), ..Swap::default() });
    story.used = used;
    story.run(5, 0);
    story
}

/// Its programs may hold much that they never touch; asking for blocks leads nowhere.
#[test]
fn one_that_is_short_pages_out_unless_the_host_alone_says_how_large_it_is() {
    let short = story(ScaleBy::Use, 1_950);
    assert!(
        short.text.ends_with("98 MiB available is little, and there is no block to ask back\n")
    );
    let (reclaim, while_free) = short.last_of.unwrap();
    let missing = ByteSize::from_bytes(2048 * 1024 * 1024 / 10) - ByteSize::from_mib(98);
    assert!(
        matches!(reclaim, Reclaim::On(Gain::Headroom { missing: told }) if told.mib() == missing.mib())
    );
    assert_eq!(while_free, None, "it is short, and looks again soon");
    let (reclaim, _) = story(ScaleBy::Target, 1_950).last_of.unwrap();
    assert_eq!(reclaim, Reclaim::Off(NoReclaim::NothingToGain));
}

/// What is free tells of growth only where growth takes from that.
#[test]
fn a_look_may_wait_while_enough_is_free_and_nothing_is_under_way() {
    let mut story = story(ScaleBy::Use, 1_000);
    story.run(30, 0);
    let free = story.seen.memory.free;
    assert_eq!(story.last_of.unwrap().1, Some(free), "{}", story.text);
    // All but a little of what is available is page cache now.
    story.cached = free.mib() - 20;
    story.run(1, 0);
    assert_eq!(story.last_of.unwrap().1, None);
}
