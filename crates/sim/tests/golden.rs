//! One short story of each workload, as it was reviewed: a change of the policy is a difference here.
//!
//! Run the tests with `MEMTIDE_BLESS=1` to write the stories anew, then review the difference.

use std::path::Path;

use memtide_sim::workload::Name;
use memtide_sim::{Scenario, run};

/// Three minutes of the workload's own way, three of calm.
const MINUTES: u64 = 6;

#[test]
fn stories_are_as_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    for name in Name::ALL {
        let outcome = run(&Scenario::plain(name, MINUTES));
        assert_eq!(outcome.broken, [], "{name}");
        let told = outcome.story.text();
        let path = folder.join(format!("{name}.txt"));
        if std::env::var_os("MEMTIDE_BLESS").is_some() {
            std::fs::write(&path, &told).unwrap();
        }
        let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(told, reviewed, "{}: see the note at the top of the test", path.display());
    }
}
