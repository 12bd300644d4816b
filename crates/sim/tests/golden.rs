//! One short story of each workload, and some with swap, as they were reviewed: a change of the policy is a
//! difference here.
//!
//! Run the tests with `MEMTIDE_BLESS=1` to write the stories anew, then review the difference.

use std::path::Path;

use memtide_sim::kernel::SwapSpace;
use memtide_sim::workload::Name;
use memtide_sim::{Scenario, run};

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
