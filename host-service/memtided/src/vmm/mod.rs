//! The VM's monitor (QMP): what is plugged in, and plugging in again what the guest has ejected.
//!
//! Only VMs with `qmp` in their configuration have one. QEMU serves one client at a time on a
//! monitor, so each use is a conversation of its own: connect, ask, close.

mod dimms;
#[cfg(test)]
#[allow(dead_code, reason = "the end-to-end tests need all of it")]
#[path = "../../tests/end_to_end/fake_qmp.rs"]
mod fake_qmp;
mod link;
mod qmp;

pub(crate) use dimms::{DIMMS_MAX, Dimm};
pub(crate) use link::VmmLink;

/// What the keeper wants of a VM's monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Look what is plugged in.
    Look,
    /// Plug this in, where it is not.
    Plug(Dimm),
}

/// What a link tells the keeper about its VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VmmNews {
    /// All DIMMs that the VM has now.
    Dimms(Vec<Dimm>),
    /// An [`Order::Plug`] has ended.
    Plug {
        /// The DIMM's backend, which is its name to us.
        memdev: String,
        /// How.
        outcome: PlugOutcome,
    },
    /// The VMM cannot be asked, and why.
    Unusable(String),
}

/// How an [`Order::Plug`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlugOutcome {
    /// It is plugged in again.
    Done,
    /// It was there.
    WasThere,
    /// Its memory backend is there no longer, so that it never will be.
    NoBackend(String),
    /// The VMM refused it, or was not reached; another time perhaps.
    Failed(String),
}
