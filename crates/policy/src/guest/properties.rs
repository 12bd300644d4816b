//! What holds whatever the guest, the gate and the counters do.

use std::time::Duration;

use memtide_units::{BlockId, BlockSize, ByteSize, Instant, Permille, PpMillion};
use proptest::prelude::*;

use super::*;

const BLOCK: BlockSize = BlockSize::X86_SMALL;

fn mib(n: u64) -> ByteSize {
    ByteSize::from_mib(n)
}

fn block_states() -> impl Strategy<Value = Vec<BlockState>> {
    let state = prop_oneof![
        4 => Just(BlockState::Movable),
        2 => Just(BlockState::Kernel),
        1 => Just(BlockState::Fixed(FixedReason::NeverOffline)),
        1 => Just(BlockState::Fixed(FixedReason::AgentMemory)),
        2 => Just(BlockState::Stolen),
        1 => Just(BlockState::Foreign),
        1 => Just(BlockState::InTransit),
    ];
    prop::collection::vec(state, 1..24)
}

fn heats() -> impl Strategy<Value = Option<Heat>> {
    let heats = [Heat::Cold, Heat::Warm, Heat::Hot, Heat::Awaited];
    prop_oneof![Just(None), prop::sample::select(heats.to_vec()).prop_map(Some)]
}

fn answers() -> impl Strategy<Value = Answer> {
    let at = |ms| Instant::from_millis(ms);
    prop_oneof![
        (0_u64..60_000).prop_map(move |ms| Answer::Held { retry: at(ms) }),
        (0_u64..60_000, 0_u64..60_000)
            .prop_map(move |(since, retry)| Answer::Silence { since: at(since), retry: at(retry) }),
        Just(Answer::Granted),
    ]
}

prop_compose! {
    fn observations()(
        states in block_states(),
        heat in heats(),
        (available, free) in (0_u64..3_000, prop_oneof![0_u64..200, 0_u64..3_000]),
        (cache, squeeze) in (0_u64..3_000, prop::option::of((0_u64..9, 0_u64..90))),
        psi in prop::option::of(0_u64..200_000),
        trigger_fired: bool,
        balloon in prop_oneof![Just(0_u64), 0_u64..4_000],
        set in prop::option::of(0_u64..3_000),
        (running, silent, restore, reported) in any::<(bool, bool, bool, bool)>(),
        answer in prop::option::of(answers()),
    ) -> Observation {
        let view = |(n, state): (usize, &BlockState)| {
            BlockView { id: BlockId(n as u64), state: *state, heat, census: None }
        };
        let stolen = states.iter().enumerate().filter(|(_, s)| **s == BlockState::Stolen);
        let asked: Vec<_> = stolen.map(|(n, _)| BlockId(n as u64)).take(2).collect();
        let ticket = answer.filter(|_| !asked.is_empty()).map(|answer| {
            Ticket { ticket: 7, blocks: asked, urgency: Urgency::Pressure, answer }
        });
        Observation {
            memory: Memory { total: mib(3_000), free: mib(free), available: mib(available), cache: mib(cache) },
            squeeze: squeeze.map(|(events, reread)| Squeeze { events, swapped_in: reread, reread: mib(reread), refaulted: mib(reread) }),
            free_memory: if reported { FreeMemory::ReportedToHost } else { FreeMemory::KeptByGuest },
            psi: psi.map(|some_us| PsiTotals { some_us, full_us: some_us / 2 }),
            trigger_fired,
            balloon: mib(balloon),
            blocks: states.iter().enumerate().map(view).collect(),
            working_set: set.map(mib),
            swap: Some(Swap { total: mib(1_000), free: mib(available % 1_000), costs: Permille(free as u32 % 1_000), paged_out: mib(free), swapped: mib(available % 700) }),
            steal: if running { StealState::Running } else { StealState::Idle },
            effort: Effort { per_second: Duration::from_millis(15), stealing: Duration::from_millis(free) },
            ticket,
            device: if silent { DeviceState::Silent { since: Instant::default() } } else { DeviceState::Ready },
            mode: if restore { Mode::Restore } else { Mode::Tune },
            outcomes: vec![],
        }
    }
}

fn controller(blocks: usize, min_mib: u64) -> Controller {
    scaled_by(ScaleBy::Use, blocks, min_mib)
}

fn scaled_by(scale_by: ScaleBy, blocks: usize, min_mib: u64) -> Controller {
    Controller::new(Settings {
        block: BLOCK,
        limits: limits(blocks, min_mib, u64::MAX >> 20),
        scale_by,
        kernel_zone: KernelZone::Leave,
        gate_deadline: Some(Duration::from_secs(10)),
        first_ticket: 1,
    })
}

fn limits(blocks: usize, min_mib: u64, max_mib: u64) -> Limits {
    let wish = LimitsWish { min: Some(mib(min_mib)), max: Some(mib(max_mib)), psi_goal: None };
    Limits::new(BLOCK.size().times(blocks as u64), wish).unwrap()
}

fn state_of(seen: &Observation, block: BlockId) -> Option<BlockState> {
    seen.blocks.iter().find(|view| view.id == block).map(|view| view.state)
}

fn online(seen: &Observation) -> ByteSize {
    seen.bytes_where(BLOCK, |state| state.is_online())
}

/// Counters may only grow within one life of a guest.
fn monotonic(mut observations: Vec<Observation>) -> Vec<Observation> {
    let mut total = 0;
    for psi in observations.iter_mut().filter_map(|seen| seen.psi.as_mut()) {
        total += psi.some_us;
        *psi = PsiTotals { some_us: total, full_us: total / 2 };
    }
    observations
}

