//! The quantities that cross crate borders: sizes, addresses, ranges, blocks, time; and what of a
//! stranger's text may be shown.
//!
//! Below every other crate: it knows no kernel, no device, no policy. A bare `u64` between two
//! crates is a bug waiting for the day somebody swaps pages and bytes, so each quantity has a type.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod address;
mod block;
mod ratio;
mod shown;
mod size;
mod time;

pub use address::{Gpa, GpaRange, Pfn, RangeError};
pub use block::{BlockId, BlockSize, BlockSizeError};
pub use ratio::{Permille, PpMillion};
pub use shown::may_be_shown;
pub use size::{ByteSize, ParseSizeError};
pub use time::Instant;
