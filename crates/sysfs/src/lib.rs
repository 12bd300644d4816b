//! The kernel's text files under a root directory: PSI, DAMON, memory blocks, meminfo, kpageflags,
//! swap.
//!
//! Every reader starts from a [`Root`]: `/` in production, a directory of a test's own otherwise.
//! The crate reads and writes; it decides nothing, retries nothing and reads no clock. An absent
//! file ([`Error::Missing`]: the kernel was built without it, or the thing went away) and a file
//! that says something unexpected ([`Error::Garbage`]) are different errors, because the first is
//! an everyday answer and the second a bug in this crate or a kernel that it does not know.
//!
//! The feature `fake` adds a root directory with a small, arrangeable kernel behind it, for the
//! tests of this crate and of those who use it.

pub mod cgroup;
pub mod cpu;
pub mod damon;
pub mod dax;
pub mod dimm;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod hugetlb;
pub mod iomem;
pub mod kpageflags;
pub mod meminfo;
pub mod memory;
pub mod pagemap;
pub mod pci;
pub mod psi;
mod root;
pub mod swaps;
pub mod virtio;
pub mod vmstat;
pub mod zram;

pub use error::{Error, Result};
pub use root::{Root, Writer};
