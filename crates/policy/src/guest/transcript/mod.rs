//! Whole stories, told as a script and compared as text: a change of the policy is a diff here.
//!
//! The guest of these stories has blocks of 128 MiB, takes 100 ms to steal or return a block, and
//! uses what the script says. Each line of a story is one *change* of the decision.

mod gate;
mod limits;
mod patience;
mod whole;

use std::fmt::Write as _;
use std::time::Duration;

use memtide_units::{BlockId, BlockSize, ByteSize, Instant};

use super::*;

struct Story {
    now: u64,
    used: u64,
    /// Page cache, in MiB: available but not free.
    cached: u64,
    controller: Controller,
    seen: Observation,
    stealing: Vec<BlockId>,
    /// Processor time that each takes.
    block_costs: Duration,
    gate: Gate,
    last: String,
    text: String,
    /// What was decided last of paging out, and whether the next look may wait.
    last_of: Option<(Reclaim, Option<ByteSize>)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Gate {
    Grants,
    Holds,
    Denies,
    IsSilent,
}

const STEP_MS: u64 = 100;

impl Story {
    /// A guest of 4 GiB whose host has wanted half of it for a second, by whose target alone it goes.
    fn rushing() -> Self {
        let mut story = Self::scaled_by(ScaleBy::Target, 32, 8);
        story.used = 300;
        story.run(3, 0);
        story.seen.balloon = ByteSize::from_mib(2048);
        story.run(1, 0);
        story
    }

    /// `blocks` blocks, of which the lowest `kernel` are not movable.
    fn of(blocks: u64, kernel: u64) -> Self {
        Self::scaled_by(ScaleBy::Use, blocks, kernel)
    }

    fn scaled_by(scale_by: ScaleBy, blocks: u64, kernel: u64) -> Self {
        let present = BlockSize::X86_SMALL.size().times(blocks);
        let limits = Limits::new(present, LimitsWish::default()).unwrap();
        let settings = Settings {
            block: BlockSize::X86_SMALL,
            limits,
            scale_by,
            kernel_zone: KernelZone::Leave,
            gate_deadline: Some(Duration::from_secs(10)),
            first_ticket: 1,
        };
        let state = |id| if id < kernel { BlockState::Kernel } else { BlockState::Movable };
        let view = |id| BlockView { id: BlockId(id), state: state(id), heat: None, census: None };
        let seen = Observation {
            psi: Some(PsiTotals::default()),
            blocks: (0..blocks).map(view).collect(),
            ..Observation::of_nothing()
        };
        let controller = Controller::new(settings);
        let (last, text) = (String::new(), String::new());
        Self {
            now: 0,
            used: 0,
            cached: 0,
            controller,
            seen,
            stealing: vec![],
            block_costs: Duration::ZERO,
            gate: Gate::Grants,
            last,
            text,
            last_of: None,
        }
    }

    fn online(&self) -> u64 {
        128 * self.seen.blocks.iter().filter(|view| view.state.is_online()).count() as u64
    }

    /// Plays `seconds`, with `stall_us` of pressure in every step.
    fn run(&mut self, seconds: u64, stall_us: u64) -> &mut Self {
        for _ in 0..seconds * 1_000 / STEP_MS {
            self.step(stall_us);
        }
        self
    }

    fn step(&mut self, stall_us: u64) {
        let online = self.online();
        let available = ByteSize::from_mib(online.saturating_sub(self.used));
        let free = available - ByteSize::from_mib(self.cached);
        let (total, cache) = (ByteSize::from_mib(online), ByteSize::from_mib(self.cached));
        self.seen.memory = Memory { total, free, available, cache };
        if let Some(psi) = &mut self.seen.psi {
            psi.some_us += stall_us;
        }
        let plan = self.controller.step(Instant::from_millis(self.now), &self.seen);
        self.note(online, &plan.report.to_string());
        self.last_of = Some((plan.reclaim, plan.while_free));
        self.seen.outcomes.clear();
        self.progress();
        for action in plan.actions {
            self.act(action);
        }
        self.now += STEP_MS;
    }

    fn note(&mut self, online: u64, report: &str) {
        // The numbers of a rest change all the time; the story is in what is done.
        let kind = report.split_once(|c: char| c.is_ascii_digit()).map_or(report, |(kind, _)| kind);
        if kind != self.last || report.starts_with("steal memory") {
            let (s, tenth) = (self.now / 1_000, self.now % 1_000 / 100);
            writeln!(self.text, "{s:>3}.{tenth} {online:>5} MiB  {report}").unwrap();
            self.last = kind.to_string();
        }
    }

