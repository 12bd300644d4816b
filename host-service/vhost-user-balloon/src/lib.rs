//! vhost-user-balloon: the virtio-balloon device as a vhost-user process.
//!
//! One process is one device of one VM. A VMM connects to its socket and hands over the guest's
//! memory and virtqueues (`vhost`); the device model of `memtide-balloon` answers the rings;
//! `memtide-hostmem` drops the backing; whoever steers connects to the control socket and speaks
//! the protocol of `memtide_api::device` (`control`).
//!
//! One thread does all of it, one thing at a time ([`Service::run`]). That is not only simple: it
//! is what makes "the discard is complete before the answer" and "nothing is written after the
//! ring has stopped" true by construction.
//!
//! Absent on purpose: policy (the controller's), other VMs, guest memory content beyond rings and
//! request buffers, and any reaction to a guest's bytes that a VMM could die of.

pub mod cli;
mod clock;
mod control;
pub mod inherited;
mod log;
mod service;
mod sockets;
mod systemd;
mod vhost;

#[cfg(feature = "fuzzing")]
pub use service::fuzzing;
pub use service::{Options, Service, StartError, VmmSource};
pub use sockets::{Endpoint, ListenError};
