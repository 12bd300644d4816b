//! The checkers themselves: each is shown what it must not let pass.

use memtide_policy::guest::{Action, Decision, Limits, LimitsWish, Plan, Urgency, WaitReason};
use memtide_units::{BlockId, Instant};

use super::*;
use crate::host::{Request, Verdict};
use crate::kernel::{Demand, Kind, in_pages};
use crate::monitor::Monitor;
use crate::{Scenario, TICK};

/// A guest of 4 GiB of which blocks 20 to 29 are stolen, and the host knows it.
struct Stage {
    now: Instant,
    kernel: Kernel,
    host: Host,
    agent: Agent,
    checks: Checks,
}

impl Stage {
    fn new(workload: Name) -> Self {
        let scenario = Scenario::plain(workload, 30);
        let (unit, settings) = (scenario.unit, scenario.settings());
        // One where all of these can be made movable.
        let boot = |seed| {
            let mut kernel = Kernel::boot(seed, scenario.machine, unit, scenario.blocks);
            (8..31).all(|n| kernel.convert(BlockId(n))).then_some(kernel)
        };
        let mut kernel = (1..).find_map(boot).unwrap();
        kernel.set_busy(0);
        (20..30).for_each(|n| kernel.take_away(BlockId(n)));
        let now = Instant::default();
        let host = Host::new(1, unit, scenario.present(), settings.limits.min());
        let monitor = Monitor::new(1, scenario.watch);
        let agent = Agent::start(now, settings, &kernel, &Default::default(), monitor);
        let checks = Checks::new(&scenario);
        let mut stage = Self { now, kernel, host, agent, checks };
        stage.agent.greet(now, &mut stage.host);
        stage.pass(2, &Demand::default());
        assert_eq!(stage.agent.stolen(), 10);
        assert_eq!(stage.checks.news(), []);
        stage
    }

    fn at(&mut self, show: impl FnOnce(&mut Checks, &Moment<'_>)) {
        let Self { now, kernel, host, agent, checks } = self;
        let at = Moment { now: *now, kernel, host, agent: Some(agent), phase: Phase::Busy };
        show(checks, &at);
    }

    /// Time passes, and the agent decides nothing.
    fn pass(&mut self, seconds: u64, demand: &Demand) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.now = self.now + TICK;
            let killed = self.kernel.tick(self.now, demand).killed;
            let replies = self.host.tick(self.now);
            self.agent.hear(self.now, replies, &mut self.host);
            self.agent.work(self.now, &mut self.kernel, &mut self.host);
            self.at(|checks, at| {
                killed.into_iter().for_each(|killed| checks.killed(at, killed));
                checks.ticked(at);
            });
        }
    }

    fn decides(&mut self, action: Action) {
        let balloon = self.host.balloon();
        let (seen, plan) = self.agent.decide(self.now, false, &self.kernel, balloon);
        let plan = Plan { actions: vec![action], ..plan };
        self.at(|checks, at| checks.decided(at, &seen, &plan));
    }

    /// What is broken, each promise once.
    fn broken(&mut self) -> Vec<Promise> {
        let mut broken: Vec<_> = self.checks.news().iter().map(|broken| broken.promise).collect();
        broken.sort_unstable();
        broken.dedup();
        broken
    }
}

fn blocks(range: std::ops::Range<u64>) -> Vec<BlockId> {
    range.map(BlockId).collect()
}

fn mib(n: u64) -> u64 {
    in_pages(ByteSize::from_mib(n))
}

#[test]
fn a_drop_of_what_is_used_and_a_grant_of_what_nobody_asked_for_are_seen() {
    let mut stage = Stage::new(Name::Bursty);
    stage.at(|checks, at| checks.heard(at, &[Reply::Dropped(BlockId(19))]));
    assert_eq!(stage.broken(), [Promise::Drops]);
    stage.at(|checks, at| checks.heard(at, &[Reply::Dropped(BlockId(20))]));
    assert_eq!(stage.broken(), []);
    let (ticket, urgency) = (7, Urgency::Comfort);
    let ask = Action::AskReturn { ticket, blocks: blocks(20..21), urgency };
    stage.agent.carry_out(stage.now, vec![ask], &mut stage.host);
    let reply = Reply::Return { ticket, blocks: blocks(20..22), verdict: Verdict::Granted };
    stage.at(|checks, at| checks.heard(at, &[reply]));
    assert_eq!(stage.broken(), [Promise::Grants]);
}

#[test]
fn a_host_that_forgets_or_invents_a_stolen_block_is_seen() {
    let mut stage = Stage::new(Name::Bursty);
    stage.host.post(stage.now, Request::Hello { stolen: blocks(20..29) });
    stage.pass(1, &Demand::default());
    assert_eq!(stage.broken(), [Promise::Books]);
}

#[test]
fn a_steal_of_what_is_stolen_or_needed_is_seen() {
    let keep = ByteSize::ZERO;
    let broken = |blocks| {
        let mut stage = Stage::new(Name::Bursty);
        stage.decides(Action::Steal { blocks, keep });
        stage.broken()
    };
    assert_eq!(broken(blocks(18..20)), []);
    assert_eq!(broken(blocks(19..21)), [Promise::Steals]);
    assert_eq!(broken(vec![BlockId(19), BlockId(19)]), [Promise::Steals]);
    assert_eq!(broken(blocks(0..1)), [Promise::Steals], "a block with a hole");
    // 22 are online, the minimum is eight of them.
    assert_eq!(broken(blocks(8..20)), []);
    assert!(broken(blocks(5..20)).contains(&Promise::Minimum));
}