    /// What the executor and the gate have done in one step.
    fn progress(&mut self) {
        if !self.stealing.is_empty() {
            let block = self.stealing.remove(0);
            self.seen.effort.stealing += self.block_costs;
            self.set(block, BlockState::Stolen);
            self.seen.outcomes.push(Outcome::Stolen(block));
        }
        if self.stealing.is_empty() {
            self.seen.steal = StealState::Idle;
        }
        if self.seen.ticket.as_ref().is_some_and(|ticket| ticket.answer == Answer::Granted) {
            let blocks = self.seen.ticket.take().unwrap().blocks;
            blocks.into_iter().for_each(|block| self.set(block, BlockState::Movable));
            self.seen.outcomes.push(Outcome::Returned);
        }
    }

    fn set(&mut self, block: BlockId, state: BlockState) {
        self.seen.blocks.iter_mut().find(|view| view.id == block).unwrap().state = state;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Steal { blocks, .. } => {
                self.stealing = blocks;
                self.seen.steal = StealState::Running;
            }
            Action::AbortSteal => self.stealing.clear(),
            // The one that this step has taken is among them.
            Action::ShortenSteal { to } => self.stealing.truncate((to as usize).saturating_sub(1)),
            Action::AskReturn { ticket, blocks, urgency } => self.ask(ticket, blocks, urgency),
            Action::CancelReturn { .. } => self.seen.ticket = None,
            Action::TakeUnasked(blocks) => {
                self.seen.ticket = None;
                blocks.into_iter().for_each(|block| self.set(block, BlockState::Movable));
            }
        }
    }

    fn ask(&mut self, ticket: u32, blocks: Vec<BlockId>, urgency: Urgency) {
        let retry = Instant::from_millis(self.now + 250);
        let since = match self.seen.ticket.as_ref().map(|held| held.answer) {
            Some(Answer::Silence { since, .. }) => since,
            _ => Instant::from_millis(self.now),
        };
        let answer = match self.gate {
            Gate::Grants => Answer::Granted,
            Gate::Holds => Answer::Held { retry },
            Gate::IsSilent => Answer::Silence { since, retry },
            Gate::Denies => {
                self.seen.ticket = None;
                self.seen.outcomes.push(Outcome::Denied);
                return;
            }
        };
        self.seen.ticket = Some(Ticket { ticket, blocks, urgency, answer });
    }
}

#[track_caller]
fn assert_story(story: &Story, expected: &str) {
    let expected: Vec<_> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let told: Vec<_> = story.text.lines().map(str::trim).collect();
    assert_eq!(told, expected, "the story went:\n{}", story.text);
}

#[test]
fn an_idle_guest_shrinks_to_its_minimum_faster_and_faster() {
    let mut story = Story::of(16, 4);
    story.used = 200;
    story.run(12, 0);
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: pressure is being measured
          2.0  2048 MiB  steal memory15: 1.8 GiB available, 396.7 MiB are kept
          2.1  2048 MiB  stealing goes on
          2.2  1920 MiB  rest: pressure is being measured
          4.2  1920 MiB  steal memory14, memory13: 1.6 GiB available, 384 MiB are kept
          4.3  1920 MiB  stealing goes on
          4.5  1664 MiB  rest: pressure is being measured
          6.5  1664 MiB  steal memory12, memory11, memory10, memory9: 1.4 GiB available, 358.3 MiB are kept
          6.6  1664 MiB  stealing goes on
          7.0  1152 MiB  rest: pressure is being measured
          9.0  1152 MiB  steal memory8, memory7, memory6, memory5 and 1 more: 952 MiB available, 307.1 MiB are kept
          9.1  1152 MiB  stealing goes on
          9.6   512 MiB  rest: one block less would be below the minimum 512 MiB
        ",
    );
}

#[test]
fn a_growing_guest_gets_blocks_back_before_it_runs_short_and_is_left_alone_after() {
    let mut story = Story::of(16, 4);
    story.used = 300;
    story.run(12, 0);
    story.text.clear();
    for _ in 0..10 {
        story.used += 100;
        story.run(1, 0);
    }
    story.run(20, 0);
    assert_story(
        &story,
        "
         14.0   640 MiB  ask 3 back (ticket 1, emergency): 40 MiB available of 128 MiB, pressure 0.00 %
         14.1   640 MiB  put ticket 1 online
         14.2  1024 MiB  rest: a return was needed lately: no steal for 20 s
         17.0  1024 MiB  ask 2 back (ticket 2, comfort): 124 MiB available of 164 MiB, pressure 0.00 %
         17.1  1024 MiB  put ticket 2 online
         17.2  1280 MiB  rest: a return was needed lately: no steal for 20 s
         20.0  1280 MiB  ask 2 back (ticket 3, pressure): 80 MiB available of 164 MiB, pressure 0.00 %
         20.1  1280 MiB  put ticket 3 online
         20.2  1536 MiB  rest: a return was needed lately: no steal for 20 s
         40.2  1536 MiB  rest: 236 MiB available, one more block needs 484 MiB
        ",
    );
}

