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

/// HyperAlloc's step is at no slow-down. No more than by how much two runs of one means differ can be told from
/// none, and that has to be measured as well: the limit is that difference.
pub(super) const SLOW_DOWN: Promise = Promise {
    name: "slow_down",
    what: "fixed work slower than with reporting",
    unit: "%",
    limit: None,
};
