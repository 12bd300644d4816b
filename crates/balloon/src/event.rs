//! What the device tells whoever runs it.

use std::time::Duration;

use memtide_units::{ByteSize, GpaRange};
use memtide_wire::block::{Hello, HoldReason, Telemetry, Urgency};

/// Who drives the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// Nobody, or somebody who has not said yet who it is.
    #[default]
    None,
    /// A standard balloon driver: the standard rings run and nobody said hello.
    Stock,
    /// memtide-agent: it said hello.
    Agent,
}

/// Whose word a grant was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantedBy {
    /// The controller's.
    Controller,
    /// Nobody's: the guest holds less than its guaranteed minimum.
    Minimum,
    /// The local rule's, in the absence of a controller.
    LocalRule,
}

/// A return that waits, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingReturn {
    /// The agent's number for it.
    pub ticket: u32,
    /// How badly it is wanted.
    pub urgency: Urgency,
    /// How much.
    pub bytes: ByteSize,
    /// Which blocks.
    pub ranges: Vec<GpaRange>,
    /// Since when.
    pub waited: Duration,
    /// Why it waits.
    pub reason: HoldReason,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another driver, or none.
    DriverChanged(Driver),
    /// The agent said hello and was understood.
    Hello(Hello),
    /// Blocks were stolen; their backing is gone.
    Stolen {
        /// Which.
        ranges: Vec<GpaRange>,
        /// What is stolen in all, after it.
        stolen: ByteSize,
    },
    /// A decision on a return is wanted.
    ReturnAsked(PendingReturn),
    /// It is not wanted any more.
    ReturnCancelled {
        /// Which ticket.
        ticket: u32,
    },
    /// The blocks are the guest's again.
    Returned {
        /// Which ticket.
        ticket: u32,
        /// The blocks.
        ranges: Vec<GpaRange>,
        /// Whose word it was.
        by: GrantedBy,
        /// What is stolen still.
        stolen: ByteSize,
    },
    /// The agent took blocks unasked.
    Taken {
        /// Which.
        ranges: Vec<GpaRange>,
        /// What is stolen still.
        stolen: ByteSize,
    },
    /// The agent is about to eject these, all of them stolen.
    Ejecting {
        /// Which.
        ranges: Vec<GpaRange>,
    },
    /// The agent waits for these to be plugged in again.
    PlugWanted {
        /// Which.
        ranges: Vec<GpaRange>,
    },
    /// How the guest is; once a second at most.
    Telemetry(Telemetry),
    /// A stock driver's balloon has another size.
    Balloon {
        /// Its `actual`.
        actual: ByteSize,
    },
    /// The guest did something that was refused or ignored: for the log. The rate is limited here.
    Refused {
        /// The reason's name, as in the counters.
        reason: &'static str,
        /// What and why, in words.
        text: String,
        /// Lines like this that were held back since the last one.
        suppressed: u64,
    },
}
