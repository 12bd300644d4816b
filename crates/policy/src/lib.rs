//! Decides, never acts: what a guest steals and asks back, what a host grants.
//!
//! Every policy is a value with a `step(now, &observation) -> Plan`; time and chance are arguments,
//! numbers are integers, and each plan says why. Nothing here reads a file, a clock or a socket.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod guest;
pub mod host;