#[test]
fn a_return_of_what_is_not_stolen_is_seen() {
    let mut stage = Stage::new(Name::Bursty);
    stage.decides(Action::TakeUnasked(blocks(19..21)));
    assert_eq!(stage.broken(), [Promise::Plans]);
}

#[test]
fn a_guest_that_runs_out_without_asking_is_seen_and_so_is_who_is_killed_for_it() {
    let mut stage = Stage::new(Name::Bursty);
    stage.pass(8, &Demand { hot: mib(2_490), ..Demand::default() });
    assert_eq!(stage.broken(), [Promise::Asks]);
    stage.pass(4, &Demand { hot: mib(3_000), ..Demand::default() });
    assert_eq!(stage.kernel.bytes_of(Kind::Hot).mib() / 3_000, 0);
    assert!(stage.broken().contains(&Promise::NobodyKilled));
}

#[test]
fn a_kill_is_not_blamed_on_an_agent_whose_host_has_nothing() {
    let mut stage = Stage::new(Name::Bursty);
    stage.host.set_mood(Mood::Tight);
    stage.pass(4, &Demand { hot: mib(3_000), ..Demand::default() });
    assert!(!stage.broken().contains(&Promise::NobodyKilled));
}

/// A guest of 22 blocks steals down to a lowered maximum while it uses so much, and wants all of it later.
fn killed_after(steals: u64, used: u64, pause: u64) -> Vec<Promise> {
    let mut stage = Stage::new(Name::Bursty);
    let used = Demand { hot: mib(used), ..Demand::default() };
    stage.pass(1, &used);
    let max = stage.kernel.unit().size().times(22 - steals);
    let wish = LimitsWish { min: None, max: Some(max), psi_goal: None };
    let limits = Limits::new(stage.kernel.present(), wish).unwrap();
    stage.at(|checks, at| checks.limited(at.now, limits));
    if steals > 0 {
        let steal = Action::Steal { blocks: blocks(20 - steals..20), keep: ByteSize::ZERO };
        stage.agent.carry_out(stage.now, vec![steal], &mut stage.host);
    }
    stage.pass(pause, &used);
    assert_eq!(stage.agent.stolen(), 10 + steals);
    stage.pass(4, &Demand { hot: mib(3_000), ..Demand::default() });
    stage.broken()
}

#[test]
fn a_kill_right_after_a_steal_down_to_the_maximum_is_seen() {
    assert_eq!(killed_after(1, 2_250, 4), [Promise::NobodyKilled]);
    assert_eq!(killed_after(3, 2_000, 4), [Promise::NobodyKilled]);
}

#[test]
fn a_guest_that_grows_past_its_maximum_is_killed_by_its_own_doing() {
    assert_eq!(killed_after(0, 2_250, 4), [], "nothing was stolen");
    assert_eq!(killed_after(3, 1_000, 4), [], "much was left");
    assert_eq!(killed_after(1, 2_250, 20), [], "long after");
}

#[test]
fn a_thrashing_cache_that_gets_nothing_back_is_seen() {
    let mut stage = Stage::new(Name::Bursty);
    stage.pass(20, &Demand { cache: mib(600), ..Demand::default() });
    stage.pass(15, &Demand { hot: mib(2_200), cache: mib(600), ..Demand::default() });
    assert_eq!(stage.broken(), [Promise::Relief]);
}

#[test]
fn a_calm_guest_that_keeps_what_it_has_to_spare_is_seen() {
    let mut stage = Stage::new(Name::Bursty);
    stage.pass(650, &Demand::default());
    assert_eq!(stage.broken(), []);
    stage.pass(20, &Demand::default());
    assert_eq!(stage.broken(), [Promise::StealsAgain]);
}

#[test]
fn blocks_that_come_and_go_under_a_steady_load_are_seen() {
    let mut stage = Stage::new(Name::Steady);
    stage.pass(310, &Demand::default());
    (stage.agent.deeds.stolen, stage.agent.deeds.returned) = (13, 2);
    stage.pass(1, &Demand::default());
    assert_eq!(stage.broken(), [], "there and back twice");
    stage.agent.deeds.returned = 3;
    stage.pass(1, &Demand::default());
    assert_eq!(stage.broken(), [Promise::NoSwing]);
}

#[test]
fn a_guest_that_is_not_within_its_limits_is_seen() {
    for (min, max, soon, late) in [(3_500, 4_096, 15, 10), (512, 2_048, 85, 10)] {
        let mut stage = Stage::new(Name::Bursty);
        let [min, max] = [min, max].map(|mib| Some(ByteSize::from_mib(mib)));
        let wish = LimitsWish { min, max, psi_goal: None };
        let limits = Limits::new(stage.kernel.present(), wish).unwrap();
        stage.at(|checks, at| checks.limited(at.now, limits));
        stage.pass(soon, &Demand::default());
        assert_eq!(stage.broken(), []);
        stage.pass(late, &Demand::default());
        assert_eq!(stage.broken(), [Promise::Limits], "{wish:?}");
    }
}

#[test]
fn steals_that_hurt_again_and_again_are_seen() {
    let mut stage = Stage::new(Name::Bursty);
    let (seen, plan) = stage.agent.decide(stage.now, false, &stage.kernel, ByteSize::ZERO);
    let report = Decision::Abort(WaitReason::Trigger);
    let plan = Plan { actions: vec![], report, ..plan };
    for n in 1..=9 {
        stage.at(|checks, at| checks.decided(at, &seen, &plan));
        let expected: &[Promise] = if n == 9 { &[Promise::BacksOff] } else { &[] };
        assert_eq!(stage.broken(), expected, "{n}");
        stage.now = stage.now + Duration::from_secs(30);
    }
}
