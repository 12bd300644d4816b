//! Measures what Memtide does, side by side with what a user would choose instead: how fast a guest's
//! memory goes to the host and comes back ([`run`]), beside QEMU's own balloon and virtio-mem and what
//! the kernels can do at most; what a guest holds over time
//! ([`footprint`]); and whether it finds its size by itself ([`size`]).
//!
//! All run on the same QEMU and the same guest kernel with as much memory, in one go, in turns.
//! Memory that is to go has been touched, and is free in the guest: the case that all of them are
//! made for. That it went is read from the memfd behind the guest, that it came back from the
//! guest's own `MemTotal`.

mod alone;
mod clocks;
mod contest;
mod error;
mod figures;
pub mod footprint;
mod huge_pages;
mod machines;
mod memtide;
mod meter;
mod picture;
mod processors;
mod promise;
mod qemu_devices;
mod raw;
mod reclaim;
mod report;
mod setting;
pub mod size;
mod subject;
mod swap_disk;
mod table;
mod touch;
mod workload;

pub use error::BenchError;
pub use picture::picture;
pub use promise::{Judged, Limit, Promise, Verdict};
pub use reclaim::{HugePagesUse, Options, PACKAGES, run};
pub use report::Report;
pub use setting::{Clock, Setting, Swap};
pub use table::table;
