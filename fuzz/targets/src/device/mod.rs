//! The device model, driven by a guest that does what it likes ([`rings`]) and by one that keeps to
//! what a kernel does ([`guest`]), with a controller and time in between.

pub mod guest;
mod memory;
pub mod rings;
