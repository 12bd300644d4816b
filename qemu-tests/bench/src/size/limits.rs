//! Every figure that this measurement is to keep, and where it comes from.
//!
//! What nobody else has published is the project's own aim for it.

use crate::promise::{Limit, Promise};

/// The goal that the agent has for stalls, in ‰ of the time (`acceptable_pressure`'s default).
pub(super) const GOAL: f64 = 1.0;
/// Of the windows so many must be within it, in percent; the aim of a guest that has settled.
pub(super) const WITHIN: f64 = 95.0;
/// A fixed size that gets less done than this, of what the whole guest does, hurts. That is twice what Memtide may
/// cost, since two boots of one guest differ by tenths of a percent (docs/performance.md).
pub(super) const UNHURT: f64 = 0.98;
/// So much above the smallest size that does not hurt may a guest settle, in percent; the project's aim.
pub(super) const ABOVE: f64 = 15.0;

/// So many pairs are measured at the least.
pub(super) const PAIRS: usize = 5;
/// A hundredth is the project's aim: of [`PAIRS`] pairs, with three fifths of the guest cold or free.
pub(super) const SLOW_DOWN: Promise = Promise {
    name: "slow_down",
    what: "slower with Memtide, median of all pairs",
    unit: "%",
    limit: Some(Limit::AtMost(1.0)),
};

/// Of the three fifths that are cold or free three quarters: the project's aim, where what is paged out leaves
/// the guest.
pub(super) const SAVED: Promise = Promise {
    name: "saved",
    what: "saved of the guest's memory",
    unit: "%",
    limit: Some(Limit::AtLeast(45.0)),
};

/// [`WITHIN`] of the windows within [`GOAL`].
pub(super) const STALL: Promise = Promise {
    name: "stall",
    what: "windows that stall for 0.1 % at most",
    unit: "%",
    limit: Some(Limit::AtLeast(WITHIN)),
};

/// [`ABOVE`] the sweep's smallest that does not hurt. A size that is too small shows in the slow-down and in the
/// stalls instead.
pub(super) const SETTLED: Promise = Promise {
    name: "settled_size",
    what: "settled above the smallest that is unhurt",
    unit: "%",
    limit: Some(Limit::AtMost(ABOVE)),
};

/// None: what a surge wants is the guest's own memory.
pub(super) const SURGE_HARM: Promise = Promise {
    name: "surge_harm",
    what: "OOM kills and failures in surges",
    unit: "",
    limit: Some(Limit::AtMost(0.0)),
};

/// The project's aim, of the median of those surges for which something had to come back. Single windows differ
/// by a seventh by the host's clock, of which this leaves twice as much.
pub(super) const SURGE_TIME: Promise = Promise {
    name: "surge_time",
    what: "a surge's time, to a guest never shrunk",
    unit: "times",
    limit: Some(Limit::AtMost(1.3)),
};

/// The project's aim, of one processor.
pub(super) const REST: Promise = Promise {
    name: "rest_processor",
    what: "agent and DAMON at rest, of one processor",
    unit: "%",
    limit: Some(Limit::AtMost(1.0)),
};

/// The project's aim, of resident memory.
pub(super) const AGENT_MEMORY: Promise = Promise {
    name: "agent_memory",
    what: "the agent's own memory",
    unit: "MiB",
    limit: Some(Limit::AtMost(12.0)),
};
