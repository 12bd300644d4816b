//! memtide-agent: observes a guest, steals its cold memory blocks, asks them back.
//!
//! ```text
//!  senses, watching    ──► agent ──► policy::guest (decides)
//!  (what the guest is)       │
//!                            ├──► hands, worker ──► memory blocks (offline, online)
//!                            └──► link ──► virtio ──► the device, and so the host
//! ```
//! The agent decides nothing itself: [`agent::Agent::turn`] shows what it sees to
//! `memtide_policy::guest` and carries out the plan. Three rules are its own, and hold the host's
//! invariant up from this side:
//!
//! 1. A block is put online only after the grant for it was read, or when the device is certain to
//!    drop nothing any more that it was told of before ([`link::Link::settle`]).
//! 2. A steal is reported only while the block is offline, and it stays so until the answer.
//! 3. The device's memory is never in a block that may be stolen, never moves while the device may
//!    use it, and outlives the agent ([`dma`]).

pub mod access;
pub mod agent;
pub mod alarm;
pub mod blocks;
pub mod check;
pub mod cli;
pub mod config;
pub mod conversion;
pub mod damon_watch;
pub mod decisions;
pub mod dma;
pub mod handback;
pub mod hands;
pub mod hardware;
pub mod link;
mod overcommit;
pub mod pace;
pub mod pieces;
pub mod private;
pub mod processor_time;
pub mod reclaiming;
pub mod reload;
pub mod remove;
pub mod returns;
pub mod run;
pub mod runtime;
pub mod senses;
pub mod signals;
pub mod status;
pub mod suitable;
pub mod swap_space;
pub mod systemd;
pub mod takeover;
mod tell;
mod views;
pub mod virtio;
mod waiting;
pub mod watching;
pub mod worker;
