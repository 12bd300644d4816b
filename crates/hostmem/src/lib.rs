//! Moves real memory on the host: guest memory as regions of files, punch hole, residency.
//!
//! A VMM hands its guest's memory over as file descriptors (memfds, as a rule). [`Regions`] says
//! which guest-physical addresses lie where in which file, after it has checked that they do;
//! [`Regions::punch`] gives backing back to the host, and [`Regions::residency`] tells what is
//! still there. The file is the truth: nothing here remembers what was punched.
//!
//! This crate maps no guest memory; [`Regions::read`] copies out of its files. It never decides
//! *whether* a range may go.

mod backing;
mod punch;
mod read;
mod region;
mod residency;
#[cfg(test)]
mod testing;

pub use backing::{Backing, FileId};
pub use punch::{PunchError, PunchReport};
pub use read::ReadError;
pub use region::{BackedRange, OutsideMemory, Region, RegionError, RegionSpec, Regions};
