//! One short story of each workload, some with swap and some of other limits, as they were reviewed: a change of the policy is a
//! difference here.
//!
//! Run the tests with `MEMTIDE_BLESS=1` to write the stories anew, then review the difference.

use std::path::Path;
use std::time::Duration;

use memtide_policy::guest::LimitsWish;
use memtide_sim::fault::Fault;
use memtide_sim::kernel::SwapSpace;
use memtide_sim::workload::Name;
use memtide_sim::{Scenario, run};
use memtide_units::ByteSize;

/// Three minutes of the workload's own way, three of calm.
const MINUTES: u64 = 6;
/// Thirteen of each: what is cold goes, some of it is needed again, and goes anew.
const WITH_SWAP: u64 = 26;

#[test]
fn stories_are_as_reviewed() {
    for name in Name::ALL {
        assert_reviewed(&Scenario::plain(name, MINUTES), name.name());
    }
}

#[test]
fn stories_with_swap_are_as_reviewed() {
    for (name, swap) in [(Name::Steady, SwapSpace::Disk), (Name::Waking, SwapSpace::Zram)] {
        let scenario = Scenario { swap, ..Scenario::plain(name, WITH_SWAP) };
        assert_reviewed(&scenario, &format!("{name}-{}", swap.name()));
    }
}

/// A minimum that is raised and lowered again, and a maximum that is lowered under a guest that grows.
#[test]
fn stories_of_limits_that_change_are_as_reviewed() {
    let set = |at_s, (min, max)| {
        let [min, max] = [min, max].map(|mib| Some(ByteSize::from_mib(mib)));
        (Duration::from_secs(at_s), Fault::Limits(LimitsWish { min, max, psi_goal: None }))
    };
    let stories = [
        ("limits-min", Name::Steady, vec![set(60, (3_500, 4_096)), set(120, (1_024, 4_096))]),
        ("limits-max", Name::Steady, vec![set(4, (512, 3_072)), set(60, (512, 2_048))]),
    ];
    for (name, workload, script) in stories {
        assert_reviewed(&Scenario { script, ..Scenario::plain(workload, MINUTES) }, name);
    }
}

fn assert_reviewed(scenario: &Scenario, name: &str) {
    let outcome = run(scenario);
    assert_eq!(outcome.broken, [], "{name}");
    let told = outcome.story.text();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.txt"));
    if std::env::var_os("MEMTIDE_BLESS").is_some() {
        std::fs::write(&path, &told).expect("the story can be written");
    }
    let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(told, reviewed, "{}: see the note at the top of the test", path.display());
}