proptest! {
    #[test]
    fn every_plan_keeps_the_rules(
        observations in prop::collection::vec(observations(), 1..40),
        wait in 100_u64..3_000,
        wishes in prop::collection::vec((0_u64..2_000, 0_u64..2_000), 1..5),
        scale_by in prop_oneof![Just(ScaleBy::Use), Just(ScaleBy::Target)],
    ) {
        let mut policy = scaled_by(scale_by, 24, 0);
        for (n, seen) in monotonic(observations).iter().enumerate() {
            // They change now and then while all else goes on.
            let (min, more) = wishes[n / 8 % wishes.len()];
            policy.set_limits(limits(24, min, min + more));
            let plan = policy.step(Instant::from_millis(n as u64 * wait), seen);
            prop_assert!(plan.actions.len() <= 3);
            prop_assert!(!plan.wait.is_zero() && plan.wait <= Duration::from_secs(1));
            prop_assert!(plan.report.to_string().len() <= 200);
            if matches!(plan.reclaim, Reclaim::On(_)) {
                prop_assert!(seen.ticket.is_none() && seen.psi.is_some() && !hears_trigger(seen));
                prop_assert!(seen.mode == Mode::Tune && seen.device == DeviceState::Ready);
                let asks = plan.actions.iter().any(|a| matches!(a, Action::AskReturn { .. }));
                prop_assert!(!asks, "{}", plan.report);
            }
            for action in &plan.actions {
                check(action, seen, &policy.settings().limits)?;
            }
        }
    }

    #[test]
    fn pressure_over_the_goal_stops_stealing(
        mut seen in observations(),
        stall_us in 2_001_u64..2_000_000,
        min in 0_u64..2_000,
    ) {
        seen.balloon = ByteSize::ZERO;
        let mut policy = controller(seen.blocks.len(), min);
        seen.psi = Some(PsiTotals::default());
        policy.step(Instant::from_millis(0), &seen);
        seen.psi = Some(PsiTotals { some_us: stall_us, full_us: 0 });
        let plan = policy.step(Instant::from_millis(2_000), &seen);
        let steals = plan.actions.iter().any(|action| matches!(action, Action::Steal { .. }));
        prop_assert!(!steals, "{}", plan.report);
        let stops = plan.actions.contains(&Action::AbortSteal);
        prop_assert_eq!(stops, seen.steal == StealState::Running);
        prop_assert!(matches!(plan.reclaim, Reclaim::Off(_)));
    }

    #[test]
    fn even_the_hosts_target_bows_to_ten_times_the_goal(mut seen in observations(), stall_us in 20_001_u64..2_000_000) {
        let mut policy = controller(seen.blocks.len(), 128);
        prop_assert_eq!(policy.settings().limits.psi_goal(), PpMillion(1_000));
        seen.psi = Some(PsiTotals::default());
        policy.step(Instant::from_millis(0), &seen);
        seen.psi = Some(PsiTotals { some_us: stall_us, full_us: 0 });
        let plan = policy.step(Instant::from_millis(2_000), &seen);
        let steals = plan.actions.iter().any(|action| matches!(action, Action::Steal { .. }));
        prop_assert!(!steals, "{}", plan.report);
    }
}

/// More than a window's pace goes only where the host wants it, and where all of it is free.
fn is_easy(seen: &Observation, blocks: usize, limits: &Limits) -> bool {
    let size = BLOCK.size().times(blocks as u64);
    let present = seen.bytes_where(BLOCK, |_| true);
    let wanted = (present - seen.balloon).min(limits.max()).max(limits.min());
    online(seen) - size + BLOCK.size() > wanted && size + mib(64) <= seen.memory.free
}

/// Where the kernel does not count what it does for want of memory, each stall counts.
fn hears_trigger(seen: &Observation) -> bool {
    seen.trigger_fired && seen.squeeze.is_none()
}

fn check(action: &Action, seen: &Observation, limits: &Limits) -> Result<(), TestCaseError> {
    let all_in =
        |blocks: &[BlockId], state| blocks.iter().all(|b| state_of(seen, *b) == Some(state));
    match action {
        Action::Steal { blocks, .. } => {
            prop_assert!(!blocks.is_empty());
            prop_assert!(blocks.len() <= 16 || is_easy(seen, blocks.len(), limits));
            prop_assert!(all_in(blocks, BlockState::Movable));
            let size = BLOCK.size().times(blocks.len() as u64);
            prop_assert!(size <= online(seen) && online(seen) - size >= limits.min());
            prop_assert!(seen.ticket.is_none() && seen.psi.is_some() && !hears_trigger(seen));
            prop_assert!(seen.mode == Mode::Tune && seen.device == DeviceState::Ready);
            prop_assert!(size + mib(64) <= seen.memory.available);
        }
        Action::AskReturn { blocks, .. } | Action::TakeUnasked(blocks) => {
            prop_assert!(!blocks.is_empty());
            prop_assert!(all_in(blocks, BlockState::Stolen));
            let size = BLOCK.size().times(blocks.len() as u64);
            prop_assert!(online(seen) + size <= limits.max());
            prop_assert!(blocks.is_sorted_by(|a, b| a < b));
        }
        Action::CancelReturn { ticket } => {
            prop_assert_eq!(seen.ticket.as_ref().map(|held| held.ticket), Some(*ticket));
        }
        Action::AbortSteal | Action::ShortenSteal { .. } => {
            prop_assert_eq!(seen.steal, StealState::Running);
        }
    }
    Ok(())
}
