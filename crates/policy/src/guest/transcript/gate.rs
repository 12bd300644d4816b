//! What is asked back, and what the gate makes of it.

use super::*;

#[test]
fn a_gate_that_holds_is_asked_again_and_one_that_is_silent_is_passed_by() {
    let mut story = Story::of(8, 2);
    story.used = 150;
    story.run(12, 0);
    story.text.clear();
    story.gate = Gate::Holds;
    story.used = 480;
    story.run(15, 0);
    story.gate = Gate::IsSilent;
    story.run(12, 0);
    assert_story(
        &story,
        "
         12.0   512 MiB  ask 3 back (ticket 1, emergency): 32 MiB available of 102.3 MiB, pressure 0.00 %
         12.1   512 MiB  wait for the gate (ticket 1, emergency)
         37.0   512 MiB  take 3 unasked: nobody decides since 10 s
         37.1   896 MiB  rest: 416 MiB available, one more block needs 499.1 MiB
        ",
    );
}

#[test]
fn a_denial_is_taken_for_an_answer_for_two_seconds() {
    let mut story = Story::of(8, 2);
    story.used = 150;
    story.run(12, 0);
    story.text.clear();
    story.gate = Gate::Denies;
    story.used = 460;
    story.run(5, 0);
    assert_story(
        &story,
        "
         12.0   512 MiB  ask 2 back (ticket 1, comfort): 52 MiB available of 102.3 MiB, pressure 0.00 %
         12.1   512 MiB  rest: the gate denied a return lately
         14.1   512 MiB  ask 1 back (ticket 2, comfort): 52 MiB available of 102.3 MiB, pressure 0.00 %
         14.2   512 MiB  rest: the gate denied a return lately
         16.2   512 MiB  ask 1 back (ticket 3, comfort): 52 MiB available of 102.3 MiB, pressure 0.00 %
         16.3   512 MiB  rest: the gate denied a return lately
        ",
    );
}

#[test]
fn restoring_asks_everything_back_and_steals_no_more() {
    let mut story = Story::of(8, 2);
    story.used = 150;
    story.run(12, 0);
    story.text.clear();
    story.seen.mode = Mode::Restore;
    story.run(10, 0);
    assert_eq!(story.online(), 1024);
    assert_story(
        &story,
        "
         12.0   512 MiB  ask 4 back (ticket 1, comfort): 362 MiB available of 64 MiB, pressure 0.00 %
         12.1   512 MiB  put ticket 1 online
         12.2  1024 MiB  rest: everything is to stay with the guest
        ",
    );
}

/// A gate may set aside all that a ticket names, and other guests would wait for it.
#[test]
fn what_nobody_waits_for_is_asked_back_bit_by_bit() {
    let mut story = Story::of(16, 2);
    story.used = 150;
    story.run(30, 0);
    story.text.clear();
    story.seen.mode = Mode::Restore;
    story.run(5, 0);
    assert_eq!(story.online(), 2048);
    let asked = |line: &str| line.contains("ask 4 back") || line.contains("ask 3 back");
    assert_eq!(story.text.lines().filter(|line| asked(line)).count(), 3, "{}", story.text);
}

#[test]
fn a_gate_that_was_passed_by_once_is_not_waited_for_as_long_again() {
    let mut story = Story::of(8, 2);
    story.used = 150;
    story.run(12, 0);
    story.text.clear();
    story.gate = Gate::IsSilent;
    story.used = 480;
    story.run(12, 0);
    story.used = 740;
    story.run(3, 0);
    story.gate = Gate::Grants;
    story.used = 860;
    story.run(2, 0);
    assert_story(
        &story,
        "
         12.0   512 MiB  ask 3 back (ticket 1, emergency): 32 MiB available of 102.3 MiB, pressure 0.00 %
         12.1   512 MiB  wait for the gate (ticket 1, emergency)
         22.0   512 MiB  take 3 unasked: nobody decides since 10 s
         22.1   896 MiB  rest: a return was needed lately: no steal for 10 s
         24.0   896 MiB  ask 1 back (ticket 2, comfort): 156 MiB available of 179.1 MiB, pressure 0.00 %
         24.1   896 MiB  wait for the gate (ticket 2, comfort)
         25.0   896 MiB  take 1 unasked: nobody decides since 1 s
         25.1  1024 MiB  rest: a return was needed lately: no steal for 19 s
         27.0  1024 MiB  rest: 164 MiB available is little, and there is no block to ask back
        ",
    );
}
