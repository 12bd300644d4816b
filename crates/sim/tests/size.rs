//! How large a guest is, what that costs it, and how soon it is as large as it wants to be.

use memtide_policy::guest::FreeMemory;
use memtide_sim::kernel::{Machine, Pace, Release, SwapSpace};
use memtide_sim::scenario::Psi;
use memtide_sim::story::Sample;
use memtide_sim::workload::Name;
use memtide_sim::{Outcome, Scenario, run};
use memtide_units::{BlockSize, ByteSize};

const SERVER: Machine = Machine { pace: Pace::Hardware, release: Release::V6_12, cpus: 2 };
const EMULATED: Machine = Machine { pace: Pace::Emulated, release: Release::V7_3, cpus: 2 };

/// Twelve minutes of the workload's own way, twelve of calm.
fn scenario(workload: Name, machine: Machine, block_mib: u64, blocks: u64) -> Scenario {
    let unit = BlockSize::new(ByteSize::from_mib(block_mib)).expect("a power of two");
    Scenario { machine, unit, blocks, ..Scenario::plain(workload, 24) }
}

/// A second each of the workload's own way, once the guest has had a minute to find its size.
fn samples(outcome: &Outcome) -> Vec<Sample> {
    assert_eq!(outcome.broken, [], "{}", outcome.story.text());
    let half = outcome.scenario.length().as_millis() as u64 / 2;
    let settled = |sample: &&Sample| (60_000..half).contains(&sample.at_ms);
    outcome.story.samples.iter().filter(settled).copied().collect()
}

/// In so many of a thousand seconds pressure was over the goal.
fn over_goal(seen: &[Sample]) -> usize {
    1_000 * seen.iter().filter(|sample| sample.stalled_ppm > 1_000).count() / seen.len()
}

fn mean_mib(seen: &[Sample]) -> u64 {
    seen.iter().map(|sample| sample.online_mib).sum::<u64>() / seen.len() as u64
}

/// Growth may take 1.3 times as long as in a guest of which nothing is stolen, for it has no PSI.
fn assert_met_in_time(scenario: &Scenario, outcome: &Outcome) {
    let unshrunk = run(&Scenario { psi: Psi::Absent, ..scenario.clone() });
    assert!(outcome.growths.len() >= 5 && outcome.growths.len() == unshrunk.growths.len());
    for (with, without) in outcome.growths.iter().zip(&unshrunk.growths) {
        let machine = scenario.machine;
        assert!(*with * 10 <= *without * 13, "{with:?} against {without:?} on {machine:?}");
    }
}

/// 197 of a thousand seconds were over the goal while `MemAvailable` alone decided, and 35 blocks went
/// there and back.
#[test]
fn a_cache_in_use_is_found_out_once_and_then_left_alone() {
    for (machine, blocks) in [(SERVER, 32), (EMULATED, 32), (SERVER, 512)] {
        let outcome = run(&scenario(Name::Caching, machine, 128, blocks));
        let seen = samples(&outcome);
        let (over, mean) = (over_goal(&seen), mean_mib(&seen));
        assert!(over < 80, "{over} of a thousand seconds over the goal");
        assert!(outcome.deeds.returned <= blocks, "{:?}", outcome.deeds);
        assert!(
            mean < 128 * blocks * 9 / 10,
            "{mean} MiB on average: it is not left alone for ever"
        );
    }
}

/// All 4 GiB stayed with the guest, for ever. How fast it goes is chance for ten minutes: which of the large
/// blocks looks cold first, and what emptying it costs.
#[test]
fn a_container_at_its_own_limit_does_not_keep_the_guest_large() {
    for (block_mib, blocks) in [(128, 32), (2048, 32)] {
        let outcome = run(&scenario(Name::Boxed, SERVER, block_mib, blocks));
        let mut later = samples(&outcome);
        later.retain(|sample| sample.at_ms > 600_000);
        let (mean, all) = (mean_mib(&later), block_mib * blocks);
        assert!(mean < all * 9 / 20, "{mean} MiB of {all}");
        assert_eq!(outcome.deeds.returned, 0);
    }
}

