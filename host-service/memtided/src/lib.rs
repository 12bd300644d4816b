//! memtided: decides for a host which VM gets how much memory back, and when.
//!
//! ```text
//! device process A <-socket-> link task A -+                        +- HTTP on a unix socket
//! device process B <-socket-> link task B -+-> keeper (all state) <-+
//! the VMM of VM A  <--QMP---> VMM link A  -+        |               |
//! /proc/meminfo, clock, signals -----------+        |               +- state file, systemd
//!                                                   +-> decisions to the links
//! ```
//!
//! One task owns the state ([`keeper`]): it is told what happened by messages and answers with
//! what to send. It decides nothing itself either: `memtide_policy::host` does. Everything runs on
//! one thread. No guest depends on it: without memtided a device grants by its local rule, and a
//! memtided that comes back asks every device for the truth and attaches again.

mod args;
pub mod config;
mod device;
mod http;
pub mod keeper;
mod meminfo;
mod run;
mod socket;
mod store;
mod storing;
mod supervisor;
mod vmm;

pub use args::Args;
pub use config::Config;
pub use run::{RunError, run};
