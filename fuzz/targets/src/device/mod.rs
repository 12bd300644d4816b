//! The device model, driven by a guest that does what it likes ([`rings`]) and by one that keeps to
//! what a kernel does ([`guest`]), with a controller and time in between; and what goes along with it from
//! host to host ([`state`]).

pub mod guest;
mod memory;
pub mod rings;
pub mod state;