#[test]
fn pressure_stops_a_batch_in_the_middle() {
    let mut story = Story::of(16, 4);
    story.used = 200;
    story.run(7, 0).run(4, 200).run(14, 0);
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: pressure is being measured
          2.0  2048 MiB  steal memory15: 1.8 GiB available, 396.7 MiB are kept
          2.1  2048 MiB  stealing goes on
          2.2  1920 MiB  rest: pressure is being measured
          4.2  1920 MiB  steal memory14, memory13: 1.6 GiB available, 384 MiB are kept
          4.3  1920 MiB  stealing goes on
          4.5  1664 MiB  rest: pressure is being measured
          6.5  1664 MiB  steal memory12, memory11, memory10, memory9: 1.4 GiB available, 358.3 MiB are kept
          6.6  1664 MiB  stealing goes on
          7.0  1152 MiB  rest: pressure is being measured
          8.0  1152 MiB  rest: pressure 0.11 % is over the goal 0.10 %
         12.0  1152 MiB  rest: tasks stalled when blocks were stolen: no steal for 7 s
         19.0  1152 MiB  steal memory8: 952 MiB available, 307.1 MiB are kept
         19.1  1152 MiB  stealing goes on
         19.2  1024 MiB  rest: pressure is being measured
         21.2  1024 MiB  steal memory7, memory6: 824 MiB available, 294.3 MiB are kept
         21.3  1024 MiB  stealing goes on
         21.5   768 MiB  rest: pressure is being measured
         23.5   768 MiB  steal memory5, memory4: 568 MiB available, 268.7 MiB are kept
         23.6   768 MiB  stealing goes on
         23.8   512 MiB  rest: one block less would be below the minimum 512 MiB
        ",
    );
}

#[test]
fn the_hosts_target_takes_what_comfort_would_have_kept() {
    let mut story = Story::of(16, 4);
    story.used = 900;
    story.run(12, 0);
    story.seen.balloon = ByteSize::from_mib(1024);
    story.run(8, 300);
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: pressure is being measured
          2.0  2048 MiB  steal memory15: 1.1 GiB available, 396.7 MiB are kept
          2.1  2048 MiB  stealing goes on
          2.2  1920 MiB  rest: pressure is being measured
          4.2  1920 MiB  steal memory14, memory13: 1020 MiB available, 384 MiB are kept
          4.3  1920 MiB  stealing goes on
          4.5  1664 MiB  rest: pressure is being measured
          6.5  1664 MiB  steal memory12, memory11, memory10: 764 MiB available, 358.3 MiB are kept
          6.6  1664 MiB  stealing goes on
          6.9  1280 MiB  rest: 380 MiB available, one more block needs 448 MiB
         12.0  1280 MiB  steal memory9: 380 MiB available, 128 MiB are kept, the host's target leaves 1 GiB online
         12.1  1280 MiB  stealing goes on
         12.2  1152 MiB  rest: pressure is being measured
         14.2  1152 MiB  steal memory8: 252 MiB available, 115.1 MiB are kept, the host's target leaves 1 GiB online
         14.3  1152 MiB  stealing goes on
         14.4  1024 MiB  rest: 124 MiB available is little, and there is no block to ask back
        ",
    );
}

#[test]
fn a_guest_that_follows_the_target_is_as_large_as_the_host_says_and_no_smaller() {
    let mut story = Story::scaled_by(ScaleBy::Target, 16, 4);
    story.used = 200;
    story.run(5, 0);
    story.seen.balloon = ByteSize::from_mib(1200);
    story.run(5, 0);
    story.seen.balloon = ByteSize::from_mib(500);
    story.gate = Gate::Holds;
    story.run(5, 0);
    story.gate = Gate::Grants;
    story.run(5, 0);
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: pressure is being measured
          2.0  2048 MiB  rest: the host's target leaves 2 GiB online, and that is followed
          5.0  2048 MiB  steal memory15, memory14, memory13, memory12 and 6 more: 1.8 GiB available, 204.7 MiB are kept, the host's target leaves 848 MiB online
          5.1  2048 MiB  stealing goes on
          6.1   768 MiB  rest: the host's target leaves 848 MiB online, and that is followed
         10.0   768 MiB  ask 4 back (ticket 1, comfort): 568 MiB available of 76.7 MiB, pressure 0.00 %
         10.1   768 MiB  wait for the gate (ticket 1, comfort)
         15.2   768 MiB  put ticket 1 online
         15.3  1280 MiB  ask 2 back (ticket 2, comfort): 1 GiB available of 128 MiB, pressure 0.00 %
         15.4  1280 MiB  put ticket 2 online
         15.5  1536 MiB  rest: the host's target leaves 1.5 GiB online, and that is followed
        ",
    );
}