/// 187 of a thousand seconds were over the goal while each pause for breath was stolen, and growth took
/// up to 1.6 times as long.
#[test]
fn who_needs_memory_in_turns_keeps_it_after_a_while() {
    let scenario = scenario(Name::Building, SERVER, 128, 32);
    let outcome = run(&scenario);
    let over = over_goal(&samples(&outcome));
    assert!(over < 50, "{over} of a thousand seconds over the goal");
    assert_met_in_time(&scenario, &outcome);
}

/// A quarter of the guest at once while that much is stolen, on machines from slow to fast.
#[test]
fn a_surge_is_met_in_time() {
    let large = Machine { cpus: 8, ..SERVER };
    for (machine, mib, blocks) in
        [(SERVER, 128, 32), (EMULATED, 128, 16), (SERVER, 128, 512), (large, 2048, 32)]
    {
        let scenario = scenario(Name::Bursty, machine, mib, blocks);
        let outcome = run(&scenario);
        assert_eq!((&outcome.broken[..], outcome.kills), (&[][..], 0));
        assert_met_in_time(&scenario, &outcome);
    }
}

/// Where the host has what is free as it is, only what is spare for ten minutes goes, and that goes.
#[test]
fn what_is_reported_is_stolen_late() {
    let plain = scenario(Name::Steady, SERVER, 128, 32);
    let outcome = run(&Scenario { free: FreeMemory::ReportedToHost, ..plain });
    let mean = |from_s: u64, to_s: u64| {
        let within = |sample: &&Sample| (from_s * 1_000..to_s * 1_000).contains(&sample.at_ms);
        mean_mib(&outcome.story.samples.iter().filter(within).copied().collect::<Vec<_>>())
    };
    samples(&outcome);
    assert_eq!(mean(0, 600), 4096);
    assert!(mean(660, 720) < 3000 && mean(1_380, 1_440) < 2000, "{}", outcome.story.text());
}

/// What is cold goes: all of it to a disk, three quarters of it where it is compressed in the guest's own memory.
#[test]
fn cold_memory_is_given_up_where_there_is_swap() {
    let mean = |swap| {
        let outcome = run(&Scenario { swap, ..scenario(Name::Steady, SERVER, 128, 32) });
        mean_mib(&samples(&outcome))
    };
    let [none, zram, disk] = [SwapSpace::None, SwapSpace::Zram, SwapSpace::Disk].map(mean);
    // A fifth of the guest is cold.
    assert!(
        none - disk > 700 && none - zram > 500,
        "{none} MiB, {zram} with zram, {disk} with a disk"
    );
}

/// Text of programs looks cold every other minute and is read again: half of all time it was paged out, for one
/// more block that never came, while two single looks at what trembles were compared.
#[test]
fn what_is_needed_again_is_left_alone_for_most_of_the_time() {
    let steady = Scenario { minutes: 60, ..scenario(Name::Steady, SERVER, 128, 32) };
    let outcome = run(&Scenario { swap: SwapSpace::Disk, ..steady });
    assert_eq!(outcome.broken, []);
    let told = outcome.story.lines.iter().filter(|line| line.text.starts_with("cold memory "));
    let told: Vec<_> = told.map(|line| (line.at_ms, line.text.contains("paged out:"))).collect();
    let settled = 300_000..1_800_000;
    let within = |ms: u64| ms.clamp(settled.start, settled.end);
    let spans = told.windows(2).filter(|pair| pair[0].1);
    let paging: u64 = spans.map(|pair| within(pair[1].0) - within(pair[0].0)).sum();
    assert!(paging * 5 < settled.end - settled.start, "{paging} ms of 25 minutes");
}

/// Blocks are few and large, or the guest is small: nothing is promised but that it lives.
#[test]
fn guests_of_a_few_blocks_are_safe() {
    for (block_mib, blocks) in [(128, 3), (128, 6), (1024, 4), (2048, 3)] {
        for workload in [Name::Bursty, Name::Caching, Name::ForkHeavy] {
            let outcome = run(&scenario(workload, SERVER, block_mib, blocks));
            assert_eq!(outcome.broken, [], "{workload}, {blocks} blocks of {block_mib} MiB");
        }
    }
}
