//! What becomes of limits that change while the guest runs.

use super::*;

impl Story {
    /// The user has changed the limits, in MiB.
    fn limit(&mut self, min: u64, max: u64) -> &mut Self {
        let mib = |n| Some(ByteSize::from_mib(n));
        let wish = LimitsWish { min: mib(min), max: mib(max), psi_goal: None };
        let present = BlockSize::X86_SMALL.size().times(self.seen.blocks.len() as u64);
        self.controller.set_limits(Limits::new(present, wish).unwrap());
        self
    }

    /// An idle guest of 2 GiB that has shrunk to 512 MiB.
    fn small() -> Self {
        let mut story = Self::of(16, 4);
        story.used = 200;
        story.run(12, 0);
        story.text.clear();
        story
    }
}

#[test]
fn a_raised_minimum_is_asked_for_at_once_and_then_kept() {
    let mut story = Story::small();
    story.limit(1000, 2048).run(60, 0);
    assert_story(
        &story,
        "
         12.0   512 MiB  ask 4 back (ticket 1): 512 MiB is online, the minimum is 1000 MiB
         12.1   512 MiB  put ticket 1 online
         12.2  1024 MiB  rest: a return was needed lately: no steal for 10 s
         22.2  1024 MiB  rest: one block less would be below the minimum 1000 MiB
        ",
    );
}

/// A minimum that a host's target goes against wins, as it does where stealing ends.
#[test]
fn a_raised_minimum_comes_back_against_the_hosts_target_and_nothing_beyond() {
    for scale_by in [ScaleBy::Use, ScaleBy::Target] {
        let mut story = Story::scaled_by(scale_by, 16, 4);
        story.used = 200;
        story.seen.balloon = ByteSize::from_mib(1800);
        story.run(12, 0);
        assert_eq!(story.online(), 512);
        story.text.clear();
        story.limit(1000, 2048).run(60, 0);
        assert_eq!(story.online(), 1024, "{}", story.text);
        let asked = story.text.lines().filter(|line| line.contains("back (ticket")).count();
        assert_eq!(asked, 1, "{}", story.text);
    }
}

#[test]
fn a_raised_minimum_goes_through_the_gate() {
    let mut story = Story::small();
    story.gate = Gate::Denies;
    story.limit(640, 2048).run(3, 0);
    story.gate = Gate::Holds;
    story.run(5, 0);
    // It is not wanted any more.
    story.limit(512, 2048).run(3, 0);
    assert_story(
        &story,
        "
         12.0   512 MiB  ask 1 back (ticket 1): 512 MiB is online, the minimum is 640 MiB
         12.1   512 MiB  rest: the gate denied a return lately
         14.1   512 MiB  ask 1 back (ticket 2): 512 MiB is online, the minimum is 640 MiB
         14.2   512 MiB  rest: the gate denied a return lately
         16.2   512 MiB  ask 1 back (ticket 3): 512 MiB is online, the minimum is 640 MiB
         16.3   512 MiB  wait for the gate (ticket 3, comfort)
         20.0   512 MiB  cancel ticket 3: 312 MiB available is enough
         20.1   512 MiB  rest: one block less would be below the minimum 512 MiB
        ",
    );
}

#[test]
fn a_minimum_that_is_raised_meanwhile_leaves_the_guest_the_rest() {
    let mut story = Story::rushing();
    story.limit(2700, 4096).run(10, 0);
    assert_story(
        &story,
        "
          0.0  4096 MiB  rest: pressure is being measured
          2.0  4096 MiB  rest: the host's target leaves 4 GiB online, and that is followed
          3.0  4096 MiB  steal memory31, memory30, memory29, memory28 and 12 more: 3.7 GiB available, 409.5 MiB are kept, the host's target leaves 2 GiB online
          3.1  4096 MiB  stealing goes on
          4.2  2816 MiB  rest: one block less would be below the minimum 2.6 GiB
        ",
    );
}

#[test]
fn a_minimum_raised_over_what_is_online_ends_the_steal_at_work() {
    let mut story = Story::rushing();
    story.limit(4000, 4096).run(10, 0);
    assert_story(
        &story,
        "
          0.0  4096 MiB  rest: pressure is being measured
          2.0  4096 MiB  rest: the host's target leaves 4 GiB online, and that is followed
          3.0  4096 MiB  steal memory31, memory30, memory29, memory28 and 12 more: 3.7 GiB available, 409.5 MiB are kept, the host's target leaves 2 GiB online
          3.1  4096 MiB  stealing goes on
          4.0  2944 MiB  ask 4 back (ticket 1): 2.8 GiB is online, the minimum is 3.9 GiB
          4.1  2816 MiB  put ticket 1 online
          4.2  3328 MiB  ask 4 back (ticket 2): 3.2 GiB is online, the minimum is 3.9 GiB
          4.3  3328 MiB  put ticket 2 online
          4.4  3840 MiB  ask 2 back (ticket 3): 3.7 GiB is online, the minimum is 3.9 GiB
          4.5  3840 MiB  put ticket 3 online
          4.6  4096 MiB  rest: one block less would be below the minimum 3.9 GiB
        ",
    );
}