#[test]
fn what_the_host_wants_goes_at_once_where_it_is_free_and_at_the_usual_pace_after_a_stall() {
    let mut story = Story::rushing();
    story.run(1, 1_000).run(10, 0);
    assert_story(
        &story,
        "
          0.0  4096 MiB  rest: pressure is being measured
          2.0  4096 MiB  rest: the host's target leaves 4 GiB online, and that is followed
          3.0  4096 MiB  steal memory31, memory30, memory29, memory28 and 12 more: 3.7 GiB available, 409.5 MiB are kept, the host's target leaves 2 GiB online
          3.1  4096 MiB  stealing goes on
          4.2  2688 MiB  stop stealing: pressure 0.15 % is over the goal 0.10 %
          4.4  2560 MiB  rest: pressure is being measured
          6.3  2560 MiB  steal memory19: 2.2 GiB available, 256 MiB are kept, the host's target leaves 2 GiB online
          6.4  2560 MiB  stealing goes on
          6.5  2432 MiB  rest: pressure is being measured
          6.8  2432 MiB  steal memory18, memory17, memory16: 2 GiB available, 243.1 MiB are kept, the host's target leaves 2 GiB online
          6.9  2432 MiB  stealing goes on
          7.2  2048 MiB  rest: the host's target leaves 2 GiB online, and that is followed
        ",
    );
}

#[test]
fn a_host_that_asks_for_less_meanwhile_leaves_the_guest_the_rest() {
    for scale_by in [ScaleBy::Target, ScaleBy::Use] {
        let mut story = Story::scaled_by(scale_by, 32, 8);
        story.used = 3_700;
        story.run(3, 0);
        story.used = 300;
        story.seen.balloon = ByteSize::from_mib(2048);
        story.step(0);
        assert_eq!(story.stealing.len(), 16);
        story.step(0);
        story.seen.balloon = ByteSize::from_mib(700);
        story.step(0);
        assert_eq!(story.stealing.len(), 4, "with the two that are gone that makes six blocks");
        // Another one brings back nothing that has gone, and what is at work has its turn first.
        story.seen.balloon = ByteSize::ZERO;
        story.step(0);
        assert_eq!((story.stealing.len(), story.online()), (0, 4096 - 3 * 128), "{scale_by:?}");
    }
}

#[test]
fn what_is_not_free_but_only_available_goes_at_the_usual_pace() {
    let mut story = Story::scaled_by(ScaleBy::Target, 32, 8);
    story.used = 300;
    story.cached = 3300;
    story.run(3, 0);
    story.seen.balloon = ByteSize::from_mib(1024);
    story.run(8, 0);
    assert_story(
        &story,
        "
          0.0  4096 MiB  rest: pressure is being measured
          2.0  4096 MiB  rest: the host's target leaves 4 GiB online, and that is followed
          3.0  4096 MiB  steal memory31: 3.7 GiB available, 409.5 MiB are kept, the host's target leaves 3 GiB online
          3.1  4096 MiB  stealing goes on
          3.2  3968 MiB  rest: pressure is being measured
          5.2  3968 MiB  steal memory30, memory29: 3.5 GiB available, 396.7 MiB are kept, the host's target leaves 3 GiB online
          5.3  3968 MiB  stealing goes on
          5.5  3712 MiB  rest: pressure is being measured
          7.5  3712 MiB  steal memory28, memory27, memory26, memory25: 3.3 GiB available, 371.1 MiB are kept, the host's target leaves 3 GiB online
          7.6  3712 MiB  stealing goes on
          8.0  3200 MiB  rest: only 0 B free: the kernel is reclaiming already
        ",
    );
}

#[test]
fn without_psi_nothing_is_stolen() {
    let mut story = Story::of(16, 4);
    story.seen.psi = None;
    story.run(5, 0);
    assert_story(
        &story,
        "
          0.0  2048 MiB  rest: the kernel offers no PSI, and nothing is stolen blindly
        ",
    );
}
