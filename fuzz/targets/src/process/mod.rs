//! The device process, whole but for its loop: a VMM that says anything ([`session`]), and clients
//! of the control socket that do ([`control`]).

pub mod control;
mod descriptors;
mod guest_memory;
pub mod session;
mod vmm;
