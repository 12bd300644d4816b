//! Measures how fast a guest's memory goes to the host and comes back: Memtide beside QEMU's own
//! balloon and virtio-mem, and beside what the kernels can do at most.
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
mod huge_pages;
mod machines;
mod memtide;
mod meter;
mod picture;
mod processors;
mod qemu_devices;
mod raw;
mod reclaim;
mod report;
mod subject;
mod table;
mod touch;

pub use error::BenchError;
pub use picture::picture;
pub use reclaim::{HugePagesUse, Options, PACKAGES, run};
pub use report::Report;
pub use table::table;