/// What cannot go for want of room goes when there is some, by the usual pace, and the maximum then holds.
#[test]
fn a_lowered_maximum_takes_what_can_go_and_leaves_the_guest_alive() {
    let mut story = Story::of(32, 8);
    story.used = 2100;
    story.cached = 100;
    story.run(12, 0);
    story.text.clear();
    story.limit(512, 2048).run(10, 0);
    story.used = 1500;
    story.run(20, 0);
    // It grows up to it, and not beyond.
    story.used = 1990;
    story.run(10, 0);
    assert_story(
        &story,
        "
         12.0  2688 MiB  steal memory20, memory19: 588 MiB available, 268.7 MiB are kept, the maximum leaves 2 GiB online
         12.1  2688 MiB  stealing goes on
         12.3  2432 MiB  rest: 332 MiB available, one more block needs 371.1 MiB
         22.0  2432 MiB  steal memory18, memory17, memory16: 932 MiB available, 435.1 MiB are kept
         22.1  2432 MiB  stealing goes on
         22.4  2048 MiB  rest: pressure is being measured
         24.4  2048 MiB  steal memory15: 548 MiB available, 396.7 MiB are kept
         24.5  2048 MiB  stealing goes on
         24.6  1920 MiB  rest: 420 MiB available, one more block needs 512 MiB
         42.0  1920 MiB  ask 1 back (ticket 1, emergency): 0 B available of 384 MiB, pressure 0.00 %
         42.1  1920 MiB  put ticket 1 online
         42.2  2048 MiB  rest: 58 MiB available is little, and there is no block to ask back
        ",
    );
}

#[test]
fn a_ticket_shrinks_with_the_maximum_and_goes_when_that_leaves_no_room() {
    let mut story = Story::small();
    story.gate = Gate::Holds;
    story.limit(1280, 2048).run(2, 0);
    let asked = |story: &Story| story.seen.ticket.as_ref().map(|ticket| ticket.blocks.len());
    assert_eq!(asked(&story), Some(4), "some at a time");
    story.limit(256, 1000).run(0, 0).step(0);
    // Nobody needs it any more either, but what may not be goes before that is asked.
    assert_eq!(asked(&story), Some(3));
    story.limit(256, 512).step(0);
    assert_eq!(asked(&story), None);
    assert_story(
        &story,
        "
         12.0   512 MiB  ask 4 back (ticket 1): 512 MiB is online, the minimum is 1.2 GiB
         12.1   512 MiB  wait for the gate (ticket 1, comfort)
         14.1   512 MiB  cancel ticket 1: no more than the maximum 512 MiB may be online
        ",
    );
}

/// A host that has no room for the minimum may have some for what is needed now.
#[test]
fn what_is_needed_now_is_not_asked_for_with_all_of_the_minimum() {
    let mut story = Story::small();
    story.gate = Gate::Holds;
    story.limit(1280, 2048).run(2, 0);
    let asked = |story: &Story| {
        let ticket = story.seen.ticket.as_ref().unwrap();
        (ticket.blocks.len(), ticket.urgency)
    };
    assert_eq!(asked(&story), (4, Urgency::Comfort));
    story.used = 480;
    story.run(1, 0);
    let (count, urgency) = asked(&story);
    assert!(count < 4 && urgency == Urgency::Emergency, "{count} {urgency}");
}

/// The host is short, and its service has gone: nobody in the guest waits for it.
#[test]
fn a_minimum_that_nobody_needs_is_not_taken_unasked() {
    let mut story = Story::small();
    story.gate = Gate::IsSilent;
    story.limit(1280, 2048).run(120, 0);
    assert_eq!(story.online(), 512, "{}", story.text);
    story.used = 480;
    story.run(15, 0);
    assert!(story.online() > 512, "{}", story.text);
    assert!(story.text.contains("unasked"), "{}", story.text);
}

/// The minimum ends within a block, and what is needed now is asked for under the target.
#[test]
fn a_guest_in_need_gets_all_of_the_minimum_whatever_the_host_wants() {
    let mut story = Story::small();
    story.seen.balloon = ByteSize::from_mib(1800);
    story.limit(896, 2048).run(30, 0);
    story.gate = Gate::Denies;
    story.used = 830;
    story.limit(1000, 2048).run(30, 0);
    story.gate = Gate::Grants;
    story.run(10, 0);
    assert_eq!(story.online(), 1024, "{}", story.text);
}
