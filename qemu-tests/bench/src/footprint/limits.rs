//! Every figure that this measurement is to keep, and where it comes from.

use crate::promise::{Limit, Promise};

/// HyperAlloc's published step over free page reporting in a build is 17.8 % (docs/performance.md); Memtide is to
/// go further.
pub(super) const HELD_LESS: Promise = Promise {
    name: "held_less",
    what: "held less than with reporting alone",
    unit: "%",
    limit: Some(Limit::MoreThan(18.0)),
};

/// Two runs of one means that differ by more than this, in percent, were disturbed: by such a difference whatever
/// Memtide costs would be kept. On a machine with nothing else to do the work took 4 % longer with Memtide
/// (docs/performance.md), which is to be told.
pub(super) const RUNS_DIFFER: f64 = 5.0;

/// HyperAlloc's step is at no slow-down. No more than by how much two runs of one means differ can be told from
/// none, and that has to be measured as well: the limit is that difference, [`RUNS_DIFFER`] at most.
pub(super) const SLOW_DOWN: Promise = Promise {
    name: "slow_down",
    what: "fixed work slower than with reporting",
    unit: "%",
    limit: None,
};
